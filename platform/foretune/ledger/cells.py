"""One row of a foreign table at a time: cells become fields of a record, and every bad one a sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from foretune.ledger.columns import Resolution
from foretune.ledger.tables import INTEGER_COLUMNS, NUMBER_COLUMNS
from foretune.quantities import parse_quantity
from foretune.records import RunStatus

MAY_BE_ZERO = frozenset({"weight_decay", "wall_seconds", "seed", "spent_flops", "setting_changes"})
"""Numbers that need not be positive."""
COUNTS = ("params_non_embedding", "params_total", "params_active")
ALLOWED = {"role": ("search", "verification", "baseline", "soup"), "status": tuple(RunStatus)}
"""Columns with a vocabulary of their own."""


class RowReader:
    """Reads rows and remembers what was wrong with them."""

    def __init__(self, resolution: Resolution) -> None:
        """For a table whose columns are understood."""
        self._resolved = resolution.resolved
        self.problems: list[str] = []
        """Bad values: place, column, rule, value."""
        self.rounded: Counter[str] = Counter()
        """Fractions in columns of whole numbers, by column."""

    def read(self, cells: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The fields of a record, as far as the table has them."""
        fields: dict[str, Any] = {"mix": {}, "loss_by_domain": {}}
        for column, name in self._resolved.items():
            try:
                self._read_cell(fields, name, cells[column], column)
            except ValueError as error:
                self.problems.append(f"{where}, column {column}: {error}")
        self._check_row(fields, where)
        _judge(fields, where)
        return fields

    def _read_cell(self, fields: dict[str, Any], name: str, cell: Any, column: str) -> None:
        kind, _, domain = name.partition("/")
        if domain:
            value = _read_number(cell, finite=kind == "mix")
            if value is not None and math.isfinite(value):
                fields["mix" if kind == "mix" else "loss_by_domain"][domain] = float(value)
        elif name in ("loss", "bits_per_byte"):
            fields[name] = _check_positive(name, _read_number(cell, finite=False))
        elif name in INTEGER_COLUMNS:
            fields[name] = self._round(_check_positive(name, _read_number(cell)), column)
        elif name in NUMBER_COLUMNS:
            value = _check_positive(name, _read_number(cell))
            fields[name] = None if value is None else float(value)
        elif cell is not None:
            allowed = ALLOWED.get(name, (cell,))
            if cell not in allowed:
                raise ValueError(
                    f"must be one of {', '.join(allowed)}, got {cell!r}; or leave it: --map {column}=ignore"
                )
            fields[name] = str(cell)

    def _round(self, value: int | float | None, column: str) -> int | None:
        if value is None:
            return None
        if isinstance(value, float) and not value.is_integer():
            self.rounded[column] += 1
        whole = round(value)
        if abs(whole) >= 2**63:
            raise ValueError(f"must fit in 64 bits, got {value!r}")
        return whole

    def _check_row(self, fields: dict[str, Any], where: str) -> None:
        """What a row cannot do without, and a batch that is larger than its run."""
        if self.problems and self.problems[-1].startswith(where):
            return
        if not any(fields.get(name) for name in COUNTS):
            self.problems.append(f"{where}: no parameter count")
        if not fields.get("tokens"):
            self.problems.append(f"{where}: no training tokens")
        elif (fields.get("batch_tokens") or 0) > fields["tokens"]:
            self.problems.append(
                f"{where}: a batch of {fields['batch_tokens']} tokens exceeds the run of {fields['tokens']}; "
                "check the units of both"
            )


def _judge(fields: dict[str, Any], where: str) -> None:
    """The status of a row: its own, or completed where it has a finite loss and diverged where it has none."""
    loss = fields.get("loss")
    measured = (loss is not None and math.isfinite(loss)) or bool(fields["loss_by_domain"])
    fields.setdefault("status", RunStatus.COMPLETED.value)
    if fields["status"] == RunStatus.COMPLETED and not measured:
        told = "empty" if loss is None else loss
        fields |= {"status": RunStatus.DIVERGED.value, "reason": f"loss is {told} in {where}"}
    for name in ("loss", "bits_per_byte"):
        value = fields.get(name)
        fields[name] = float(value) if value is not None and math.isfinite(value) else None


def content_of(cells: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it is hashed: the same numbers give the same id from CSV, Parquet and JSON."""
    return {str(column): _plain(cell) for column, cell in cells.items() if _plain(cell) is not None}


def _plain(cell: Any) -> Any:
    if cell is None or isinstance(cell, bool):
        return None if cell is None else str(cell)
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return cell if isinstance(cell, str) else json.dumps(cell, default=str, sort_keys=True)
    return None if math.isnan(number) else repr(number)


def _read_number(cell: Any, *, finite: bool = True) -> int | float | None:
    """A number as written; None for an empty cell, and for NaN where it must be finite."""
    if cell is None:
        return None
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        raise ValueError(f"must be a number, got {cell!r}")
    value = _parse(cell) if isinstance(cell, str) else cell
    if finite and math.isinf(value):
        raise ValueError(f"must be finite, got {cell!r}")
    return None if finite and math.isnan(value) else value


def _parse(text: str) -> int | float:
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return parse_quantity(text)


def _check_positive(name: str, value: int | float | None) -> int | float | None:
    if value is not None and not math.isnan(value) and (value < 0 or (value == 0 and name not in MAY_BE_ZERO)):
        raise ValueError(f"{name} must be {'at least' if name in MAY_BE_ZERO else 'above'} 0, got {value}")
    return value
