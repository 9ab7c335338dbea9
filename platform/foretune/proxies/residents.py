"""What stays on the device between two packs: final states that the next pack of this process may go on from.

A population that is copied and changed every few steps would else build its model, compile it and read checkpoints for
every generation. Checkpoints are written all the same: what is kept here saves time and decides nothing. It is given up
when the next pack goes on from something else, is of another shape, or does not come: a worker of Ray's ends with its
experiment, and the inline runner says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec
from foretune.training.packing import pack_key


class FinalState(NamedTuple):
    """Where a run ended."""

    run_id: str
    """The run."""
    step: int
    """Steps that it had done."""


@dataclass(frozen=True)
class Resident:
    """A final state on the device."""

    row: int
    """Row of the stepper that holds weights and optimizer."""
    state: Mapping[str, Any]
    """What `Member.state` gave."""


@dataclass
class Residents:
    """The last pack of a process, if others may go on from it; nothing is held beside it."""

    stepper: Stepper | None = None
    """Model, optimizer and held-out text of that pack."""
    rows: Mapping[FinalState, Resident] = field(default_factory=dict)
    """Its runs that have ended, by what they ended with."""

    def keep(self, stepper: Stepper, rows: Mapping[FinalState, Resident]) -> None:
        """Hold these in place of what was held."""
        self.stepper, self.rows = stepper, dict(rows)

    def release(self) -> None:
        """Give the memory up."""
        self.stepper, self.rows = None, {}

    def take(self, specs: Sequence[RunSpec], *, compiled: bool) -> tuple[Stepper, list[Resident]] | None:
        """Hand over the stepper with what each run goes on from; None where one of them finds nothing here.

        Whatever comes of it, nothing is held afterwards.
        """
        stepper, rows = self.stepper, self.rows
        self.release()
        wanted = [FinalState(spec.parent_run_id, spec.parent_step) for spec in specs]
        if stepper is None or stepper.compiled != compiled or not all(state in rows for state in wanted):
            return None
        if pack_key(stepper.specs[0]) != pack_key(specs[0]):
            return None
        return stepper, [rows[state] for state in wanted]


RESIDENTS = Residents()
"""Those of this process."""
