"""The ledger: every run and its curve, the studies that use it, and the forecasts that were made before it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from foretune.errors import InputError
from foretune.ledger import lease as leasing
from foretune.ledger.database import Database
from foretune.ledger.frames import (
    CURVE_COLUMNS,
    DIAGNOSIS_COLUMNS,
    GATE_COLUMNS,
    DomainValue,
    frame_curves,
    frame_diagnoses,
    frame_gates,
    frame_runs,
)
from foretune.ledger.history import append_decisions, count_decisions, read_decisions, read_results
from foretune.ledger.lease import Lease
from foretune.ledger.opening import open_database
from foretune.ledger.recording import Recorded, check_record, clean_text, now, to_json, write_record
from foretune.ledger.tables import (
    conflicts,
    curves,
    diagnoses,
    domain_values,
    failures,
    forecasts,
    gates,
    members,
    runs,
    studies,
)
from foretune.records import Decision, Result, RunRecord, RunStatus

if TYPE_CHECKING:
    import pandas as pd

Gate = Literal["coordcheck", "transfer"]
"""What is asked before runs of several sizes pass for transferable."""
RETIRED = "retired"
"""The role of a run that an earlier version of the study asked for."""
ASKED_TOGETHER = (frozenset({"search", "baseline", "soup"}), frozenset({"verification"}))
"""Roles of the runs that a stage of a launch asks for: it asks for all of them or means that there are none."""
IDS_PER_QUERY = 500
"""Run ids in one query; SQLite takes 999 in builds before 3.32."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt."""

    run_id: str
    attempt: int
    """1 for the first."""
    reason: str
    failed_at: str
    """UTC, ISO 8601."""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.run_id} (attempt {self.attempt}): {self.reason}"


@dataclass(frozen=True)
class Conflict:
    """A second result of a finished run that differs from the first, which stands."""

    run_id: str
    seen_at: str
    """UTC, ISO 8601."""
    record: dict[str, Any]
    """The second result."""


@dataclass(frozen=True)
class Registered:
    """A forecast as it was written down, before the runs that check it."""

    id: int
    created_at: str
    """UTC, ISO 8601."""
    payload: dict[str, Any]


def open_ledger(url: str | Path | None = None, *, create: bool = False) -> Ledger:
    """Open a ledger: a path or SQLAlchemy URL; by default FORETUNE_LEDGER, else `foretune.db` in the current folder.

    `create` makes it where there is none, and upgrades an older schema after a backup (see `Ledger.notes`). Raises
    InputError for a missing ledger, a file of another kind, a newer schema, and network file systems.
    """
    return Ledger(*open_database(url, create=create))


