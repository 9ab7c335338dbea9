"""Swarms of mixtures in two files, as olmix and RegMix keep them: the shares of every run, and its metrics.

olmix (github.com/allenai/olmix, README and `olmix/fit/loaders.py`): `ratios.csv` and `metrics.csv` are joined on
`run`, or on `run_id` where there is none; `name`, `index` and unnamed columns tell nothing, all others are domains and
metrics. Shares add up to 1 within .01.
RegMix (github.com/sail-sg/regmix, regression_fitting/collect_mixture_data.py and collect_loss_data.py):
`train_mixture_1m.csv` with `train_DOMAIN` and `train_pile_loss_1m.csv` with `metric/NAME_val_loss`, joined on `index`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.errors import InputError
from foretune.ledger.exporting import write_frames
from foretune.ledger.tabular import Table, read_table

if TYPE_CHECKING:
    import pandas as pd

SUM_TOLERANCE = 0.01
"""Shares of a run may miss a sum of 1 by this: what olmix's own reader allows (`load_from_csv`, atol)."""
LOSS_UNITS = ("nats_per_token", "bits_per_byte")
"""Units that this package writes and reads."""
LISTED = 8
"""Runs that one message names."""
PLACE = "source"
"""The column of the run table that keeps a run's own name, with the file that it came from."""


@dataclass(frozen=True)
class SwarmFormat:
    """How a project names the columns and files of its swarms."""

    keys: tuple[str, ...]
    """Columns that name a run, the preferred one first."""
    share: str
    """What the name of a column of shares begins with, before the domain."""
    metric: tuple[str, str]
    """What the name of a metric's column begins and ends with."""
    files: tuple[str, str]
    """The word in the name of the file of shares, and what stands there in that of the metrics."""
    loss_unit: str
    """Unit of the metrics unless the person who imports them says otherwise."""
    skipped: tuple[str, ...] = ("name", "index")
    """Columns that say nothing of the run."""


SWARM_FORMATS = {
    "olmix": SwarmFormat(("run", "run_id"), "", ("", ""), ("ratios", "metrics"), "bits_per_byte"),
    "regmix": SwarmFormat(
        ("index",), "train_", ("metric/", "_val_loss"), ("mixture", "pile_loss"), "nats_per_token", ("name",)
    ),
}
"""By the name that `--format` takes."""


@dataclass(frozen=True)
class Swarm:
    """Both files as one table."""

    table: Table
    """Columns `source` (the run's own name), mix/DOMAIN and loss/METRIC."""
    ratios: Path
    """The file of the shares."""
    metrics: Path
    """The file of the metrics."""
    origins: Mapping[str, str]
    """Column of the table -> column of its file."""
    unread: tuple[str, ...]
    """Columns of both files that were not read."""

    def place_column(self, name: str) -> str:
        """A column of the table as its file has it, with the file: a domain and a metric may be called alike."""
        file = self.ratios if name.startswith("mix/") else self.metrics
        return f"{file.name}: {self.origins[name]}" if name in self.origins else name


def read_swarm(ratios: Path, kind: str, metrics: Path | None = None) -> Swarm:
    """Join the shares of every run with its metrics, which lie beside them unless a file is named.

    Raises InputError, with all that is wrong, for a run that is in one file only or twice in one, for a file without a
    column that names the runs, and where there is no file of metrics.
    """
    form = SWARM_FORMATS[kind]
    shares = read_table(ratios, "csv")
    metrics = metrics or _find_metrics(ratios, form)
    if metrics.resolve() == ratios.resolve():
        raise InputError(f"--metrics: {metrics} is the file of the shares; name that of the metrics")
    measured = read_table(metrics, "csv")
    left, right = (_index_runs(path, table, form) for path, table in ((ratios, shares), (metrics, measured)))
    problems = [*_name_missing(left, right, ratios, metrics), *_name_missing(right, left, metrics, ratios)]
    if problems:
        raise InputError("\n".join([*problems, "nothing was read; take these rows out, or add what is missing"]))
    domains, losses = _name_domains(shares.columns, form), _name_metrics(measured.columns, form)
    for path, found, what in ((ratios, domains, "domains"), (metrics, losses, "metrics")):
        if not found:
            raise InputError(f"{path}: no columns of {what}; is this the file of the {what}?")
    rows = [
        {PLACE: run, **_take(shares.rows[at], domains), **_take(measured.rows[right[run]], losses)}
        for run, at in left.items()
    ]
    origins = {name: column for names in (domains, losses) for column, name in names.items()}
    unread = [
        name for table in (shares, measured) for name in table.columns if name not in {*origins.values(), *form.keys}
    ]
    joined = Table((PLACE, *origins), tuple(rows), tuple(f"run {run}" for run in left))
    return Swarm(joined, ratios, metrics, origins, tuple(dict.fromkeys(unread)))


def rename_map(column_map: Mapping[str, str], swarm: Swarm) -> dict[str, str]:
    """A user's map in the columns of the joined table: mix/DOMAIN, loss/METRIC, or either as its own file has it."""
    named = {}
    for column, name in column_map.items():
        found = [known for known, origin in swarm.origins.items() if column in (known, origin, known.split("/", 1)[1])]
        if len(found) > 1:
            raise InputError(f"--map {column}={name}: a domain and a metric; say which: {' or '.join(found)}")
        named[found[0] if found else column] = name
    return named


