"""The main loop: ask which runs are missing, run them, record each as it arrives, until nothing is missing.

The ledger is the truth and a runner a disposable executor: a killed driver is started again by the same command, plans
from the ledger, and so loses no finished run and repeats none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from foretune.deriving import CorpusFacts
from foretune.errors import RunnerInterruption
from foretune.ledger import Ledger, Recorded
from foretune.ledger.lease import Lease
from foretune.planning import Plan, Skipped, plan_runs
from foretune.query import register_forecasts
from foretune.records import CurvePoint, RunOutcome, RunSpec, record_outcome
from foretune.runners import Runner
from foretune.search import ask_search
from foretune.search.verification import ask_verification
from foretune.study import Study

ROUNDS_WITHOUT_PROGRESS = 3
"""How often a broken executor is started again when no run finishes in between."""


class Watcher(Protocol):
    """Who is told of progress: a progress bar, or nobody."""

    def start_stage(self, plan: Plan) -> None:
        """A stage with these runs begins."""

    def observe(self, spec: RunSpec, point: CurvePoint) -> None:
        """A run has come so far."""

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        """A run has ended and is in the ledger."""

    def report(self) -> dict[str, Any]:
        """How far the launch is, for whoever asks the ledger for its status."""

    def note(self, message: str) -> None:
        """Something that a person ought to know."""


@dataclass(frozen=True)
class Stage:
    """Runs that may execute together, because none depends on the result of another."""

    specs: Sequence[RunSpec]
    skipped: Sequence[Skipped]


def execute_study(
    study: Study, ledger: Ledger, runner: Runner, corpus: CorpusFacts, watcher: Watcher, *, steal: bool = False
) -> None:
    """Bring the ledger to the point where it holds every run of the study; raise RunnerInterruption if that fails."""
    name = study.study.name
    with ledger.hold_study(name, steal=steal) as lease:
        ledger.save_study(name, study.snapshot())
        for stage in list_stages(study, ledger, corpus):
            ledger.enroll(name, [(spec.run_id, spec.scale, spec.role) for spec in stage.specs])
            _execute_stage(stage, study, ledger, runner, lease, watcher)


def list_stages(study: Study, ledger: Ledger, corpus: CorpusFacts) -> Iterator[Stage]:
    """The search, then (once the forecast is written down) the larger runs that check it."""
    yield Stage(*ask_search(study, corpus))
    if study.verification:
        centres = register_forecasts(study, ledger)
        yield Stage(*ask_verification(study, corpus, centres))


def _execute_stage(stage: Stage, study: Study, ledger: Ledger, runner: Runner, lease: Lease, watcher: Watcher) -> None:
    attempted: set[str] = set()
    stalled = 0

    def plan() -> Plan:
        statuses = ledger.statuses([spec.run_id for spec in stage.specs])
        specs = [spec for spec in stage.specs if spec.run_id not in attempted]
        return plan_runs(study, specs, stage.skipped, statuses)

    watcher.start_stage(plan())
    while todo := plan().todo:
        before = len(attempted)
        try:
            _execute_runs(todo, ledger, runner, lease, watcher, attempted.add)
        except RunnerInterruption as interruption:
            stalled = 0 if len(attempted) > before else stalled + 1
            if stalled >= ROUNDS_WITHOUT_PROGRESS:
                raise
            watcher.note(f"{interruption}; planning again from the ledger")


def _execute_runs(
    specs: Sequence[RunSpec],
    ledger: Ledger,
    runner: Runner,
    lease: Lease,
    watcher: Watcher,
    mark: Callable[[str], None],
) -> None:
    with closing(runner.run(specs, watcher.observe, watcher.note)) as outcomes:
        for spec, outcome in outcomes:
            recorded = ledger.record(record_outcome(spec, outcome), lease=lease)
            if recorded not in (Recorded.INSERTED, Recorded.REPLACED_FAILED):
                watcher.note(f"run {spec.run_id} was in the ledger already ({recorded.value})")
            mark(spec.run_id)
            watcher.finish_run(spec, outcome)
            lease.progress(watcher.report())
