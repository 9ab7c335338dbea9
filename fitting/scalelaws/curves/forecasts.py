"""A fitted law of the curve and a schedule -> the loss along it, with an interval for one new run.

The interval holds the law's uncertainty, the scatter of whole curves around it, and a drift per e-fold of steps beyond
the longest curve; a run's miss is drawn once for all its steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.curves.schedules import Schedule
from scalelaws.laws import get_law
from scalelaws.laws.curve import CurveEvidence, CurveLaw
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Fit, FitError

POINTS = 200
"""Steps of a predicted curve where none are asked for."""
BEYOND = 1.05
"""A schedule that leaves the range of those seen by more than this factor carries a warning."""


@dataclass(frozen=True, eq=False)
class CurveForecast:
    """The loss of one new run along a schedule."""

    schedule: Schedule
    step: FloatArray
    mean: FloatArray
    """Loss of the best-fitting parameters at these steps (nats per token)."""
    low: FloatArray
    high: FloatArray
    level: float
    law: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The forecast as plain data."""
        arrays = {name: getattr(self, name).tolist() for name in ("step", "mean", "low", "high")}
        return {
            "law": self.law, "level": self.level, "schedule": self.schedule.to_dict(), **arrays,
            "warnings": list(self.warnings),
        }  # fmt: skip


def predict_curve(
    fit: Fit, schedule: Schedule, step: ArrayLike | None = None, *, level: float | None = None, seed: int = 0
) -> CurveForecast:
    """The loss of one new run at these steps (else at 200 from the warm-up to the end).

    Raises FitError for a fit whose status is not ok, ValueError for steps outside the schedule or in its warm-up.
    """
    steps = np.linspace(max(schedule.warmup_steps, 1.0), schedule.steps, POINTS) if step is None else np.asarray(step)
    steps = np.atleast_1d(steps.astype(np.float64))
    if (steps < schedule.warmup_steps).any() or (steps <= 0).any() or (steps > schedule.steps).any():
        raise ValueError(
            f"predict_curve: steps must lie after the warm-up ({schedule.warmup_steps:g}) and within the schedule "
            f"({schedule.steps:g}); got {steps.min():g} to {steps.max():g}"
        )
    law, evidence = require_curve_law(fit)
    draws = draw_losses(fit, schedule, steps, seed)
    content = fit.level if level is None else level
    low, high = np.quantile(draws, [(1 - content) / 2, (1 + content) / 2], axis=0)
    mean = law.predict(fit.values[None], schedule, steps)[0]
    return CurveForecast(schedule, steps, mean, low, high, content, fit.law, (*fit.warnings, *warn(evidence, schedule)))


def predict_final(fit: Fit, schedule: Schedule, *, level: float | None = None, seed: int = 0) -> Estimate:
    """The loss at the end of the schedule, for one new run."""
    found = predict_curve(fit, schedule, [schedule.steps], level=level, seed=seed)
    return Estimate(float(found.mean[0]), float(found.low[0]), float(found.high[0]), "nats")


def draw_losses(fit: Fit, schedule: Schedule, step: FloatArray, seed: int) -> FloatArray:
    """Draws (draws, n) of the loss of one new run at these steps."""
    law, evidence = require_curve_law(fit)
    beyond = np.maximum(np.log(step / evidence.steps[1]), 0.0)
    miss = np.random.default_rng(seed).standard_normal((len(fit.draws), 1))
    spread = np.hypot(fit.scatter_log, fit.drift_log_per_efold * beyond)
    return np.asarray(law.predict(fit.draws, schedule, step) * np.exp(spread * miss))


def require_curve_law(fit: Fit) -> tuple[CurveLaw, CurveEvidence]:
    """The law behind a usable fit of curves, and what it stands on."""
    law = get_law(fit.law)
    if not isinstance(law, CurveLaw) or not isinstance(fit.evidence, CurveEvidence):
        raise ValueError(f"a schedule needs a law of the curve, such as multi_power; got a fit of {fit.law}")
    if not fit.status.ok:
        raise FitError(fit.status, f"this fit of {fit.law} must not be used to predict: {fit.message}", fit)
    return law, fit.evidence


def warn(seen: CurveEvidence, schedule: Schedule) -> tuple[str, ...]:
    """Where a schedule leaves those that the law was fitted to."""
    after = schedule.lr[np.argmax(schedule.lr) :]
    low, high = seen.peak_lr
    said = []
    if schedule.steps > BEYOND * seen.steps[1]:
        said.append(f"{schedule.steps:g} steps, {schedule.steps / seen.steps[1]:.3g} times the longest curve fitted")
    if not low / BEYOND <= schedule.peak_lr <= high * BEYOND:
        said.append(f"peak rate {schedule.peak_lr:.3g} outside those fitted ({low:.3g} to {high:.3g})")
    if after.min() < seen.lowest_lr / BEYOND:
        said.append(f"rate falls to {after.min():.3g}, below the lowest fitted ({seen.lowest_lr:.3g})")
    if schedule.rises:
        said.append("the rate rises after the warm-up, which no law of the curve was made for")
    return tuple(f"beyond the schedules seen: {text}" for text in said)
