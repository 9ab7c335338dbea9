"""A Gaussian process over settings that forgets: what gave much some generations ago may give little now.

Symbols
    x (n, d)  settings in the unit cube     t (n,)  generations     y (n,)  what settings gave, around 0
    l (d,)    lengths                       e       share that is forgotten in a generation
    r         variance of the noise over that of the process, v
    y = f(x, t) + noise;  cov f = v exp(-sum_j (x_j - x'_j)^2 / (2 l_j^2)) (1 - e)^(|t - t'| / 2)

The covariance is that of Bogunovic et al. 2016 (1601.06650, section 2), which population-based bandits take
(Parker-Holder et al. 2020, 2002.02518, section 4). l, e and r maximise the marginal likelihood on a grid, one after the
other; v is known in closed form and integrated out of it (Rasmussen and Williams 2006, sections 2.2 and 5.4.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""From a valley of a tenth of an axis to settings that hardly matter (assumption)."""
FORGOTTEN = (0.01, 0.05, 0.2, 0.5)
"""Shares forgotten in a generation; Ray Tune holds its own at most at .5."""
NOISES = (0.01, 0.05, 0.2, 1.0)
"""From measurements that can be believed to as much noise as there is to learn (assumption)."""
LIKELY_LENGTH, LENGTH_SD = 0.5, 0.8
"""Log-normal prior of a length (assumption: a basin takes up about half of a sensible range)."""
PRIOR_COUNT = 2.0
"""Measurements that the prior of v, around 1, counts for (assumption: inverse gamma with shape and scale 1)."""
START = (0.4, 0.05, 0.05)
"""Length, share forgotten and noise from which the grid is climbed."""
SWEEPS = 4
"""Rounds over the hyperparameters; the second or third changes nothing any more."""
JITTER = 1e-9
"""Keeps the covariance of equal settings regular."""


@dataclass(frozen=True)
class Scales:
    """The hyperparameters but for v."""

    lengths: tuple[float, ...]
    """(d,) l, in units of the axes."""
    forgotten: float
    """e, in (0, 1)."""
    noise: float
    """r."""

    def correlate(self, x: Floats, t: Floats, other_x: Floats, other_t: Floats) -> Floats:
        """(n, m) of the process between two sets of settings and times."""
        near, far = x / np.array(self.lengths), other_x / np.array(self.lengths)
        squares = (near**2).sum(axis=1)[:, None] + (far**2).sum(axis=1) - 2 * near @ far.T
        memory = math.log1p(-self.forgotten) * np.abs(t[:, None] - other_t)
        return np.asarray(np.exp(0.5 * (memory - np.maximum(squares, 0.0))))

    def correlate_measured(self, x: Floats, t: Floats) -> Floats:
        """(n, n) of the measurements."""
        return np.asarray(self.correlate(x, t, x, t) + (self.noise + JITTER) * np.eye(len(x)))


@dataclass(frozen=True, eq=False)
class DriftingProcess:
    """A process after measurements."""

    x: Floats
    """(n, d) settings."""
    t: Floats
    """(n,) generations."""
    scales: Scales
    variance: float
    """v."""
    weights: Floats
    """(n,) of the mean."""

    def predict(self, x: Floats, time: float) -> Floats:
        """The mean (m,) of settings (m, d) at a time."""
        return np.asarray(self.scales.correlate(x, np.full(len(x), time), self.x, self.t) @ self.weights)

    def doubt(self, x: Floats, time: float, pending: Floats) -> Floats:
        """The standard deviation (m,) at a time, as if pending settings (p, d) had been measured there.

        It does not depend on what the measurements will be, so that several settings can be chosen one after the other
        (Desautels et al. 2014, GP-BUCB).
        """
        known_x = np.concatenate([self.x, pending])
        known_t = np.concatenate([self.t, np.full(len(pending), time)])
        factor = np.linalg.cholesky(self.scales.correlate_measured(known_x, known_t))
        solved = np.linalg.solve(factor, self.scales.correlate(known_x, known_t, x, np.full(len(x), time)))
        return np.asarray(np.sqrt(self.variance * np.maximum(1 - (solved**2).sum(axis=0), 0.0)))


def fit_drift(x: Floats, t: Floats, y: Floats) -> DriftingProcess:
    """The most probable process for measurements y (n,) of settings x (n, d) at times t (n,), n >= 1."""
    return condition_drift(x, t, y, _climb(x, t, y))


def condition_drift(x: Floats, t: Floats, y: Floats, scales: Scales) -> DriftingProcess:
    """The posterior of given scales; v is scale over shape of its own posterior, which is inverse gamma."""
    weights = np.linalg.solve(scales.correlate_measured(x, t), y)
    variance = float(y @ weights + PRIOR_COUNT) / (len(y) + PRIOR_COUNT)
    return DriftingProcess(x, t, scales, variance, np.asarray(weights))


def _climb(x: Floats, t: Floats, y: Floats) -> Scales:
    """The best of the grid along one hyperparameter after the other until none gets better."""
    length, *others = START
    best = [length] * x.shape[1] + others
    grids = [LENGTHS] * x.shape[1] + [FORGOTTEN, NOISES]
    height = _judge(x, t, y, _read(best))
    for _ in range(SWEEPS):
        before = list(best)
        for place, grid in enumerate(grids):
            for value in grid:
                tried = [*best[:place], value, *best[place + 1 :]]
                if value != best[place] and (reached := _judge(x, t, y, _read(tried))) > height:
                    best, height = tried, reached
        if best == before:
            break
    return _read(best)


def _read(values: list[float]) -> Scales:
    return Scales(tuple(values[:-2]), *values[-2:])


def _judge(x: Floats, t: Floats, y: Floats, scales: Scales) -> float:
    """Log posterior of the scales, v integrated out, but for a constant."""
    factor = np.linalg.cholesky(scales.correlate_measured(x, t))
    solved = np.linalg.solve(factor, y)
    prior = -0.5 * sum((math.log(length / LIKELY_LENGTH) / LENGTH_SD) ** 2 for length in scales.lengths)
    evidence = -0.5 * (len(y) + PRIOR_COUNT) * math.log(float(solved @ solved) + PRIOR_COUNT)
    return float(evidence - np.log(np.diag(factor)).sum() + prior)