class Ledger:
    """A run table in SQL. Every method is one transaction; a context manager, safe to share between threads."""

    def __init__(self, database: Database, notes: tuple[str, ...] = ()) -> None:
        """Made by `open_ledger`."""
        self._database = database
        self.notes = notes
        """What a user ought to know of how it was opened: upgrades, with the backup's name."""

    def __repr__(self) -> str:
        """Where it is, without password."""
        return f"Ledger({self._database.name!r})"

    def __enter__(self) -> Ledger:
        """The ledger itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def save_study(self, name: str, snapshot: dict[str, Any]) -> None:
        """Keep a study's resolved content; a new row only where it differs from the last one."""
        text = to_json(snapshot)

        def save(connection: Connection) -> None:
            if _last_snapshot(connection, name) != text:
                connection.execute(studies.insert().values(study=name, snapshot=text, created_at=now()))

        self._database.write(save)

    def studies(self) -> list[str]:
        """Every study that was launched or imported, by name."""
        with self._database.read() as connection:
            return _list_studies(connection)

    def study_snapshot(self, name: str) -> dict[str, Any] | None:
        """The content of a study at its last launch; None where it was never launched from here."""
        with self._database.read() as connection:
            text = _last_snapshot(connection, name)
        return None if text is None else dict(json.loads(text))

    def enroll(
        self,
        study: str,
        asked: Iterable[tuple[str, str, str]],
        *,
        further: bool = False,
        lease: Lease | None = None,
    ) -> None:
        """Say which runs (run_id, scale, role) a study is made of, all of them or `further` ones beside those before.

        Known ones get the scale and role given now.

        Runs of these roles, or of roles that are asked for with them, that an earlier launch planned and that are not
        asked for now leave the study if they never ran; if they did, they stay with the role `retired`, so that no fit
        takes them for runs of the study as it is. Imported runs are not touched. With a lease, LeaseLost is raised when
        another driver has taken the study over.
        """
        rows = {
            run_id: {"study": study, "run_id": run_id, "scale": scale, "role": role} for run_id, scale, role in asked
        }
        asked_now = {row["role"] for row in rows.values()}
        roles = asked_now.union(*(together for together in ASKED_TOGETHER if together & asked_now))

        def replace(connection: Connection) -> None:
            if lease is not None:
                lease.check(connection)
            for ids in _batch([] if further else _list_dropped(connection, study, roles, rows)):
                dropped = sa.and_(members.c.study == study, members.c.run_id.in_(ids))
                never_ran = members.c.run_id.not_in(sa.select(runs.c.run_id))
                connection.execute(members.delete().where(dropped, never_ran))
                connection.execute(members.update().where(dropped).values(role=RETIRED))
            for ids in _batch(list(rows)):
                connection.execute(members.delete().where(members.c.study == study, members.c.run_id.in_(ids)))
                connection.execute(members.insert(), [rows[run_id] for run_id in ids])

        self._database.write(replace)

    def count_enrolled(self, study: str) -> int:
        """How many runs a study is made of, done or not."""
        query = sa.select(sa.func.count()).where(members.c.study == study)
        with self._database.read() as connection:
            _require_study(connection, study)
            return int(connection.execute(query).scalar_one())

    def record(self, record: RunRecord, *, lease: Lease | None = None) -> Recorded:
        """Write a result, durable on return. See `record_all`."""
        return self.record_all([record], lease=lease)[0]

    def record_all(self, records: Sequence[RunRecord], *, lease: Lease | None = None) -> list[Recorded]:
        """Write results with their curves, diagnoses and domain losses, all or none, and enroll them in their studies.

        A failed run is replaced. A finished one is never changed: the same result again is `unchanged`, another one
        a `conflict`, which is kept aside. With a lease, LeaseLost is raised and nothing written when another driver
        has taken the study over. Raises InputError for numbers that are not finite and for a completed run without
        a loss.
        """
        for record in records:
            check_record(record)

        def write(connection: Connection) -> list[Recorded]:
            if lease is not None:
                lease.check(connection)
            return [_write_member(connection, record) for record in records]

        return self._database.write(write)

    def runs(self, study: str | None = None) -> pd.DataFrame:
        """The run table, one row per run that has a result; of one study, with its scales and roles, or of all.

        Whole numbers are Int64, others float64, text objects. `mix/DOMAIN` and `loss/DOMAIN` come last. Raises
        InputError for an unknown study, with the nearest names.
        """
        columns: list[sa.ColumnElement[Any]] = list(runs.c)
        if study is not None:
            columns = [members.c[c.name] if c.name in ("study", "scale", "role") else c for c in runs.c]
        query = _select_runs(study, *columns).order_by(runs.c.created_at, runs.c.run_id)
        with self._database.read() as connection:
            _require_study(connection, study)
            rows = [dict(row) for row in connection.execute(query).mappings()]
            return frame_runs(rows, list(_read_domains(connection, study)))

    def curves(self, study: str | None = None, run_ids: Sequence[str] | None = None) -> pd.DataFrame:
        """Curves: run_id, step, tokens, loss (training), held_out (NaN where not evaluated), lr; in nats per token."""
        query = _select_series(study, curves, CURVE_COLUMNS)
        batches: Iterable[Sequence[str] | None] = [None] if run_ids is None else _batch(sorted(set(run_ids)))
        rows: list[sa.Row[Any]] = []
        with self._database.read() as connection:
            _require_study(connection, study)
            for ids in batches:
                rows += connection.execute(query if ids is None else query.where(runs.c.run_id.in_(ids)))
        return frame_curves(rows)

    def diagnoses(self, study: str | None = None) -> pd.DataFrame:
        """What was measured beside the losses: run_id and the fields of `Diagnosis`, NaN where not measured."""
        with self._database.read() as connection:
            _require_study(connection, study)
            return frame_diagnoses(connection.execute(_select_series(study, diagnoses, DIAGNOSIS_COLUMNS)).all())

    def statuses(self, run_ids: Iterable[str]) -> dict[str, RunStatus]:
        """The status of each of these runs that has a result."""
        found: dict[str, RunStatus] = {}
        with self._database.read() as connection:
            for ids in _batch(list(run_ids)):
                query = sa.select(runs.c.run_id, runs.c.status).where(runs.c.run_id.in_(ids))
                found |= {run_id: RunStatus(status) for run_id, status in connection.execute(query)}
        return found

    def results(self, run_ids: Iterable[str]) -> list[Result]:
        """What a search may know of each of these runs that has a result, oldest first."""
        found: list[tuple[str, Result]] = []
        with self._database.read() as connection:
            for ids in _batch(list(run_ids)):
                found += read_results(connection, ids)
        return [result for _, result in sorted(found, key=lambda item: (item[0], item[1].run_id))]

    def append_decisions(self, study: str, fingerprint: str, asked: Sequence[Decision], *, lease: Lease) -> None:
        """Write down what a search has decided, the new part of it; raises InputError where it contradicts the old."""

        def append(connection: Connection) -> None:
            lease.check(connection)
            append_decisions(connection, study, fingerprint, asked)

        self._database.write(append)

    def decisions(self, study: str, fingerprint: str = "") -> list[Decision]:
        """What a search has decided, in order; without a fingerprint the study's latest search."""
        with self._database.read() as connection:
            return read_decisions(connection, study, fingerprint)

    def count_decisions(self, study: str) -> dict[str, int]:
        """How many decisions there are of each search that a study was, by its fingerprint."""
        with self._database.read() as connection:
            return count_decisions(connection, study)

    def spec(self, run_id: str) -> dict[str, Any] | None:
        """What a run trained, resolved, as it was hashed into its id; None for imported and unknown runs."""
        with self._database.read() as connection:
            text = connection.execute(sa.select(runs.c.spec).where(runs.c.run_id == run_id)).scalar_one_or_none()
        return None if text is None else dict(json.loads(text))

    def failures(self, study: str) -> list[Failure]:
        """The runs that a study asks for and that stand as failed, each with its last reason."""
        query = _select_runs(study, failures).where(runs.c.status == RunStatus.FAILED.value, members.c.role != RETIRED)
        query = query.join(failures, (failures.c.run_id == runs.c.run_id) & (failures.c.attempt == runs.c.attempts))
        with self._database.read() as connection:
            _require_study(connection, study)
            return [Failure(*row) for row in connection.execute(query.order_by(failures.c.run_id))]

    def failed_attempts(self, run_id: str) -> list[Failure]:
        """Every failed attempt of a run, also of one that has succeeded since."""
        query = sa.select(failures).where(failures.c.run_id == run_id).order_by(failures.c.attempt)
        with self._database.read() as connection:
            return [Failure(*row) for row in connection.execute(query)]

    def conflicts(self, study: str) -> list[Conflict]:
        """Results that came later and differed, of the runs of a study."""
        query = _select_runs(study, conflicts.c.run_id, conflicts.c.seen_at, conflicts.c.record)
        query = query.join(conflicts, conflicts.c.run_id == runs.c.run_id)
        with self._database.read() as connection:
            _require_study(connection, study)
            rows = connection.execute(query.order_by(conflicts.c.run_id, conflicts.c.seen_at)).all()
        return [Conflict(run_id, seen_at, json.loads(record)) for run_id, seen_at, record in rows]

    def register_forecast(self, study: str, fingerprint: str, payload: dict[str, Any]) -> Registered:
        """Write a forecast down, for ever: the first payload under a fingerprint is returned from then on."""
        key = {"study": study, "fingerprint": fingerprint}

        def register(connection: Connection) -> Registered:
            if (known := _find_forecasts(connection, **key)) == []:
                connection.execute(forecasts.insert().values(**key, payload=to_json(payload), created_at=now()))
                known = _find_forecasts(connection, **key)
            return known[0]

        return self._database.write(register)

    def forecasts(self, study: str) -> list[Registered]:
        """The forecasts of a study, oldest first."""
        with self._database.read() as connection:
            return _find_forecasts(connection, study=study)

    def save_gate(self, study: str, parametrization: str, kind: Gate, *, passed: bool, details: dict[str, Any]) -> None:
        """Write a verdict down; of each kind the newest of a parametrization is valid."""
        row = {"study": study, "parametrization": parametrization, "kind": kind, "passed": passed}
        row |= {"details": to_json(details), "created_at": now()}
        self._database.write(lambda connection: connection.execute(gates.insert().values(row)))

    def gates(self, study: str) -> pd.DataFrame:
        """The valid verdicts of a study: parametrization, kind, passed, details, created_at; empty where none is."""
        newest = sa.select(sa.func.max(gates.c.id)).where(gates.c.study == study)
        newest = newest.group_by(gates.c.parametrization, gates.c.kind)
        query = sa.select(*(gates.c[name] for name in GATE_COLUMNS)).where(gates.c.id.in_(newest))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(gates.c.parametrization, gates.c.kind)).all()
        return frame_gates([(*row[:3], json.loads(row[3]), row[4]) for row in rows])

    def hold_study(self, study: str, *, steal: bool = False) -> AbstractContextManager[Lease]:
        """Drive a study, alone: raises InputError naming a live driver; see `foretune.ledger.lease.hold_study`."""
        return leasing.hold_study(self._database, study, steal=steal)

    def progress(self, study: str) -> dict[str, Any] | None:
        """`holder`, `since`, `alive`, `silent_seconds` and `progress` of a study's driver; None when there is none."""
        with self._database.read() as connection:
            return leasing.read_progress(connection, self._database, study)

    def quick_check(self) -> list[str]:
        """What is wrong with the file, empty when it is sound; scans it. PostgreSQL checks its own pages."""
        if not self._database.is_sqlite:
            return []
        try:
            with self._database.read() as connection:
                lines = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check")]
        except InputError as error:  # too damaged to be checked to the end
            return [str(error)]
        return [] if lines == ["ok"] else lines


