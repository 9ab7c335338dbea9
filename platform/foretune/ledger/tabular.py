"""Files of rows as plain Python: CSV, Parquet and JSON lines, each cell as it stands in the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.ledger.exporting import unguard_text


@dataclass(frozen=True)
class Table:
    """A file's header and rows."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    """Cells by column; text in CSV, values elsewhere; empty cells are None."""
    positions: tuple[str, ...]
    """Where each row stands in the file, for messages."""


def read_table(path: Path, kind: str) -> Table:
    """Read a file of rows; `kind` is csv, parquet or jsonl. Raises InputError naming file, rule and place."""
    if not path.is_file():
        raise InputError(f"{path}: no such file (looked at {path.absolute()})")
    readers: dict[str, Callable[[Path], Table]] = {"csv": _read_csv, "parquet": _read_parquet, "jsonl": _read_jsonl}
    try:
        table = readers[kind](path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text, got {error.reason} at byte {error.start}") from None
    if not table.rows:
        raise InputError(f"{path}: no rows")
    return table


def add_constants(table: Table, constants: Mapping[str, str]) -> Table:
    """The table with a column for each value that all of its rows share."""
    rows = tuple({**row, **constants} for row in table.rows)
    return Table((*table.columns, *constants), rows, table.positions)


def guess_kind(path: Path) -> str:
    """The kind of file that a suffix names; CSV where it names none."""
    return {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl"}.get(path.suffix.lower(), "csv")


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = [unguard_text(name.strip()) for name in next(reader, [])]
            _check_header(path, header)
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: {error}; write comma-separated values") from None
    ragged = [line for line, cells in lines if len(cells) != len(header)]
    if ragged:
        raise InputError(f"{path}: line {ragged[0]}: must have {len(header)} cells like the header; quote commas")
    rows = tuple(dict(zip(header, (unguard_text(cell) or None for cell in cells), strict=True)) for _, cells in lines)
    return Table(tuple(header), rows, tuple(f"line {line}" for line, _ in lines))


def _check_header(path: Path, header: list[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: line 1: column names must differ, got {repeated[0]!r} twice")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError(f"{path}: line 1: cells must be separated by commas, got {header[0][:80]!r}")


def _read_parquet(path: Path) -> Table:
    from pyarrow import lib, parquet

    try:
        table = parquet.read_table(path)  # type: ignore[no-untyped-call]
    except (lib.ArrowException, OSError) as error:
        raise InputError(f"{path}: no Parquet file, or a damaged one: {str(error).splitlines()[0]}") from None
    rows = tuple(table.to_pylist())
    return Table(tuple(table.column_names), rows, tuple(f"row {number}" for number in range(1, len(rows) + 1)))


def _read_jsonl(path: Path) -> Table:
    rows, positions = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number}: no JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number}: must be an object, got {type(row).__name__}")
        rows.append(row)
        positions.append(f"line {number}")
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(columns, tuple({name: row.get(name) for name in columns} for row in rows), tuple(positions))
