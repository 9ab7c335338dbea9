"""One attempt at runs that train together, in this process: a fault stays with its run, whatever the others do."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from foretune.records import PROXY_TRAINER, CurvePoint, RunOutcome, RunSpec
from foretune.runners.interface import Observer
from foretune.runners.isolation import isolate
from foretune.runners.memory import limit_memory, share_memory
from foretune.runners.trainers import check_outcome, describe_error, load_trainer
from foretune.sections import Compile, RunnerSection

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditions:
    """Under what an attempt is made on the machine that it is made on."""

    workspace: Path
    """Folder in which every run has one of its own."""
    threads: int
    """Threads to compute with on a CPU."""
    memory_bytes: int
    """What the runs may allocate together; 0 for no limit."""
    share_trunks: bool
    """As in `[runner]`."""
    compiled: Compile
    """As in `[runner]`."""


def find_conditions(section: RunnerSection, workspace: Path) -> Conditions:
    """Those of this machine, which need not be the driver's; GPU drivers map more than they use: no limit there."""
    return Conditions(
        workspace=workspace,
        threads=int(section.cpus_per_run),
        memory_bytes=0 if section.gpus_per_run else share_memory(section.cpus_per_run, section.concurrency),
        share_trunks=section.share_trunks,
        compiled=section.compile,
    )


@dataclass(frozen=True)
class Fault:
    """A run raised, or ended without an outcome: it may be tried again."""

    reason: str
    """What it raised and where, on one line."""


class Relay:
    """Passes held-out evaluations on, and remembers whether it was the listener that raised."""

    def __init__(self, listener: Observer) -> None:
        """For a listener that hears of one evaluation at a time."""
        self._listener = listener
        self.error: Exception | None = None

    def __call__(self, spec: RunSpec, point: CurvePoint) -> None:
        """Take a point of a run's curve."""
        if point.held_out is None:
            return
        try:
            self._listener(spec, point)
        except Exception as error:
            self.error = error
            raise


def attempt_runs(
    specs: Sequence[RunSpec], conditions: Conditions, listener: Observer
) -> Iterator[tuple[RunSpec, RunOutcome | Fault]]:
    """Train runs together and yield what became of each, exactly once, as soon as it is known.

    When training raises, the runs without an outcome are trained in halves: one that raises is found, and memory that
    was too small for all suffices for fewer. What the listener raises comes through, since no run is to blame.
    """
    waiting = {spec.run_id: spec for spec in specs}
    fault = Fault("the trainer ended without an outcome")
    relay = Relay(listener)
    try:
        with (
            isolate(conditions.threads),
            limit_memory(conditions.memory_bytes),
            closing(_train(specs, conditions, relay)) as outcomes,
        ):
            for spec, outcome in outcomes:
                del waiting[spec.run_id]
                _remove_if_empty(_folder_of(spec, conditions))
                yield spec, check_outcome(outcome)
    except (Exception, SystemExit) as error:
        if relay.error is not None:
            raise relay.error from None
        fault = Fault(describe_error(error))
        _log.error("runs %s: %s", ", ".join(waiting), fault.reason, exc_info=error)
    left = list(waiting.values())
    if left == list(specs) and len(left) == 1:
        yield left[0], fault
        return
    for half in (left[: (len(left) + 1) // 2], left[(len(left) + 1) // 2 :]):
        if half:
            yield from attempt_runs(half, conditions, listener)


def release_states() -> None:
    """Give up what runs have left on the device of this process for others, which will not come."""
    if module := sys.modules.get("foretune.proxies.residents"):  # torch is imported only where something is trained
        module.RESIDENTS.release()


def _train(specs: Sequence[RunSpec], conditions: Conditions, relay: Relay) -> Generator[tuple[RunSpec, RunOutcome]]:
    """The runs of this package's trainer as a pack, or the one run of somebody else's."""
    folders = [_folder_of(spec, conditions) for spec in specs]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if specs[0].trainer == PROXY_TRAINER:
        from foretune.proxies.train import train_runs  # torch is imported only where something is trained

        yield from train_runs(specs, folders, relay, share_trunks=conditions.share_trunks, compiled=conditions.compiled)
        return
    (spec,), (folder,) = specs, folders
    yield spec, load_trainer(spec.trainer)(spec, folder, lambda point: relay(spec, point))


def _folder_of(spec: RunSpec, conditions: Conditions) -> Path:
    return conditions.workspace / "runs" / spec.run_id


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it stays when the trainer left something in it
        folder.rmdir()