def _write_member(connection: Connection, record: RunRecord) -> Recorded:
    recorded = write_record(connection, record)
    key = {"study": clean_text(record.study), "run_id": record.run_id}
    if connection.execute(sa.select(members.c.role).filter_by(**key)).first() is None:
        connection.execute(members.insert().values(**key, scale=clean_text(record.scale), role=record.role))
    return recorded


def _select_runs(study: str | None, *columns: Any) -> sa.Select[Any]:
    """Select from the runs, or from those that a study is made of."""
    if study is None:
        return sa.select(*columns).select_from(runs)
    joined = runs.join(members, members.c.run_id == runs.c.run_id)
    return sa.select(*columns).select_from(joined).where(members.c.study == study)


def _select_series(study: str | None, table: sa.Table, names: Sequence[str]) -> sa.Select[Any]:
    """Select the points of the runs' curves or diagnoses, in the order in which they were reported."""
    query = _select_runs(study, *(table.c[name] for name in names))
    return query.join(table, table.c.run_id == runs.c.run_id).order_by(table.c.run_id, table.c.position)


def _read_domains(connection: Connection, study: str | None) -> Iterator[DomainValue]:
    query = _select_runs(study, domain_values).join(domain_values, domain_values.c.run_id == runs.c.run_id)
    yield from (tuple(row) for row in connection.execute(query))


