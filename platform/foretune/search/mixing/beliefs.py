"""What the runs leave open: processes whose hyperparameters are drawn from their posterior, each with its weight.

Legend: K processes, m mixtures asked for, S draws, P hyperparameters in logarithms
A process at the most probable hyperparameters takes them for known: how smooth the loss is, how far a law of mixtures
holds, how large the noise is. From few runs they are not, and its intervals are too narrow (`benchmarks/
mixture_coverage`). Here K of them are drawn from a normal law around the mode with the curvature there (Laplace;
Rasmussen and Williams 2006, section 5.5) and weighed by posterior over density, a weight cut off where it is that of
too many (truncated importance sampling; Ionides 2008). The scatter of the noise alone gives a Student t its tails.
What is recommended still has the lowest mean at the mode, which proposals go by: by the mean over all K, its regret on
the same planted losses was .18 of their spread, against .16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foretune.search.mixing.multifidelity import LARGEST_LOG, Evidence, MixtureSurface, pose_search
from foretune.search.mixing.problem import IntArray, MixingProblem, Observed
from foretune.search.mixing.simplex import FloatArray

PROCESSES = 16
"""K, in pairs on both sides of the mode. With 32, coverage over all planted losses of `benchmarks/mixture_coverage`
changed by .02 at most, the scores of intervals by 4 % (55 searches)."""
STEP = 1e-2
"""Of finite differences of the gradient, in logarithms."""
FLATTEST = 0.2
"""Least curvature of the posterior over that of the widest prior: no draw goes where the prior would not."""
SEED = 0
"""The draws are the same for all runs, so that a further run moves intervals for its own sake."""


@dataclass(frozen=True, eq=False)
class MixtureBelief:
    """Processes as probable as the runs and their priors make them."""

    mode: MixtureSurface
    """At the most probable hyperparameters: what is recommended, and proposed, goes by its mean."""
    surfaces: tuple[MixtureSurface, ...]
    """K."""
    weights: FloatArray
    """(K,) > 0, of sum 1."""

    @property
    def noise(self) -> float:
        """Expected variance of a run's ln loss around the process."""
        return float(self.weights @ [surface.scales.noise for surface in self.surfaces])

    def expect(self, shares: FloatArray, level: IntArray) -> FloatArray:
        """Mean (m,) of ln loss."""
        return np.asarray(self.weights @ np.array([surface.expect(shares, level) for surface in self.surfaces]))

    def compare(self, first: FloatArray, other: FloatArray, target: int) -> tuple[FloatArray, FloatArray]:
        """ln loss of the other mixture (d,) less that of the first: mean and standard deviation (K,) by process."""
        both, level = np.stack([first, other]), np.full(2, target)
        found = [surface.predict_jointly(both, level) for surface in self.surfaces]
        variances = [c[0, 0] + c[1, 1] - 2 * c[0, 1] for _, c in found]
        return np.array([mean[1] - mean[0] for mean, _ in found]), np.sqrt(np.maximum(variances, 1e-18))

    def spread(self, shares: FloatArray, level: IntArray) -> FloatArray:
        """Standard deviation (m,) of ln loss, without the noise of a run."""
        means, deviations = (
            np.array(part) for part in zip(*(surface.predict(shares, level) for surface in self.surfaces), strict=True)
        )
        return np.asarray(np.sqrt(self.weights @ (deviations**2 + (means - self.weights @ means) ** 2)))

    def draw_beside(
        self, best: int, shares: FloatArray, target: int, draws: int, rng: np.random.Generator
    ) -> FloatArray:
        """Draws (S, m) of the ln loss of mixtures (m, d) at the target over that of one of them.

        What all mixtures have in common is taken off first: beside an unknown level the differences would drown in
        rounding.
        """
        level, found = np.full(len(shares), target), []
        for surface, count in zip(self.surfaces, rng.multinomial(draws, self.weights).tolist(), strict=True):
            if count:
                mean, covariance = surface.predict_jointly(shares, level)
                relative = covariance - covariance[best] - covariance[:, best][:, None] + covariance[best, best]
                values, vectors = np.linalg.eigh((relative + relative.T) / 2)
                waves = rng.standard_normal((count, len(mean))) * np.sqrt(np.maximum(values, 0.0))
                found.append(mean - mean[best] + waves @ vectors.T)
        return np.concatenate(found)


def fit_belief(problem: MixingProblem, observed: Observed) -> MixtureBelief:
    """The processes after the runs that have ended; raises InputError where they are fewer than three."""
    posed = pose_search(problem, observed)
    logs, weights = draw_scales(posed.evidence, posed.logs)
    mode = posed.condition(posed.evidence.widen(posed.logs))
    return MixtureBelief(mode, tuple(posed.condition(row) for row in logs), weights)


def draw_scales(evidence: Evidence, mode: FloatArray, count: int = PROCESSES) -> tuple[FloatArray, FloatArray]:
    """Logarithms of hyperparameters (count, P) around their mode, and the weights (count,) of the draws."""
    curvature, axes = np.linalg.eigh(measure_curvature(evidence, mode))
    deviations = 1 / np.sqrt(np.maximum(curvature, FLATTEST / evidence.sd.max() ** 2))
    half = np.random.default_rng(SEED).standard_normal((count // 2, len(mode)))
    steps = np.concatenate([half, -half])
    logs = np.clip(mode + (steps * deviations) @ axes.T, evidence.centre - LARGEST_LOG, evidence.centre + LARGEST_LOG)
    worth = 0.5 * (steps**2).sum(axis=1) - np.array([evidence(row)[0] for row in logs])
    weights = np.exp(worth - worth.max())
    weights = np.minimum(weights / weights.sum(), 1 / np.sqrt(count))
    return logs, np.asarray(weights / weights.sum())


def measure_curvature(evidence: Evidence, mode: FloatArray) -> FloatArray:
    """Second derivatives (P, P) of minus the log posterior."""
    moves = STEP * np.eye(len(mode))
    rows = np.array([evidence(mode + move)[1] - evidence(mode - move)[1] for move in moves]) / (2 * STEP)
    return np.asarray((rows + rows.T) / 2)
