"""The shape of a basin: ln loss around its optimum as a function of learning rate and, where varied, batch.

Legend:
    x  ln peak learning rate minus that of the lowest run      z  ln batch tokens minus that of the lowest run
    y  ln loss                                                 s  skew of the basin per unit of x
    phi_s(x) = (exp(s x) - 1 - s x) / s^2   a parabola x^2/2 at s = 0; for s > 0 flat on the left, steep on the right
    y = c + b x + k phi_s(x)  [+ d z + q z^2/2 + m x z]     linear in its coefficients once s is given

The basin is asymmetric: on the runs published with Step Law (Li et al. 2025), half the best learning rate costs
0.35 % of the loss and twice as much 1.06 %, which is s = 2.3. A parabola is therefore biased as soon as its points
do not lie evenly around the optimum; the skew is given a prior and integrated over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.intervals import draw_variances
from scalelaws.observations import FloatArray

SKEW_GRID = np.linspace(-1.0, 4.0, 11)
SKEW_PRIOR = (1.5, 1.0)
"""Mean and standard deviation of s: an assumption that reaches both the parabola and the published 2.3."""
MISFIT_SHARE = 0.15
"""Assumption: the shape is right to 15 % of the excess loss, so the wings count for less than the valley."""
OVERHANG = float(np.log(4.0))
"""Draws of the optimum are followed to a factor of four beyond the grid; further out the runs say nothing."""


@dataclass(frozen=True, eq=False)
class Basin:
    """One fitted basin in absolute units."""

    ln_lr: float
    """ln learning rate where x = 0."""
    ln_batch: float | None
    """ln batch where z = 0, None in one dimension."""
    skew: float
    coefficients: FloatArray
    """(c, b, k) or (c, b, k, d, q, m)."""

    def predict(self, peak_lr: FloatArray, batch_tokens: FloatArray | None = None) -> FloatArray:
        """Loss at learning rates (and batches)."""
        x = np.log(peak_lr) - self.ln_lr
        z = None if self.ln_batch is None or batch_tokens is None else np.log(batch_tokens) - self.ln_batch
        design = lay_out(x, z, self.skew)
        return np.asarray(np.exp(design @ self.coefficients[: design.shape[1]]))


@dataclass(frozen=True, eq=False)
class BasinDraws:
    """Draws of the optimum: x, z (or None), y there, the two curvatures and the skew; and how many had a minimum."""

    x: FloatArray
    z: FloatArray | None
    y: FloatArray
    curvature_x: FloatArray
    curvature_z: FloatArray | None
    skew: FloatArray
    share_convex: float
    """Share of all draws that bend upwards."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """For each skew of the grid: its probability, the coefficients (S, p) and a root of their covariance (S, p, p)."""

    probability: FloatArray
    coefficients: FloatArray
    root: FloatArray
    variance: FloatArray
    dof: FloatArray

    @property
    def mode(self) -> int:
        """The most probable skew's place in the grid."""
        return int(np.argmax(self.probability))

    @property
    def noise_log(self) -> float:
        """Standard deviation of ln loss of a run, averaged over the skews."""
        return float(np.sqrt(self.probability @ self.variance))


def bend(x: FloatArray, skew: FloatArray | float) -> FloatArray:
    """phi_s(x), with its limit at s = 0."""
    safe = np.where(np.abs(skew) < 1e-6, 1.0, skew)
    return np.asarray(np.where(np.abs(skew) < 1e-6, 0.5 * x * x, (np.expm1(safe * x) - safe * x) / safe**2))


def bend_slope(x: FloatArray, skew: FloatArray | float) -> FloatArray:
    """The derivative of phi_s at x, with its limit at s = 0."""
    safe = np.where(np.abs(skew) < 1e-6, 1.0, skew)
    return np.asarray(np.where(np.abs(skew) < 1e-6, x, np.expm1(safe * x) / safe))


def lay_out(x: FloatArray, z: FloatArray | None, skew: float) -> FloatArray:
    """The design matrix, (n, 3) or (n, 6)."""
    columns = [np.ones_like(x), x, bend(x, skew)]
    if z is not None:
        columns += [z, 0.5 * z * z, x * z]
    return np.stack(columns, axis=1)


def weigh(y: FloatArray, noise_log: float) -> FloatArray:
    """Relative weights: 1 in the valley, less where the misfit of the shape exceeds the noise."""
    excess = y - y.min()
    return np.asarray(1.0 / (1.0 + (MISFIT_SHARE * excess / noise_log) ** 2))


