"""The figure of the coordinate check: what the updates change in each layer, against width or depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foretune.answers import title_parametrization
from foretune.gates.coordinates import SLOPE_LIMIT, STEPS, CoordinateAnswer, CoordinateCheck, Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (5.4, 5.0)
"""Size of one panel, inches."""
SHOWN_LAYERS = 12
"""Most layers in a panel; of deeper models those with the steepest slopes."""


def draw_coordinates(answer: CoordinateAnswer) -> Figure:
    """One panel for each parametrization and ladder, log-log, all with one vertical scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(answer.checks), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(answer.checks), sharey=True, squeeze=False)[0]
    for ax, check in zip(panels, answer.checks, strict=True):
        _draw_check(check, ax)
    panels[0].set_ylabel(f"change of the output after {STEPS} steps, root mean square")
    figure.suptitle(
        f"Coordinate check at peak learning rate {answer.peak_lr:.3g}: level lines transfer "
        f"(|slope| < {SLOPE_LIMIT:g} in steps 1 to {STEPS}); dotted: after step 1"
    )
    return figure


def _draw_check(check: CoordinateCheck, ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    from scalelaws.figures import PALETTE

    shown = sorted(check.layers, key=lambda layer: -abs(layer.worst))[:SHOWN_LAYERS]
    for index, layer in enumerate(layer for layer in check.layers if layer in shown):
        colour, style = PALETTE[index % len(PALETTE)], "-" if index < len(PALETTE) else "--"
        first, _ = _average(check.changes[layer.layer], 0)
        last, error = _average(check.changes[layer.layer], -1)
        label = f"{layer.layer} ({layer.worst:+.2f})" + ("" if layer.passed else " fails")
        ax.plot(check.places, np.exp(last), style, marker="o", ms=4, color=colour, label=label)
        ax.fill_between(check.places, np.exp(last - error), np.exp(last + error), color=colour, alpha=0.15, lw=0)
        ax.plot(check.places, np.exp(first), ":", lw=1, color=colour)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(check.places)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("width" if check.ladder == "width" else "depth, blocks")
    verdict = "passes" if check.passed else "fails"
    ax.set_title(f"{title_parametrization(check.parametrization)}, {check.ladder}: {verdict}")
    ax.legend(fontsize="x-small", frameon=False, title="layer (steepest slope of steps 1-4)", title_fontsize="x-small")


def _average(values: Measured, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean log over the seeds at every place, and its standard error."""
    logs = [np.log(place[step]) for place in values]
    means, errors = zip(*((place.mean(), place.std(ddof=1) / np.sqrt(len(place))) for place in logs), strict=True)
    return np.array(means), np.array(errors)
