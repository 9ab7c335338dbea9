"""The learning rate of every step, and the steps at which a run is evaluated: pure functions of a resolved run."""

from __future__ import annotations

import math

from foretune.records import TrainingSpec


def schedule_lr(training: TrainingSpec, step: int) -> float:
    """The learning rate of step 0, 1, ..., steps - 1, before the multipliers of the groups.

    The warm-up is linear from 0, exclusive, and reaches the peak at its last step. The decay of `wsd` is linear and
    that of `cosine` a half cosine; both would be at the final rate one step after the last, so no step is lost on it.
    """
    if step < training.warmup_steps:
        return training.peak_lr * (step + 1) / training.warmup_steps
    if training.schedule == "wsd":
        remaining = min(1.0, (training.steps - step) / max(1, training.decay_steps))
    else:
        done = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
        remaining = (1 + math.cos(math.pi * done)) / 2
    return training.peak_lr * (training.final_lr_fraction + (1 - training.final_lr_fraction) * remaining)


def choose_evaluation_steps(training: TrainingSpec) -> list[int]:
    """Steps after which the held-out loss is measured: evenly spaced, the last one at the end of the run."""
    return [round(training.steps * part / training.evaluations) for part in range(1, training.evaluations + 1)]