def integrate(
    x: FloatArray, z: FloatArray | None, y: FloatArray, w: FloatArray, noise: tuple[float, float]
) -> Posterior:
    """Weighted regression for every skew, and the skew's probability (normal prior, coefficients flat).

    `noise` is the prior standard deviation of ln loss and its degrees of freedom.
    """
    parts = [_regress(lay_out(x, z, float(skew)), y, w, noise) for skew in SKEW_GRID]
    prior = -0.5 * ((SKEW_GRID - SKEW_PRIOR[0]) / SKEW_PRIOR[1]) ** 2
    log_probability = np.array([part[0] for part in parts]) + prior
    probability = np.exp(log_probability - log_probability.max())
    return Posterior(
        probability / probability.sum(),
        np.stack([part[1] for part in parts]),
        np.stack([part[2] for part in parts]),
        np.array([part[3] for part in parts]),
        np.array([part[4] for part in parts]),
    )


def _regress(
    design: FloatArray, y: FloatArray, w: FloatArray, noise: tuple[float, float]
) -> tuple[float, FloatArray, FloatArray, float, float]:
    """Log evidence, coefficients, root of the unscaled covariance, variance (Gelman et al. 2013, section 14.2)."""
    scaled = design * np.sqrt(w)[:, None]
    left, size, axes = np.linalg.svd(scaled, full_matrices=False)
    size = np.maximum(size, 1e-8 * size[0])
    coefficients = axes.T @ ((left.T @ (y * np.sqrt(w))) / size)
    squares = float((w * (y - design @ coefficients) ** 2).sum())
    dof = noise[1] + spare_dof(left, w)
    variance = (noise[1] * noise[0] ** 2 + squares) / dof
    log_evidence = -float(np.log(size).sum()) - 0.5 * dof * np.log(variance)
    return log_evidence, coefficients, axes.T / size, variance, dof


def spare_dof(left: FloatArray, w: FloatArray) -> float:
    """Degrees of freedom left for the noise: sum of w (1 - leverage), so that a run that counts little adds little."""
    return float((w * (1 - (left * left).sum(axis=1))).sum())


def draw_optima(
    posterior: Posterior,
    span: tuple[float, float],
    draws: int,
    rng: np.random.Generator,
    batch_span: tuple[float, float] = (-np.inf, np.inf),
) -> BasinDraws:
    """Draws of the optimum; x is sought within `span` (z: `batch_span`), and a minimum beyond lands on its end."""
    place = rng.choice(len(SKEW_GRID), size=draws, p=posterior.probability)
    sd = np.sqrt(draw_variances(1.0, posterior.dof[place], draws, rng) * posterior.variance[place])
    wiggle = rng.standard_normal((draws, posterior.coefficients.shape[1]))
    t = posterior.coefficients[place] + sd[:, None] * np.einsum("dpq,dq->dp", posterior.root[place], wiggle)
    skew = SKEW_GRID[place]
    convex = t[:, 2] > 0
    if t.shape[1] == 6:
        convex &= t[:, 4] > 0
    share = float(convex.mean())
    if not convex.any():
        return BasinDraws(*(np.empty(0),) * 4, None, np.empty(0), 0.0)
    kept = rng.choice(np.flatnonzero(convex), size=draws)
    return _solve(t[kept], skew[kept], (span, batch_span), share)


def _solve(
    t: FloatArray, skew: FloatArray, spans: tuple[tuple[float, float], tuple[float, float]], share: float
) -> BasinDraws:
    """The point where both derivatives vanish, by bisection on x."""
    flat = t.shape[1] == 3
    d, q, m = (np.zeros(len(t)), np.ones(len(t)), np.zeros(len(t))) if flat else (t[:, 3], t[:, 4], t[:, 5])
    low, high = np.full(len(t), spans[0][0]), np.full(len(t), spans[0][1])
    for _ in range(45):
        x = 0.5 * (low + high)
        falling = t[:, 1] + t[:, 2] * bend_slope(x, skew) - m * (d + m * x) / q < 0
        low, high = np.where(falling, x, low), np.where(falling, high, x)
    x = 0.5 * (low + high)
    z = np.clip(-(d + m * x) / q, *spans[1])
    y = t[:, 0] + t[:, 1] * x + t[:, 2] * bend(x, skew) + d * z + 0.5 * q * z * z + m * x * z
    return BasinDraws(x, None if flat else z, y, t[:, 2] * np.exp(skew * x), None if flat else q, skew, share)
