"""One driver per study, on every database: refusal, takeover, fencing."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import sqlalchemy as sa

from foretune.errors import InputError
from foretune.ledger import LeaseLost, Ledger
from foretune.ledger import lease as leasing
from foretune.ledger.tables import leases
from ledger_databases import hold_until_killed, make_record


def alter_lease(ledger: Ledger, **values: object) -> None:
    """Rewrite the lease as another machine or an earlier boot would have left it."""
    ledger._database.write(lambda connection: connection.execute(leases.update().values(**values)))


@pytest.fixture
def holder(ledger: Ledger, ledger_url: str) -> Iterator[BaseProcess]:
    """Another process that holds study `s`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_until_killed, args=(ledger_url, "s", there), daemon=True)
    process.start()
    assert here.poll(30), "the holder did not start"
    assert here.recv() == process.pid
    yield process
    process.kill()
    process.join()


def test_a_second_driver_is_refused_and_told_who_holds_the_study(ledger: Ledger) -> None:
    with ledger.hold_study("s"):
        with pytest.raises(InputError, match=rf"study s is held by .*:{os.getpid()} since 20"), ledger.hold_study("s"):
            pass
        with ledger.hold_study("other"):
            pass
    with ledger.hold_study("s"):
        pass
    assert ledger.progress("s") is None


def test_the_lease_is_given_back_when_the_driver_raises(ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt), ledger.hold_study("s"):
        raise KeyboardInterrupt
    assert ledger.progress("s") is None


def test_a_superseded_driver_cannot_write(ledger: Ledger) -> None:
    with ledger.hold_study("s") as old:
        ledger.record(make_record(1), lease=old)
        with ledger.hold_study("s", steal=True) as new:
            with pytest.raises(LeaseLost, match="study s: another driver has taken it over"):
                ledger.record(make_record(2), lease=old)
            ledger.record(make_record(3), lease=new)
    written = {make_record(seed).run_id for seed in (1, 3)}
    assert set(ledger.runs()["run_id"]) == written


def test_a_superseded_driver_does_not_end_its_successors_lease(ledger: Ledger) -> None:
    old = ledger.hold_study("s")
    old.__enter__()
    with ledger.hold_study("s", steal=True) as new:
        old.__exit__(None, None, None)
        ledger.record(make_record(), lease=new)


def test_a_driver_of_another_machine_is_live_until_it_was_silent_for_a_minute(ledger: Ledger) -> None:
    with ledger.hold_study("s"):
        alter_lease(ledger, machine="elsewhere", host="elsewhere", pid=1)
        with pytest.raises(InputError, match="held by elsewhere:1"), ledger.hold_study("s"):
            pass
        clock = ledger._database.write(ledger._database.clock)
        alter_lease(ledger, heartbeat_seconds=clock - leasing.STALE_SECONDS - 1)
        told = ledger.progress("s") or {}
        assert told["alive"] is False
        assert told["silent_seconds"] == pytest.approx(leasing.STALE_SECONDS + 1, abs=30)
        with ledger.hold_study("s"):
            assert ledger.progress("s")["alive"] is True  # type: ignore[index]


def test_a_later_process_with_the_same_id_is_not_the_holder(ledger: Ledger) -> None:
    if leasing.identify_process(os.getpid()).started is None:
        pytest.skip("this system does not tell when a process was started")
    with ledger.hold_study("s"):
        alter_lease(ledger, process_started="1")
        with ledger.hold_study("s"):
            pass


@pytest.mark.skipif(not Path("/proc").exists(), reason="a zombie is told from a live process by /proc alone")
def test_a_killed_driver_is_replaced_at_once(ledger: Ledger, holder: BaseProcess) -> None:
    with pytest.raises(InputError, match=rf":{holder.pid} since"), ledger.hold_study("s"):
        pass
    holder.kill()
    deadline = time.monotonic() + 10
    while (ledger.progress("s") or {})["alive"] and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel takes a moment; nobody has waited for the process yet, so it is a zombie
    with ledger.hold_study("s") as lease:
        ledger.record(make_record(), lease=lease)


def test_progress_travels_with_the_heartbeat(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "HEARTBEAT_SECONDS", 0.01)
    with ledger.hold_study("s") as lease:
        lease.progress({"minutes_left": 7})
        deadline = time.monotonic() + 10
        while not (told := ledger.progress("s") or {}).get("progress") and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told["progress"] == {"minutes_left": 7}
    assert told["holder"].endswith(f":{os.getpid()}")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("foretune lease")]


def test_heartbeats_keep_a_lease_alive(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(leasing, "STALE_SECONDS", 1.0)
    with ledger.hold_study("s"):
        time.sleep(1.3)
        with pytest.raises(InputError, match="is held by"), ledger.hold_study("s"):
            pass


def test_a_lease_table_row_is_gone_after_release(ledger: Ledger) -> None:
    with ledger.hold_study("s"):
        pass
    with ledger._database.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(leases)).scalar_one() == 0
