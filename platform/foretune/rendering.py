"""Answers on the terminal: the same record as a table, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Format = Literal["table", "json", "csv"]


def render_record(record: Mapping[str, Any], kind: Format) -> str:
    """One answer; nested keys are joined by dots in a table and in CSV."""
    if kind == "json":
        return json.dumps(record, indent=2, allow_nan=False)
    flat = flatten(record)
    if kind == "csv":
        return _to_csv([flat])
    return _to_table([{"": key, "value": value} for key, value in flat.items()])


def render_rows(rows: Sequence[Mapping[str, Any]], kind: Format) -> str:
    """Many rows with the same keys."""
    if kind == "json":
        return json.dumps(list(rows), indent=2, allow_nan=False)
    return _to_csv(rows) if kind == "csv" else _to_table(rows)


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists of plain values joined by semicolons.

    >>> flatten({"peak_lr": {"value": 0.01, "low": None}, "warnings": ["a", "b"]})
    {'peak_lr.value': 0.01, 'peak_lr.low': None, 'warnings': 'a; b'}
    """
    flat: dict[str, Any] = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            flat[name] = "; ".join(_plain(item) for item in value)
        else:
            flat[name] = value
    return flat


def format_number(value: Any) -> str:
    """Six significant digits; whole numbers in full up to fifteen; nothing for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace(",", "_") if abs(value) < 1e15 else f"{value:.6g}"
    return f"{value:.6g}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_number(item)}" for key, item in flatten(value).items())
    return format_number(value)


def _to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")


def _to_table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "(none)"
    header = list(rows[0])
    cells = [[format_number(row.get(key)) for key in header] for row in rows]
    widths = [max(len(key), *(len(line[column]) for line in cells)) for column, key in enumerate(header)]
    numeric = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in header]

    def lay_out(line: Sequence[str]) -> str:
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    body = [lay_out(line) for line in cells]
    return "\n".join([lay_out(header), *body] if any(header) else body)
