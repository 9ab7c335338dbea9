"""What lies between the thread that wants runs executed and the experiment that does it. No Ray in here."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from foretune.errors import RunnerInterruption
from foretune.records import CurvePoint, RunOutcome, RunSpec
from foretune.runners.interface import Observer
from foretune.runners.trainers import fail
from foretune.runners.worker import describe_pack

Pack = tuple[RunSpec, ...]
"""Runs that are handed to a worker together."""
PackText = dict[str, list[str]]
"""The same in plain data; see `describe_pack`."""
SILENCE_SECONDS = 30.0
"""After how long without news the machines are counted: Ray itself would wait for lost ones for ever."""
SUSPENSE_SECONDS = 1.0
"""The same while it is not known whether a machine is lost."""
DETECTION_SECONDS = 40.0
"""How long Ray may take to find that a machine is gone: 5 missed checks, 3 s apart, after 5 s (Ray 2.60's defaults)."""


@dataclass(frozen=True)
class Event:
    """What an experiment tells of a run, or of itself (empty run_id)."""

    run_id: str = ""
    point: str = ""
    outcome: str = ""
    failure: str = ""
    died: bool = False
    """Whether the run has failed without raising anything: its worker is gone, and its machine perhaps."""


class Stream:
    """Packs on their way to an experiment and events on their way back; two threads meet here."""

    def __init__(self) -> None:
        """Open, with nothing in it."""
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._packs: deque[PackText] = deque()
        self._closed = False
        self._changed = threading.Condition()

    @property
    def closed(self) -> bool:
        """Whether nothing more is wanted of the experiment, also of what it is at."""
        return self._closed

    def put(self, packs: Sequence[PackText]) -> None:
        """Hand packs over, in their order."""
        with self._changed:
            self._packs.extend(packs)
            self._changed.notify()

    def take(self, *, wait: bool) -> PackText | None:
        """The next pack; None when there is none now, or with `wait` when the stream is closed."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._packs or self._closed)
            return self._packs.popleft() if self._packs and not self._closed else None

    def close(self) -> None:
        """End the experiment."""
        with self._changed:
            self._closed = True
            self._changed.notify()


@dataclass
class Backlog:
    """Runs that no experiment has been given yet."""

    packs: deque[Pack] = field(default_factory=deque)
    """Packed, in the order in which they are to begin."""
    loose: list[RunSpec] = field(default_factory=list)
    """Not packed yet: how is to be measured, on workers that have nothing else to do."""

    def draw(self, room: int, *, is_empty: bool) -> list[Pack]:
        """Packs for an experiment that may be given so many runs more; an empty one gets a pack of any size.

        None goes ahead of one that does not fit, so that a full experiment comes to its end.
        """
        drawn: list[Pack] = []
        while self.packs and (len(self.packs[0]) <= room or (is_empty and not drawn)):
            drawn.append(self.packs.popleft())
            room -= len(drawn[-1])
        return drawn


@dataclass(frozen=True)
class _Submission:
    """A run that the experiment was given."""

    spec: RunSpec
    pack: Pack
    nodes: frozenset[str]
    """The machines that there were."""


class Flow:
    """The runs of one experiment, from their submission to their end."""

    def __init__(
        self, stream: Stream, most: int, list_nodes: Callable[[], frozenset[str]], find_breakage: Callable[[], str]
    ) -> None:
        """At most so many runs. `find_breakage` says why nothing can come of the experiment any more, if so."""
        self._stream = stream
        self._room = self._most = most
        self._list_nodes = list_nodes
        self._find_breakage = find_breakage
        self._pending: dict[str, _Submission] = {}
        self._suspects: dict[str, tuple[Event, float]] = {}

    def draw(self, backlog: Backlog) -> None:
        """Give the experiment what it may have of these."""
        self._submit(backlog.draw(self._room, is_empty=self._room == self._most))

    def follow(self, observe: Observer) -> Generator[tuple[RunSpec, RunOutcome]]:
        """How each run ended; one that went down with its machine begins again, whatever its retries.

        Raises RunnerInterruption when the experiment breaks down.
        """
        while self._pending:
            event = self._wait_for_event()
            if not event.run_id:
                raise RunnerInterruption(f"Ray broke down with {len(self._pending)} runs to do: {event.failure}")
            if (submission := self._pending.get(event.run_id)) is None:
                continue  # told again by the worker that went on with the pack
            if event.point:
                _observe(observe, submission.spec, event.point)
            elif event.died and len(submission.nodes) > 1:
                self._suspects[event.run_id] = (event, time.monotonic() + DETECTION_SECONDS)
            else:
                if event.failure and (breakage := self._find_breakage()):
                    raise RunnerInterruption(f"{breakage}, with {len(self._pending)} runs to do")
                yield self._pending.pop(event.run_id).spec, _read_outcome(event)

    def _submit(self, packs: Sequence[Pack]) -> None:
        if packs:
            nodes = self._list_nodes()
            self._pending |= {spec.run_id: _Submission(spec, pack, nodes) for pack in packs for spec in pack}
            self._room -= sum(map(len, packs))
            self._stream.put([describe_pack(pack) for pack in packs])

    def _wait_for_event(self) -> Event:
        """The next event; in long silences, whether there can be one at all."""
        while True:
            with suppress(queue.Empty):
                return self._stream.events.get_nowait()
            if settled := self._settle_suspects():
                return settled
            with suppress(queue.Empty):
                return self._stream.events.get(timeout=SUSPENSE_SECONDS if self._suspects else SILENCE_SECONDS)
            if breakage := self._find_breakage():
                return Event(failure=breakage)

    def _settle_suspects(self) -> Event | None:
        """Put the runs of lost machines back; one whose machine is still there after all that time has failed."""
        nodes = self._list_nodes() if self._suspects else frozenset()
        lost = {run_id for run_id in self._suspects if not self._pending[run_id].nodes <= nodes}
        packs = {self._pending[run_id].pack[0].run_id: self._pending[run_id].pack for run_id in lost}
        self._suspects = {run_id: item for run_id, item in self._suspects.items() if run_id not in lost}
        self._submit([tuple(spec for spec in pack if spec.run_id in lost) for pack in packs.values()])
        late = [event for event, deadline in self._suspects.values() if time.monotonic() > deadline]
        if not late:
            return None
        del self._suspects[late[0].run_id]
        return replace(late[0], died=False)


def _observe(observe: Observer, spec: RunSpec, text: str) -> None:
    try:
        point = CurvePoint.model_validate_json(text)
    except ValidationError:
        return  # progress only: a point that JSON cannot carry (a learning rate of NaN) fails the outcome
    observe(spec, point)


def _read_outcome(event: Event) -> RunOutcome:
    return RunOutcome.model_validate_json(event.outcome) if event.outcome else fail(event.failure)
