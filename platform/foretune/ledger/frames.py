"""Rows of the ledger as pandas frames, with the names, order and types of the run table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.ledger.tables import EXTRA_COLUMNS, INTEGER_COLUMNS, NUMBER_COLUMNS, RUN_COLUMNS
from foretune.records import Diagnosis, RunRecord

if TYPE_CHECKING:
    import pandas as pd

DomainValue = tuple[str, str, str, float]
"""run_id, `mix`, `loss` or `learned`, domain (or name of a setting that was tuned), value."""

CURVE_COLUMNS = ("run_id", "step", "tokens", "loss", "held_out", "lr")
DIAGNOSIS_COLUMNS = ("run_id", *Diagnosis.model_fields)
GATE_COLUMNS = ("parametrization", "kind", "passed", "details", "created_at")


def frame_runs(rows: Sequence[Mapping[str, Any]], domain_values: Iterable[DomainValue]) -> pd.DataFrame:
    """The run table: whole numbers Int64, other numbers float64 (NaN where missing), text as objects (None)."""
    import pandas as pd

    names = [*RUN_COLUMNS, *EXTRA_COLUMNS]
    columns = {name: _make_column(name, [row[name] for row in rows]) for name in names}
    return pd.DataFrame(columns | _pivot_domains(rows, domain_values))


def frame_records(records: Sequence[RunRecord]) -> pd.DataFrame:
    """The same run table from records that are in no ledger."""
    rows = [
        {**record.model_dump(exclude={"curve", "diagnoses", "learned_path", "spec"}), "attempts": 1}
        for record in records
    ]
    values = [
        (record.run_id, kind, domain, value)
        for record in records
        for kind, by_domain in (("mix", record.mix), ("loss", record.loss_by_domain), ("learned", record.learned))
        for domain, value in by_domain.items()
    ]
    return frame_runs(rows, values)


def frame_curves(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Curves in the order in which they were reported; rows have the cells of CURVE_COLUMNS."""
    return _frame(rows, CURVE_COLUMNS, {"run_id": "object", "step": "int64", "tokens": "int64"})


def frame_diagnoses(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Diagnoses in the order of their steps; rows have the cells of DIAGNOSIS_COLUMNS, NaN where not measured."""
    return _frame(rows, DIAGNOSIS_COLUMNS, {"run_id": "object", "step": "int64"})


def frame_gates(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Verdicts on transfer; rows have the cells of GATE_COLUMNS, `details` as plain data."""
    return _frame(rows, GATE_COLUMNS, dict.fromkeys(GATE_COLUMNS, "object") | {"passed": "bool"})


def _frame(rows: Sequence[Sequence[Any]], names: Sequence[str], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Rows under these names; what has no kind is a float64."""
    import pandas as pd

    cells = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    series = {
        name: pd.Series(list(values), dtype=kinds.get(name, "float64"))
        for name, values in zip(names, cells, strict=True)
    }
    return pd.DataFrame(series)


def _make_column(name: str, values: list[Any]) -> pd.Series[Any]:
    import pandas as pd

    if name in INTEGER_COLUMNS:
        return pd.Series(values, dtype="Int64")
    return pd.Series(values, dtype="float64" if name in NUMBER_COLUMNS else "object")


def _pivot_domains(rows: Sequence[Mapping[str, Any]], values: Iterable[DomainValue]) -> dict[str, pd.Series[float]]:
    """`learned/NAME`, `mix/DOMAIN` and then `loss/DOMAIN` columns, each in the order of the names."""
    import pandas as pd

    position = {row["run_id"]: index for index, row in enumerate(rows)}
    columns: dict[tuple[bool, str], list[float | None]] = {}
    for run_id, kind, domain, value in values:
        column = columns.setdefault((kind == "loss", f"{kind}/{domain}"), [None] * len(rows))
        column[position[run_id]] = value
    return {name: pd.Series(column, dtype="float64") for (_, name), column in sorted(columns.items())}
