"""Other people's runs as records: columns understood and reported, bad values named, nothing guessed in silence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from foretune.errors import InputError
from foretune.ledger.cells import RowReader, content_of
from foretune.ledger.columns import STEPLAW_ALIASES, Resolution, check_constants, resolve_columns
from foretune.ledger.frames import frame_records
from foretune.ledger.swarms import PLACE, SWARM_FORMATS, check_runs, note_unit, read_swarm, rename_map
from foretune.ledger.tabular import Table, add_constants, guess_kind, read_table
from foretune.records import RunRecord, RunStatus, hash_content
from foretune.sections import NAME_PATTERN

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["csv", "parquet", "jsonl", "steplaw", "olmix", "regmix"]

LISTED_PROBLEMS = 10

STEPLAW_FIELDS = {"optimizer": "adamw", "schedule": "cosine", "loss_kind": "train"}
"""What every run of Li et al. 2025 (Step Law, arXiv:2503.04715, training settings) shares: AdamW, warm-up, then
cosine to a fixed final learning rate. Their `loss` is the smoothed training loss."""

RESULT_FIELDS = frozenset(
    {"run_id", "source", "status", "reason", "created_at", "wall_seconds", "device", "seed"}
    | {"loss", "loss_by_domain", "bits_per_byte", "tokens_trained"}
    | {"spent_flops", "pack_size", "instability"}
)
"""What does not make two runs settings of their own."""


@dataclass(frozen=True)
class ImportedRuns:
    """The rows of a file, and how they were understood."""

    records: tuple[RunRecord, ...]
    resolved: dict[str, str]
    """Column of the file -> column of the run table."""
    unused: tuple[str, ...]
    """Columns that were not read."""
    notes: tuple[str, ...]
    """Units, derived columns, duplicates, and what a user ought to check."""


def import_runs(
    path: str | Path,
    *,
    study: str,
    column_map: Mapping[str, str] | None = None,
    constants: Mapping[str, str] | None = None,
    format: Format | Literal[""] = "",
    metrics: str | Path | None = None,
) -> ImportedRuns:
    """Read a file of runs for a study; nothing is written to a ledger.

    `column_map` reads a column of the file as a name of the run table, or as `ignore`; `constants` are values that all
    runs share and the file does not tell, by name of the run table. The suffix decides where no format is given. A
    swarm (`swarms.SWARM_FORMATS`) has its `metrics` in a second file, looked for beside the first. A run's id is the
    hash of its row with the constants, so the same row is the same run in every file. Rows without a finite loss stay,
    as diverged. Raises InputError with all bad values by line.
    """
    if not re.fullmatch(NAME_PATTERN, study):
        raise InputError(f"study: must be lower-case letters, digits, '.', '_' or '-', at most 64, got {study!r}")
    if metrics and format not in SWARM_FORMATS:
        raise InputError(f"--metrics: only swarms have a second file; add --format {' or '.join(SWARM_FORMATS)}")
    path, column_map, constants = Path(path), column_map or {}, constants or {}
    if format in SWARM_FORMATS:
        return _read_swarm(path, study, column_map, constants, format, Path(metrics) if metrics else None)
    return _read_file(path, study, column_map, constants, format)


def read_runs(
    path: str | Path, column_map: Mapping[str, str] | None = None, constants: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """A file of runs as a run table, without a ledger; what was understood is in `attrs` (resolved, unused, notes)."""
    path = Path(path)
    imported = _read_file(path, path.stem, column_map or {}, constants or {}, "")
    frame = frame_records(imported.records)
    frame.attrs = {"resolved": imported.resolved, "unused": list(imported.unused), "notes": list(imported.notes)}
    return frame


def _read_file(
    path: Path, study: str, column_map: Mapping[str, str], constants: Mapping[str, str], format: Format | Literal[""]
) -> ImportedRuns:
    steplaw = format == "steplaw"
    table = read_table(path, guess_kind(path) if steplaw or not format else format)
    with _naming(path):
        check_constants(constants, table.columns)
        table = add_constants(table, constants)
        named = {**column_map, **{name: name for name in constants}}
        resolution = resolve_columns(table.columns, named, STEPLAW_ALIASES if steplaw else None)
        rows, notes = _read_rows(table, resolution)
    defaults = {"source": _name_source(path), **(STEPLAW_FIELDS if steplaw else _guess_loss_kind(resolution))}
    return _make_records(study, table, rows, resolution, defaults, notes)


def _read_swarm(
    path: Path, study: str, column_map: Mapping[str, str], constants: Mapping[str, str], kind: str, metrics: Path | None
) -> ImportedRuns:
    """Shares and metrics of the same runs; every run keeps the name that it had in `source`."""
    swarm = read_swarm(path, kind, metrics)
    with _naming(path):
        check_constants(constants, swarm.table.columns)
        table = add_constants(swarm.table, constants)
        named = {**rename_map(column_map, swarm), PLACE: PLACE, **{name: name for name in constants}}
        resolution = resolve_columns(table.columns, named)
        rows, notes = _read_rows(table, resolution, "a column that is no domain and no metric: --map COLUMN=ignore")
        losses = [name.removeprefix("loss/") for name in resolution.resolved.values() if name.startswith("loss/")]
        check_runs(rows, table.positions, losses)
    files = f"{_name_source(path)} and {_name_source(swarm.metrics)}"
    for fields in rows:
        fields["source"] = f"run {fields['source']} of {files}"
    defaults = {"loss_unit": SWARM_FORMATS[kind].loss_unit}
    if "loss_unit" not in resolution.resolved.values():
        notes += note_unit(kind, losses, defaults["loss_unit"])
    imported = _make_records(study, table, rows, resolution, defaults, notes)
    return replace(
        imported,
        resolved={swarm.place_column(column): name for column, name in imported.resolved.items()},
        unused=(*map(swarm.place_column, imported.unused), *swarm.unread),
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file before every line of an error."""
    try:
        yield
    except InputError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _make_records(
    study: str,
    table: Table,
    rows: Sequence[dict[str, Any]],
    resolution: Resolution,
    defaults: Mapping[str, Any],
    notes: list[str],
) -> ImportedRuns:
    unique = {_identify(fields, cells): (fields, cells) for fields, cells in zip(rows, table.rows, strict=True)}
    if len(unique) < len(rows):
        notes.append(f"{len(rows) - len(unique)} rows repeat another row cell by cell and count once")
    drafts = [{**defaults, **fields, "run_id": run_id} for run_id, (fields, _) in unique.items()]
    notes += _number_replicates(drafts, [cells for _, cells in unique.values()], resolution)
    notes += _derive(drafts)
    records = tuple(RunRecord(**{**draft, "study": study}) for draft in drafts)
    return ImportedRuns(records, resolution.resolved, resolution.unused, (*resolution.notes, *notes))