def check_runs(rows: Sequence[Mapping[str, Any]], places: Sequence[str], losses: Collection[str]) -> None:
    """Raise InputError for shares that are none or do not add up to 1, and for runs with some metrics only.

    A run without any metric diverged, and is kept as that.
    """
    problems = []
    for fields, place in zip(rows, places, strict=True):
        mix, total = fields["mix"], math.fsum(fields["mix"].values())
        wrong = [f"{name} {share:g}" for name, share in mix.items() if not 0 <= share <= 1 + SUM_TOLERANCE]
        if wrong or abs(total - 1) > SUM_TOLERANCE:
            told = f", got {_list_names(wrong)}" if wrong else f" within {SUM_TOLERANCE:g}, got {total:.6g}"
            problems.append(f"{place}: shares must lie between 0 and 1 and add up to 1{told}")
        missing = sorted(set(losses) - set(fields["loss_by_domain"]))
        if fields["loss_by_domain"] and missing:
            told = _list_names(missing)
            problems.append(f"{place}: no finite value of {told}; fill it in, or leave it: --map {missing[0]}=ignore")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        advice = f"nothing was read; correct this and try again{_guess_mistake(rows)}"
        raise InputError("\n".join([*problems[:LISTED], *more, advice]))


def _guess_mistake(rows: Sequence[Mapping[str, Any]]) -> str:
    """What went wrong with shares, where it is the same in every run."""
    totals = [math.fsum(fields["mix"].values()) for fields in rows]
    if all(abs(total - 100) <= 100 * SUM_TOLERANCE for total in totals):
        return "; these are percent: divide them by 100"
    if all(abs(total - 1) > SUM_TOLERANCE for total in totals):
        return "; no run has shares: is this the file of the shares, and are all of its other columns left out?"
    return ""


def note_unit(kind: str, losses: Sequence[str], loss_unit: str) -> list[str]:
    """In which unit the metrics were read, where nobody said it."""
    doubtful = [name for name in losses if kind == "olmix" and "bpb" not in name.lower()]
    told = f"; by its name {_list_names(doubtful)} need not be in bits per byte" if doubtful else ""
    other = next(unit for unit in LOSS_UNITS if unit != loss_unit)
    note = f"loss_unit is taken as {loss_unit} for {len(losses)} metrics{told}; else: --set loss_unit={other}"
    return [note, "of every metric less must be better; leave others out: --map METRIC=ignore"]


def export_swarm(frame: pd.DataFrame, path: Path, *, force: bool = False) -> Path:
    """Write the shares and metrics of runs as olmix reads them, and return the file of the metrics.

    `frame` has run_id, mix/DOMAIN and loss/METRIC without gaps. Raises InputError for a name that does not tell the two
    files apart, and for existing files without `force`.
    """
    metrics = _find_metrics(path, SWARM_FORMATS["olmix"], written=True)
    parts = {}
    for place, prefix in ((path, "mix/"), (metrics, "loss/")):
        columns = [str(name) for name in frame if str(name).startswith(prefix)]
        part = frame[["run_id", *columns]]
        parts[place] = part.set_axis(["run", *(name.removeprefix(prefix) for name in columns)], axis=1)
    write_frames(parts, force=force)
    return metrics


def _find_metrics(ratios: Path, form: SwarmFormat, *, written: bool = False) -> Path:
    here, there = form.files
    place = ratios.with_name(there.join(ratios.name.rsplit(here, 1)))
    if place == ratios or (written and ratios.suffix != ".csv"):
        what = f"must contain {here!r} and end in .csv, as in {here}.csv" if written else f"does not contain {here!r}"
        raise InputError(f"{ratios}: the name {what}{'' if written else '; name the metrics: --metrics FILE'}")
    if not written and not place.is_file():
        raise InputError(f"{ratios}: no metrics beside it (looked at {place}); name them: --metrics FILE")
    return place


def _index_runs(path: Path, table: Table, form: SwarmFormat) -> dict[str, int]:
    """Name of each run -> its row."""
    key = next((name for name in form.keys if name in table.columns), "")
    if not key:
        raise InputError(
            f"{path}: must have a column {' or '.join(form.keys)} that names the runs; has {_list_names(table.columns)}"
        )
    found: dict[str, int] = {}
    problems = []
    for at, (cells, place) in enumerate(zip(table.rows, table.positions, strict=True)):
        run = cells[key]
        if run is None:
            problems.append(f"{path}: {place}: no name of a run in column {key}")
        elif run in found:
            problems.append(f"{path}: {place}: run {run} again, as in {table.positions[found[run]]}")
        else:
            found[run] = at
    if problems:
        raise InputError("\n".join([*problems[:LISTED], "nothing was read; every run stands once in each file"]))
    return found


def _name_missing(runs: Collection[str], others: Collection[str], here: Path, there: Path) -> list[str]:
    missing = [run for run in runs if run not in others]
    return [f"{there}: no row for {len(missing)} runs of {here.name}: {_list_names(missing)}"] if missing else []


def _name_domains(columns: Sequence[str], form: SwarmFormat) -> dict[str, str]:
    """Column of the shares -> mix/DOMAIN."""
    read = [name for name in _list_columns(columns, form) if name.startswith(form.share)]
    return {name: f"mix/{name.removeprefix(form.share)}" for name in read}


def _name_metrics(columns: Sequence[str], form: SwarmFormat) -> dict[str, str]:
    """Column of the metrics -> loss/METRIC."""
    start, end = form.metric
    read = [name for name in _list_columns(columns, form) if name.startswith(start) and name.endswith(end)]
    return {name: f"loss/{name.removeprefix(start).removesuffix(end)}" for name in read}


def _list_columns(columns: Sequence[str], form: SwarmFormat) -> list[str]:
    told = {*form.keys, *form.skipped}
    return [name for name in columns if name and name not in told and not name.startswith("Unnamed")]


def _take(cells: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {name: cells[column] for column, name in names.items()}


def _list_names(names: Collection[str]) -> str:
    shown = list(names)[:LISTED]
    return ", ".join(shown) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
