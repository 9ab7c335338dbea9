"""Figures of loss curves: measured and predicted losses over steps, the learning rate below. Draws finished records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scalelaws.curves.forecasts import CurveForecast
from scalelaws.curves.records import Curve
from scalelaws.curves.scheduling import Advice
from scalelaws.figures.runs import BAND, PALETTE
from scalelaws.observations import FloatArray

SPAN = 0.25
"""The frame ends this share of the way from the end of a curve to its start: the first steps would hide the rest."""


def draw_curves(
    curves: Sequence[Curve], forecasts: Mapping[str, CurveForecast], axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """Measured losses (points) and predicted ones (lines with their interval) by label, the rates below.

    A curve without a forecast, or a forecast without a curve, is drawn alone. Returns the upper and the lower Axes.
    """
    upper, lower = _make_axes(axes)
    measured = {curve.label: curve for curve in curves}
    for i, label in enumerate(dict.fromkeys([*measured, *forecasts])):
        colour = PALETTE[i % len(PALETTE)]
        if label in measured:
            curve = measured[label]
            upper.plot(curve.step, curve.loss, ".", color=colour, ms=3, alpha=0.6)
        if label in forecasts:
            found = forecasts[label]
            upper.plot(found.step, found.mean, color=colour, lw=1.4)
            upper.fill_between(found.step, found.low, found.high, color=colour, alpha=BAND, lw=0)
        schedule = measured[label].schedule if label in measured else forecasts[label].schedule
        lower.plot(schedule.step, schedule.lr, color=colour, lw=1.4, label=label)
    _frame(upper, [*(curve.loss for curve in curves), *(item.mean for item in forecasts.values())])
    upper.set_title("points measured; lines predicted, with the interval of one new run", fontsize="small", loc="left")
    return _finish(upper, lower)


def draw_advice(
    advice: Advice, forecasts: Mapping[str, CurveForecast], axes: Sequence[Axes] | None = None
) -> tuple[Axes, Axes]:
    """The optimised schedule beside the usual ones; `forecasts` by their names, that of the optimum as `optimised`."""
    upper, lower = draw_curves([], forecasts, axes)
    upper.set_title(advice.verdict, fontsize="small", loc="left")
    return upper, lower


def _make_axes(axes: Sequence[Axes] | None) -> tuple[Axes, Axes]:
    if axes is not None:
        upper, lower = axes
        return upper, lower
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.5, 1))
    return upper, lower


def _frame(ax: Axes, losses: Sequence[FloatArray]) -> None:
    """From just below the lowest loss to a quarter of the way up to the first one."""
    losses = [part[np.isfinite(part)] for part in losses if np.isfinite(part).any()]
    if not losses:
        return
    lowest = min(float(part.min()) for part in losses)
    top = max(float(part[-1]) + SPAN * (float(part.max()) - float(part[-1])) for part in losses)
    ax.set_ylim(lowest - 0.05 * (top - lowest), top)


def _finish(upper: Axes, lower: Axes) -> tuple[Axes, Axes]:
    upper.set_ylabel("loss (nats per token)")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimizer steps")
    lower.set_ylim(bottom=0)
    lower.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for ax in (upper, lower):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.92", lw=0.6)
        ax.set_axisbelow(True)
    return upper, lower
