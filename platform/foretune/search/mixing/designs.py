"""First mixtures, before anything is known: Dirichlet draws around the natural mixture, or a D-optimal design.

Legend: d domains, n mixtures
"""

from __future__ import annotations

import numpy as np

from foretune.errors import InputError
from foretune.search.mixing.simplex import FloatArray, ShareRegion

TEMPERATURE = 0.5
"""The natural shares are raised to this and normalised: rare domains are tried more often. RegMix, mixture_config."""
STRENGTHS = np.geomspace(0.1, 5.0, 15)
"""Concentrations of the Dirichlet laws, one chosen at random for each mixture. RegMix, MIN_STRENGTH to MAX_STRENGTH."""
MAXIMUM_USAGE = 15.0
"""No share above so many times the natural one. RegMix, MAXIMUM_USAGE."""
GRID = 2e-4
"""Shares are multiples of this, smaller ones are 0. RegMix, MINIMUM."""
OVERSAMPLING = 100
"""Draws for each mixture that is kept. RegMix, SAMPLE_MULTIPLIER."""
CANDIDATES = 60
"""Corners and inner mixtures that a D-optimal design chooses from, for each domain (an assumption)."""
PRIOR_WEIGHT = 1e-3
"""Weight of the prior beside one run in the information of a design: fewer runs than domains are possible (an
assumption; small enough that designs of more runs do not see it)."""
EXCHANGES = 200
"""Exchanges after which a design that still improves is taken as it is."""


def draw_dirichlet(region: ShareRegion, natural: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
    """RegMix's mixtures (count, d) around natural shares (d,), distinct, on a grid, within the region.

    Draws outside of the bounds are rejected; where the bounds leave too few, the others are moved to the nearest
    mixture within them. Source: sail-sg/regmix, mixture_config/synthesize_mixture.py. Raises InputError where
    the grid holds fewer distinct mixtures in the region.
    """
    prior = natural**TEMPERATURE / (natural**TEMPERATURE).sum()
    strengths = rng.choice(STRENGTHS, size=(OVERSAMPLING * count, 1))
    draws = rng.standard_gamma(np.maximum(prior * strengths, 1e-12))
    draws = draws / np.maximum(draws.sum(axis=1, keepdims=True), 1e-300)
    draws = draws[(draws.sum(axis=1) > 0.5) & (draws <= np.minimum(MAXIMUM_USAGE * natural, 1.0) + 1e-12).all(axis=1)]
    rounded = round_shares(draws)
    inside = region.holds(rounded)
    within = _keep_distinct(rounded[inside])
    if len(within) >= count:
        return np.asarray(within[rng.choice(len(within), count, replace=False)])
    moved = np.concatenate([region.project(rounded[~inside]), region.sample(count, rng)])
    found = _keep_distinct(np.concatenate([within, moved]))
    if len(found) < count:
        raise InputError(f"the bounds leave {len(found)} distinct mixtures; a design of {count} needs wider ones")
    return np.asarray(found[:count])


def round_shares(shares: FloatArray) -> FloatArray:
    """Mixtures (n, d) with shares below the grid set to 0, and all others multiples of it that add up to 1."""
    kept = np.where(shares < GRID, 0.0, shares)
    units = kept / kept.sum(axis=1, keepdims=True) / GRID
    whole = np.floor(units + 1e-9)
    missing = np.rint(1 / GRID - whole.sum(axis=1)).astype(int)
    ranks = np.argsort(np.argsort(whole - units, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray((whole + (ranks < missing[:, None])) * GRID)


def _keep_distinct(shares: FloatArray) -> FloatArray:
    """Each mixture once, in the order of their first appearance."""
    _, first = np.unique(np.round(shares / GRID), axis=0, return_index=True)
    return np.asarray(shares[np.sort(first)])


def choose_d_optimal(region: ShareRegion, count: int, rng: np.random.Generator) -> FloatArray:
    """Mixtures (count, d) that determine a log-linear law best: the largest determinant of its information matrix.

    ln (L - c) = sum_j r_j ln k_j is linear in the shares, so that the information is X'X and does not depend on the
    law's values. Greedy choice, then exchanges while one raises the determinant (Fedorov 1972); the best mixtures are
    corners of the region, which candidates hold beside inner ones.
    """
    pool = CANDIDATES * len(region.low)
    candidates = np.concatenate([region.draw_vertices(pool, rng), region.sample(pool // 4, rng)])
    candidates = np.unique(np.round(candidates, 9), axis=0)
    information = PRIOR_WEIGHT * np.eye(len(region.low))
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(np.argmax(_measure_leverage(candidates, information))))
        information = information + np.outer(candidates[chosen[-1]], candidates[chosen[-1]])
    return np.asarray(candidates[_exchange(candidates, chosen, information)])


def _exchange(candidates: FloatArray, chosen: list[int], information: FloatArray) -> list[int]:
    """Swaps a chosen mixture for another while that raises the determinant, the best swap first."""
    for _ in range(EXCHANGES):
        inverse = np.linalg.inv(information)
        taken = candidates[chosen]
        own = np.einsum("nd,de,ne->n", taken, inverse, taken)
        leverage = _measure_leverage(candidates, information)
        cross = taken @ inverse @ candidates.T
        gain = leverage[None] - own[:, None] - own[:, None] * leverage[None] + cross**2
        out, new = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[out, new] < 1e-9:
            break
        information = information + np.outer(candidates[new], candidates[new]) - np.outer(taken[out], taken[out])
        chosen[int(out)] = int(new)
    return chosen


def _measure_leverage(candidates: FloatArray, information: FloatArray) -> FloatArray:
    return np.asarray(np.einsum("nd,de,ne->n", candidates, np.linalg.inv(information), candidates))
