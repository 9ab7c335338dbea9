"""Linear regression of cell optima with scatter between cells (a random-effects model), integrated over the scatter.

Legend (shapes):  c cells, p coefficients, g grid of scatters
    X (c, p) design     y (c,) optimum of each cell     v (c,) its squared standard error     tau scatter between cells
    y ~ normal(X beta, diag v + tau^2 R);  beta_j ~ normal(0, prior_sd_j), flat where infinite;  tau ~ half normal
    R (c, c) has ones on its diagonal and SHARED between cells of one group (models of one size share a shape)

The intercept's prior is flat, so the marginal likelihood of tau is the restricted one (Gelman et al. 2013, chapter 5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.observations import FloatArray

SCATTER_PRIOR_SD = 0.15
"""Assumption: optima of comparable cells scatter around a power law by some 15 % or less."""
SHARED = 0.5
"""Assumption: half of the scatter is common to all cells of one size, whose depth, heads and feed-forward ratio are the
same. Ten horizons at one size are then not ten witnesses of how the optimum depends on size."""
SCATTER_GRID = np.concatenate([[0.0], np.geomspace(0.004, 0.8, 40)])


@dataclass(frozen=True, eq=False)
class Regression:
    """For each scatter of the grid: its probability, mean (g, p) and root of the covariance (g, p, p)."""

    probability: FloatArray
    mean: FloatArray
    root: FloatArray

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Coefficients (draws, p) and scatters (draws,)."""
        place = rng.choice(len(SCATTER_GRID), size=draws, p=self.probability)
        noise = rng.standard_normal((draws, self.mean.shape[1]))
        return self.mean[place] + np.einsum("dpq,dq->dp", self.root[place], noise), SCATTER_GRID[place]

    @property
    def coefficients(self) -> FloatArray:
        """Posterior mean of the coefficients."""
        return self.probability @ self.mean

    @property
    def scatter(self) -> float:
        """Posterior mean of the scatter between cells."""
        return float(self.probability @ SCATTER_GRID)


def regress(
    design: FloatArray, optimum: FloatArray, variance: FloatArray, prior_sd: FloatArray, group: FloatArray
) -> Regression:
    """Solves the model for every scatter of the grid; cells with equal `group` share a part of their scatter."""
    precision = np.diag(np.where(np.isinf(prior_sd), 0.0, 1.0 / prior_sd**2))
    same = SHARED * (group[:, None] == group[None, :]) + (1 - SHARED) * np.eye(len(group))
    parts = [_solve(design, optimum, np.diag(variance) + tau**2 * same, precision) for tau in SCATTER_GRID]
    log_weight = np.array([part[0] for part in parts]) - 0.5 * (SCATTER_GRID / SCATTER_PRIOR_SD) ** 2
    weight = np.exp(log_weight - log_weight.max()) * np.gradient(SCATTER_GRID)
    return Regression(
        weight / weight.sum(), np.stack([part[1] for part in parts]), np.stack([part[2] for part in parts])
    )


def _solve(
    design: FloatArray, y: FloatArray, covariance: FloatArray, precision: FloatArray
) -> tuple[float, FloatArray, FloatArray]:
    """Log marginal likelihood, posterior mean and covariance root at one scatter."""
    scaled = np.linalg.solve(covariance, np.column_stack([design, y]))
    information = design.T @ scaled[:, :-1] + precision
    mean = np.linalg.solve(information, design.T @ scaled[:, -1])
    residual = y - design @ mean
    misfit = float(residual @ np.linalg.solve(covariance, residual) + mean @ precision @ mean)
    log_determinant = float(np.linalg.slogdet(information)[1] + np.linalg.slogdet(covariance)[1])
    root = np.linalg.cholesky(np.linalg.inv(information))
    return -0.5 * (misfit + log_determinant), np.asarray(mean, dtype=np.float64), np.asarray(root, dtype=np.float64)
