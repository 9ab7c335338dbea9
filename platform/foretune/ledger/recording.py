"""How a result enters the run table: one row per run, failed ones are replaced, finished ones never change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from foretune.errors import InputError
from foretune.ledger.tables import (
    INTEGER_COLUMNS,
    NUMBER_COLUMNS,
    conflicts,
    curves,
    diagnoses,
    domain_values,
    failures,
    learned_paths,
    runs,
)
from foretune.records import CurvePoint, Diagnosis, RunRecord, RunStatus, hash_content


class Recorded(StrEnum):
    """What became of a record."""

    INSERTED = "inserted"
    REPLACED_FAILED = "replaced_failed"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"


def check_record(record: RunRecord) -> None:
    """Refuse what the database would bend: SQLite turns NaN into NULL without a word, and integers end at 64 bits.

    Raises InputError naming the run, the field, the rule and the value.
    """
    completed = record.status is RunStatus.COMPLETED
    if completed and record.loss is None and not record.loss_by_domain:
        raise InputError(f"run {record.run_id}: a completed run needs a loss; report status diverged or failed")
    for name, value in _list_numbers(record):
        of_loss = name in ("loss", "bits_per_byte") or name.startswith("loss/")
        if not math.isfinite(value) and (completed or not of_loss):
            advice = "; report status diverged" if of_loss else ""
            raise InputError(f"run {record.run_id}: {name} must be finite, got {value}{advice}")
    for name in INTEGER_COLUMNS & record.__class__.model_fields.keys():
        value = getattr(record, name)
        if value is not None and not -(2**63) <= value < 2**63:
            raise InputError(f"run {record.run_id}: {name} must fit in 64 bits, got {value}")


def _list_numbers(record: RunRecord) -> Iterator[tuple[str, float]]:
    for name in sorted(NUMBER_COLUMNS):
        value = getattr(record, name)
        if value is not None:
            yield name, value
    yield from ((f"mix/{domain}", share) for domain, share in record.mix.items())
    yield from ((f"loss/{domain}", loss) for domain, loss in record.loss_by_domain.items())
    yield from ((f"learned/{name}", value) for name, value in record.learned.items())
    yield from ((f"lr of step {point.step}", point.lr) for point in record.curve)


def write_record(connection: Connection, record: RunRecord) -> Recorded:
    """Write a checked record with its domains and curve; the caller's transaction makes it all or nothing."""
    row = connection.execute(sa.select(runs).where(runs.c.run_id == record.run_id)).mappings().one_or_none()
    if row is None:
        _insert(connection, record, attempts=1)
        return Recorded.INSERTED
    if RunStatus(row["status"]) is RunStatus.FAILED:
        if _same_attempt(row, record):
            return Recorded.UNCHANGED
        connection.execute(runs.delete().where(runs.c.run_id == record.run_id))
        _insert(connection, record, attempts=row["attempts"] + 1)
        return Recorded.REPLACED_FAILED
    if record.status is RunStatus.FAILED or _same_result(connection, row, record):
        return Recorded.UNCHANGED
    _note_conflict(connection, record)
    return Recorded.CONFLICT


def _same_attempt(row: sa.RowMapping, record: RunRecord) -> bool:
    """Whether a failed attempt is written a second time: a server may be lost between a commit and its answer."""
    told = (record.status.value, record.created_at, clean_text(record.reason))
    return (row["status"], row["created_at"], row["reason"]) == told


def _insert(connection: Connection, record: RunRecord, *, attempts: int) -> None:
    run_id = record.run_id
    connection.execute(runs.insert(), _list_cells(record) | {"attempts": attempts})
    domains = [("mix", record.mix), ("loss", record.loss_by_domain), ("learned", record.learned)]
    values = [
        {"run_id": run_id, "kind": kind, "domain": clean_text(domain), "value": value}
        for kind, by_domain in domains
        for domain, value in by_domain.items()
        if math.isfinite(value)
    ]
    if values:
        connection.execute(domain_values.insert(), values)
    for table, series in ((curves, record.curve), (diagnoses, record.diagnoses)):
        if series:
            connection.execute(table.insert(), _number_rows(run_id, series))
    if record.learned_path:
        connection.execute(learned_paths.insert(), _list_learned(record))
    if record.status is RunStatus.FAILED:
        failure = {"run_id": run_id, "attempt": attempts, "reason": clean_text(record.reason), "failed_at": now()}
        connection.execute(failures.insert().values(failure))


def _list_learned(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {"run_id": record.run_id, "step": point.step, "name": clean_text(name), "value": value}
        for point in record.learned_path
        for name, value in point.values.items()
    ]


def _number_rows(run_id: str, series: Sequence[CurvePoint | Diagnosis]) -> list[dict[str, Any]]:
    """Rows of a run in the order of the trainer's report; what is not finite is missing."""
    rows = [{"run_id": run_id, "position": position, **item.model_dump()} for position, item in enumerate(series)]
    return [{k: finite_or_none(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


BESIDE = ("curve", "diagnoses", "mix", "loss_by_domain", "learned", "learned_path", "spec")
"""Fields of a record that are no cells of its row."""


def _list_cells(record: RunRecord) -> dict[str, Any]:
    cells = record.model_dump(exclude=set(BESIDE))
    for name, value in cells.items():
        if isinstance(value, str):
            cells[name] = clean_text(value) or (None if runs.c[name].nullable else "")  # one way to be missing
        elif isinstance(value, float):
            cells[name] = finite_or_none(value)
    cells["created_at"] = cells["created_at"] or now()
    cells["spec"] = to_json(record.spec) if record.spec is not None else None
    return cells


SETTINGS = ("params_total", "params_non_embedding", "params_active", "tokens", "batch_tokens", "peak_lr", "seq_len")
"""What a run was, as against what came of it: a file read again under another mapping differs here."""


def _same_result(connection: Connection, row: sa.RowMapping, record: RunRecord) -> bool:
    """Whether settings, status and losses are those of the ledger, to the last bit; time and device may differ."""
    if any(row[name] != getattr(record, name) for name in SETTINGS):
        return False
    query = sa.select(domain_values.c.domain, domain_values.c.value).where(
        domain_values.c.run_id == record.run_id, domain_values.c.kind == "loss"
    )
    by_domain = {row.domain: row.value for row in connection.execute(query)}
    given = {clean_text(domain): loss for domain, loss in record.loss_by_domain.items() if math.isfinite(loss)}
    return (row["status"], row["loss"], by_domain) == (record.status, finite_or_none(record.loss), given)


def _note_conflict(connection: Connection, record: RunRecord) -> None:
    """Keep the second result aside, once however often it comes."""
    result: list[Any] = [
        record.status.value,
        repr(record.loss),
        sorted((k, repr(v)) for k, v in record.loss_by_domain.items()),
    ]
    result.append([repr(getattr(record, name)) for name in SETTINGS])
    key = {"run_id": record.run_id, "digest": hash_content(result)[:16]}
    known = sa.select(conflicts.c.digest).filter_by(**key)
    if connection.execute(known).first() is None:
        text = to_json(record.model_dump(mode="json"))
        connection.execute(conflicts.insert().values(**key, record=text, seen_at=now()))


def finite_or_none(value: float | None) -> float | None:
    """None for what is not finite: the status says why it is missing."""
    return value if value is not None and math.isfinite(value) else None


def clean_text(text: str) -> str:
    """Text that both databases take: no NUL (PostgreSQL), no lone surrogates, which error messages can contain."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def to_json(value: Any) -> str:
    """JSON for a text column; infinities survive the way there and back in Python's own notation."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def now() -> str:
    """UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
