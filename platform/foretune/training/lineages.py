"""Runs that go on from others: what the beginning of a run is, as a run of its own."""

from __future__ import annotations

from foretune.records import RunSpec


def cut_run(spec: RunSpec, step: int) -> RunSpec:
    """The run that ends after so many steps of this one; what this one goes on from is such a run."""
    begun = tuple(phase for phase in spec.phases if phase.start_step < step)
    return spec.model_copy(update={"stop_step": step, "phases": begun})
