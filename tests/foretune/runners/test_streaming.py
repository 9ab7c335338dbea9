"""Packs on their way to an experiment and events on their way back, without an experiment."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from foretune.errors import RunnerInterruption
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.runners import streaming
from foretune.runners.streaming import Backlog, Event, Flow, Pack, Stream
from foretune_factories import make_spec

SPECS = [make_spec(seed=seed) for seed in range(6)]


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


def complete(spec: RunSpec, loss: float = 1.0) -> Event:
    return Event(spec.run_id, outcome=RunOutcome(status=RunStatus.COMPLETED, loss=loss).model_dump_json())


class Machines:
    """Those that there are, and whether the experiment is sound."""

    def __init__(self, *names: str) -> None:
        self.names, self.breakage = set(names), ""

    def flow(self, stream: Stream, most: int = 1000) -> Flow:
        return Flow(stream, most, lambda: frozenset(self.names), lambda: self.breakage)


def submit(flow: Flow, *packs: Pack) -> None:
    backlog = Backlog()
    backlog.packs.extend(packs)
    flow.draw(backlog)
    assert not backlog.packs


def take_all(stream: Stream) -> list[list[str]]:
    """The runs of the packs that wait."""
    return [pack["runs"] for pack in iter(lambda: stream.take(wait=False), None)]


def ids(*specs: RunSpec) -> list[str]:
    return [spec.run_id for spec in specs]


def test_a_full_experiment_is_given_nothing_more_and_nothing_overtakes() -> None:
    backlog = Backlog()
    backlog.packs.extend([tuple(SPECS[:2]), tuple(SPECS[2:5]), (SPECS[5],)])
    assert backlog.draw(3, is_empty=True) == [tuple(SPECS[:2])]
    assert backlog.draw(1, is_empty=False) == [], "the last pack would fit"
    assert backlog.draw(2, is_empty=True) == [tuple(SPECS[2:5])], "a pack is never divided"


def test_waiting_ends_with_a_pack_or_with_the_stream() -> None:
    stream = Stream()
    assert stream.take(wait=False) is None
    later = threading.Timer(0.05, stream.put, ([{"runs": ["a"], "specs": [""]}],))
    later.start()
    assert stream.take(wait=True) == {"runs": ["a"], "specs": [""]}
    threading.Timer(0.05, stream.close).start()
    assert stream.take(wait=True) is None
    stream.put([{"runs": ["b"], "specs": [""]}])
    assert stream.take(wait=False) is None, "a closed stream gives nothing"


def test_each_run_ends_once_however_often_it_is_told() -> None:
    stream = Stream()
    flow = Machines("a").flow(stream)
    submit(flow, (SPECS[0], SPECS[1]))
    for event in (complete(SPECS[0], 1.0), complete(SPECS[0], 2.0), Event(SPECS[1].run_id, failure="it raised")):
        stream.events.put(event)
    ended = [(spec.run_id, outcome.status.value, outcome.loss) for spec, outcome in flow.follow(ignore)]
    assert ended == [(SPECS[0].run_id, "completed", 1.0), (SPECS[1].run_id, "failed", None)]


def test_runs_may_be_added_while_outcomes_are_taken() -> None:
    stream = Stream()
    flow = Machines("a").flow(stream)
    submit(flow, (SPECS[0],))
    stream.events.put(complete(SPECS[0]))
    ended = []
    for spec, _ in flow.follow(ignore):
        ended.append(spec.seed)
        if spec.seed < 3:
            submit(flow, (SPECS[spec.seed + 1],))
            stream.events.put(complete(SPECS[spec.seed + 1]))
    assert ended == [0, 1, 2, 3]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(streaming, "SUSPENSE_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "DETECTION_SECONDS", 0.1)


def die(specs: Sequence[RunSpec]) -> list[Event]:
    return [Event(spec.run_id, failure="the worker process died", died=True) for spec in specs]


@pytest.mark.usefixtures("_impatient")
def test_runs_of_a_lost_machine_begin_again_together() -> None:
    stream, machines = Stream(), Machines("a", "b")
    flow = machines.flow(stream)
    submit(flow, tuple(SPECS[:3]), (SPECS[3],))
    assert take_all(stream) == [ids(*SPECS[:3]), ids(SPECS[3])]
    for event in (complete(SPECS[0]), *die(SPECS[1:4])):
        stream.events.put(event)

    def lose_and_go_on() -> None:
        machines.names.remove("b")
        while not (packs := take_all(stream)):
            time.sleep(0.01)
        again.extend(packs)
        for spec in SPECS[1:4]:
            stream.events.put(complete(spec))

    again: list[list[str]] = []
    threading.Timer(0.03, lose_and_go_on).start()
    ended = {spec.run_id: outcome.status for spec, outcome in flow.follow(ignore)}
    assert ended == dict.fromkeys(ids(*SPECS[:4]), RunStatus.COMPLETED)
    assert sorted(again) == sorted([ids(*SPECS[1:3]), ids(SPECS[3])]), "less the one that had ended"


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("machines", [Machines("a"), Machines("a", "b")], ids=["one", "two"])
def test_a_run_that_kills_its_worker_has_failed_when_its_machine_is_still_there(machines: Machines) -> None:
    stream = Stream()
    flow = machines.flow(stream)
    submit(flow, (SPECS[0],))
    stream.events.put(die(SPECS[:1])[0])
    ((_, outcome),) = flow.follow(ignore)
    assert (outcome.status, outcome.reason) == (RunStatus.FAILED, "the worker process died")


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(
    ("event", "breakage", "message"),
    [
        (Event(failure="disk full"), "", "Ray broke down with 2 runs to do: disk full"),
        (None, "no machine is left", "Ray broke down with 2 runs to do: no machine is left"),
        (Event(SPECS[0].run_id, failure="no such file"), "the folder is gone", "the folder is gone, with 2 runs to do"),
    ],
)
def test_a_broken_experiment_interrupts(event: Event | None, breakage: str, message: str) -> None:
    stream, machines = Stream(), Machines("a")
    flow = machines.flow(stream)
    submit(flow, (SPECS[0], SPECS[1]))
    machines.breakage = breakage
    if event:
        stream.events.put(event)
    with pytest.raises(RunnerInterruption, match=message):
        list(flow.follow(ignore))


def test_points_are_heard_and_one_that_json_cannot_carry_is_not() -> None:
    stream, heard = Stream(), list[Any]()
    flow = Machines("a").flow(stream)
    submit(flow, (SPECS[0],))
    point = CurvePoint(step=1, tokens=1, lr=0.1, loss=2.0, held_out=2.0)
    for text in (point.model_dump_json(), "{"):
        stream.events.put(Event(SPECS[0].run_id, point=text))
    stream.events.put(complete(SPECS[0]))
    assert len(list(flow.follow(lambda spec, seen: heard.append((spec.run_id, seen))))) == 1
    assert heard == [(SPECS[0].run_id, point)]
