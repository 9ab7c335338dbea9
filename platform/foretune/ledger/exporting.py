"""The run table as a file: CSV, Parquet or JSON lines, exact to the last bit, never over an existing file unasked."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.errors import ForetuneError, InputError

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""Text that a spreadsheet would run as a formula (OWASP, CSV injection), or that was guarded against it before."""


def export_runs(frame: pd.DataFrame, path: str | Path, *, force: bool = False) -> None:
    """Write a run table to a file whose suffix says how: .csv, .parquet or .jsonl; complete, or not at all.

    Raises InputError for another suffix, and for an existing file without `force`.
    """
    write_frames({Path(path): frame}, force=force)


def write_frames(frames: Mapping[Path, pd.DataFrame], *, force: bool = False) -> None:
    """Write tables to files as `export_runs` does; none of them takes its place before all have been written."""
    writers: dict[str, Callable[[pd.DataFrame, Path], None]] = {
        ".csv": _write_csv,
        ".parquet": _write_parquet,
        ".jsonl": _write_jsonl,
    }
    for path in frames:
        if path.suffix not in writers:
            raise InputError(f"{path}: the name must end in {', '.join(writers)}, got {path.suffix or 'no suffix'!r}")
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; give another name, or --force to overwrite it")
    drafts = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.new") for path in frames}
    try:
        for path, frame in frames.items():
            writers[path.suffix](frame, drafts[path])
        for path, draft in drafts.items():
            os.replace(draft, path)
    except OSError as error:
        raise ForetuneError(f"{path}: not written: {error.strerror or error}; nothing was left behind") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def guard_text(text: str) -> str:
    """Text that a spreadsheet shows and does not run: a leading apostrophe where it would be a formula.

    >>> guard_text("=1+1"), guard_text("fine")
    ("'=1+1", 'fine')
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_text(text: str) -> str:
    """The text before `guard_text`."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([guard_text(str(name)) for name in frame.columns])
        for row in _list_rows(frame):
            writer.writerow([guard_text(cell) if isinstance(cell, str) else cell for cell in row])


def _write_jsonl(frame: pd.DataFrame, path: Path) -> None:
    names = [str(name) for name in frame.columns]
    with path.open("w", encoding="utf-8") as file:
        for row in _list_rows(frame):
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, engine="pyarrow", index=False)


def _list_rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Rows of plain Python values, None where one is missing; Python prints floats so that they read back the same."""
    columns = [frame.iloc[:, index].astype(object).tolist() for index in range(frame.shape[1])]
    for row in zip(*columns, strict=True):
        yield tuple(None if _is_missing(cell) else cell for cell in row)


def _is_missing(cell: Any) -> bool:
    return type(cell).__name__ == "NAType" or (isinstance(cell, float) and math.isnan(cell))
