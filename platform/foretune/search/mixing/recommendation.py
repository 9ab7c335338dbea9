"""The mixture to use at the target: lowest posterior mean, with what is known of it and against other mixtures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foretune.search.mixing.multifidelity import MixtureSurface, fit_surface
from foretune.search.mixing.optimum import find_optimum, spread_mixtures, surround
from foretune.search.mixing.problem import Candidates, MixingProblem, Observed, Recommendation
from foretune.search.mixing.simplex import FloatArray
from scalelaws.mixtures.optimum import EDGE, FAR_FROM_RUNS, measure_distance

NEARBY, ABROAD = 300, 100
"""Mixtures among which each draw of the posterior has its optimum, around the recommended one and elsewhere."""
QUANTILES = (0.05, 0.95)
"""Of the intervals of the shares."""
WIDENING = 1.5
"""Factor on the spread of the draws behind these intervals. Measured on the planted bowl of this module's tests, 16
data sets of 25 runs: intervals of 90 % held .80 of the optimal shares without it, for scales are taken as known, and
.92 with it."""


def recommend(
    problem: MixingProblem,
    observed: Observed,
    rng: np.random.Generator,
    pool: Candidates | None = None,
    draws: int = 200,
) -> Recommendation:
    """The mixture of the lowest posterior mean at the target: in the region, or among a pool's mixtures there.

    The intervals of the shares hold the optima of draws of the posterior. Raises InputError for fewer than three
    finished runs, and for a pool without the target.
    """
    surface = fit_surface(problem, observed)
    choices = _list_choices(problem, surface, pool, rng)
    mean, covariance = surface.predict_jointly(choices, np.full(len(choices), problem.target))
    best = int(np.argmin(mean))
    optima = choices[np.argmin(_draw(mean, WIDENING**2 * covariance, best, draws, rng), axis=1)]
    low, high = np.quantile(optima, QUANTILES, axis=0)
    loss = float(np.exp(mean[best]))
    shares, sd = choices[best], float(np.sqrt(max(covariance[best, best], 0.0)))
    return Recommendation(
        shares, loss, loss * sd, np.minimum(low, shares), np.maximum(high, shares),
        loss * float(np.sqrt(surface.scales.noise)), _tell(problem, observed, shares),
    )  # fmt: skip


@dataclass(frozen=True)
class Advantage:
    """How much lower the expected loss at the target is on one mixture than on another."""

    gain: float
    """Loss of the other less that of the first, in the unit of the loss."""
    gain_sd: float
    """Standard deviation of the gain: what both have in common, the level of the target above all, is not in it."""
    probability: float
    """That the first is better."""


def compare(problem: MixingProblem, observed: Observed, first: FloatArray, other: FloatArray) -> Advantage:
    """The first mixture (d,) against another (d,) under the posterior. Raises InputError as `recommend` does."""
    from scipy.stats import norm

    both = np.stack([first, other])
    mean, covariance = fit_surface(problem, observed).predict_jointly(both, np.full(2, problem.target))
    gap, variance = mean[1] - mean[0], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    sd, level = float(np.sqrt(max(variance, 1e-18))), float(np.exp(mean.mean()))
    return Advantage(float(np.exp(mean[1]) - np.exp(mean[0])), level * sd, float(norm.cdf(gap / sd)))


def _list_choices(
    problem: MixingProblem, surface: MixtureSurface, pool: Candidates | None, rng: np.random.Generator
) -> FloatArray:
    """Mixtures (m, d) that may be recommended."""
    if pool is not None:
        return np.asarray(pool.shares[pool.level == problem.target])
    region = problem.region
    best = find_optimum(surface, region, problem.target, rng)
    return np.concatenate([best[None], surround(region, best, NEARBY, rng), spread_mixtures(region, ABROAD, rng)])


def _draw(mean: FloatArray, covariance: FloatArray, best: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Draws (draws, m) of the ln loss over that of the best mixture.

    What all mixtures have in common is taken off first: beside an unknown level the differences would drown in
    rounding.
    """
    relative = covariance - covariance[best] - covariance[:, best][:, None] + covariance[best, best]
    values, vectors = np.linalg.eigh((relative + relative.T) / 2)
    waves = rng.standard_normal((draws, len(mean))) * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(mean + waves @ vectors.T)


def _tell(problem: MixingProblem, observed: Observed, shares: FloatArray) -> str:
    """What to know before the mixture is used, in sentences."""
    known, target = observed.known, problem.fidelities[problem.target].name
    runs = int((known & (observed.level == problem.target)).sum())
    sentences = [f"{int(known.sum())} runs ended, {'all' if known.sum() == runs else f'{runs} of them'} at {target}."]
    if runs == 0:
        sentences.append(
            f"None is at {target}: the order of the mixtures is that of smaller proxies, the loss a guess."
        )
    outside = measure_distance(shares, observed.shares[known])[1]
    if outside > FAR_FROM_RUNS:
        sentences.append(
            f"{100 * outside:.0f} % of its tokens lie outside of every blend of the mixtures tried: an extrapolation."
        )
    region = problem.region
    for name, share, high in zip(problem.domains, shares, region.high, strict=True):
        if 0 < high - EDGE < share < 1 - EDGE:
            sentences.append(f"The share of {name} is at its maximum: more of it looks better still.")
    return " ".join(sentences)
