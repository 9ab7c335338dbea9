"""The figure of a population: a setting of every member over tokens, and who copied whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.quantities import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (6.4, 4.3)
"""Size of one panel, inches."""
SHOWN_SETTINGS = 3
"""Most panels of settings, the learning rate first."""
TITLES = {
    "peak_lr": "learning rate",
    "weight_decay": "weight decay",
    "clip_norm": "clip norm",
}
"""What the axis of a setting says, where its name does not do."""

Row = Mapping[str, Any]


def draw_population(stretches: Sequence[Row]) -> Figure:
    """One panel for each setting that changed along the runs, from the `lineage` of a population's findings."""
    from matplotlib.figure import Figure

    keys = list_settings(stretches)[:SHOWN_SETTINGS]
    figure = Figure(figsize=(PANEL[0] * len(keys), PANEL[1]), layout="constrained")
    for place, key in enumerate(keys):
        draw_lineages(stretches, key, figure.add_subplot(1, len(keys), place + 1), legend=place == 0)
    return figure


def list_settings(stretches: Sequence[Row]) -> list[str]:
    """The settings of a population, the learning rate first."""
    known = ("generation", "member", "kind", "donor", "run_id", "tokens", "score", "root", "wins", "start_tokens")
    keys = [key for key in stretches[0] if key not in (*known, "ended", "curve_tokens", "curve_lr")]
    return sorted(keys, key=lambda key: (key != "peak_lr", key))


def draw_lineages(stretches: Sequence[Row], key: str, ax: Axes, *, legend: bool = True) -> Axes:
    """One line a stretch, coloured by the member that its lineage began as; copies are marked, the best one is bold.

    The learning rate is that of each step, other settings are level along a stretch.
    """
    from matplotlib.ticker import FuncFormatter

    from scalelaws.figures import PALETTE

    roots = sorted({row["root"] for row in stretches})
    ended = {(row["member"], row["generation"]): row for row in stretches}
    for row in sorted(stretches, key=lambda row: row["wins"]):
        tokens, values = _trace(row, key)
        colour = PALETTE[roots.index(row["root"]) % len(PALETTE)]
        style: dict[str, Any] = {"lw": 2.8, "zorder": 3} if row["wins"] else {"lw": 1.0, "alpha": 0.6}
        ax.plot(tokens, values, color=colour, **style)
        if row["kind"] == "exploit":
            left = ended[(row["member"], row["generation"] - 1)]
            ends = _trace(left, key)[1][-1], values[0]
            ax.plot([row["start_tokens"]] * 2, ends, ":", color=colour, lw=0.8, alpha=0.7)
            ax.plot(row["start_tokens"], values[0], "o", ms=4, color=colour, zorder=4)
        if row["ended"] and row["score"] is None:
            ax.plot(tokens[-1], values[-1], "x", ms=7, color="black", zorder=4)
    if all(value > 0 for row in stretches for value in _trace(row, key)[1]):
        ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    ax.set_xlabel("training tokens")
    ax.set_ylabel(TITLES.get(key, key))
    if legend:
        _explain(ax)
    return ax


def _trace(row: Row, key: str) -> tuple[list[float], list[float]]:
    """Where the line of a stretch runs."""
    tokens, rates = row["curve_tokens"], row["curve_lr"]
    if key == "peak_lr" and tokens:
        return tokens, rates
    return [row["start_tokens"], row["tokens"]], [row[key]] * 2


def _explain(ax: Axes) -> None:
    """A legend of the marks: colours are lineages, which need no names."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color="grey", lw=2.8, label="lineage of the best member"),
        Line2D([], [], color="grey", lw=1.0, label="others; one colour, one root"),
        Line2D([], [], color="grey", ls=":", marker="o", ms=4, label="copied another member"),
        Line2D([], [], color="black", ls="", marker="x", ms=7, label="lost"),
    ]
    ax.legend(handles=marks, fontsize="x-small", frameon=False)
