"""Runs that go on from others: what the beginning of a run is, as a run of its own, and where it ends."""

from __future__ import annotations

from bisect import bisect_left

from foretune.records import RunSpec, TrainingSpec


def cut_run(spec: RunSpec, step: int) -> RunSpec:
    """The run that ends after so many steps of this one; what this one goes on from is such a run."""
    begun = tuple(phase for phase in spec.phases if phase.start_step < step)
    return spec.model_copy(update={"stop_step": step, "phases": begun})


def count_steps(training: TrainingSpec, tokens: int) -> int:
    """The fewest steps that train on so many tokens."""
    return bisect_left(range(training.steps), tokens, key=training.tokens_at)
