"""One sum of powers on the means of tuned cells: the point fit, its draws, and what the choices of objective did.

Legend (shapes): n cells, T power terms, P = 2T + 1 parameters (E, A_j, alpha_j), B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelaws.engines.powers import (
    Minima,
    Objective,
    Problems,
    approach,
    evaluate,
    minimise,
    minimise_best,
    predict_log,
    project_starts,
)
from scalelaws.engines.relaxation import Relaxation
from scalelaws.engines.weighting import excess_on_surface, expect_drift, find_excess, off_level, weigh_compute
from scalelaws.intervals import HUBER_SDS, PRIOR_NOISE_LOG, NoisePosterior, find_spreads, infer_noise, resample_weights
from scalelaws.laws.base import FitOptions
from scalelaws.observations import FloatArray, Observations

PRIOR_EXPONENT = 0.3
"""Centre of the weak prior on exponents: published fits lie in .2-.5 (Hoffmann et al. 2022; Besiroglu et al. 2024)."""
PRIOR_EXPONENT_SD = 0.5
"""Its standard deviation in ln: 90 % of the prior lies between .13 and .68 (an assumption, stated in the Fit)."""
LAD_DELTA = 1e-5
"""`lad`: the penalty's kink is rounded below this residual of ln loss, a fiftieth of what reruns differ by."""
UNBENT = 1e3
"""`least_squares`: a residual of ln loss that no run reaches, so the penalty never turns linear."""
START_EXPONENTS = np.geomspace(0.05, 1.2, 10)
"""Start of variable projection; covers all published exponents."""
STARTS_KEPT = 8
"""The most promising starts that are polished; on published runs all of them reach one minimum."""
LEAST_NOISE_LOG = 1e-5
"""Assumption: losses are known to five digits at best, so no residual of ln loss counts more than one of this size."""
SETTLED = 0.01
"""Weights are settled once the fit that they lead to implies no variance that differs by more than 1 %. The loss at the
largest run is then within .03 % of where further rounds would take it (20 published sets, four origins each)."""
REWEIGHTINGS = 60
"""Most rounds of weights before a fit is called unsettled; published sets need 1 to 23, on average 6."""
WEIGHT_SCALE_SD = 0.4
"""How far, in ln, the runs may move the scales of the expected misfits when they are weighted: a factor of 1.9 either
way with a probability of 90 % (an assumption between two needs). Of .1, .4 and 1 the smallest forecasts published
losses a little better (benchmarks/fitting/loss_laws constants), and true laws worse; with .1 the 240 Chinchilla runs
give 3.5e10 as optimal size at 5.76e23 FLOPs, far below every other procedure."""
DRAW_SCALE_SD = 4.0
"""The same where spread is asked for: left to the residuals, down to none (an assumption). The coverage that it leads
to is printed by benchmarks/fitting/coverage."""
PLAIN = ("huber", "lad", "least_squares")
"""Objectives without priors."""


@dataclass(frozen=True, eq=False)
class PointFit:
    """The minimum with the objective and weights that gave it."""

    objective: Objective
    minima: Minima
    weights: FloatArray
    """(n,)"""
    drift: FloatArray
    """Expected misfit of ln loss by the amount of compute, before its scale is known, (n,)."""
    off: FloatArray
    """The same by the split of compute, (n,)."""
    scales: tuple[float, float]
    """What the residuals say of both: factors of `drift` and of `off`."""
    unsettled: float = 0.0
    """By how much ln variances still differed from those that the fit implies; 0 where the weights settled."""


