"""What a recommended setting would have cost, read off a cell's own sweep of learning rates and batches."""

from __future__ import annotations

import numpy as np

from scalelaws.observations import FloatArray, Observations, count_levels

AT_EDGE = 1e-6
"""A recommendation this close (in ln) to the edge of a sweep lies on it: rounding."""


def measure_regret(sweep: Observations, peak_lr: float, batch_tokens: float | None) -> float:
    """Relative loss at the recommendation above the best run of the sweep; NaN where it lies outside of the sweep.

    The loss is interpolated linearly in ln learning rate, and in ln batch where the sweep varied it and the
    recommendation has one; without a batch, the runs at the batch of the best run are the sweep. Diverged runs are left
    out, so next to them there is no regret to be read.
    """
    runs = sweep.rows(np.flatnonzero(~sweep.diverged))
    if runs.peak_lr is None:
        raise ValueError("regret needs peak_lr in the sweep; this one has none")
    batches = runs.batch_tokens
    if batch_tokens is not None and batches is not None and count_levels(batches) > 1:
        at = np.log(np.stack([runs.peak_lr, batches], axis=1))
        loss = _interpolate_plane(at, runs.loss, np.log([peak_lr, batch_tokens]))
    else:
        if batches is not None:
            runs = runs.rows(np.flatnonzero(np.isclose(batches, batches[np.argmin(runs.loss)], rtol=1e-9)))
        assert runs.peak_lr is not None
        loss = _interpolate_line(np.log(runs.peak_lr), runs.loss, float(np.log(peak_lr)))
    return float(loss / sweep.loss[~sweep.diverged].min() - 1)


def _interpolate_line(x: FloatArray, loss: FloatArray, at: float) -> float:
    levels, place = np.unique(x, return_inverse=True)
    means = np.bincount(place, weights=loss) / np.bincount(place)
    if not levels[0] - AT_EDGE <= at <= levels[-1] + AT_EDGE:
        return np.nan
    return float(np.interp(at, levels, means))


def _interpolate_plane(at: FloatArray, loss: FloatArray, where: FloatArray) -> float:
    from scipy.interpolate import LinearNDInterpolator

    return float(LinearNDInterpolator(at, loss)(where[None])[0])
