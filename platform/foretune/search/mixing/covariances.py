"""How the losses of two mixtures, at the same or at different fidelities, vary together.

Legend: m mixtures, d domains, P parameters of a law of mixtures
    r (d,) shares     z = sqrt(r + 1e-4): distances of mixtures in z are Hellinger's
    t distance of a fidelity from the target: 0 at the target, 1 at the farthest
    j (P,) change of the law's ln loss by each of its parameters, per standard deviation of the parameter's prior
    covariance = LEVEL_SD^2 [same fidelity] + (1 + drift t t') (linear j . j' + bent M(z, z'))
    M = (1 + a + a^2/3) exp(-a), a^2 = 5 sum_j (z_j - z'_j)^2 / l_j^2: Matern with nu = 5/2
The factor 1 + drift t t' is a process at the target plus one that grows with the distance from it, as in the linear
truncated kernel of BoTorch's SingleTaskMultiFidelityGP (Wu et al. 2019, 1903.04703).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foretune.search.mixing.problem import IntArray
from foretune.search.mixing.simplex import FloatArray
from scalelaws.mixtures.process import ABSENT_SHARE

LEVEL_SD = 1.0
"""Prior of a fidelity's level around the mean less the law: neighbouring sizes differ by far less than a factor of e
(an assumption)."""


@dataclass(frozen=True, eq=False)
class Points:
    """What the covariance reads of some mixtures."""

    z: FloatArray
    """(m, d)."""
    slopes: FloatArray
    """(m, P) j."""
    level: IntArray
    """(m,) number of the fidelity."""
    distance: FloatArray
    """(m,) t."""


def warp_shares(shares: FloatArray) -> FloatArray:
    """Shares in the coordinates in which distances are taken."""
    return np.asarray(np.sqrt(np.maximum(shares, 0) + ABSENT_SHARE))


@dataclass(frozen=True, eq=False)
class Scales:
    """The hyperparameters of the covariance and of the noise."""

    log_lengths: FloatArray
    """(d,) ln l."""
    bent: float
    """Variance of ln loss."""
    noise: float
    """Variance of a run's ln loss around the process."""
    linear: float
    """Factor on the variances of the prior of the law's parameters."""
    drift: float
    """Variance that the farthest fidelity has beside that of the target, relative to it."""

    @classmethod
    def unpack(cls, logs: FloatArray) -> Scales:
        """From their logarithms (d + 4,), in the order of the fields."""
        bent, noise, linear, drift = np.exp(logs[-4:]).tolist()
        return cls(logs[:-4], bent, noise, linear, drift)

    def covary(self, left: Points, right: Points) -> FloatArray:
        """Covariance (m, m') of ln loss without noise."""
        wave = shape_wave(measure_distances(left.z, right.z, self.log_lengths))
        shape = self.linear * left.slopes @ right.slopes.T + self.bent * wave
        return np.asarray(
            covary_levels(left, right) + (1 + self.drift * np.outer(left.distance, right.distance)) * shape
        )

    def covary_beside_law(self, runs: Points) -> FloatArray:
        """Covariance (n, n) of runs without noise once the law's parameters at the target are known."""
        return np.asarray(self.covary(runs, runs) - self.linear * runs.slopes @ runs.slopes.T)

    def covary_diagonal(self, points: Points) -> FloatArray:
        """Variance (m,) of ln loss without noise."""
        shape = self.linear * (points.slopes**2).sum(axis=1) + self.bent
        return np.asarray(LEVEL_SD**2 + (1 + self.drift * points.distance**2) * shape)


def covary_levels(left: Points, right: Points) -> FloatArray:
    """The part (m, m') without hyperparameters: each fidelity has a level of its own."""
    return np.asarray(LEVEL_SD**2 * (left.level[:, None] == right.level[None]))


def measure_distances(left: FloatArray, right: FloatArray, log_lengths: FloatArray) -> FloatArray:
    """a (m, m') between warped mixtures."""
    a, b = left * np.exp(-log_lengths), right * np.exp(-log_lengths)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(5 * np.maximum(squares, 0.0)))


def shape_wave(distance: FloatArray) -> FloatArray:
    """Matern-5/2 correlation at distances a."""
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


def factorise(covariance: FloatArray) -> FloatArray:
    """Lower Cholesky factor, with as little added to the diagonal as rounding asks for."""
    jitter = 1e-10 * float(np.mean(np.diag(covariance)))
    return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))))


def solve_lower(factor: FloatArray, right: FloatArray, *, transposed: bool = False) -> FloatArray:
    """x of factor x = right, or of its transpose."""
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(factor, right, lower=True, trans="T" if transposed else "N", check_finite=False))
