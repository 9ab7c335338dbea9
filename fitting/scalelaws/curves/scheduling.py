"""The schedule of least final loss under a fitted law of the curve, and what it gains over cosine and WSD.

Legend: u_0..u_K steps of the knots, from the end of the warm-up to the end; eta_i rate at u_i, linear between
    d_i = eta_(i-1) - eta_i >= 0, and one more for what stays above `end_lr`; sum of all d = peak - end
    d = (peak - end) q^2 / sum q^2, so that every real q is a schedule that never rises
Luo et al. 2025 (2503.12811) minimise their law by gradients, too; here these are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scalelaws.curves.forecasts import draw_losses, predict_final, require_curve_law, warn
from scalelaws.curves.schedules import Schedule
from scalelaws.laws.curve import CurveLaw
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Fit

EVEN_KNOTS = 64
"""Knots spread evenly over the steps after the warm-up; `LATE_KNOTS` more grow denser towards the end."""
LATE_KNOTS = 40
SHORTEST_AGE = 1e-3
"""The last knots lie this share of the run before its end."""
WSD_SHARES = np.linspace(0.02, 1.0, 50)
"""Decay shares among which the best WSD is looked for."""
SEARCH_STEPS = 500
START_SHARES = (0.1, 0.3, 0.6, 1.0)
"""The search starts at WSD schedules of these decay shares."""


@dataclass(frozen=True, eq=False)
class Advice:
    """A schedule, and how sure it is that it beats the usual ones."""

    schedule: Schedule
    loss: Estimate
    """Final loss of one new run."""
    alternatives: Mapping[str, Schedule]
    losses: Mapping[str, Estimate]
    """Final losses of the alternatives."""
    gains: Mapping[str, Estimate]
    """Loss of an alternative minus that of the schedule. The interval holds the law's uncertainty and two independent
    misses of whole curves, which is cautious: schedules that look alike are missed alike."""
    verdict: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The advice as plain data."""
        return {
            "schedule": self.schedule.to_dict(), "loss": self.loss.to_dict(),
            "losses": {name: item.to_dict() for name, item in self.losses.items()},
            "gains": {name: item.to_dict() for name, item in self.gains.items()},
            "verdict": self.verdict, "warnings": list(self.warnings),
        }  # fmt: skip


