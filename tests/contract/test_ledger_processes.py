"""Many processes and kill -9, on every database: what was acknowledged is there, once and whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

from foretune.ledger import open_ledger
from ledger_databases import make_record, write_together, write_until_killed

KILLS, WRITERS, RUNS_EACH, CURVE_POINTS = 20, 8, 10, 8

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a fork server and kill -9")


@pytest.fixture(scope="module")
def context() -> Iterator[ForkServerContext]:
    """Processes that start in milliseconds, from one server that has the imports already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ledger_databases"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server takes no other import path
        forkserver.ensure_running()
        yield context


def test_kill_nine_loses_no_acknowledged_run_and_halves_none(context: ForkServerContext, ledger_url: str) -> None:
    """A killed writer; not a power loss, which no process can play."""
    random.seed(0)
    acknowledged: list[str] = []
    open_ledger(ledger_url, create=True).close()
    for kill in range(KILLS):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=write_until_killed, args=(ledger_url, kill * 100_000, there), daemon=True)
        writer.start()
        there.close()
        acknowledged.append(here.recv())  # it has begun
        time.sleep(random.uniform(0.0, 0.05))
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        while here.poll():
            try:
                acknowledged.append(here.recv())
            except EOFError:
                break
    with open_ledger(ledger_url) as ledger:
        frame, curves = ledger.runs(), ledger.curves()
        assert ledger.quick_check() == []
    assert len(acknowledged) > KILLS
    assert set(acknowledged) <= set(frame["run_id"])
    assert frame["run_id"].is_unique
    assert len(frame) - len(acknowledged) <= KILLS  # at most the one whose acknowledgement was cut off
    assert (curves.groupby("run_id").size() == CURVE_POINTS).all()
    assert set(curves["run_id"]) == set(frame["run_id"])
    assert frame["loss/code"].notna().all()


def test_writers_that_start_together_create_one_ledger_and_lose_nothing(
    context: ForkServerContext, ledger_url: str
) -> None:
    barrier = context.Barrier(WRITERS)
    arguments = [(ledger_url, worker, RUNS_EACH, barrier) for worker in range(WRITERS)]
    writers = [context.Process(target=write_together, args=one) for one in arguments]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    with open_ledger(ledger_url) as ledger:
        frame = ledger.runs()
    expected = {make_record(seed).run_id for seed in [*range(WRITERS * RUNS_EACH), 999_999]}
    assert sorted(frame["run_id"]) == sorted(expected)
    assert frame["attempts"].eq(1).all()
