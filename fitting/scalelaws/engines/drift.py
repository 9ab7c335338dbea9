"""How far the true loss curve leaves a fitted one beyond its largest run, measured by rolling-origin backtests.

Legend: o origin (a compute below which a law is fitted), r reach = ln(C of a later run / largest C below the origin),
e error of ln loss of the later run, s scatter of runs around the law; e ~ normal(0, s^2 + drift^2 r^2). Squared errors
are weighted by the inverse of the variance that the expected drift gives them: runs far off the law count little.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scalelaws.observations import BoolArray, FloatArray

DRIFT_LOG_PER_EFOLD = 0.0045
"""Expected drift of ln loss per e-fold of compute. Measured by rolling-origin backtests over 22 published sets of runs;
intervals of the parameters alone cover 36 % of the later losses there at a stated 90 %."""
DRIFT_DOF = 2.0
"""How many origins that expectation is worth (an assumption); the later runs of one origin err together, so each origin
counts once."""
ORIGINS = (2.0, 4.0, 10.0, 30.0)
"""Largest compute over that of the origins."""


def estimate_drift(
    compute: FloatArray, scatter_log: float | FloatArray, backcast: Callable[[BoolArray], FloatArray | None]
) -> tuple[float, int]:
    """Drift per e-fold of compute, pulled towards the expectation, and the number of origins behind it.

    It is never below the expectation: origins inside the runs reach less far than targets do. `scatter_log` is one
    number, or one per run.

    `backcast(train)` fits the runs of the mask and returns the errors of ln loss of the others, or None if it cannot.
    """
    known = np.broadcast_to(np.asarray(scatter_log, dtype=np.float64) ** 2, compute.shape)
    squares = [_measure(compute, known, train, backcast) for train in _split(compute)]
    found = [square for square in squares if square is not None]
    total = DRIFT_DOF * DRIFT_LOG_PER_EFOLD**2 + sum(found)
    return max(float(np.sqrt(total / (DRIFT_DOF + len(found)))), DRIFT_LOG_PER_EFOLD), len(found)


def _split(compute: FloatArray) -> list[BoolArray]:
    """The distinct sets of runs below the origins."""
    masks = {int((compute <= compute.max() / factor).sum()): compute <= compute.max() / factor for factor in ORIGINS}
    return [mask for count, mask in masks.items() if 0 < count < len(compute)]


def _measure(
    compute: FloatArray, known: FloatArray, train: BoolArray, backcast: Callable[[BoolArray], FloatArray | None]
) -> float | None:
    """Squared drift that one origin shows: weighted least squares of e^2 - s^2 on r^2."""
    errors = backcast(train)
    if errors is None or not np.isfinite(errors).all():
        return None
    reach = np.log(compute[~train] / compute[train].max()) ** 2
    weight = 1 / (known[~train] + DRIFT_LOG_PER_EFOLD**2 * reach) ** 2
    square = (weight * reach * (errors**2 - known[~train])).sum() / (weight * reach**2).sum()
    return max(float(square), 0.0)
