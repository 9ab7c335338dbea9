"""The envelope of training curves: which size has the least loss at each compute, and the power law through it.

Legend: N parameters, D tokens, C training FLOPs, a the exponent of N*(C).
Source: approach 1 of Hoffmann et al. 2022, section 3.1. Two of its biases are avoided here: where the smallest or the
largest size wins, the envelope is cut off by the choice of sizes and says nothing; and no curve is continued beyond its
points. One is not: a curve under a learning-rate schedule made for a longer run lies above what a run of that length
would reach, so curves must be of constant learning rate, or every point the end of its own schedule.
"""

from __future__ import annotations

import numpy as np

from scalelaws.intervals import resample_weights
from scalelaws.laws.loss import keep_tuned
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Status
from scalelaws.splits.size_laws import SizeLaw

GRID = 1500
"""Log-spaced budgets (Hoffmann et al. 2022, section 3.1)."""
FEWEST_CURVES = 5
"""Three sizes inside of the smallest and the largest, which are never counted: an exponent and a check of it."""

FEWEST_HELD = 0.5
"""Assumption: where more of the resampled envelopes hold no line, those that do are no fair sample."""


def trace_envelope(
    observations: Observations, *, draws: int = 400, level: float = 0.9, seed: int = 0
) -> tuple[SizeLaw, FloatArray]:
    """N*(C) from the lower envelope of training curves, and the envelope itself, (budgets, 2) of C and N.

    Runs of one label are the points of one curve; without labels that repeat, all points of one size are. Of a cell's
    sweep of learning rate or batch only the best run counts. Intervals come from resampled curves. Raises ValueError
    where fewer than five curves overlap, or fewer than three sizes win.
    """
    runs = keep_tuned(observations)
    curves = _split_curves(runs)
    if len(curves) < FEWEST_CURVES:
        raise ValueError(f"the envelope needs >= {FEWEST_CURVES} curves of >= 2 points (have {len(curves)})")
    size = np.array([float(runs.params_non_embedding[rows].mean()) for rows in curves])
    compute = np.geomspace(runs.compute.min(), runs.compute.max(), GRID)
    loss = np.stack([_interpolate(runs, rows, compute) for rows in curves])
    winner = _find_winners(loss, size)
    if len(np.unique(winner[np.isfinite(winner)])) < 3:
        raise ValueError(
            f"{Status.NOT_IDENTIFIED.value}: fewer than three sizes win between the smallest and the largest; add "
            "sizes, or fit isoFLOP curves"
        )
    found = _draw_lines(loss, size, compute, draws, np.random.default_rng(seed))
    centre = float(np.log(compute[np.isfinite(winner)]).mean())
    lines = np.stack([_fit_line(winner, compute, centre), *[_fit_line(each, compute, centre) for each in found]])
    usable = np.isfinite(winner)
    span = float(compute[usable].min()), float(compute[usable].max())
    misfit = np.log(winner[usable]) - lines[0, 0] - lines[0, 1] * (np.log(compute[usable]) - centre)
    held = lines[1:][np.isfinite(lines[1:]).all(axis=1)]
    if len(held) < FEWEST_HELD * draws:
        raise ValueError(
            f"{Status.NOT_IDENTIFIED.value}: {len(curves)} curves, of which {100 * len(held) / draws:.0f} % of the "
            "resamples hold a line of N*; add sizes"
        )
    law = SizeLaw("envelope", lines[0], held, centre, float(misfit.std()), span, level, runs.params_convention)
    return law, np.stack([compute[usable], winner[usable]], axis=1)


def _split_curves(runs: Observations) -> list[np.ndarray]:
    """Row numbers of each curve of two points or more, by ascending compute."""
    by_label = runs.label is not None and len(set(runs.label)) < len(runs)
    key = np.array(runs.label) if by_label else np.round(np.log(runs.params_non_embedding), 9)
    groups = [np.flatnonzero(key == value) for value in np.unique(key)]
    ordered = [rows[np.argsort(runs.compute[rows], kind="stable")] for rows in groups]
    return [rows for rows in ordered if np.ptp(np.log(runs.compute[rows])) > 0]


def _interpolate(runs: Observations, rows: np.ndarray, compute: FloatArray) -> FloatArray:
    """ln loss of a curve at each compute; infinite beyond its points."""
    x, y = np.log(runs.compute[rows]), np.log(runs.loss[rows])
    return np.asarray(np.interp(np.log(compute), x, y, left=np.inf, right=np.inf))


def _find_winners(loss: FloatArray, size: FloatArray) -> FloatArray:
    """The size of least loss at each compute, NaN where it is the smallest or the largest of those that reach there."""
    there = np.isfinite(loss)
    smallest = np.where(there, size[:, None], np.inf).min(axis=0)
    largest = np.where(there, size[:, None], -np.inf).max(axis=0)
    best = size[np.argmin(loss, axis=0)]
    return np.where((best > smallest) & (best < largest), best, np.nan)


def _draw_lines(
    loss: FloatArray, size: FloatArray, compute: FloatArray, draws: int, rng: np.random.Generator
) -> list[FloatArray]:
    """Winners of resampled curves."""
    picked = resample_weights(len(size), draws, rng) > 0
    return [_find_winners(loss[mask], size[mask]) for mask in picked]


def _fit_line(winner: FloatArray, compute: FloatArray, centre: float) -> FloatArray:
    """(ln N at the centre, exponent) by least squares; NaN where fewer than two sizes won."""
    held = np.isfinite(winner)
    if len(np.unique(winner[held])) < 2:
        return np.full(2, np.nan)
    slope, intercept = np.polyfit(np.log(compute[held]) - centre, np.log(winner[held]), 1)
    return np.array([intercept, slope])
