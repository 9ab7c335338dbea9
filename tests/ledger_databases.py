"""Databases for the tests of the ledger, and processes that write to them. Worker functions live here, where the
children of a fork server can import them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from foretune.ledger import open_ledger
from foretune.records import CurvePoint, RunOutcome, RunRecord, RunStatus, record_outcome
from foretune_factories import make_spec

DIALECTS = ("sqlite", "postgresql")


@contextmanager
def serve_postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server: FORETUNE_TEST_POSTGRES, else a private one; skips where there is neither."""
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'foretune[postgres]'")
    given = os.environ.get("FORETUNE_TEST_POSTGRES")
    if given:
        yield given
        return
    programs = _find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL: set FORETUNE_TEST_POSTGRES to a server's URL, or install its programs")
    with tempfile.TemporaryDirectory(prefix="ftpg") as folder:
        yield from _run_server(programs, Path(folder))


def _find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    homes = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((home for home in homes if (home / "postgres").exists()), None)


def _run_server(programs: Path, folder: Path) -> Iterator[str]:
    user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    initialize: list[str | Path] = [
        programs / "initdb",
        "-D",
        str(data),
        "-U",
        "tester",
        "--auth=trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(initialize, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"]
    start: list[str | Path] = [
        programs / "postgres",
        "-D",
        str(data),
        *(word for item in settings for word in ("-c", item)),
    ]
    server = subprocess.Popen(start, user=user, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        url = f"postgresql://tester@127.0.0.1:{port}/postgres"
        wait: list[str | Path] = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(wait).returncode:
            assert server.poll() is None, "the PostgreSQL server did not start"
        yield url
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def make_database(server: str) -> Iterator[str]:
    """The URL of a new, empty schema on a PostgreSQL server (faster than a new database), dropped at the end."""
    name = f"ledger_{uuid4().hex[:12]}"
    engine = sa.create_engine(sa.make_url(server).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    url = sa.make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
    yield url.render_as_string(hide_password=False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    engine.dispose()


@cache
def _completed() -> RunOutcome:
    curve = tuple(CurvePoint(step=step, tokens=step * 1024, lr=0.01, loss=5.0 / step) for step in range(1, 9))
    return RunOutcome(status=RunStatus.COMPLETED, loss=0.1 + 0.2, loss_by_domain={"code": 0.1 + 0.2}, curve=curve)


def make_record(seed: int = 0, *, study: str = "test", **changes: Any) -> RunRecord:
    """A completed run with a curve; `changes` name fields of the record."""
    return record_outcome(make_spec(seed=seed, study=study), _completed()).model_copy(update=changes)


def write_until_killed(url: str, first_seed: int, acknowledge: Connection) -> None:
    """Record run after run, telling of each only after the ledger has acknowledged it."""
    with open_ledger(url) as ledger:
        for seed in range(first_seed, first_seed + 100_000):
            record = make_record(seed)
            ledger.record(record)
            with suppress(BrokenPipeError):
                acknowledge.send(record.run_id)


def write_together(url: str, worker: int, runs: int, start: Barrier) -> None:
    """Open (or create) the ledger at the same moment as the others, write own runs and one that all write."""
    start.wait(60)
    with open_ledger(url, create=True) as ledger:
        ledger.record(make_record(999_999))
        for seed in range(worker * runs, (worker + 1) * runs):
            ledger.record(make_record(seed))


def hold_until_killed(url: str, study: str, ready: Connection) -> None:
    """Hold a study and never let go."""
    with open_ledger(url) as ledger, ledger.hold_study(study) as lease:
        lease.progress({"minutes_left": 7})
        ready.send(os.getpid())
        ready.recv()
