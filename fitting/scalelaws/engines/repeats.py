"""Repeats of one setting: runs of a cell err together, so a law of the loss sees their mean once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scalelaws.intervals import pool_variance
from scalelaws.observations import FloatArray, Observations
from scalelaws.optima import RUN_NOISE_DOF, RUN_NOISE_LOG


def average_repeats(tuned: Observations) -> tuple[Observations, FloatArray]:
    """One row per cell (N, D), and the variance of ln loss that its mean hides from a single run, per row.

    The mean is that of ln loss; its standard error enters `loss_se_log`: from the errors of the runs where they are
    known, else from the spread between repeats, pooled over all cells. Without repeats the rows stay as they are,
    with zeros.
    """
    cells = tuned.cells()
    if len(cells) == len(tuned):
        return tuned, np.zeros(len(tuned))
    counts = np.array([len(rows) for rows in cells])
    variance = np.full(len(tuned), _pool_spread(tuned, cells)) if tuned.loss_se_log is None else tuned.loss_se_log**2
    weights = 1 / variance
    totals = np.array([weights[rows].sum() for rows in cells])
    averaged = replace(
        tuned.rows([rows[0] for rows in cells]),
        loss=np.exp([np.average(np.log(tuned.loss[rows]), weights=weights[rows]) for rows in cells]),
        loss_se_log=1 / np.sqrt(totals),
        compute_flops=None if tuned.compute_flops is None else _average_compute(tuned, cells),
        seed=None,
        label=None,
    )
    return averaged, counts / totals - 1 / totals


def _pool_spread(tuned: Observations, cells: tuple[np.ndarray, ...]) -> float:
    """Variance of ln loss between repeats, with the expectation that a basin starts from (see `optima`)."""
    logs = [np.log(tuned.loss[rows]) for rows in cells]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    return pool_variance(RUN_NOISE_LOG, RUN_NOISE_DOF, squares, len(tuned) - len(cells))[0]


def _average_compute(tuned: Observations, cells: tuple[np.ndarray, ...]) -> FloatArray:
    return np.exp([np.log(tuned.compute[rows]).mean() for rows in cells])
