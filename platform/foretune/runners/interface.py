"""What every runner promises, and what every trainer is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Protocol

from foretune.records import CurvePoint, RunOutcome, RunSpec

Trainer = Callable[[RunSpec, Path, Callable[[CurvePoint], None]], RunOutcome]
"""Executes one run: `train(spec, folder, report)`.

The folder is this run's own and stays between attempts: checkpoints belong there. Points of the curve are reported as
they come. It returns an outcome (also of a run that diverged), or raises and is tried again.
"""

Note = Callable[[str], None]
"""Hears what a person ought to know: how runs are packed, and why."""

More = Callable[[], Sequence[RunSpec]]
"""Gives the runs that are to be executed beside those given before; called whenever an outcome has been taken."""

Observer = Callable[[RunSpec, CurvePoint], None]
"""Hears of every held-out evaluation of a run under way, in the thread that iterates over the outcomes."""


def ignore_note(message: str) -> None:
    """Hear nothing."""


def ask_nothing() -> Sequence[RunSpec]:
    """No further runs."""
    return ()


class Runner(Protocol):
    """How runs are executed; a runner knows nothing of searches or of the ledger."""

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Execute runs and yield each outcome as it arrives, in any order, exactly one per spec.

        When an outcome has been taken, `more` is asked for further runs, which may depend on it; it ends when nothing
        runs and `more` gives nothing.

        A run that raises is tried again `retries` times and then ends as failed, with the reason; the others go on,
        also those that were trained together with it. One that goes down with its machine begins again, whatever its
        retries.
        Closing the iterator stops the workers. Raises InputError before any compute when a run can never start, and
        RunnerInterruption when the executor itself broke down: what was not yielded is then still to do.
        """
        ...

    def describe(self) -> str:
        """One line for people: what executes the runs, where, and how many at once."""
        ...

    def close(self) -> None:
        """End what the runner itself started (a local Ray); harmless when repeated or when there is nothing."""
        ...
