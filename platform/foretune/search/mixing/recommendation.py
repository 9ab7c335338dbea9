"""The mixture to use at the target: lowest posterior mean, with what is known of it and against other mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foretune.search.mixing.beliefs import MixtureBelief, fit_belief
from foretune.search.mixing.optimum import find_optimum, spread_mixtures, surround
from foretune.search.mixing.problem import Candidates, MixingProblem, Observed, Recommendation
from foretune.search.mixing.simplex import FloatArray
from scalelaws.mixtures.optimum import EDGE, FAR_FROM_RUNS, measure_distance

NEARBY, ABROAD = 300, 100
"""Mixtures among which each draw of the posterior has its optimum, around the recommended one and elsewhere."""
RESOLVED = 1e-4
"""Nats per token that no one can measure: reruns of one setting differ by .0005 at best (allenai/OLMo-ladder)."""
Fit = Callable[[MixingProblem, Observed], MixtureBelief]
"""Problem, runs so far -> what they tell."""
QUANTILES = (0.05, 0.95)
"""Of the intervals of the shares."""
REGRET_QUANTILE = 0.9
"""Of what another mixture may be better by: it is never below 0, so that a bound from above is all there is to say."""


def recommend(
    problem: MixingProblem,
    observed: Observed,
    rng: np.random.Generator,
    pool: Candidates | None = None,
    draws: int = 200,
    fit: Fit = fit_belief,
) -> Recommendation:
    """The mixture of the lowest posterior mean at the target: in the region, or among a pool's mixtures there.

    The intervals of the shares hold the optima of draws of the belief. Raises InputError for fewer than three
    finished runs, and for a pool without the target.
    """
    belief = fit(problem, observed)
    choices = _list_choices(problem, belief, pool, rng)
    level = np.full(len(choices), problem.target)
    best = int(np.argmin(belief.mode.expect(choices, level)))
    drawn = belief.draw_beside(best, choices, problem.target, draws, rng)
    low, high = np.quantile(choices[np.argmin(drawn, axis=1)], QUANTILES, axis=0)
    shares = choices[best]
    loss = float(np.exp(belief.expect(shares[None], level[:1])[0]))
    regret = loss * float(np.quantile(-drawn.min(axis=1), REGRET_QUANTILE))
    return Recommendation(
        shares, loss, loss * float(belief.spread(shares[None], level[:1])[0]),
        np.minimum(low, shares), np.maximum(high, shares), loss * float(np.sqrt(belief.noise)),
        _tell(problem, observed, shares, regret), regret,
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


def compare(
    problem: MixingProblem, observed: Observed, first: FloatArray, other: FloatArray, fit: Fit = fit_belief
) -> Advantage:
    """The first mixture (d,) against another (d,) under the posterior. Raises InputError as `recommend` does."""
    from scipy.stats import norm

    belief = fit(problem, observed)
    gaps, deviations = belief.compare(first, other, problem.target)
    losses = np.exp(belief.expect(np.stack([first, other]), np.full(2, problem.target)))
    sd = float(np.sqrt(belief.weights @ (deviations**2 + (gaps - belief.weights @ gaps) ** 2)))
    probability = float(belief.weights @ norm.cdf(gaps / deviations))
    return Advantage(float(losses[1] - losses[0]), float(np.sqrt(losses.prod())) * sd, probability)


def _list_choices(
    problem: MixingProblem, belief: MixtureBelief, pool: Candidates | None, rng: np.random.Generator
) -> FloatArray:
    """Mixtures (m, d) that may be recommended."""
    if pool is not None:
        return np.asarray(pool.shares[pool.level == problem.target])
    region = problem.region
    best = find_optimum(belief.mode, region, problem.target, rng)
    return np.concatenate([best[None], surround(region, best, NEARBY, rng), spread_mixtures(region, ABROAD, rng)])


def _tell_regret(regret: float) -> str:
    """What another mixture may be better by: billionths of a nat, as tight bounds leave, are told as less than can be
    measured."""
    level = f"{100 * REGRET_QUANTILE:.0f} %"
    if regret < RESOLVED:
        return f"No other mixture within the bounds is better by {RESOLVED:g} nats per token ({level})."
    return f"Another mixture may be better by up to {regret:.2g} nats per token ({level})."


def _tell(problem: MixingProblem, observed: Observed, shares: FloatArray, regret: float) -> str:
    """What to know before the mixture is used, in sentences."""
    known, target = observed.known, problem.fidelities[problem.target].name
    runs = int((known & (observed.level == problem.target)).sum())
    sentences = [f"{int(known.sum())} runs ended, {'all' if known.sum() == runs else f'{runs} of them'} at {target}."]
    if runs == 0:
        sentences.append(
            f"None is at {target}: the order of the mixtures is that of smaller proxies, the loss a guess."
        )
    sentences.append(_tell_regret(regret))
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
