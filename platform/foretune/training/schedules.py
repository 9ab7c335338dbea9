"""The learning rate of every step, and the steps at which a run is evaluated: pure functions of a resolved run."""

from __future__ import annotations

import math

from foretune.records import TrainingSpec


def schedule_lr(training: TrainingSpec, step: int) -> float:
    """The learning rate of step 0, 1, ..., steps - 1, before the multipliers of the groups.

    The warm-up is linear from 0, exclusive, and reaches the peak at its last step. A decay would be at the final rate
    one step after the last, so no step is lost on it. Shares of a phase are shares of its tokens, which are shares of
    its steps unless the batch grows.
    """
    if step < training.warmup_steps:
        warmed = training.tokens_at(step + 1) / training.tokens_at(training.warmup_steps)
        return _find_level(training, training.warmup_steps) * warmed
    level = _find_level(training, min(step, training.steps - training.decay_steps))
    final = min(level, training.peak_lr * training.final_lr_fraction)
    return final + (level - final) * _find_remaining(training, step)


def choose_evaluation_steps(training: TrainingSpec) -> list[int]:
    """Steps after which the held-out loss is measured: evenly spaced, the last one at the end of the run."""
    return [round(training.steps * part / training.evaluations) for part in range(1, training.evaluations + 1)]


def _find_level(training: TrainingSpec, step: int) -> float:
    """The rate that a phase begins or ends with: the peak, or min(peak, sequences a n^b) once n tokens are trained."""
    if training.schedule != "power":
        return training.peak_lr
    tokens, batch = training.tokens_at(step + 1), training.batch_tokens_at(step)
    return min(training.peak_lr, batch * training.power_coefficient * math.pow(tokens, training.power_exponent))


def _find_remaining(training: TrainingSpec, step: int) -> float:
    """What is left of the way from the level to the final rate, 1 to 0."""
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "cosine":
        return (1 + math.cos(math.pi * (1 - _share_left(training, step, training.warmup_steps)))) / 2
    left = _share_left(training, step, training.steps - training.decay_steps)
    return 1 - math.sqrt(1 - left) if training.decay_shape == "sqrt" else left


def _share_left(training: TrainingSpec, step: int, begin: int) -> float:
    """The share of the tokens from step `begin` to the end of the run that comes after `step`; 1 before `begin`."""
    phase = max(1, training.tokens - training.tokens_at(begin))
    return min(1.0, (training.tokens - training.tokens_at(step)) / phase)
