"""Where the posterior mean of the loss at the target is lowest, and mixtures around it that could be as good."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from foretune.search.mixing.problem import IntArray
from foretune.search.mixing.simplex import FloatArray, ShareRegion

SAMPLES = 1024
"""Mixtures among which the search begins."""
STARTS = 3
"""The best of them are refined."""
SPARSE = 0.3
"""Concentration of the Dirichlet draws that come near faces of the region, where optima lie (an assumption)."""
FARTHEST_STEP = 0.5
"""Neighbours of the optimum lie on the way to other mixtures: from 1 % to this share of it (an assumption)."""
STEP = 1e-5
"""Of finite differences in shares."""
TOLERANCE = 1e-7
"""A step that lowers ln loss by less ends the search: runs repeat to 1e-4 at best."""


class Expectation(Protocol):
    """What says which loss to expect."""

    def expect(self, shares: FloatArray, level: IntArray) -> FloatArray:
        """Mean (m,) of ln loss of mixtures (m, d) at fidelities (m,)."""


def spread_mixtures(region: ShareRegion, count: int, rng: np.random.Generator) -> FloatArray:
    """Mixtures (count, d) all over the region: half of them uniform, half of few domains."""
    inner = region.sample(count // 2, rng)
    outer = region.project(rng.dirichlet(np.full(len(region.low), SPARSE), count - len(inner)))
    return np.concatenate([inner, outer])


def surround(region: ShareRegion, middle: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """Mixtures (count, d) on the way from one (d,) to others all over the region, most of them near it."""
    steps = np.geomspace(0.01, FARTHEST_STEP, count)[:, None]
    return middle + steps * (spread_mixtures(region, count, rng)[rng.permutation(count)] - middle)


def find_optimum(surface: Expectation, region: ShareRegion, target: int, rng: np.random.Generator) -> FloatArray:
    """The mixture (d,) of the lowest posterior mean at the target."""
    samples = spread_mixtures(region, SAMPLES, rng)
    means = _expect(surface, samples, target)
    ends = [_descend(surface, region, target, samples[row]) for row in np.argsort(means)[:STARTS]]
    return ends[int(np.argmin(_expect(surface, np.array(ends), target)))]


def _expect(surface: Expectation, shares: FloatArray, target: int) -> FloatArray:
    return surface.expect(shares, np.full(len(shares), target))


def _descend(surface: Expectation, region: ShareRegion, target: int, start: FloatArray) -> FloatArray:
    """Sequential quadratic programming from a mixture (d,); the start itself where it finds nothing lower."""
    from scipy.optimize import minimize

    moves = np.concatenate([np.zeros((1, len(start))), STEP * np.eye(len(start))])

    def evaluate(shares: FloatArray) -> tuple[float, FloatArray]:
        means = _expect(surface, shares + moves, target)
        return float(means[0]), (means[1:] - means[0]) / STEP

    limits: list[Any] = [{"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}]
    if len(region.limits):
        room = {"type": "ineq", "fun": lambda x: region.ceilings - region.limits @ x, "jac": lambda x: -region.limits}
        limits.append(room)
    settings: Any = {
        "method": "SLSQP", "jac": True, "bounds": list(zip(region.low, region.high, strict=True)),
        "constraints": limits, "options": {"ftol": TOLERANCE},
    }  # fmt: skip
    found = minimize(evaluate, start, **settings)
    end = region.project(found.x[None])[0]
    return end if evaluate(end)[0] < evaluate(start)[0] else start
