"""A Gaussian process over one number between 0 and 1: where a noisy measurement is low, and where nobody looked.

Symbols
    x (n,) places   y (n,) measurements   s (n,) their standard deviations   l length   v variance of the process
    y = mean + f(x) + s e;  cov f = v (1 + a + a^2 / 3) exp(-a), a = sqrt(5) |x - x'| / l  (Matern-5/2)

l and v maximise the marginal likelihood on a grid under a weak prior (Rasmussen and Williams 2006, sections 2.2 and
5.4.1); with a handful of measurements a grid is exact enough and never gets stuck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = tuple(0.1 * 2 ** (step / 2) for step in range(8))
"""Lengths of the grid, .1 to 1.1: from a valley of a tenth of the axis to one as wide as all of it (assumption)."""
VARIANCES = tuple(4.0**step for step in range(-3, 3))
"""Variances of the grid, over that of the measurements."""
LIKELY_LENGTH, LENGTH_SD = 0.4, 0.7
"""Log-normal prior of the length: a basin of the loss takes up about half of a sensible range (assumption)."""
SMALLEST = 1e-9
"""Least variance, over that of the measurements: keeps equal places apart from singular matrices."""


@dataclass(frozen=True, eq=False)
class LineProcess:
    """A process fitted to measurements."""

    places: Floats
    """(n,) x."""
    level: float
    """Mean of the measurements."""
    length: float
    """l."""
    variance: float
    """v."""
    inverse: Floats
    """(n, n) of the covariance of the measurements."""
    weights: Floats
    """(n,) inverse times the measurements above their level."""

    def predict(self, places: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the process, without the noise of a measurement, (m,) each."""
        covariance = _covary(places, self.places, self.length, self.variance)
        explained = np.einsum("mn,nk,mk->m", covariance, self.inverse, covariance)
        return self.level + covariance @ self.weights, np.sqrt(np.maximum(self.variance - explained, 0.0))


def fit_line(places: Floats, values: Floats, deviations: Floats) -> LineProcess:
    """The most probable process for measurements (n,) with known standard deviations (n,), n >= 1."""
    level, scale = float(values.mean()), float(values.var()) or 1.0
    options = [(length, scale * variance) for length in LENGTHS for variance in VARIANCES]
    noise = deviations**2 + SMALLEST * scale
    length, variance = max(options, key=lambda option: _judge(places, values - level, noise, *option))
    inverse = np.asarray(np.linalg.inv(_covary(places, places, length, variance) + np.diag(noise)), dtype=np.float64)
    return LineProcess(places, level, length, variance, inverse, inverse @ (values - level))


def _judge(places: Floats, above: Floats, noise: Floats, length: float, variance: float) -> float:
    """Log posterior of the hyperparameters but for a constant."""
    factor = np.linalg.cholesky(_covary(places, places, length, variance) + np.diag(noise))
    solved = np.linalg.solve(factor, above)
    prior = -0.5 * (math.log(length / LIKELY_LENGTH) / LENGTH_SD) ** 2
    return float(prior - 0.5 * solved @ solved - np.log(np.diag(factor)).sum())


def _covary(one: Floats, other: Floats, length: float, variance: float) -> Floats:
    distance = math.sqrt(5) * np.abs(one[:, None] - other) / length
    return np.asarray(variance * (1 + distance + distance**2 / 3) * np.exp(-distance))
