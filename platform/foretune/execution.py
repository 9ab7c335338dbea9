"""The main loop: ask which runs are missing, run them, record each as it arrives, until nothing more is asked for.

The ledger is the truth and a runner a disposable executor: a killed driver is started again by the same command, asks
again with what the ledger holds, and so loses no finished run, repeats none, and decides nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, Protocol

from foretune.deriving import CorpusFacts
from foretune.errors import RunnerInterruption
from foretune.ledger import Ledger, Recorded
from foretune.ledger.lease import Lease
from foretune.planning import Plan, plan_runs
from foretune.query import register_forecasts
from foretune.records import CurvePoint, Result, RunOutcome, RunSpec, RunStatus, record_outcome, result_of
from foretune.runners import Runner
from foretune.search import Asked
from foretune.search.verification import ask_verification
from foretune.searching import Searching
from foretune.study import Study

ROUNDS_WITHOUT_PROGRESS = 3
"""How often a broken executor is started again when no run finishes in between."""


Member = tuple[str, str, str]
"""A run of a study: its id, its scale and its role, which another run of the same id may take over."""
Sweep = Callable[[Collection[str]], None]
"""Told which runs' states may still be gone on from: those of other runs that have ended may go."""


class Watcher(Protocol):
    """Who is told of progress: a progress bar, or nobody."""

    def start_stage(self, plan: Plan) -> None:
        """A stage with these runs begins."""

    def add_runs(self, specs: Sequence[RunSpec], later: Sequence[RunSpec]) -> None:
        """The stage has further runs to do, and that much is left of what it will ask for later."""

    def observe(self, spec: RunSpec, point: CurvePoint) -> None:
        """A run has come so far."""

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        """A run has ended and is in the ledger."""

    def report(self) -> dict[str, Any]:
        """How far the launch is, for whoever asks the ledger for its status."""

    def note(self, message: str) -> None:
        """Something that a person ought to know."""


class Stage(Protocol):
    """Runs that may execute together; some of them may be asked for only when others have ended."""

    @property
    def fingerprint(self) -> str:
        """Under what its decisions are kept; empty where it takes none."""

    def ask(self) -> Asked:
        """Every run that should exist by now."""

    def take(self, result: Result) -> None:
        """A run of it has ended and is in the ledger."""

    def look_again(self) -> None:
        """Another study may have brought runs of it to their end since it asked for them."""

    def expect_rest(self, asked: Asked) -> list[RunSpec]:
        """Stand-ins for the runs that it will still ask for: their cost is known."""


class _Verification:
    """The larger runs that check a forecast: all are known from the beginning."""

    fingerprint = ""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def ask(self) -> Asked:
        return self._asked

    def take(self, result: Result) -> None:
        """Nothing depends on it."""

    def look_again(self) -> None:
        """Nothing is looked up."""

    def expect_rest(self, asked: Asked) -> list[RunSpec]:
        """Nothing is left."""
        return []


def execute_study(
    study: Study,
    ledger: Ledger,
    runner: Runner,
    corpus: CorpusFacts,
    watcher: Watcher,
    *,
    steal: bool = False,
    sweep: Sweep = lambda retained: None,
) -> None:
    """Bring the ledger to the point where it holds every run of the study; raise RunnerInterruption if that fails."""
    name = study.study.name
    with ledger.hold_study(name, steal=steal) as lease:
        ledger.save_study(name, study.snapshot())
        for stage in list_stages(study, ledger, corpus):
            _StageLoop(stage, study, ledger, runner, lease, watcher, sweep).execute()


def list_stages(study: Study, ledger: Ledger, corpus: CorpusFacts) -> Iterator[Stage]:
    """The search, then (once the forecast is written down) the larger runs that check it."""
    yield Searching(study, corpus, ledger)
    if study.verification:
        centres = register_forecasts(study, ledger)
        specs, skipped = ask_verification(study, corpus, centres)
        yield _Verification(Asked(tuple(specs), tuple(skipped)))


