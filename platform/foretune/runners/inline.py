"""Runs in this process, one after another: to step through a trainer with a debugger, and for tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from foretune.records import CurvePoint, RunOutcome, RunSpec
from foretune.runners.interface import Observer
from foretune.runners.isolation import isolate
from foretune.runners.trainers import check_trainers, describe_error, fail, train
from foretune.sections import RunnerSection

_log = logging.getLogger(__name__)


class InlineRunner:
    """Executes runs in order in the calling thread."""

    def __init__(self, section: RunnerSection, workspace: Path) -> None:
        """Runs keep their files under `workspace`."""
        self._section = section
        self._workspace = workspace.absolute()

    def run(self, specs: Sequence[RunSpec], observe: Observer) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Yield the outcome of each run, in the order given; see `Runner.run`."""
        check_trainers(specs)
        for spec in specs:
            yield spec, self._execute(spec, observe)

    def describe(self) -> str:
        """One line for people."""
        return "inline: this process, one run at a time"

    def close(self) -> None:
        """Nothing was started."""

    def _execute(self, spec: RunSpec, observe: Observer) -> RunOutcome:
        reason = ""
        for attempt in range(self._section.retries + 1):
            relay = _Relay(lambda point: observe(spec, point))
            try:
                with isolate(threads=int(self._section.cpus_per_run)):
                    return train(spec, self._workspace, relay)
            except (Exception, SystemExit) as error:
                if relay.error is not None:  # the observer's own trouble, not the run's
                    raise relay.error from None
                reason = describe_error(error)
                _log.error("run %s, attempt %d: %s", spec.run_id, attempt + 1, reason, exc_info=error)
        return fail(reason)


class _Relay:
    """Passes points on, and remembers whether it was the listener that raised."""

    def __init__(self, listener: Callable[[CurvePoint], None]) -> None:
        self._listener = listener
        self.error: Exception | None = None

    def __call__(self, point: CurvePoint) -> None:
        try:
            self._listener(point)
        except Exception as error:
            self.error = error
            raise
