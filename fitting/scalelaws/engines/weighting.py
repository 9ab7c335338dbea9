"""How much a run says about the large ones: levels of compute, trimming, and the misfit that a law is expected to show.

Legend: N parameters, D tokens, C training FLOPs, L loss; shapes: n runs.

Runs that cost the same and differ in size are one compute level (an isoFLOP profile). No sum of powers holds from the
wings of a profile to its minimum, nor from the smallest run to the largest, to the accuracy of a run; a fit that gives
all runs the same weight spends its few parameters on the runs that matter least.
"""

from __future__ import annotations

import numpy as np

from scalelaws.engines.drift import DRIFT_LOG_PER_EFOLD
from scalelaws.observations import FloatArray, Observations, count_levels

SAME_LEVEL = 0.05
"""Assumption: runs whose compute differs by less than 5 % from the next one's are of one level."""
LONGEST_LEVEL = 0.2
"""A chain of such runs that spans more than this in ln C is a continuum, not a level."""
SIZES_PER_LEVEL = 3
"""A best run has neighbours on both sides only among three sizes."""
EXCESS_OF_MISFIT = 0.1
"""A run with this excess ln loss over the best of its level is expected to miss the law by as much, and the misfit
grows with the square of the excess: .1 % at 1 %, .9 % at 3 %, 2.5 % at 5 %. Measured in benchmarks/fitting/loss_laws:
from .05 to .2 the errors of losses stay within a tenth of each other, those of optimal sizes within a fifth."""


def find_excess(observations: Observations) -> FloatArray:
    """Excess ln loss of each run over the best run of its compute level; 0 where there is no level, (n,)."""
    order = np.argsort(observations.compute, kind="stable")
    ln_compute, ln_loss = np.log(observations.compute), np.log(observations.loss)
    excess = np.zeros(len(observations))
    for rows in np.split(order, np.flatnonzero(np.diff(ln_compute[order]) > SAME_LEVEL) + 1):
        if len(rows) < SIZES_PER_LEVEL or np.ptp(ln_compute[rows]) > LONGEST_LEVEL:
            continue
        if count_levels(observations.params_non_embedding[rows]) >= SIZES_PER_LEVEL:
            excess[rows] = ln_loss[rows] - ln_loss[rows].min()
    return excess


def trim(observations: Observations, most: float) -> Observations:
    """Without the runs that lie more than `most` (in ln loss) above the best of their compute; they are recorded."""
    if np.isinf(most):
        return observations
    reason = f"more than {100 * most:g} % above the best run of the same compute (trim_excess)"
    return observations.select(find_excess(observations) <= most, reason)


def weigh_compute(compute: FloatArray, power: float) -> FloatArray:
    """Weights C^power, with mean 1, (n,)."""
    weights = (compute / compute.max()) ** power
    return np.asarray(weights / weights.mean())


def off_level(excess: FloatArray) -> FloatArray:
    """Expected misfit of ln loss of runs with this excess over the best run of their level, (n,)."""
    return np.asarray(excess**2 / EXCESS_OF_MISFIT)


def expect_drift(compute: FloatArray) -> FloatArray:
    """Expected misfit of ln loss below the largest run, of a law that holds there: the drift of forecasts, (n,)."""
    return np.asarray(DRIFT_LOG_PER_EFOLD * np.log(compute.max() / compute))


def excess_on_surface(values: FloatArray, params: FloatArray, tokens: FloatArray) -> FloatArray:
    """Excess ln loss over the best split of the same N x D, under E + A / N^alpha + B / D^beta, (n,).

    It is itself the misfit expected of runs without a level (over-trained ladders), where no run shows the excess.
    `values` is one row (E, A, B, alpha, beta); the optimum is that of Hoffmann et al. 2022, equation 4. Where an
    exponent or coefficient is not positive there is no optimum, and the excess is 0.
    """
    floor, a, b, alpha, beta = values
    if min(a, b, alpha, beta) <= 0:
        return np.zeros(len(params))
    ln_product = np.log(params) + np.log(tokens)
    ln_params = (np.log(alpha * a) - np.log(beta * b) + beta * ln_product) / (alpha + beta)
    best = floor + a * np.exp(-alpha * ln_params) + b * np.exp(-beta * (ln_product - ln_params))
    return np.asarray(np.maximum(np.log((floor + a * params**-alpha + b * tokens**-beta) / best), 0.0))
