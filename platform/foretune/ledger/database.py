"""A database behind a ledger: how it is reached, how a transaction begins, and what its errors mean to a user.

Writers come one at a time on both databases: SQLite has one write lock, and on PostgreSQL every write transaction takes
the same advisory lock. Transactions are a few rows, and reading before writing is then free of races.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from foretune.errors import ForetuneError, InputError

LOCK_SECONDS = 30
"""Longest wait for another writer; each holds the lock for milliseconds."""
RECONNECT_SECONDS = 60.0
"""How long a write waits for a server that went away to come back. Assumption: the time of a restart or failover."""
APPLICATION_ID = int.from_bytes(b"FTUN", "big")
"""Marks a SQLite file as a ledger (PRAGMA application_id), and names the writers' lock on PostgreSQL."""

T = TypeVar("T")


class LedgerUnreachable(ForetuneError):
    """The database server cannot be reached."""


class Database:
    """Connections to one database. Reads see one moment; writes are whole transactions, one at a time."""

    def __init__(self, url: sa.URL) -> None:
        """Nothing is opened until the first read or write."""
        self.name = describe_url(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        engine = _make_sqlite_engine(url) if self.is_sqlite else _make_postgres_engine(url)
        self._engine = engine
        self._writing = engine.execution_options(foretune_write=True)
        self._reading = engine if self.is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction in which every query sees the same moment."""
        with self._explain_errors(), self._reading.begin() as connection:
            yield connection

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Do `work` in one transaction: all of it is durable on return, or none of it happened.

        `work` must be safe to repeat: on PostgreSQL it is done again when the connection was lost before the answer to
        the commit arrived.
        """
        deadline = time.monotonic() + RECONNECT_SECONDS
        while True:
            try:
                with self._explain_errors(), self._writing.begin() as connection:
                    return work(connection)
            except LedgerUnreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)

    def clock(self, connection: sa.Connection) -> float:
        """Seconds since 1970 by the one clock that all drivers of this ledger share."""
        if self.is_sqlite:
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise _explain(self.name, error.orig, error.connection_invalidated) from error
        except sqlite3.Error as error:  # from the connect hook, which SQLAlchemy does not wrap
            raise _explain(self.name, error, False) from error


def describe_url(url: sa.URL) -> str:
    """The database as it may be shown: no password, no query string (which can hold one)."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def _make_sqlite_engine(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": LOCK_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not where the driver guesses
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # A transaction that reads first and then writes fails at once, whatever the timeout, unless it is IMMEDIATE.
        writes = connection.get_execution_options().get("foretune_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _make_postgres_engine(url: sa.URL) -> sa.Engine:
    options = {"connect_timeout": 10, "application_name": "foretune"}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=options)
    except ModuleNotFoundError as error:
        raise InputError(f"{describe_url(url)}: {error}; try: pip install 'foretune[postgres]'") from None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("foretune_write"):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")

    return engine


def _explain(name: str, error: BaseException | None, disconnected: bool) -> ForetuneError:
    """What went wrong and what to try, in place of a driver's error."""
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    state = getattr(error, "sqlstate", None)
    if "database is locked" in message or state == "55P03":
        return ForetuneError(
            f"ledger {name}: another program has held its write lock for more than {LOCK_SECONDS} s; "
            "end that program (a database browser with an open edit?) and start again"
        )
    if "not a database" in message or "malformed" in message:
        return InputError(f"ledger {name}: damaged or no SQLite database ({message}); restore it from a backup")
    if "disk is full" in message or state == "53100":
        return ForetuneError(f"ledger {name}: the disk is full; nothing was lost, free some space and start again")
    if "readonly database" in message or "unable to open" in message:
        return InputError(f"ledger {name}: {message}; the file and its folder must be writable")
    if not isinstance(error, sqlite3.Error) and (disconnected or _is_lost(error, state)):
        return LedgerUnreachable(f"ledger {name}: not reachable: {message}")
    return ForetuneError(f"ledger {name}: {message}")


def _is_lost(error: BaseException | None, state: str | None) -> bool:
    """Whether a PostgreSQL error is one of the connection: none from the server, class 08, or a shutdown (57P)."""
    if state is None:
        return type(error).__name__ == "OperationalError"
    return state.startswith(("08", "57P"))


def read_url(address: str | Path) -> sa.URL:
    """The URL of a path or URL; raises InputError for what is neither SQLite nor PostgreSQL."""
    if isinstance(address, Path) or "://" not in address:
        return sa.URL.create("sqlite", database=str(Path(address).expanduser().absolute()))
    try:
        url = sa.make_url(address)
    except sa.exc.ArgumentError:
        raise InputError("ledger: the URL cannot be read; write postgresql://USER@HOST/DATABASE or a path") from None
    if url.drivername == "sqlite":
        return _read_sqlite_url(url)
    if url.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise InputError(
        f"ledger {describe_url(url)}: must be SQLite or PostgreSQL (by psycopg), got {url.drivername}; "
        "write a path or postgresql://USER@HOST/DATABASE"
    )


def _read_sqlite_url(url: sa.URL) -> sa.URL:
    if not url.database or url.database == ":memory:":
        raise InputError("ledger: a database in memory would be gone with the process; give a path")
    if url.query:
        raise InputError(f"ledger {url.database}: options in a SQLite URL are not supported; give the path alone")
    return read_url(Path(url.database))
