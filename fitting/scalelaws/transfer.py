"""Does the optimum move with width? The drift of the optimal learning rate, in factors of two per doubling of width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.hierarchy import regress
from scalelaws.observations import FloatArray
from scalelaws.optima import Optimum, find_basin_optimum
from scalelaws.results import Estimate

HOLDS_WITHIN = 0.25
"""An optimum that moves by less than a quarter of a factor of two per doubling of width counts as staying (a choice:
standard parametrization moves by about one, Yang et al. 2022, figure 1)."""
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Drift:
    """The optimum of each width, and how it moves."""

    width: FloatArray
    """Widths, ascending."""
    optima: tuple[Optimum, ...]
    """One for each width; refused ones are kept with their status."""
    slope: Estimate | None
    """Change of log2 of the optimal learning rate per doubling of width."""
    steps_moved: float | None
    """Steps of the learning-rate grid between the optimum of the smallest and of the largest width."""
    grid_step: float
    """log2 of the ratio of neighbouring learning rates."""
    verdict: str
    """holds, drifts or undecided."""
    message: str
    """The verdict as a sentence with its numbers."""
    level: float
    draws: FloatArray
    """Draws of the slope."""

    def to_dict(self) -> dict[str, Any]:
        """The drift as plain data."""
        return {
            "verdict": self.verdict,
            "message": self.message,
            "slope": None if self.slope is None else self.slope.to_dict(),
            "steps_moved": self.steps_moved,
            "level": self.level,
            "optima": [
                {"width": float(width), "status": item.message, "peak_lr": item.peak_lr.to_dict()}
                for width, item in zip(self.width, self.optima, strict=True)
            ],
        }


def measure_drift(width: ArrayLike, peak_lr: ArrayLike, loss: ArrayLike, *, level: float = 0.9, seed: int = 0) -> Drift:
    """The drift of the optimal learning rate over the widths of one ladder (same horizon, batch and schedule).

    One entry per run; NaN or +inf for diverged runs. Raises ValueError for unusable input.
    """
    widths, rates, losses = (np.asarray(values, dtype=np.float64) for values in (width, peak_lr, loss))
    if not (widths.shape == rates.shape == losses.shape) or widths.ndim != 1 or len(widths) == 0:
        raise ValueError(f"width, peak_lr and loss need one entry per run; got {widths.shape}, {rates.shape}, "
                         f"{losses.shape}")  # fmt: skip
    if not (np.isfinite(widths) & (widths > 0)).all():
        raise ValueError("width must be positive and finite")
    ladder = np.unique(widths)
    optima = tuple(
        find_basin_optimum(rates[widths == one], losses[widths == one], level=level, seed=seed) for one in ladder
    )
    return _judge(ladder, optima, _find_step(rates), level, seed)


def compare_drifts(drifts: Mapping[str, Drift]) -> str:
    """One line for each parametrization, in the order given."""
    return "\n".join(f"{name}: {drift.message}" for name, drift in drifts.items())


def _find_step(rates: FloatArray) -> float:
    """log2 ratio of neighbouring learning rates; rates within 2 % are one grid point, rounded differently."""
    levels = np.unique(np.log2(rates))
    steps = np.diff(levels)
    steps = steps[steps > np.log2(1.02)]
    return float(np.median(steps)) if len(steps) else float("nan")


def _judge(ladder: FloatArray, optima: tuple[Optimum, ...], step: float, level: float, seed: int) -> Drift:
    found = [(width, item) for width, item in zip(ladder, optima, strict=True) if item.status.ok]
    if len(found) < 2:
        refused = "; ".join(f"width {w:g}: {o.message}" for w, o in zip(ladder, optima, strict=True) if not o.status.ok)
        message = f"undecided: an optimum was found at {len(found)} of {len(ladder)} widths, two are needed; {refused}"
        return Drift(ladder, optima, None, None, step, "undecided", message, level, np.empty(0))
    slopes = _draw_slopes(found, seed)
    slope = Estimate.from_draws(slopes, level, unit="factors of two per doubling of width")
    moved = float(np.log2(found[-1][1].value / found[0][1].value)) / step
    verdict, message = _decide(slope, moved, level)
    return Drift(ladder, optima, slope, moved, step, verdict, message, level, slopes)


def _draw_slopes(found: list[tuple[float, Optimum]], seed: int) -> FloatArray:
    """Slope of log2 optimum on log2 width, with scatter between widths."""
    x = np.log2(np.array([width for width, _ in found]))
    quantiles = np.stack([np.quantile(item.draws[:, 0], [0.159, 0.5, 0.841]) for _, item in found])
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    variance = (0.5 * (quantiles[:, 2] - quantiles[:, 0])) ** 2
    flat = np.array([np.inf, np.inf])
    coefficients, _ = regress(design, quantiles[:, 1], variance, flat, x).draw(DRAWS, np.random.default_rng(seed))
    return np.asarray(coefficients[:, 1] / np.log(2))


def _decide(slope: Estimate, moved: float, level: float) -> tuple[str, str]:
    """Holds if the whole interval is small, drifts if all of it is on one side of zero and not small."""
    assert slope.low is not None
    assert slope.high is not None
    said = (
        f"the optimum moves by {slope.value:+.2f} factors of two per doubling of width ({100 * level:g} %: "
        f"{slope.low:+.2f} to {slope.high:+.2f}), {moved:+.1f} grid steps from the smallest to the largest width"
    )
    if max(abs(slope.low), abs(slope.high)) <= HOLDS_WITHIN:
        return "holds", f"holds: {said}"
    if min(abs(slope.low), abs(slope.high)) > HOLDS_WITHIN / 2 and slope.low * slope.high > 0:
        return "drifts", f"drifts: {said}"
    return "undecided", f"undecided: {said}; add widths or learning rates"
