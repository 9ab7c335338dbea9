"""Runs in this process, one pack after another: to step through a trainer with a debugger, and for tests."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from foretune.records import RunOutcome, RunSpec
from foretune.runners.attempts import Fault, attempt_runs, find_conditions, release_states
from foretune.runners.grouping import group_runs
from foretune.runners.interface import More, Note, Observer, ask_nothing, ignore_note
from foretune.runners.sizing import Sizer, measure_packs
from foretune.runners.streaming import Pack
from foretune.runners.trainers import check_trainers, fail
from foretune.sections import RunnerSection


class InlineRunner:
    """Executes runs in the calling thread."""

    def __init__(self, section: RunnerSection, workspace: Path) -> None:
        """Runs keep their files under `workspace`."""
        self._section = section
        self._conditions = replace(find_conditions(section, workspace.absolute()), memory_bytes=0)  # the caller's own
        self._sizer = Sizer(section, lambda specs, most: measure_packs(specs, most, section))

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Yield outcomes pack by pack; see `Runner.run`."""
        waiting = deque(self._pack(specs, note))
        try:
            while waiting:
                for outcome in self._execute(waiting.popleft(), observe):
                    yield outcome
                    waiting += self._pack(more(), note)
        finally:
            release_states()

    def describe(self) -> str:
        """One line for people."""
        return "inline: this process, one pack of runs at a time"

    def close(self) -> None:
        """Nothing was started."""

    def _pack(self, specs: Sequence[RunSpec], note: Note) -> list[Pack]:
        check_trainers(specs)
        groups = group_runs(specs, self._section, 1, self._sizer) if specs else []
        for line in (line for group in groups for line in group.notes()):
            note(line)
        return [pack for group in groups for pack in group.packs]

    def _execute(self, specs: Sequence[RunSpec], observe: Observer) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Attempts at a pack, until each of its runs has ended or the retries are spent."""
        waiting, reasons = list(specs), dict[str, str]()
        for _ in range(self._section.retries + 1):
            raised = []
            for spec, result in attempt_runs(waiting, self._conditions, observe):
                if isinstance(result, Fault):
                    raised.append(spec)
                    reasons[spec.run_id] = result.reason
                else:
                    yield spec, result
            waiting = raised
            if not waiting:
                return
        for spec in waiting:
            yield spec, fail(reasons[spec.run_id])
