"""The mixture to recommend from the runs so far: by the Gaussian process over sizes, or by a regression at one size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretune.search.interface import make_rng
from foretune.search.mixing.course import DECIMALS, Advice, Course, Results, Trial
from foretune.search.mixing.optimum import spread_mixtures, surround
from foretune.search.mixing.problem import Recommendation
from foretune.search.mixing.recommendation import Advantage, compare, recommend
from foretune.search.mixing.simplex import FloatArray
from foretune.search.mixing.surrogates import BEST_AVERAGED, SURROGATES, FittedObjective, average_best, fit_objective

DRAWS = 400
"""Draws of the posterior behind the intervals of the shares: their 5 % ends are then known to about 1 %."""
CANDIDATES = 20_000
"""Mixtures among which a regression is minimised: a fifth of those of RegMix's notebook, of whose best as many."""
NEARBY = 2_000
"""Further ones around the best of them (an assumption)."""


def advise(course: Course, trials: Sequence[Trial], results: Results) -> Advice:
    """The recommended mixture. Raises InputError for fewer than three runs that ended."""
    searched = sum(trial.is_searched for trial in trials)
    rng = make_rng(course.study, "mixture", "advice", searched)
    if course.rules.surrogate == "gp":
        observed = course.observe(trials, results)
        found = recommend(course.problem, observed, rng, draws=DRAWS)
        shares = course.name_shares(found.shares)
        natural = course.list_shares(course.natural)
        advantage = compare(course.problem, observed, course.list_shares(shares), natural)
    else:
        found, advantage = _regress(course, trials, results, rng)
        shares = course.name_shares(found.shares)
    best, best_loss = find_best_observed(course, trials, results)
    return Advice(
        searched=searched,
        planned=course.study.search.runs,
        shares=shares,
        low={name: min(share, shares[name]) for name, share in _name(course, found.share_low).items()},
        high={name: max(share, shares[name]) for name, share in _name(course, found.share_high).items()},
        loss=found.loss,
        loss_sd=found.loss_sd,
        noise_sd=found.noise_sd,
        gain=advantage.gain,
        gain_sd=advantage.gain_sd,
        probability=advantage.probability,
        message=found.message,
        best=best,
        best_loss=best_loss,
    )


def find_best_observed(
    course: Course, trials: Sequence[Trial], results: Results
) -> tuple[dict[str, float], float | None]:
    """The mixture of the lowest measured objective at the target fidelity, the mean over its seeds."""
    measured: dict[tuple[float, ...], list[float]] = {}
    for trial in trials:
        if trial.scale == course.target.name and trial.run_id in results:
            key = tuple(trial.shares[name] for name in course.domains)
            measured.setdefault(key, []).append(course.measure(trial, results))
    means = {key: float(np.mean(losses)) for key, losses in measured.items() if np.isfinite(losses).all()}
    if not means:
        return {}, None
    best = min(means, key=means.__getitem__)
    return dict(zip(course.domains, best, strict=True)), means[best]


def _regress(
    course: Course, trials: Sequence[Trial], results: Results, rng: np.random.Generator
) -> tuple[Recommendation, Advantage]:
    """A regression for each held-out loss of the objective, minimised over the region."""
    from scipy.stats import norm

    known = [trial for trial in trials if np.isfinite(course.measure(trial, results))]
    weights = {name: weight for name, weight in course.objective.items() if weight}
    shares = np.array([course.list_shares(trial.shares) for trial in known])
    losses = np.array([[results[trial.run_id].loss_by_domain[name] for name in weights] for trial in known])
    surrogate = SURROGATES[course.rules.surrogate]
    fitted = fit_objective(surrogate, shares, losses, np.array(list(weights.values())))
    best, alike = _minimise(course, fitted, rng)
    mean, sd = fitted.predict(np.stack([best, course.list_shares(course.natural)]))
    gap, gap_sd = float(mean[1] - mean[0]), float(np.hypot(*sd)) + 1e-300
    fitted_losses = fitted.predict(shares)[0]
    scatter = float(np.std(losses @ np.array(list(weights.values())) - fitted_losses))
    told = f"{len(known)} runs ended; the intervals hold all mixtures that the regression cannot tell from the best."
    found = Recommendation(best, float(mean[0]), float(sd[0]), alike.min(axis=0), alike.max(axis=0), scatter, told)
    return found, Advantage(gap, gap_sd, float(norm.cdf(gap / gap_sd)))


def _minimise(course: Course, fitted: FittedObjective, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """The best mixture (d,), and all (m, d) that are expected to be within its standard deviation of it."""
    candidates = spread_mixtures(course.region, CANDIDATES, rng)
    if course.rules.surrogate == "lightgbm":
        best = average_best(fitted, candidates, BEST_AVERAGED // 5)
    else:
        first = candidates[int(np.argmin(fitted.predict(candidates)[0]))]
        candidates = np.concatenate([candidates, surround(course.region, first, NEARBY, rng), first[None]])
        best = candidates[int(np.argmin(fitted.predict(candidates)[0]))]
    mean, sd = fitted.predict(best[None])
    near = fitted.predict(candidates)[0] <= mean[0] + sd[0]
    return best, np.concatenate([candidates[near], best[None]])


def _name(course: Course, shares: FloatArray) -> dict[str, float]:
    """Shares by domain that need not add up to 1."""
    return {name: round(float(share), DECIMALS) for name, share in zip(course.domains, shares, strict=True)}
