"""Loss curves: what a run logged while its learning rate followed a schedule. Checked and immutable.

    curves = Curves.from_frame(frame, warmup_steps=2160)     # columns run_id, step, lr, loss
    scalelaws.fit("multi_power", curves)

Time is counted in optimizer steps. The learning rate of update k holds on (k - 1, k]: a schedule whose rate is constant
between jumps therefore sums exactly as its updates do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.curves.schedules import Schedule
from scalelaws.observations import BoolArray, Exclusion, FloatArray, ObservationError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"label": ("run_id", "label", "run"), "step": ("step",), "lr": ("lr",), "loss": ("loss", "loss_nats")}
"""Names under which a table of curves may hold each column; the first one found is read."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One run: its schedule, and the losses that it logged."""

    label: str
    schedule: Schedule
    step: FloatArray
    """Logged steps, ascending, inside the schedule."""
    loss: FloatArray
    """Loss at these steps (nats per token); NaN or +inf where training diverged."""
    params_non_embedding: float = np.nan
    """Parameters of the model; NaN where they are unknown."""
    batch_tokens: float = np.nan
    """Tokens per step; NaN where they are unknown."""

    def __post_init__(self) -> None:
        """Converts to read-only float64 and refuses unusable rows."""
        for name in ("step", "loss"):
            object.__setattr__(self, name, _as_array(getattr(self, name), f"curve {self.label}: {name}"))
        if len(self.step) == 0 or self.step.shape != self.loss.shape:
            raise ObservationError(
                f"curve {self.label}: step and loss need one entry per logged step; got {len(self.step)} steps and "
                f"{len(self.loss)} losses"
            )
        if not np.isfinite(self.step).all():
            raise ObservationError(f"curve {self.label}: step must be finite; drop the rows without it")
        outside = (self.step <= 0) | (self.step > self.schedule.steps)
        if (np.diff(self.step) <= 0).any() or outside.any():
            raise ObservationError(
                f"curve {self.label}: logged steps must ascend within the schedule (0, {self.schedule.steps:g}]; "
                f"got {self.step.min():g} to {self.step.max():g}. Sort the rows and drop repeated steps"
            )
        if (self.loss <= 0).any():
            raise ObservationError(f"curve {self.label}: losses must be positive; got {np.nanmin(self.loss):g}")

    def __len__(self) -> int:
        """Number of logged steps."""
        return len(self.step)

    @property
    def final_loss(self) -> float:
        """The last logged loss."""
        return float(self.loss[-1])

    def keep(self, mask: ArrayLike) -> Curve:
        """The curve with the logged steps of the mask."""
        chosen = np.asarray(mask, dtype=bool)
        return replace(self, step=self.step[chosen], loss=self.loss[chosen])

    def stride(self, every: int) -> Curve:
        """Every so many-th logged step, the last one among them."""
        return self.keep((np.arange(len(self))[::-1] % every) == 0)


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of one model size and one batch under several schedules."""

    curves: tuple[Curve, ...]
    loss_unit: str = "nats_per_token"
    scope: Mapping[str, str] = field(default_factory=dict)
    """Free text about where the curves hold: optimizer, batch, data, smoothing of the loss."""
    excluded: tuple[Exclusion, ...] = ()
    """What was left out before these curves were reached."""

    def __post_init__(self) -> None:
        """Refuses an empty set, equal labels and a mixture of model sizes or batches."""
        object.__setattr__(self, "curves", tuple(self.curves))
        labels = [curve.label for curve in self.curves]
        if not labels:
            raise ObservationError("there are no curves; give at least one, or look at what was excluded")
        if len(set(labels)) < len(labels):
            repeated = next(label for label in labels if labels.count(label) > 1)
            raise ObservationError(f"every curve needs a label of its own; {repeated!r} is there twice")
        for name, what in (("params_non_embedding", "model size"), ("batch_tokens", "batch")):
            known = {float(getattr(curve, name)) for curve in self.curves if np.isfinite(getattr(curve, name))}
            if len(known) > 1:
                raise ObservationError(
                    f"a law of the curve holds for one {what}; these curves have {len(known)}: "
                    f"{', '.join(f'{value:.4g}' for value in sorted(known))}. Fit each {what} by itself"
                )

    def __len__(self) -> int:
        """Number of curves."""
        return len(self.curves)

    def __iter__(self) -> Iterator[Curve]:
        """The curves in order."""
        return iter(self.curves)

    def __getitem__(self, label: str) -> Curve:
        """The curve of that label."""
        for curve in self.curves:
            if curve.label == label:
                return curve
        raise KeyError(f"there is no curve {label!r}; known are {', '.join(curve.label for curve in self.curves)}")

    def select(self, labels: Collection[str], reason: str = "not selected") -> Curves:
        """The curves of these labels; the others are recorded as excluded for `reason`."""
        kept = tuple(self[label] for label in labels)
        return self._replace(kept, Exclusion(reason, len(self) - len(kept)))

    def usable(self) -> Curves | None:
        """Curves with a finite loss after the warm-up, and these points of them; None where there are none.

        A schedule ends with the last of them: what was planned after a run broke off has not been seen.
        """
        parts = [_cut(curve.keep(_is_usable(curve))) for curve in self.curves if _is_usable(curve).any()]
        if not parts:
            return None
        return self._replace(tuple(parts), Exclusion("no finite loss after the warm-up", len(self) - len(parts)))

    def _replace(self, kept: tuple[Curve, ...], exclusion: Exclusion) -> Curves:
        return replace(self, curves=kept, excluded=(*self.excluded, *([exclusion] if exclusion.runs else [])))

    @classmethod
    def from_frame(
        cls, frame: pd.DataFrame, *, warmup_steps: float = 0.0, scope: Mapping[str, str] | None = None
    ) -> Curves:
        """Reads a table of logged steps: run_id (or label, run), step, lr, loss; optionally params_non_embedding
        and batch_tokens, constant within a run.

        The schedule is read from the logged rates (`Schedule.of_log`; `warmup_steps` counts those of a warm-up that was
        not logged). Where it is known exactly, give `Curve(label, Schedule(...), ...)` instead.

        Raises ObservationError when a column is missing or unusable.
        """
        names = {name: _find(frame, known) for name, known in COLUMNS.items()}
        if frame[names["label"]].isna().any():
            raise ObservationError(f"every row needs a {names['label']}; some have none. Name their run, or drop them")
        curves = []
        for label, rows in frame.groupby(names["label"], sort=False):
            rows = rows.sort_values(names["step"])
            step, lr, loss = (_read(rows, names[name], str(label)) for name in ("step", "lr", "loss"))
            schedule = Schedule.of_log(step, lr, warmup_steps=warmup_steps)
            sizes = (_constant(rows, name, str(label)) for name in ("params_non_embedding", "batch_tokens"))
            curves.append(Curve(str(label), schedule, step, loss, *sizes))
        return cls(tuple(curves), scope=dict(scope or {}))


def _is_usable(curve: Curve) -> BoolArray:
    return np.isfinite(curve.loss) & (curve.step >= curve.schedule.warmup_steps)


def _cut(curve: Curve) -> Curve:
    return replace(curve, schedule=curve.schedule.until(float(curve.step[-1])))


def _as_array(values: ArrayLike, where: str) -> FloatArray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ObservationError(f"{where} must be numbers: {error}") from error
    if array.ndim != 1:
        raise ObservationError(f"{where} must be one-dimensional; got shape {array.shape}")
    array.setflags(write=False)
    return array


def _find(frame: pd.DataFrame, known: tuple[str, ...]) -> str:
    for column in known:
        if column in frame.columns:
            return column
    raise ObservationError(
        f"the table of curves needs a column {' or '.join(known)}; it has {', '.join(map(str, frame))}"
    )


def _read(rows: pd.DataFrame, column: str, label: str) -> FloatArray:
    values = _as_array(rows[column].to_numpy(), f"curve {label}: {column}")
    if column != "loss" and not np.isfinite(values).all():
        raise ObservationError(f"curve {label}: {column} must be finite; drop the rows without it")
    return values


def _constant(rows: pd.DataFrame, column: str, label: str) -> float:
    if column not in rows.columns:
        return float("nan")
    values = rows[column].dropna().unique()
    if len(values) > 1:
        raise ObservationError(f"curve {label}: {column} must be one number per run; got {len(values)} of them")
    return float(values[0]) if len(values) else float("nan")