def _list_studies(connection: Connection) -> list[str]:
    launched = set(connection.execute(sa.select(studies.c.study).distinct()).scalars())
    return sorted(launched | set(connection.execute(sa.select(members.c.study).distinct()).scalars()))


def _list_dropped(connection: Connection, study: str, roles: set[str], asked: Container[str]) -> list[str]:
    """Members in these roles, executed by this program or never run, that are not asked for."""
    imported = sa.select(runs.c.run_id).where(runs.c.source.not_in(("trained", "replay")))
    planned = sa.select(members.c.run_id).where(
        members.c.study == study, members.c.role.in_(roles), members.c.run_id.not_in(imported)
    )
    return [run_id for run_id in connection.execute(planned).scalars() if run_id not in asked]


def _require_study(connection: Connection, study: str | None) -> None:
    if study is None:
        return
    known = _list_studies(connection)
    if study in known:
        return
    nearest = difflib.get_close_matches(study, known, n=3)
    listed = ", ".join(nearest or known[:10])
    meant = f"did you mean {listed}?" if nearest else f"it holds {listed}" if known else "it holds none yet"
    raise InputError(f"study {study!r} is not in the ledger; {meant}")


def _last_snapshot(connection: Connection, name: str) -> str | None:
    query = sa.select(studies.c.snapshot).where(studies.c.study == name).order_by(studies.c.id.desc()).limit(1)
    return connection.execute(query).scalar_one_or_none()


def _find_forecasts(connection: Connection, **key: str) -> list[Registered]:
    query = sa.select(forecasts.c.id, forecasts.c.created_at, forecasts.c.payload).filter_by(**key)
    rows = connection.execute(query.order_by(forecasts.c.id))
    return [Registered(number, created_at, json.loads(payload)) for number, created_at, payload in rows]


def _batch(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]
