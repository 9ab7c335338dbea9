"""Figures of finished records; each takes and returns a matplotlib Axes. Imports matplotlib, so import it last."""

from scalelaws.figures.curves import draw_advice, draw_curves
from scalelaws.figures.downstream import draw_score
from scalelaws.figures.isoflops import draw_isoflops, draw_profile, draw_sizes
from scalelaws.figures.ladders import draw_ladders
from scalelaws.figures.runs import (
    PALETTE,
    Sweep,
    draw_basins,
    draw_drift,
    draw_forecast,
    draw_law,
    draw_settings,
    make_axes,
)

__all__ = [
    "PALETTE",
    "Sweep",
    "draw_advice",
    "draw_basins",
    "draw_curves",
    "draw_drift",
    "draw_forecast",
    "draw_isoflops",
    "draw_ladders",
    "draw_law",
    "draw_profile",
    "draw_score",
    "draw_settings",
    "draw_sizes",
    "make_axes",
]
