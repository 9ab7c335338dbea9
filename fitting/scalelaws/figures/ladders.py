"""The figure of a pooled drift: the optimum along every ladder of an axis. It draws finished records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from scalelaws.figures.runs import MARKERS, PALETTE, finish_axes, make_axes, measure_bars, use_rate_axis
from scalelaws.ladders import Ladder, PooledDrift
from scalelaws.transfer import AXES

SIDEWAYS = 1.03
"""How far the points of one ladder stand aside from those of the next, so that bars do not hide each other."""


class Look(TypedDict):
    """How one name is drawn."""

    color: str
    marker: str


def draw_ladders(drifts: Mapping[str, PooledDrift], ax: Axes | None = None) -> Axes:
    """Optimal learning rate along one axis, a colour for each name and a line for each of its ladders.

    Bars are the intervals of the optima; an open arrow marks an optimum that is a bound, and points the way.
    """
    ax = make_axes(ax)
    lines = sum(len(drift.ladders) for drift in drifts.values())
    number, places = 0, set()
    for i, (name, drift) in enumerate(drifts.items()):
        said = "" if drift.slope is None else f" ({drift.slope.value:+.2f} per doubling)"
        look: Look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        ax.plot([], [], lw=1.4, ms=6, label=f"{name}: {drift.verdict}{said}", **look)
        for ladder in drift.ladders:
            _draw_ladder(ax, ladder, look, SIDEWAYS ** (number - (lines - 1) / 2))
            places |= {float(place) for place in ladder.drift.scale}
            number += 1
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted(places)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    use_rate_axis(ax, "y")
    ax.set_xlabel(AXES[next(iter(drifts.values())).axis].column.replace("_", " ") if drifts else "")
    ax.legend(frameon=False, fontsize="small")
    return finish_axes(ax)


def _draw_ladder(ax: Axes, ladder: Ladder, look: Look, shift: float) -> None:
    found = ladder.found
    ax.plot([place * shift for place, _ in found], [item.value for _, item in found], lw=1.2, ms=5, alpha=0.85, **look)
    for place, item in found:
        ax.errorbar(
            place * shift, item.value, yerr=measure_bars(item), color=look["color"], lw=1.0, capsize=2, alpha=0.6
        )
    for place, item in zip(ladder.drift.scale, ladder.drift.optima, strict=True):
        if not item.status.ok and (item.low is not None or item.high is not None):
            ax.plot(place * shift, item.value, "^" if item.low is not None else "v", color=look["color"], mfc="none")
