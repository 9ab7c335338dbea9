"""Which mixture at which fidelity next? The one whose result most lowers the recommended loss, per cost.

Legend: q queries (mixture and fidelity), a mixtures at the target, all of one joint normal posterior of ln loss
    knowledge gradient of a query = min_a mean - E min_a (mean + slope_qa Z), Z standard normal,
    slope_qa = covariance of query and a / standard deviation of the query's result
Source: Frazier, Powell and Dayanik 2009; per cost and over fidelities, Wu et al. 2019 (1903.04703). The mean is what
the search recommends by, so that this values exactly what it is there for; a cheap fidelity loses its worth once what
it still can say of the target is little. Within a batch the results to come are put at their mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foretune.search.mixing.multifidelity import MixtureSurface, fit_surface
from foretune.search.mixing.optimum import find_optimum, spread_mixtures, surround
from foretune.search.mixing.problem import Candidates, IntArray, MixingProblem, Observed
from foretune.search.mixing.simplex import BoolArray, FloatArray

NEARBY, ABROAD = 96, 96
"""Candidates around the optimum, and all over the region."""
FARTHEST = 6.0
"""Z beyond this is left out."""
NODES = np.linspace(-FARTHEST, FARTHEST, 49)
"""Of the trapezoidal rule over Z: the minimum has kinks, at which Gauss's rule of 21 nodes errs by 10 %, this by 3."""
NODE_WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
SAME = 1e-9
"""Mixtures that differ by less in each share are the same."""


class Proposal(NamedTuple):
    """A run to do next."""

    level: int
    """Number of the fidelity."""
    shares: FloatArray
    """(d,)."""
    gain: float
    """Knowledge gradient: expected fall of the recommended ln loss at the target, per cost of a run there."""


def propose(
    problem: MixingProblem, observed: Observed, count: int, rng: np.random.Generator, pool: Candidates | None = None
) -> list[Proposal]:
    """The next runs, at most `count`; fewer only where a pool has no more.

    Pending runs (loss NaN) count as done at their expected result, so that no two workers do the same. Runs of a pool
    are proposed once. Deterministic for a generator's state. Raises InputError for fewer than three finished runs.
    """
    surface = fit_surface(problem, observed)
    queries = pool if pool is not None else _list_candidates(problem, surface, rng)
    waiting = observed.pending
    shares = np.concatenate([queries.shares, observed.shares[waiting]])
    level = np.concatenate([queries.level, observed.level[waiting]])
    mean, covariance = surface.predict_jointly(shares, level)
    noise, total = surface.scales.noise, len(queries.level)
    for row in range(total, len(level)):
        covariance = condition(covariance, row, noise)
    mean, covariance, level = mean[:total], covariance[:total, :total], level[:total]
    free = ~_find_known(queries, observed) if pool is not None else np.ones(total, dtype=bool)
    counts = np.bincount(observed.level, minlength=len(problem.fidelities))
    chosen = []
    for _ in range(min(count, int(free.sum()))):
        worth = measure_worth(mean, covariance, level == problem.target, noise) / problem.costs[level]
        row = _pick(worth, mean, level, _narrow(problem, counts, level, free))
        chosen.append(Proposal(int(level[row]), shares[row], float(worth[row])))
        covariance = condition(covariance, row, noise)
        counts[level[row]] += 1
        free[row] = pool is None
    return chosen


def measure_worth(mean: FloatArray, covariance: FloatArray, at_target: BoolArray, noise: float) -> FloatArray:
    """Knowledge gradient (q,) of each query; those `at_target` (q,) are also what may be recommended."""
    spread = np.sqrt(np.maximum(np.diag(covariance), 0.0) + noise + 1e-300)
    slopes, ends = covariance[:, at_target] / spread[:, None], mean[at_target] - mean[at_target].min()
    slopes = slopes - slopes[:, [int(np.argmin(ends))]]
    hopeful = ends <= FARTHEST * np.abs(slopes).max(axis=0)
    slopes, ends = slopes[:, hopeful], ends[hopeful]
    expected = np.zeros(len(mean))
    for node, weight in zip(NODES, NODE_WEIGHTS, strict=True):
        expected -= weight * (ends + node * slopes).min(axis=1)
    return np.maximum(expected, 0.0)


def condition(covariance: FloatArray, row: int, noise: float) -> FloatArray:
    """Posterior covariance once the query `row` has a result; the mean stays where the result is the expected one."""
    column = covariance[:, row]
    return np.asarray(covariance - np.outer(column, column) / (max(column[row], 0.0) + noise + 1e-300))


def _narrow(problem: MixingProblem, counts: IntArray, level: IntArray, free: BoolArray) -> BoolArray:
    """Which queries may be chosen: only those at the target while its share of the runs is too small."""
    short = counts[problem.target] < problem.target_share * (counts.sum() + 1)
    wanted = free & (level == problem.target)
    return wanted if short and wanted.any() else free


def _pick(worth: FloatArray, mean: FloatArray, level: IntArray, allowed: BoolArray) -> int:
    """The allowed query of most worth; where none has any, the most promising one of the highest fidelity left."""
    if worth[allowed].max() > 0:
        return int(np.argmax(np.where(allowed, worth, -1.0)))
    highest = allowed & (level == level[allowed].max())
    return int(np.argmin(np.where(highest, mean, np.inf)))


def _list_candidates(problem: MixingProblem, surface: MixtureSurface, rng: np.random.Generator) -> Candidates:
    """Mixtures around the optimum and all over the region, each at every fidelity."""
    region = problem.region
    best = find_optimum(surface, region, problem.target, rng)
    mixtures = np.concatenate([
        best[None], surround(region, best, NEARBY, rng), spread_mixtures(region, ABROAD, rng)
    ])  # fmt: skip
    levels = len(problem.fidelities)
    return Candidates(np.tile(mixtures, (levels, 1)), np.repeat(np.arange(levels), len(mixtures)))


def _find_known(queries: Candidates, observed: Observed) -> BoolArray:
    """Queries that are among the runs already, whatever became of them."""
    known = np.zeros(len(queries.level), dtype=bool)
    for shares, level in zip(observed.shares, observed.level, strict=True):
        known |= (queries.level == level) & (np.abs(queries.shares - shares) < SAME).all(axis=1)
    return known