class _StageLoop:
    """Executes a stage: everything that it asks for, until it asks for nothing more."""

    def __init__(
        self,
        stage: Stage,
        study: Study,
        ledger: Ledger,
        runner: Runner,
        lease: Lease,
        watcher: Watcher,
        sweep: Sweep,
    ) -> None:
        self._stage = stage
        self._study = study
        self._ledger = ledger
        self._runner = runner
        self._lease = lease
        self._watcher = watcher
        self._sweep = sweep
        self._asked = Asked((), finished=False)
        self._attempted: set[str] = set()
        """Runs that have ended in this launch: none of them is tried again in it."""
        self._started: set[str] = set()
        """Runs that the runner has been given."""
        self._final: dict[str, RunStatus] = {}
        """What the ledger was seen to hold and will not change."""

    def execute(self) -> None:
        """Run what is missing; start a broken executor again as long as it gets anywhere."""
        stalled = 0
        self._refresh()
        self._watcher.start_stage(self._plan())
        while todo := self._plan().todo:
            before = len(self._attempted)
            try:
                self._execute_runs(todo)
            except RunnerInterruption as interruption:
                stalled = 0 if len(self._attempted) > before else stalled + 1
                if stalled >= ROUNDS_WITHOUT_PROGRESS:
                    raise
                self._watcher.note(f"{interruption}; planning again from the ledger")
            self._stage.look_again()
            self._refresh()  # the runner may have ended before it asked for more

    def _refresh(self) -> bool:
        """Ask, and write down what was decided before anything is run for it; whether other runs are asked for now."""
        if self._asked.finished:
            return False
        known, self._asked = self._asked, self._stage.ask()
        if decided := self._asked.decisions[len(known.decisions) :]:
            key = (self._study.study.name, self._stage.fingerprint)
            self._ledger.append_decisions(*key, decided, lease=self._lease)
        before, now = _list_members(known), _list_members(self._asked)
        if before != now:
            self._enroll(before, now)
        if known.retained != self._asked.retained:
            self._sweep(self._list_needed())
        return before != now

    def _enroll(self, before: Sequence[Member], now: Sequence[Member]) -> None:
        """Say what the study is made of: what is asked for beside what was, where nothing of that is left out."""
        known = set(before)
        further = bool(known) and known <= set(now)
        new = [member for member in now if not further or member not in known]
        self._ledger.enroll(self._study.study.name, new, further=further, lease=self._lease)

    def _find_statuses(self) -> dict[str, RunStatus]:
        """What the ledger holds of the runs that are asked for; what is final there is not looked up again."""
        unknown = [spec.run_id for spec in self._asked.specs if spec.run_id not in self._final]
        found = self._ledger.statuses(unknown)
        self._final |= {run_id: status for run_id, status in found.items() if status.final}
        return found | self._final

    def _plan(self) -> Plan:
        statuses = self._find_statuses()
        specs = [spec for spec in self._asked.specs if spec.run_id not in self._attempted]
        later = self._stage.expect_rest(self._asked)
        return plan_runs(self._study, specs, self._asked.skipped, statuses, later)

    def _more(self) -> list[RunSpec]:
        """What is to do beside what the runner has been given."""
        if not self._refresh():
            return []
        plan = self._plan()
        new = [spec for spec in plan.todo if spec.run_id not in self._started]
        self._started.update(spec.run_id for spec in new)
        if new:
            self._watcher.add_runs(new, plan.later)
        return new

    def _execute_runs(self, specs: Sequence[RunSpec]) -> None:
        self._started = {spec.run_id for spec in specs}
        watcher = self._watcher
        with closing(self._runner.run(specs, watcher.observe, watcher.note, self._more)) as outcomes:
            for spec, outcome in outcomes:
                result = self._record(spec, outcome)
                if spec.parent_run_id and (outcome.spent_flops or 0.0) > spec.own_flops:
                    gone = f"no state of {spec.parent_run_id}; trained from the beginning"
                    watcher.note(f"run {spec.run_id}: {outcome.reason if spec.soup else gone}")
                self._attempted.add(spec.run_id)
                self._stage.take(result)
                watcher.finish_run(spec, outcome)
                self._lease.progress(watcher.report())

    def _record(self, spec: RunSpec, outcome: RunOutcome) -> Result:
        """Write an outcome down; what the ledger holds then, which may be what another study had before."""
        record = record_outcome(spec, outcome)
        recorded = self._ledger.record(record, lease=self._lease)
        if recorded in (Recorded.INSERTED, Recorded.REPLACED_FAILED):
            return result_of(record)
        self._watcher.note(f"run {spec.run_id} was in the ledger already ({recorded.value})")
        (result,) = self._ledger.results([spec.run_id])
        return result

    def _list_needed(self) -> set[str]:
        """Runs whose states may not go: those that the search names, and the parents of what is still to do.

        One that has failed is to do in the next launch.
        """
        self._find_statuses()
        parents = {spec.parent_run_id for spec in self._asked.specs if spec.run_id not in self._final}
        return set(self._asked.retained) | parents


def _list_members(asked: Asked) -> list[Member]:
    return [(spec.run_id, spec.scale, spec.role) for spec in asked.specs]
