"""One driver per study: a lease with a heartbeat, taken over when its holder is dead, and fenced by a token.

The holder proves itself by the token in the same transaction in which it records a result, so a driver that was
suspended and superseded can no longer write (Gray and Cheriton 1989, Leases; Kleppmann 2016, fencing tokens).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from foretune.errors import ForetuneError, InputError
from foretune.ledger.database import Database
from foretune.ledger.recording import now, to_json
from foretune.ledger.tables import leases

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A holder that was silent for this long is taken for dead: twelve heartbeats, longer than any lock wait."""


class LeaseLost(ForetuneError):
    """Another driver has taken the study over; this one must stop."""


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same id."""

    machine: str
    pid: int
    started: str | None


class Lease:
    """The right to drive one study."""

    def __init__(self, database: Database, study: str) -> None:
        """Not yet held; see `hold_study`."""
        self.study = study
        self.token = secrets.token_hex(8)
        self._database = database
        self._report: str = to_json({})
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"foretune lease of {study}", daemon=True)

    def progress(self, report: Mapping[str, Any]) -> None:
        """Publish plain data for `foretune status`; it travels with the next heartbeat."""
        self._report = to_json(dict(report))

    def check(self, connection: sa.Connection) -> None:
        """Raise LeaseLost when another driver holds the study now."""
        token = connection.execute(sa.select(leases.c.token).where(leases.c.study == self.study)).scalar_one_or_none()
        if token != self.token:
            raise LeaseLost(f"study {self.study}: another driver has taken it over; this one stops")

    def _start(self) -> None:
        self._heart.start()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with suppress(ForetuneError):  # the next beat may get through; if none does, the lease goes stale
                self._database.write(self._renew)

    def _renew(self, connection: sa.Connection) -> None:
        values = {"heartbeat_seconds": self._database.clock(connection), "progress": self._report}
        connection.execute(leases.update().where(leases.c.token == self.token).values(values))

    def _release(self) -> None:
        self._released.set()
        self._heart.join(HEARTBEAT_SECONDS)
        with suppress(ForetuneError):  # a lease that cannot be given back goes stale
            self._database.write(lambda c: c.execute(leases.delete().where(leases.c.token == self.token)))


@contextmanager
def hold_study(database: Database, study: str, *, steal: bool = False) -> Iterator[Lease]:
    """Hold a study until the end of the block.

    A dead holder is replaced: at once when it ran on this machine, else when it was silent for a minute. `steal`
    replaces a live one too, which then stops at its next result. Raises InputError naming a live holder.
    """
    lease = Lease(database, study)
    database.write(lambda connection: _acquire(connection, database, lease, steal=steal))
    lease._start()
    try:
        yield lease
    finally:
        lease._release()


def _acquire(connection: sa.Connection, database: Database, lease: Lease, *, steal: bool) -> None:
    row = connection.execute(sa.select(leases).where(leases.c.study == lease.study)).mappings().one_or_none()
    clock = database.clock(connection)
    if row is not None and row["token"] != lease.token and not steal and is_alive(row, clock):
        raise InputError(
            f"study {lease.study} is held by {row['host']}:{row['pid']} since {row['started_at']}; wait for it, "
            "stop it, or take the study over with --steal"
        )
    connection.execute(leases.delete().where(leases.c.study == lease.study))
    me = identify_process(os.getpid())
    connection.execute(
        leases.insert().values(
            study=lease.study,
            token=lease.token,
            host=socket.gethostname(),
            machine=me.machine,
            pid=me.pid,
            process_started=me.started,
            started_at=now(),
            heartbeat_seconds=clock,
            progress=to_json({}),
        )
    )


def read_progress(connection: sa.Connection, database: Database, study: str) -> dict[str, Any] | None:
    """Who holds a study, since when, whether it is alive, how long it has been silent, and what it last reported; None
    when nobody does."""
    row = connection.execute(sa.select(leases).where(leases.c.study == study)).mappings().one_or_none()
    if row is None:
        return None
    return {
        "holder": f"{row['host']}:{row['pid']}",
        "since": row["started_at"],
        "alive": is_alive(row, clock := database.clock(connection)),
        "silent_seconds": max(0.0, clock - row["heartbeat_seconds"]),
        "progress": json.loads(row["progress"]),
    }


def is_alive(row: sa.RowMapping, clock: float) -> bool:
    """Whether the holder of a lease still runs, as far as can be told from here."""
    if clock - row["heartbeat_seconds"] > STALE_SECONDS:
        return False
    holder = Process(row["machine"], row["pid"], row["process_started"])
    return holder.machine != identify_machine() or _is_running(holder)


def _is_running(process: Process) -> bool:
    """Whether a process of this machine runs, and is no later one with the same id."""
    if os.name != "posix":  # os.kill would end it there; the heartbeat decides alone
        return True
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state, started = _read_stat(process.pid)
    same = started is None or process.started is None or started == process.started
    return same and state not in ("Z", "X")


def identify_process(pid: int) -> Process:
    """A process of this machine, with its start time where the system tells it."""
    return Process(identify_machine(), pid, _read_stat(pid)[1])


def _read_stat(pid: int) -> tuple[str, str | None]:
    """State and start time (clock ticks since boot) of a process: proc(5), fields 3 and 22 of stat."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", None
    from_state = stat.rpartition(")")[2].split()
    return from_state[0], from_state[19]


@cache
def identify_machine() -> str:
    """What shares its process ids with this process: host name, boot, and pid namespace (containers have their own)."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