@dataclass(frozen=True, eq=False)
class PowerFit:
    """One sum of powers on cells, in centred logs."""

    cells: Observations
    options: FitOptions
    plane: bool
    """The terms are params and tokens, so a compute-optimal split exists."""
    u: FloatArray
    """(n, T)"""
    centre: FloatArray
    y: FloatArray

    @classmethod
    def of(cls, cells: Observations, scales: Sequence[FloatArray], options: FitOptions, plane: bool) -> PowerFit:
        """Takes the scaled variable of each term."""
        logs = np.log(np.stack(scales, axis=1))
        return cls(cells, options, plane, logs - logs.mean(axis=0), logs.mean(axis=0), np.log(cells.loss))

    @property
    def terms(self) -> int:
        """Number of power terms."""
        return len(self.centre)

    @property
    def resampled(self) -> bool:
        """Whether draws come from resampled cells; with priors, data and priors are perturbed instead."""
        return self.options.objective in PLAIN

    def solve(self) -> PointFit:
        """The point fit; with priors on, the noise and the weights come from the residuals, in turn."""
        base = weigh_compute(self.cells.compute, self.options.compute_weight)
        if self.options.objective in PLAIN:
            deltas = {"huber": self.options.huber_delta, "lad": LAD_DELTA, "least_squares": UNBENT}
            objective = Objective(deltas[self.options.objective])
            nothing = np.zeros(len(base))
            return PointFit(objective, self._search(base, objective), base, nothing, nothing, (0.0, 0.0))
        return self._reweigh(base)

    def _reweigh(self, base: FloatArray) -> PointFit:
        """Weights are 1 / (noise^2 + known + (s_1 drift)^2 + (s_2 off)^2): those that the fit itself implies."""
        drift, off = self._expect_misfit()
        read_surface = self.options.objective == "auto" and self.plane and not off.any()
        spreads, minima, relaxation = np.array([PRIOR_NOISE_LOG, 1.0, 1.0]), None, Relaxation()
        variances = self._expect_variances(spreads, drift, off)
        for _ in range(REWEIGHTINGS):
            noise, weights = float(np.exp(0.5 * variances[0])), base * np.exp(variances[0] - variances[1:])
            objective = Objective(HUBER_SDS * noise, noise, PRIOR_EXPONENT_SD, smooth=True)
            if minima is None:
                minima = self._search(weights, objective)
            else:
                minima = approach(minima.t, self._pose(self.y[None], weights[None]), objective)
            off = self._off_surface(minima) if read_surface else off
            spreads = self._find_spreads(minima, drift, off, spreads)
            implied = self._expect_variances(spreads, drift, off)
            unsettled = float(np.abs(implied - variances).max())
            if unsettled < SETTLED:
                break
            variances = relaxation.step(variances, implied)
        assert minima is not None
        minima = self._polish(minima, weights, objective)
        scales = float(spreads[1]), float(spreads[2])
        return PointFit(objective, minima, weights, drift, off, scales, unsettled if unsettled >= SETTLED else 0.0)

    def _expect_variances(self, spreads: FloatArray, drift: FloatArray, off: FloatArray) -> FloatArray:
        """ln of the squared noise, and of each cell's variance around the law, (1 + n,)."""
        noise, by_drift, by_split = spreads.tolist()
        total = noise**2 + self._known + (by_drift * drift) ** 2 + (by_split * off) ** 2
        return np.asarray(np.log(np.concatenate([[noise**2 + LEAST_NOISE_LOG**2], total])))

    def _find_spreads(self, minima: Minima, drift: FloatArray, off: FloatArray, start: FloatArray) -> FloatArray:
        """The noise and the scales of both misfits, (3,), that the residuals make most probable."""
        misfits = np.stack([drift, off]) ** 2
        return find_spreads(self._residuals(minima), self._known, misfits, self._spare, WEIGHT_SCALE_SD, start)

    def _residuals(self, minima: Minima) -> FloatArray:
        """Predicted minus observed ln loss, (n,)."""
        return np.asarray(predict_log(minima.t, self.u)[0] - self.y)

    @property
    def _spare(self) -> int:
        """Cells less coefficients."""
        return len(self.y) - 1 - 2 * self.terms

    def _expect_misfit(self) -> tuple[FloatArray, FloatArray]:
        """By the amount of compute, and by its split where runs share a level; `map` expects none."""
        if self.options.objective == "map":
            return np.zeros_like(self.y), np.zeros_like(self.y)
        return expect_drift(self.cells.compute), off_level(find_excess(self.cells))

    @property
    def _known(self) -> FloatArray:
        """Variance of ln loss that is known of each cell, rounding included."""
        measured = 0.0 if self.cells.loss_se_log is None else self.cells.loss_se_log**2
        return np.full_like(self.y, LEAST_NOISE_LOG**2) + measured

    def _off_surface(self, minima: Minima) -> FloatArray:
        values = self.to_natural(minima.t)[0]
        return excess_on_surface(values, self.cells.params_non_embedding, self.cells.tokens)

    def _infer_noise(self, minima: Minima, misfit: FloatArray, other: FloatArray) -> NoisePosterior:
        residuals = self._residuals(minima)
        return infer_noise(residuals, self._known + other**2, misfit**2, self._spare, DRAW_SCALE_SD)

    def _pose(self, y: FloatArray, w: FloatArray, prior_mean: FloatArray | None = None) -> Problems:
        if prior_mean is None:
            prior_mean = np.full((len(y), self.terms), np.log(PRIOR_EXPONENT))
        return Problems(self.u, y, w, prior_mean)

    def _search(self, weights: FloatArray, objective: Objective) -> Minima:
        """The best of several starts, found by variable projection; deterministic."""
        starts = project_starts(self.u, self.y, weights, START_EXPONENTS)
        shape = (len(starts), len(self.y))
        everywhere = self._pose(np.broadcast_to(self.y, shape), np.broadcast_to(weights, shape))
        order = np.argsort(evaluate(starts, everywhere, objective), kind="stable")[:STARTS_KEPT]
        return minimise_best(starts[order], everywhere.take(slice(0, len(order))), objective)

    def _polish(self, minima: Minima, weights: FloatArray, objective: Objective) -> Minima:
        return minimise(minima.t, self._pose(self.y[None], weights[None]), objective)

    def draw(self, point: PointFit) -> tuple[FloatArray, float]:
        """Draws in natural units (B, P), and the share of them that converged."""
        rng, count, cells = np.random.default_rng(self.options.seed), self.options.bootstrap, len(self.y)
        y, w = np.broadcast_to(self.y, (count, cells)), np.broadcast_to(point.weights, (count, cells))
        means = None
        if self.resampled:
            w = w * resample_weights(cells, count, rng)
        else:
            first, second = point.scales
            of_drift = self._infer_noise(point.minima, point.drift, second * point.off)
            of_split = self._infer_noise(point.minima, point.off, first * point.drift)
            (noise, drifts), (_, offs) = of_drift.draw(count, rng), of_split.draw(count, rng)
            misfit = (drifts[:, None] * point.drift) ** 2 + (offs[:, None] * point.off) ** 2
            variance = noise[:, None] ** 2 + self._known + misfit
            y = y + np.sqrt(variance) * rng.standard_normal((count, cells))
            means = rng.normal(np.log(PRIOR_EXPONENT), PRIOR_EXPONENT_SD, (count, self.terms))
        found = minimise(np.repeat(point.minima.t, count, axis=0), self._pose(y, w, means), point.objective)
        return self.to_natural(found.t), float(found.converged.mean())

    def to_natural(self, t: FloatArray) -> FloatArray:
        """Coefficients of the centred logs, (B, P), in natural units: E, A_j, alpha_j."""
        terms, exponents = self.terms, t[:, 1 + self.terms :]
        return np.concatenate([np.exp(t[:, :1]), np.exp(t[:, 1 : 1 + terms] + exponents * self.centre), exponents], 1)

    def measure_scatter(self, point: PointFit) -> float:
        """Scatter of a cell's mean: what puts 90 % of the residuals, each by its weight, within 1.645 of it.

        With priors on, it is not below the estimated noise, whose tails the penalty cuts.
        """
        residuals = np.abs(predict_log(point.minima.t, self.u)[0] - self.y)
        order = np.argsort(residuals)
        share = np.cumsum(point.weights[order]) / point.weights.sum()
        effective = float(point.weights.sum() ** 2 / (point.weights**2).sum())
        inflated = float(np.sqrt(effective / max(effective - 1 - 2 * self.terms, 1.0)))
        middle = share - 0.5 * point.weights[order] / point.weights.sum()
        wide = float(np.interp(0.9, middle, residuals[order])) / 1.645 * inflated
        if self.options.objective in PLAIN:
            return wide
        off = point.scales[1] * point.off
        return max(wide, self._infer_noise(point.minima, point.drift, off).spread)

    def compare_equal_weights(self, point: PointFit) -> float:
        """How much higher ln loss at the largest run would be if all cells counted alike."""
        equal = self._polish(point.minima, np.ones_like(self.y), point.objective)
        largest = self.u[[int(np.argmax(self.cells.compute))]]
        return float((predict_log(equal.t, largest) - predict_log(point.minima.t, largest))[0, 0])

    def describe(self, point: PointFit) -> str:
        """The objective in words."""
        parts = [self._describe_penalty(point.objective)]
        if self.options.compute_weight:
            parts.append(f"weights C^{self.options.compute_weight:g}")
        if np.ptp(point.weights) > 0:
            moved = 100 * np.expm1(self.compare_equal_weights(point))
            parts.append(f"with equal weights the loss at the largest run would be {moved:+.2g} %")
        parts.append(f"intervals from {'resampled cells' if self.resampled else 'perturbed data and priors'}")
        return "; ".join(parts)

    def _describe_penalty(self, objective: Objective) -> str:
        if self.options.objective in PLAIN:
            named = {
                "huber": f"sum of Huber penalties of ln loss, delta {objective.huber_delta:g}",
                "lad": f"sum of absolute residuals of ln loss (Huber penalty, delta {LAD_DELTA:g})",
                "least_squares": "sum of squared residuals of ln loss",
            }
            return named[self.options.objective]
        text = (
            f"posterior mode: Huber penalties beyond {HUBER_SDS:g} sd, noise of ln loss {objective.noise_log:.2g}, "
            f"priors ln exponent ~ normal(ln {PRIOR_EXPONENT:g}, {PRIOR_EXPONENT_SD:g}) and E >= 0"
        )
        if self.options.objective == "map":
            return text
        return f"{text}; runs weigh less by the misfit expected below the largest compute and off the best split"