def optimise_schedule(
    fit: Fit, steps: float, peak_lr: float, *, end_lr: float, warmup_steps: float = 0.0, seed: int = 0
) -> Advice:
    """The schedule that never rises after its warm-up, stays at or above `end_lr`, and ends at the least loss.

    A law that knows neither instabilities nor noise may like cliffs; what leaves the schedules that were fitted is in
    the warnings, and the verdict says whether the gain exceeds its interval. Raises ValueError for rates or steps
    without meaning, FitError for a fit whose status is not ok.
    """
    law, evidence = require_curve_law(fit)
    if not (0 <= end_lr < peak_lr and 0 <= warmup_steps < steps):
        raise ValueError(
            f"optimise_schedule needs 0 <= end_lr < peak_lr and 0 <= warmup_steps < steps; got end_lr {end_lr:g}, "
            f"peak_lr {peak_lr:g}, warmup_steps {warmup_steps:g}, steps {steps:g}"
        )
    problem = Problem.of(law, fit.values, steps, peak_lr, end_lr, warmup_steps)
    found = problem.minimise()
    usual = _list_usual(law, fit.values, steps, peak_lr, end_lr, warmup_steps)
    gains = {name: _estimate_gain(fit, found, other, seed) for name, other in usual.items()}
    return Advice(
        schedule=found, loss=predict_final(fit, found, seed=seed), alternatives=usual,
        losses={name: predict_final(fit, other, seed=seed) for name, other in usual.items()}, gains=gains,
        verdict=_judge(gains, fit.level), warnings=(*fit.warnings, *warn(evidence, found)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Problem:
    """Final loss of a law as a function of the rates at the knots, with its exact gradient."""

    law: CurveLaw
    values: FloatArray
    """Published parameters (P,)."""
    knots: FloatArray
    """Steps (K + 1,) from the end of the warm-up to the end."""
    peak_lr: float
    end_lr: float

    @classmethod
    def of(
        cls, law: CurveLaw, values: FloatArray, steps: float, peak_lr: float, end_lr: float, warmup_steps: float
    ) -> Problem:
        """The problem with its knots in place."""
        span = steps - warmup_steps
        late = steps - span * np.geomspace(SHORTEST_AGE, 0.5, LATE_KNOTS)
        knots = np.unique(np.concatenate([np.linspace(warmup_steps, steps, EVEN_KNOTS), late]))
        return cls(law, values, knots, peak_lr, end_lr)

    def loss(self, lr: FloatArray) -> tuple[float, FloatArray]:
        """Final loss of the rates (K + 1,) at the knots, and its gradient by them."""
        width = np.diff(self.knots)
        area = self.area_weights @ lr
        total = 0.5 * self.knots[0] * self.peak_lr + self._whole @ lr
        fall, middle = lr[:-1] - lr[1:], 0.5 * (lr[:-1] + lr[1:])
        tiny = np.finfo(np.float64).tiny
        drops = {
            "lr": np.maximum(middle, tiny), "area": area, "age": self.knots[-1] - self.knots[:-1] - 0.5 * width,
            "log_lr": np.log(np.maximum(middle, tiny)), "log_area": np.log(np.maximum(area, tiny)),
        }  # fmt: skip
        response = self.law.respond(self.values[None, 3:], drops)
        level, rise, alpha = self.values[:3]
        value = level + rise * total**-alpha - fall @ response.value[0]
        slope = -alpha * rise * total ** (-alpha - 1) * self._whole - self.area_weights.T @ (fall * response.by_area[0])
        direct, half = response.value[0], 0.5 * fall * response.by_lr[0]
        slope[:-1] -= direct + half
        slope[1:] += direct - half
        return float(value), slope

    @cached_property
    def _whole(self) -> FloatArray:
        """Weights of the rates in the area under the schedule after the warm-up."""
        width = np.diff(self.knots)
        return np.asarray(0.5 * (np.append(width, 0.0) + np.append(0.0, width)))

    @cached_property
    def area_weights(self) -> FloatArray:
        """Weights (K, K + 1) of the rates in the area from the middle of each stretch to the end."""
        width = np.diff(self.knots)
        weights = np.triu(np.ones((len(width), len(width))), 1) * (0.5 * width)
        full = np.pad(weights, ((0, 0), (0, 1))) + np.pad(weights, ((0, 0), (1, 0)))
        rows = np.arange(len(width))
        full[rows, rows] += width / 8
        full[rows, rows + 1] += 3 * width / 8
        return np.asarray(full)

    def minimise(self) -> Schedule:
        """The best schedule that the search reaches from its starts."""
        from scipy.optimize import minimize

        def cost(q: FloatArray) -> tuple[float, FloatArray]:
            value, slope = self.loss(self._rates(q))
            by_fall = -np.append(np.cumsum(slope[:0:-1])[::-1], 0.0)
            size = float(q @ q)
            by_share = (self.peak_lr - self.end_lr) * by_fall
            return value, 2 * q / size * (by_share - float(q**2 @ by_share) / size)

        found = [
            minimize(
                cost, q, jac=True, method="L-BFGS-B", options={"maxiter": SEARCH_STEPS, "ftol": 1e-14, "gtol": 1e-10}
            )
            for q in self._starts()
        ]
        best = min(found, key=lambda item: float(item.fun))
        return self._schedule(self._rates(np.asarray(best.x)))

    def _rates(self, q: FloatArray) -> FloatArray:
        falls = (self.peak_lr - self.end_lr) * q**2 / float(q @ q)
        return self.peak_lr - np.append(0.0, np.cumsum(falls[:-1]))

    def _starts(self) -> list[FloatArray]:
        """Square roots of the falls of WSD schedules; none is zero, where the search could not leave."""
        first, span = self.knots[0], self.knots[-1] - self.knots[0]
        made = []
        for share in START_SHARES:
            begin = self.knots[-1] - share * span
            falls = np.diff(np.maximum(self.knots - max(begin, first), 0.0)) / span
            made.append(np.sqrt(np.append(falls, 0.0) + 1e-4))
        return made

    def _schedule(self, lr: FloatArray) -> Schedule:
        warm = self.knots[0] > 0
        return Schedule(np.append(0.0, self.knots) if warm else self.knots, np.append(0.0, lr) if warm else lr)


def _list_usual(
    law: CurveLaw, values: FloatArray, steps: float, peak_lr: float, end_lr: float, warmup_steps: float
) -> dict[str, Schedule]:
    """Cosine, WSD with a decay of 20 %, and the WSD whose decay share is best under the law."""
    tried = [
        Schedule.wsd(steps, peak_lr, end_lr=end_lr, decay_share=float(share), warmup_steps=warmup_steps)
        for share in WSD_SHARES
    ]
    ends = [float(law.predict(values[None], schedule, np.array([steps]))[0, 0]) for schedule in tried]
    return {
        "cosine": Schedule.cosine(steps, peak_lr, end_lr=end_lr, warmup_steps=warmup_steps),
        "wsd 20 %": Schedule.wsd(steps, peak_lr, end_lr=end_lr, warmup_steps=warmup_steps),
        "best wsd": tried[int(np.argmin(ends))],
    }


def _estimate_gain(fit: Fit, schedule: Schedule, other: Schedule, seed: int) -> Estimate:
    end = np.array([schedule.steps])
    draws = draw_losses(fit, other, end, seed + 1)[:, 0] - draw_losses(fit, schedule, end, seed)[:, 0]
    law, _ = require_curve_law(fit)
    value = law.predict(fit.values[None], other, end) - law.predict(fit.values[None], schedule, end)
    return Estimate.from_draws(draws, fit.level, value=float(value[0, 0]), unit="nats")


def _judge(gains: Mapping[str, Estimate], level: float) -> str:
    sure = [name for name, gain in gains.items() if gain.low is not None and gain.low > 0]
    unsure = [name for name in gains if name not in sure]
    said = [f"better than {' and '.join(sure)}"] if sure else []
    if unsure:
        said.append(f"the gain over {' and '.join(unsure)} lies inside its {100 * level:g} % interval")
    return "; ".join(said)