def _read_rows(table: Table, resolution: Resolution, advice: str = "") -> tuple[list[dict[str, Any]], list[str]]:
    reader = RowReader(resolution)
    rows = [reader.read(cells, where) for cells, where in zip(table.rows, table.positions, strict=True)]
    if reader.problems:
        more = len(reader.problems) - LISTED_PROBLEMS
        listed = reader.problems[:LISTED_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        told = f"; {advice}" if advice else ""
        raise InputError("\n".join([*listed, f"nothing was read; correct these values and try again{told}"]))
    return rows, [f"{column}: {count} values were rounded to whole numbers" for column, count in reader.rounded.items()]


def _identify(fields: Mapping[str, Any], cells: Mapping[str, Any]) -> str:
    """The id that a table of this package gives, else the hash of the row."""
    return str(fields.get("run_id") or hash_content(content_of(cells))[:16])


def _guess_loss_kind(resolution: Resolution) -> dict[str, str]:
    column = next((column for column, name in resolution.resolved.items() if name == "loss"), "")
    return {"loss_kind": "train"} if column.lower().startswith("train") else {}


def _number_replicates(
    drafts: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, Any]], resolution: Resolution
) -> list[str]:
    """Give runs of the same settings a replicate index in `seed`, where the table has no seeds."""
    groups: dict[str, list[int]] = {}
    for index, draft in enumerate(drafts):
        settings = {name: value for name, value in draft.items() if name not in RESULT_FIELDS}
        groups.setdefault(hash_content(settings), []).append(index)
    repeated = [group for group in groups.values() if len(group) > 1]
    if not repeated or "seed" in resolution.resolved.values():
        return []
    for group in repeated:
        for replicate, index in enumerate(group):
            drafts[index]["seed"] = replicate
    differing = [
        column
        for column in resolution.unused
        if any(len({repr(rows[index][column]) for index in group}) > 1 for group in repeated)
    ]
    count = sum(len(group) for group in repeated)
    hint = f"; but they differ in {', '.join(differing[:8])}: are these settings? then import them apart"
    return [f"{count} rows share their settings with another: `seed` numbers them{hint if differing else ''}"]


def _derive(drafts: Sequence[dict[str, Any]]) -> list[str]:
    """Fill in what follows from other columns, and say so."""
    notes = _derive_compute(drafts)
    for draft in drafts:
        _derive_batch(draft)
    diverged = sum(draft["status"] == RunStatus.DIVERGED for draft in drafts)
    return (
        [*notes, f"{diverged} rows diverged or have no finite loss; they are kept as diverged"] if diverged else notes
    )


def _derive_compute(drafts: Sequence[dict[str, Any]]) -> list[str]:
    """Fill in 6 N D where FLOPs are missing (Kaplan et al. 2020, section 2.1), or compare it with what is given."""
    ratios, derived = [], 0
    for draft in drafts:
        params = draft.get("params_active") or draft.get("params_non_embedding") or draft.get("params_total")
        estimate = 6.0 * float(params or 0) * float(draft["tokens"])
        if draft.get("compute_flops") is None:
            draft["compute_flops"] = estimate
            derived += 1
        else:
            ratios.append(draft["compute_flops"] / estimate)
    notes = [f"compute_flops of {derived} rows is derived: 6 x parameters x tokens"] if derived else []
    if ratios:
        notes.append(f"compute_flops as given is {median(ratios):.3g} x (6 x parameters x tokens) in the median")
    return notes


def _derive_batch(draft: dict[str, Any]) -> None:
    """Tokens and sequences per step from each other, where the sequence length is known."""
    seq_len, tokens, sequences = (draft.get(name) for name in ("seq_len", "batch_tokens", "batch_sequences"))
    if seq_len and tokens is None and sequences is not None:
        draft["batch_tokens"] = round(sequences * seq_len)
    elif seq_len and sequences is None and tokens is not None:
        draft["batch_sequences"] = tokens / seq_len


def _name_source(path: Path) -> str:
    """A file by its name and content."""
    with path.open("rb") as file:
        return f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
