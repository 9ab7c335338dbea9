"""The shape of an isoFLOP curve: two exponentials in ln N, fitted to all budgets at once; and the usual parabola.

Legend (shapes):
    B problems, n runs, K budgets      k (n,) budget of each run     u (n,) ln size of each run     z = u - x_k
    x_k ln of the optimal size     m_k loss there     c_k curvature of ln loss there, per squared e-fold of size
    L = m_k (1 + c_k f(z)) (C / C_k)^-g
    f(z) = (beta (exp(-alpha z) - 1) + alpha (exp(beta z) - 1)) / (alpha beta (alpha + beta))

f is the exact shape of E + A/N^alpha + B/D^beta along D = C/(6N): f(0) = f'(0) = 0, f''(0) = 1, f'''(0) = beta - alpha.
It tends to the parabola z^2/2 for small exponents. g corrects runs whose compute lies beside that of their budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.observations import FloatArray

EXPONENT = (0.3, 0.5)
"""Prior of both exponents, centre and standard deviation in ln: published fits lie in .2-.5."""
CURVATURE = (0.04, 1.0)
"""Likewise of the curvature: (alpha^2 A/N^alpha + beta^2 B/D^beta) / L of published laws lies in .02-.06."""
ALONG = (0.05, 0.05)
"""Prior of g, centre and standard deviation: the exponent of loss in compute of published laws (Kaplan et al. 2020)."""
SIZE_SD = 1.0
"""Standard deviation of the prior of x_k around the budget's best size: a factor of e, weak against any basin."""
LOSS_SD = 0.5
"""Likewise of ln m_k around the budget's least loss."""


def lift(z: FloatArray, alpha: FloatArray, beta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """f and its derivatives by z, alpha and beta."""
    low, high = np.exp(-alpha * z), np.exp(beta * z)
    scale = alpha * beta * (alpha + beta)
    f = (beta * (low - 1) + alpha * (high - 1)) / scale
    by_alpha = (high - 1 - beta * z * low - f * beta * (2 * alpha + beta)) / scale
    by_beta = (low - 1 + alpha * z * high - f * alpha * (2 * beta + alpha)) / scale
    return f, (high - low) / (alpha + beta), by_alpha, by_beta


@dataclass(frozen=True, eq=False)
class Valleys:
    """The model of all budgets together; columns of runs: `budget` (0..K-1), `ln_size`, `beside` = ln C - ln C_k."""

    best_size: FloatArray
    """(K,) ln size of the best run of each budget."""
    best_loss: FloatArray
    """(K,) its loss."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """alpha, beta, g, then the losses, curvatures and optima of the budgets."""
        return (
            Parameter("alpha", *EXPONENT), Parameter("beta", *EXPONENT), Parameter("along", *ALONG, kind="real"),
            *(Parameter(f"loss_{k}", float(loss), LOSS_SD) for k, loss in enumerate(self.best_loss)),
            *(Parameter(f"curvature_{k}", *CURVATURE) for k in range(len(self.best_loss))),
            *(Parameter(f"ln_size_{k}", float(size), SIZE_SD, kind="real") for k, size in enumerate(self.best_size)),
        )  # fmt: skip

    def start(self) -> FloatArray:
        """Where the search begins, (1, 3 + 3K): the centres of the priors."""
        return np.array([[item.centre for item in self.parameters]])

    def split(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Losses, curvatures and ln sizes at the optima, (B, K) each, of parameter values (B, 3 + 3K)."""
        loss, curvature, size = np.split(values[:, 3:], 3, axis=1)
        return loss, curvature, size

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 3 + 3K)."""
        k, at = columns["budget"].astype(int), np.arange(len(columns["budget"]))
        loss, curvature, size = (part[:, k] for part in self.split(values))
        f, by_z, by_alpha, by_beta = lift(columns["ln_size"] - size, values[:, :1], values[:, 1:2])
        height = 1 + curvature * f
        slopes = np.zeros((*f.shape, values.shape[1]))
        slopes[..., 0], slopes[..., 1] = curvature * by_alpha / height, curvature * by_beta / height
        slopes[..., 2] = -columns["beside"]
        budgets = len(self.best_loss)
        slopes[:, at, 3 + k] = 1 / loss
        slopes[:, at, 3 + budgets + k] = f / height
        slopes[:, at, 3 + 2 * budgets + k] = -curvature * by_z / height
        return np.log(loss) + np.log(height) - values[:, 2:3] * columns["beside"], slopes


@dataclass(frozen=True, eq=False)
class Parabola:
    """Loss = p0 + p1 u + p2 u^2, u = ln size - centre, by least squares."""

    centre: float
    coefficients: FloatArray
    """(3,)."""
    shape: FloatArray
    """(3, 3) covariance of the coefficients at unit noise."""
    squares: float
    """Sum of squared residuals."""

    @classmethod
    def through(cls, ln_size: FloatArray, loss: FloatArray) -> Parabola:
        """The least-squares parabola; needs three distinct sizes."""
        centre = float(ln_size.mean())
        design = np.vander(ln_size - centre, 3, increasing=True)
        shape: FloatArray = np.linalg.inv(design.T @ design).astype(np.float64)
        coefficients = shape @ design.T @ loss
        return cls(centre, coefficients, shape, float(((design @ coefficients - loss) ** 2).sum()))

    @property
    def vertex(self) -> float:
        """ln size at the extremum."""
        return self.centre - float(self.coefficients[1] / (2 * self.coefficients[2]))

    @property
    def depth(self) -> float:
        """Loss at the extremum."""
        return float(self.coefficients[0] - self.coefficients[1] ** 2 / (4 * self.coefficients[2]))

    def draw(self, noise: float, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draws of the vertex (infinite where the drawn parabola opens downwards) and of the loss there."""
        found = rng.multivariate_normal(self.coefficients, noise**2 * self.shape, size=draws, method="cholesky")
        with np.errstate(divide="ignore", invalid="ignore"):
            away = np.where(found[:, 2] > 0, -found[:, 1] / (2 * found[:, 2]), -np.sign(found[:, 1]) * np.inf)
            depth = found[:, 0] - found[:, 1] ** 2 / (4 * found[:, 2])
        return self.centre + away, depth
