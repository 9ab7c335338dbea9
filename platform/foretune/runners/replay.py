"""No training: outcomes come from a closed form (`Surface`) or from a table of runs that somebody measured."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from foretune.errors import InputError
from foretune.records import RunOutcome, RunSpec, RunStatus
from foretune.runners.interface import More, Note, Observer, ask_nothing, ignore_note
from foretune.runners.surface import Surface
from foretune.runners.trainers import fail
from foretune.sections import RunnerSection

if TYPE_CHECKING:
    import pandas as pd

MATCH_TOLERANCE = 1e-6
"""Largest relative difference at which a setting of the table is that of a run: the digits that a CSV file keeps."""
_REQUIRED = ("params_non_embedding", "tokens", "peak_lr", "loss")


class Source(Protocol):
    """Where a replayed outcome comes from."""

    def evaluate(self, spec: RunSpec) -> RunOutcome:
        """The outcome of a run."""
        ...


class ReplayRunner:
    """Looks runs up in order; nothing is trained, and the ledger says so."""

    def __init__(self, section: RunnerSection) -> None:
        """Raises InputError when the table cannot be read."""
        self._source: Source = Surface(section.surface) if section.surface else RunTable(Path(section.table))
        self._pause_seconds = section.surface.seconds_per_run if section.surface else 0.0
        self._description = "closed form" if section.surface else section.table

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Yield the outcome of each run, in the order given; see `Runner.run`."""
        waiting = deque(_check_replayed(specs))
        while waiting:
            spec = waiting.popleft()
            outcome = self._source.evaluate(spec)
            held_out = [point for point in outcome.curve if point.held_out is not None]
            for point in held_out:
                if self._pause_seconds:
                    time.sleep(self._pause_seconds / len(held_out))
                observe(spec, point)
            yield spec, outcome
            waiting += _check_replayed(more())

    def describe(self) -> str:
        """One line for people."""
        return f"replay: {self._description}, nothing is trained"

    def close(self) -> None:
        """Nothing was started."""


class RunTable:
    """Measured runs, found by their settings.

    The file holds the run table's names. Compared are params_non_embedding, tokens and peak_lr, and batch_tokens,
    parametrization and seed where the table has them.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; raises InputError naming file, rule and what was found."""
        frame = _read_table(path)
        missing = [name for name in _REQUIRED if name not in frame]
        if missing:
            raise InputError(f"{path}: a run table needs the columns {', '.join(_REQUIRED)}; missing {missing}")
        units = set(frame["loss_unit"].dropna()) - {"nats_per_token"} if "loss_unit" in frame else set()
        if units:
            raise InputError(f"{path}: loss_unit must be nats_per_token, got {sorted(units)}; convert the losses first")
        self._path = path
        self._rows = frame.reset_index(drop=True)

    def evaluate(self, spec: RunSpec) -> RunOutcome:
        """The outcome of the row with this run's settings; a failed one with the nearest row where there is none."""
        settings = self._settings_of(spec)
        distance = self._distances(settings)
        matches = self._rows[distance <= MATCH_TOLERANCE]
        if matches.empty:
            return fail(
                f"{self._path.name}: no row with {_render(settings)}; {self._describe_nearest(distance, settings)}"
            )
        if matches["loss"].nunique(dropna=False) > 1:
            hint = "add a seed column, or keep one row of each"
            return fail(f"{self._path.name}: {len(matches)} rows with {_render(settings)} and different losses; {hint}")
        return self._outcome_of(matches.iloc[0], spec)

    def _settings_of(self, spec: RunSpec) -> dict[str, float | str]:
        settings: dict[str, float | str] = {
            "params_non_embedding": spec.model.shape.params_non_embedding,
            "tokens": spec.tokens,
            "peak_lr": spec.training.peak_lr,
            "batch_tokens": spec.training.batch_tokens,
            "parametrization": spec.model.parametrization,
            "seed": spec.seed,
        }
        return {name: value for name, value in settings.items() if name in self._rows}

    def _distances(self, settings: dict[str, float | str]) -> np.ndarray:
        """Largest relative difference per row; infinite where a label or the seed differs."""
        distance = np.zeros(len(self._rows))
        for name, value in settings.items():
            column = self._rows[name]
            if name in ("parametrization", "seed"):
                off = np.where(column.isna() | (column == value), 0.0, math.inf)
            else:
                off = np.abs(column.to_numpy(dtype=float, na_value=math.nan) / float(value) - 1)
            distance = np.maximum(distance, np.nan_to_num(off, nan=math.inf, posinf=math.inf))
        return distance

    def _describe_nearest(self, distance: np.ndarray, settings: dict[str, float | str]) -> str:
        if not len(distance) or not np.isfinite(distance.min()):
            return "no row is of that parametrization and seed"
        row = self._rows.iloc[int(distance.argmin())]
        return "nearest: " + _render({name: row[name] for name in settings})

    def _outcome_of(self, row: pd.Series, spec: RunSpec) -> RunOutcome:
        loss, reason = float(row["loss"]), str(row.get("reason") or f"recorded in {self._path.name}")
        status = RunStatus(str(row.get("status") or RunStatus.COMPLETED))
        if status is RunStatus.COMPLETED and not math.isfinite(loss):
            status, reason = RunStatus.DIVERGED, f"loss {loss} in {self._path.name}"
        if status is not RunStatus.COMPLETED:
            return RunOutcome(status=status, reason=reason, device="replay (table)")
        return RunOutcome(status=status, loss=loss, tokens=spec.tokens, device="replay (table)")


def _check_replayed(specs: Sequence[RunSpec]) -> Sequence[RunSpec]:
    """These runs, or InputError where one of them is another trainer's."""
    foreign = sorted({spec.trainer for spec in specs if not spec.trainer.startswith("replay:")})
    if foreign:
        raise InputError(f"trainer {foreign[0]!r}: a replayed run must be named replay:..., or it passes for trained")
    return specs


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd  # takes half a second, and a closed form does without it

    if not path.is_file():
        raise InputError(f"runner.table: {str(path)!r} not found (looked at {path.resolve()})")
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise InputError(f"runner.table: {path}: not a CSV or Parquet file: {error}") from error


def _render(settings: dict[str, float | str]) -> str:
    return ", ".join(f"{k} {v:.9g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in settings.items())
