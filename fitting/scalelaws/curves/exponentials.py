"""Where a loss at a constant learning rate is going: L(t) = a exp(-b t) + c, forecast far beyond what was seen.

Jin et al. 2021 (AutoLRS, arXiv 2105.10762, section 4.2) fit it to a hundred steps and read off the loss at ten times as
many. Their code smooths the series by splines and finds b by Nelder-Mead; a and c follow linearly. Here they are
eliminated exactly for a whole grid of rates b at once (variable projection, Golub and Pereyra 1973), steps far from the
curve lose their weight (Tukey's biweight), and the forecast is the mean over the rates by their posterior probability:
far ahead, one best rate of a noisy series is worth little.

Symbols
    t  steps from the first one   a, c  linear coefficients   b  rate per step   w  weights of the steps, 0 to 1
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.observations import FloatArray, ObservationError

FEWEST_POINTS = 4
"""Three parameters and one point to tell noise from curve."""
SETTLING, SETTLING_SD = 10.0, 0.5
"""Prior of b times the step of the forecast, log-normal: the curve has levelled off there. A series without noise
overrules it. Measured in benchmarks/autolrs: the root mean square error at noise .05 to .2 is a fifth to a half of that
of the published code; means of 5 and 20, and a deviation of 1, are worse where noise is large."""
RATES = 160
"""Rates in the grid: neighbours differ by 5 %, finer than any series tells apart; the best one is refined."""
FINER, ZOOMS = 17, 6
"""Rates of a finer grid, an eighth of the distance apart, and how often it is made: the best rate to 1e-6 of itself."""
SLOWEST, FASTEST = 0.1, 0.5
"""Ends of the grid: the first times the forecast's step, the second per mean distance of the points."""
ROUNDS = 8
"""Reweightings; the weights no longer move after five or six."""
BIWEIGHT = 4.685
"""Cut of Tukey's biweight in robust standard deviations: 95 % efficient without outliers (Huber and Ronchetti 2009)."""
MAD_TO_SD = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""
PRECISION = 1e-9
"""Share of the loss below which residuals are rounding."""


@dataclass(frozen=True)
class LossForecast:
    """The loss at a later step, in the unit of the series."""

    loss: float
    """Mean of the forecast."""
    sd: float
    """Its standard deviation: of the rates, and of a and c under each."""
    rate: float
    """The best rate b, per step."""
    left_out: int
    """Points that were given no weight."""


@dataclass(frozen=True)
class _Lines:
    """The best a and c for each of the rates, (rates,)."""

    rates: FloatArray
    drop: FloatArray
    floor: FloatArray
    squares: FloatArray
    """Weighted sums of squared residuals."""
    spread: FloatArray
    """Weighted sums of squares of exp(-b t) around its mean."""
    centre: FloatArray
    """Weighted means of exp(-b t)."""


def forecast_loss(step: ArrayLike, loss: ArrayLike, at: float) -> LossForecast:
    """The loss at step `at`, from losses at rising steps before it, all at one learning rate.

    Raises ObservationError for fewer than four points, or where they are not finite or not in order.
    """
    steps, losses = np.asarray(step, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    _check(steps, losses, at)
    t, ahead = steps - steps[0], at - steps[0]
    rates = np.geomspace(SLOWEST / ahead, FASTEST * (len(t) - 1) / t[-1], RATES)
    weights = np.ones(len(t))
    for _ in range(ROUNDS):
        best = _refine(t, losses, weights, rates)
        weights = _weigh(losses - _draw(best, t), losses)
    lines = _project(t, losses, weights, np.append(rates, best.rates))
    chances, noise = _judge(lines, weights, losses, ahead)
    values = lines.drop * np.exp(-lines.rates * ahead) + lines.floor
    mean = float(chances @ values)
    within = noise**2 * (1 / weights.sum() + (np.exp(-lines.rates * ahead) - lines.centre) ** 2 / lines.spread)
    variance = float(chances @ ((values - mean) ** 2 + within))
    return LossForecast(mean, variance**0.5, float(best.rates[0]), int((weights == 0).sum()))


def _check(steps: FloatArray, losses: FloatArray, at: float) -> None:
    if steps.shape != losses.shape or steps.ndim != 1 or len(steps) < FEWEST_POINTS:
        raise ObservationError(
            f"a forecast needs >= {FEWEST_POINTS} losses at as many steps, got {losses.shape} at {steps.shape}"
        )
    if not (np.isfinite(steps).all() and np.isfinite(losses).all() and (np.diff(steps) > 0).all()):
        raise ObservationError("a forecast needs finite losses at rising steps; leave out what is not")
    if at < steps[-1]:
        raise ObservationError(f"a forecast looks ahead: step {at:g} is before the last one, {steps[-1]:g}")


def _project(t: FloatArray, losses: FloatArray, weights: FloatArray, rates: FloatArray) -> _Lines:
    """Weighted least squares of the losses on exp(-b t) and 1, for every rate."""
    total = weights.sum()
    curves = np.exp(-rates[:, None] * t)
    centre = curves @ weights / total
    level = float(weights @ losses) / total
    curves, above = curves - centre[:, None], losses - level
    spread = curves**2 @ weights
    drop = curves @ (weights * above) / spread
    squares = (above - drop[:, None] * curves) ** 2 @ weights
    return _Lines(rates, drop, level - drop * centre, squares, spread, centre)


def _refine(t: FloatArray, losses: FloatArray, weights: FloatArray, rates: FloatArray) -> _Lines:
    """The one best rate: the neighbours of the best one of a grid are the ends of the next, finer grid."""
    for _ in range(ZOOMS):
        place = int(_project(t, losses, weights, rates).squares.argmin())
        low, high = rates[max(place - 1, 0)], rates[min(place + 1, len(rates) - 1)]
        rates = np.geomspace(low, high, FINER)
    place = int(_project(t, losses, weights, rates).squares.argmin())
    return _project(t, losses, weights, rates[place : place + 1])


def _draw(line: _Lines, t: FloatArray) -> FloatArray:
    return np.asarray(line.drop[0] * np.exp(-line.rates[0] * t) + line.floor[0])


def _weigh(residuals: FloatArray, losses: FloatArray) -> FloatArray:
    """Tukey's biweight around the curve."""
    far = BIWEIGHT * max(MAD_TO_SD * float(np.median(np.abs(residuals))), PRECISION * float(np.abs(losses).max()))
    return np.asarray(np.maximum(1 - (residuals / far) ** 2, 0.0) ** 2)


def _judge(lines: _Lines, weights: FloatArray, losses: FloatArray, ahead: float) -> tuple[FloatArray, FloatArray]:
    """Posterior probability of each rate with a, c and the noise integrated out under flat priors; and the noise."""
    degrees = max(float(weights.sum()) - 2, 1.0)
    squares = np.maximum(lines.squares, weights.sum() * (PRECISION * float(np.abs(losses).max())) ** 2)
    prior = -0.5 * (np.log(lines.rates * ahead / SETTLING) / SETTLING_SD) ** 2
    logs = prior - 0.5 * degrees * np.log(squares) - 0.5 * np.log(lines.spread)
    chances = np.exp(logs - logs.max())
    return chances / chances.sum(), np.sqrt(squares / degrees)
