"""A trainer whose loss is known in closed form: gradient descent with noise on a quadratic, in expectation.

With curvatures h and gradient noise of variance s^2, w <- w - lr (h w + noise) gives E[w^2] <- (1 - lr h)^2 E[w^2] +
lr^2 s^2. Far from the optimum a large rate is best, near it a small one: the best rate decays as training goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.training.schedules import schedule_lr

CURVATURES = np.array([1.0, 0.3, 0.1, 0.03])
NOISE_VARIANCE = 0.05
FLOOR = 1.0
READING_NOISE = 0.003
"""Standard deviation of a reading of the training loss."""


def train(spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """The whole run from scratch, which is what going on from a parent equals."""
    squares, curve = np.full(len(CURVATURES), 4.0), []
    rng = np.random.default_rng(spec.seed)
    for step in range(spec.last_step):
        lr = schedule_lr(spec.training_at(step), step)
        squares = (1 - lr * CURVATURES) ** 2 * squares + lr**2 * NOISE_VARIANCE
        loss = measure(squares)
        tokens = spec.training.tokens_at(step + 1)
        if not math.isfinite(loss) or loss > 1e6:
            return RunOutcome(status=RunStatus.DIVERGED, reason=f"loss {loss}", tokens=tokens, curve=tuple(curve))
        reading = loss + READING_NOISE * rng.standard_normal()
        curve.append(CurvePoint(step=step + 1, tokens=tokens, lr=lr, loss=reading))
    curve[-1] = curve[-1].model_copy(update={"held_out": loss})
    return RunOutcome(
        status=RunStatus.COMPLETED, loss=loss, tokens=spec.tokens, curve=tuple(curve), spent_flops=float(spec.own_flops)
    )


def measure(squares: np.ndarray) -> float:
    """The expected loss."""
    return float(FLOOR + CURVATURES @ squares / 2)


def train_at(lr: float, steps: int) -> float:
    """The loss after so many steps at one rate, without a warm-up."""
    decay = (1 - lr * CURVATURES) ** 2
    squares = 4.0 * decay**steps + lr**2 * NOISE_VARIANCE * (1 - decay**steps) / (1 - decay)
    return measure(squares)
