"""A Gaussian process over mixtures and fidelities whose prior is a law of mixtures.

Legend: n runs, m mixtures asked for, d domains, L fidelities, P parameters of the law
    ln loss (r, l) = o_l + law(r; theta) + process + noise;  covariance: `covariances`
    o_l    level of a fidelity, free
    law    the diminishing (log-linear) mixing law, linear in theta around its most probable values (`linear_law`), with
           its own prior of theta: runs that were fitted are not counted twice, as they would be with a fixed mean
Hyperparameters maximise the marginal likelihood under weak priors (Rasmussen and Williams 2006, section 5.4.1). All is
plain linear algebra on at most some hundreds of runs; the posterior is BoTorch's (tested), without the import of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.errors import InputError
from foretune.search.mixing.covariances import (
    Points,
    Scales,
    covary_levels,
    factorise,
    measure_distances,
    shape_wave,
    solve_lower,
    warp_shares,
)
from foretune.search.mixing.linear_law import LinearLaw, fit_law, measure_offsets, settle_law
from foretune.search.mixing.problem import IntArray, MixingProblem, Observed
from foretune.search.mixing.simplex import FloatArray
from scalelaws.mixtures.process import LENGTH_SD

BENT, NOISE = 0.5, 0.01
"""Expected shares of `bent` and of the noise in the variance of ln loss (an assumption; see SCALE_SD)."""
LINEAR = 0.1
"""Expected `linear`. Means of losses over domains bend where the law is straight, so that its own prior is worth less
here: with 1 and a factor of 7 the regret of what was recommended and the interval scores of differences and of shares
were worse (measured on `benchmarks/mixture_coverage`)."""
LENGTH = 1.0
"""Prior of each length in z: half of that for one loss of hundreds of runs (`scalelaws.mixtures.process`), where the
data say it. From few runs 2 is too sure of what lies between them: interval scores of differences were 1.6 for 2 and
1.2 for 1, in spreads of the loss (measured on `benchmarks/mixture_coverage`)."""
DRIFT = 0.02
"""Expected `drift` (an assumption; losses of RegMix's mixtures at 1M and 60M parameters correlate by .994)."""
SCALE_SD = (2.0, 3.0, 2.0, 2.0)
"""Priors of the logarithms of `bent`, `noise`, `linear` and `drift`: mostly within a factor of 50, 400, 50 and 50 (an
assumption). The runs thus weigh a law of mixtures against a constant mean, which `linear` = 0 is."""
KNOWN_SD = 0.05
"""Prior of ln noise^2 where the noise was measured over seeds."""
FEWEST_RUNS = 3
"""Fewest finished runs: the law needs three."""
LARGEST_LOG = 8.0
"""Hyperparameters stay within a factor of e^8 of their centres, so that no step of the search overflows."""


@dataclass(frozen=True, eq=False)
class MixtureSurface:
    """A process fitted to the runs."""

    law: LinearLaw
    scales: Scales
    runs: Points
    """The runs it was fitted to."""
    distances: FloatArray
    """(L,) of the fidelities from the target."""
    offsets: FloatArray
    """(L,) mean ln loss of each fidelity less the law."""
    factor: FloatArray
    """(n, n) lower Cholesky factor of the covariance of the runs with their noise."""
    weights: FloatArray
    """(n,) of the posterior mean."""

    def expect(self, shares: FloatArray, level: IntArray) -> FloatArray:
        """Mean (m,) of ln loss."""
        prior, points = self._describe(shares, level)
        return np.asarray(prior + self.weights @ self.scales.covary(self.runs, points))

    def predict(self, shares: FloatArray, level: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (m,) of ln loss, without the noise of a run."""
        prior, points = self._describe(shares, level)
        cross = self.scales.covary(self.runs, points)
        known = (solve_lower(self.factor, cross) ** 2).sum(axis=0)
        variance = np.maximum(self.scales.covary_diagonal(points) - known, 1e-14)
        return np.asarray(prior + self.weights @ cross), np.sqrt(variance)

    def predict_jointly(self, shares: FloatArray, level: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean (m,) and covariance (m, m) of ln loss, without the noise of a run."""
        prior, points = self._describe(shares, level)
        cross = self.scales.covary(self.runs, points)
        half = solve_lower(self.factor, cross)
        return np.asarray(prior + self.weights @ cross), np.asarray(self.scales.covary(points, points) - half.T @ half)

    def _describe(self, shares: FloatArray, level: IntArray) -> tuple[FloatArray, Points]:
        """Prior mean (m,) of mixtures (m, d) at fidelities (m,), and what the covariance reads of them."""
        prior, slopes = self.law.expect(shares)
        return self.offsets[level] + prior, Points(warp_shares(shares), slopes, level, self.distances[level])


@dataclass(frozen=True, eq=False)
class PosedSearch:
    """The runs as the process reads them, with its most probable hyperparameters."""

    law: LinearLaw
    offsets: FloatArray
    """(L,)."""
    distances: FloatArray
    """(L,)."""
    evidence: Evidence
    logs: FloatArray
    """(d + 4,) most probable logarithms of the scales."""

    def condition(self, logs: FloatArray) -> MixtureSurface:
        """The process at some hyperparameters."""
        evidence = self.evidence
        return condition_surface(
            self.law, Scales.unpack(logs), evidence.points, self.distances, self.offsets, evidence.u
        )


def fit_surface(problem: MixingProblem, observed: Observed) -> MixtureSurface:
    """The process at its most probable hyperparameters; raises InputError where fewer than three runs have ended.

    Fast, and good enough to find the next run by; what the runs leave open is in `beliefs`.
    """
    posed = pose_search(problem, observed)
    return posed.condition(posed.evidence.widen(posed.logs))


def pose_search(problem: MixingProblem, observed: Observed) -> PosedSearch:
    """Finds the law and the hyperparameters from the runs that have ended; raises InputError for fewer than three.

    Hyperparameters are sought around the law's own fit, and again around the parameters that are most probable with
    them; a third time changes nothing that matters.
    """
    known = observed.known
    if known.sum() < FEWEST_RUNS:
        raise InputError(
            f"a surface over mixtures needs >= {FEWEST_RUNS} finished runs, got {int(known.sum())}: begin with a design"
        )
    shares, level, y = observed.shares[known], observed.level[known], np.log(observed.loss[known])
    levels = len(problem.fidelities)
    law = fit_law(shares, level, y, levels)
    offsets = measure_offsets(law, shares, level, y, levels)
    alone = _pose(problem, law, offsets, shares, level, y)
    scales = Scales.unpack(alone.maximise())
    rest = factorise(scales.covary_beside_law(alone.points) + scales.noise * np.eye(len(y)))
    law = settle_law(law, shares, y - offsets[level], rest, scales.linear)
    offsets = measure_offsets(law, shares, level, y, levels)
    evidence = _pose(problem, law, offsets, shares, level, y)
    return PosedSearch(law, offsets, problem.distances, evidence, evidence.maximise())


def _pose(
    problem: MixingProblem, law: LinearLaw, offsets: FloatArray, shares: FloatArray, level: IntArray, y: FloatArray
) -> Evidence:
    """The search for the hyperparameters of runs with ln loss y (n,)."""
    prior, slopes = law.expect(shares)
    points = Points(warp_shares(shares), slopes, level, problem.distances[level])
    noise_log = problem.noise_sd / float(np.exp(np.median(y[level == level.max()])))
    return Evidence(points, y - offsets[level] - prior, float((y - offsets[level]).var()), noise_log)


def condition_surface(
    law: LinearLaw, scales: Scales, runs: Points, distances: FloatArray, offsets: FloatArray, gaps: FloatArray
) -> MixtureSurface:
    """The posterior of given scales after runs whose ln loss is `gaps` (n,) above the prior mean."""
    factor = factorise(scales.covary(runs, runs) + scales.noise * np.eye(len(gaps)))
    weights = solve_lower(factor, solve_lower(factor, gaps), transposed=True)
    return MixtureSurface(law, scales, runs, distances, offsets, factor, weights)


class Evidence:
    """Minus the log marginal likelihood with priors, and its gradient, in the logarithms of the scales.

    Sources: Rasmussen and Williams 2006, equations 5.8 and 5.9.
    """

    def __init__(self, points: Points, u: FloatArray, variance: float, noise_log: float) -> None:
        self.points, self.u = points, u
        self.fixed = covary_levels(points, points)
        self.away = np.outer(points.distance, points.distance)
        self.line = points.slopes @ points.slopes.T
        d = points.z.shape[1]
        spread, sd = max(variance, 1e-10), np.array(SCALE_SD)
        scales = np.array([BENT * spread, NOISE * spread, LINEAR, DRIFT])
        if noise_log > 0:
            scales[1], sd[1] = noise_log**2, KNOWN_SD
        self.centre = np.concatenate([np.full(d, np.log(LENGTH)), np.log(scales)])
        self.sd = np.concatenate([np.full(d, LENGTH_SD), sd])

    def maximise(self) -> FloatArray:
        """The most probable logarithms (d + 4,)."""
        from scipy.optimize import minimize

        bounds = list(zip(self.centre - LARGEST_LOG, self.centre + LARGEST_LOG, strict=True))
        settings: Any = {"method": "L-BFGS-B", "jac": True, "bounds": bounds, "options": {"maxiter": 100, "ftol": 1e-7}}
        found = minimize(self, self.centre, **settings)
        return np.asarray(found.x, dtype=np.float64)

    def widen(self, logs: FloatArray) -> FloatArray:
        """The same with larger variances where leave-one-out errors are larger than they say (section 5.4.2).

        Hyperparameters are taken as known, and the law as linear: both make a process too sure.
        """
        scales = Scales.unpack(logs)
        noisy = scales.covary(self.points, self.points) + scales.noise * np.eye(len(self.u))
        inverse = np.linalg.inv(noisy)
        surprise = max(float(np.mean((inverse @ self.u) ** 2 / np.diag(inverse))), 1.0)
        return np.concatenate([logs[:-4], logs[-4:-1] + np.log(surprise), logs[-1:]])

    def __call__(self, logs: FloatArray) -> tuple[float, FloatArray]:
        """Value and gradient (d + 4,)."""
        scales = Scales.unpack(logs)
        distance = measure_distances(self.points.z, self.points.z, scales.log_lengths)
        grown = 1 + scales.drift * self.away
        wave, line = scales.bent * shape_wave(distance), scales.linear * self.line
        noisy = self.fixed + grown * (wave + line) + scales.noise * np.eye(len(self.u))
        factor = factorise(noisy)
        inverse = solve_lower(factor, solve_lower(factor, np.eye(len(self.u))), transposed=True)
        solved = inverse @ self.u
        inner = inverse - np.outer(solved, solved)
        steep = inner * grown * scales.bent * (5 / 3) * (1 + distance) * np.exp(-distance)
        scaled = self.points.z * np.exp(-scales.log_lengths)
        lengths = steep.sum(axis=1) @ scaled**2 - np.einsum("nd,nd->d", scaled, steep @ scaled)
        parts = [
            grown * wave,
            scales.noise * np.eye(len(self.u)),
            grown * line,
            scales.drift * self.away * (wave + line),
        ]
        slopes = np.concatenate([lengths, [0.5 * float((inner * part).sum()) for part in parts]])
        gap = (logs - self.centre) / self.sd
        value = 0.5 * self.u @ solved + np.log(np.diag(factor)).sum() + 0.5 * gap @ gap
        return float(value), slopes + gap / self.sd
