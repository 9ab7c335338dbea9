"""What searches go by, in SQL: their decisions, appended and never changed, and the results of runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from foretune.errors import InputError
from foretune.ledger.recording import now, to_json
from foretune.ledger.tables import curves, decisions, domain_values, learned_paths, runs
from foretune.records import CurvePoint, Decision, LearnedPoint, Result, RunStatus


def read_decisions(connection: Connection, study: str, fingerprint: str = "", first: int = 0) -> list[Decision]:
    """The decisions of a search in their order, from the `first` on; without a fingerprint those of the study's latest
    search."""
    if not fingerprint:
        newest = sa.select(decisions.c.fingerprint).where(decisions.c.study == study)
        newest = newest.order_by(decisions.c.created_at.desc(), decisions.c.number.desc()).limit(1)
        fingerprint = connection.execute(newest).scalar_one_or_none() or ""
    query = sa.select(decisions).filter_by(study=study, fingerprint=fingerprint).order_by(decisions.c.number)
    query = query.where(decisions.c.number >= first)
    return [
        Decision(
            number=row.number,
            kind=row.kind,
            run_id=row.run_id,
            parent_run_id=row.parent_run_id,
            details=json.loads(row.details),
        )
        for row in connection.execute(query)
    ]


def count_decisions(connection: Connection, study: str) -> dict[str, int]:
    """How many decisions the ledger has of each search that a study was, by its fingerprint."""
    query = sa.select(decisions.c.fingerprint, sa.func.count()).where(decisions.c.study == study)
    return {row[0]: row[1] for row in connection.execute(query.group_by(decisions.c.fingerprint))}


def append_decisions(connection: Connection, study: str, fingerprint: str, asked: Sequence[Decision]) -> None:
    """Write the decisions that are not there yet; those that are must be the same, or nothing is written.

    They are all of a search, or those from a number on.
    """
    known = read_decisions(connection, study, fingerprint, asked[0].number) if asked else []
    for old, new in zip(known, asked, strict=False):
        if to_json(old.model_dump()) != to_json(new.model_dump()):  # as text, in which infinities are themselves
            raise InputError(
                f"study {study!r}: decision {old.number} of its search stands in the ledger as {old.kind!r} for run "
                f"{old.run_id or '-'} and cannot become {new.kind!r} for run {new.run_id or '-'}; give the study "
                "another name to search anew"
            )
    rows = [
        {"study": study, "fingerprint": fingerprint, "created_at": now()}
        | item.model_dump(exclude={"details"})
        | {"details": to_json(item.details)}
        for item in asked[len(known) :]
    ]
    if rows:
        connection.execute(decisions.insert(), rows)


def read_results(connection: Connection, ids: Sequence[str]) -> Iterator[tuple[str, Result]]:
    """The results of these runs with their curves, each behind the time at which it was recorded."""
    losses, learned = (_read_domains(connection, ids, kind) for kind in ("loss", "learned"))
    paths = _read_paths(connection, ids)
    points: dict[str, list[CurvePoint]] = defaultdict(list)
    names = list(CurvePoint.model_fields)
    of_curve = sa.select(curves.c.run_id, *(curves.c[name] for name in names)).where(curves.c.run_id.in_(ids))
    for run_id, *values in connection.execute(of_curve.order_by(curves.c.run_id, curves.c.position)):
        points[run_id].append(CurvePoint(**dict(zip(names, values, strict=True))))
    columns = ("run_id", "status", "reason", "loss", "tokens_trained", "spent_flops", "created_at")
    query = sa.select(*(runs.c[name] for name in columns)).where(runs.c.run_id.in_(ids))
    for row in connection.execute(query):
        result = Result(
            run_id=row.run_id,
            status=RunStatus(row.status),
            reason=row.reason or "",
            loss=row.loss,
            loss_by_domain=losses[row.run_id],
            tokens=row.tokens_trained or 0,
            spent_flops=row.spent_flops or 0.0,
            curve=tuple(points[row.run_id]),
            learned=learned[row.run_id],
            learned_path=paths[row.run_id],
        )
        yield row.created_at, result


def _read_domains(connection: Connection, ids: Sequence[str], kind: str) -> dict[str, dict[str, float]]:
    """The values of a kind by run and domain."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    query = sa.select(domain_values.c.run_id, domain_values.c.domain, domain_values.c.value)
    for run_id, domain, value in connection.execute(
        query.where(domain_values.c.run_id.in_(ids), domain_values.c.kind == kind)
    ):
        values[run_id][domain] = value
    return values


def _read_paths(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[LearnedPoint, ...]]:
    """How that moved which runs learned besides their weights."""
    values: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    query = sa.select(learned_paths).where(learned_paths.c.run_id.in_(ids))
    for row in connection.execute(query.order_by(learned_paths.c.run_id, learned_paths.c.step)):
        values[row.run_id][row.step][row.name] = row.value
    paths: dict[str, tuple[LearnedPoint, ...]] = defaultdict(tuple)
    for run_id, steps in values.items():
        paths[run_id] = tuple(LearnedPoint(step=step, values=by_name) for step, by_name in steps.items())
    return paths
