"""The figures of a search over mixtures: shares, the check at larger scales, and the cost of each scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (5.4, 4.3)
"""Size of one panel, inches."""
BARS = ("natural", "recommended", "best observed")
"""The mixtures, in the order of their bars."""

Row = Mapping[str, Any]


def draw_mixture(data: Mapping[str, Sequence[Row]]) -> Figure:
    """Shares, costs and, where there was one, the check; `data` is that of the findings under `mixture`."""
    from matplotlib.figure import Figure

    panels = [(draw_shares, data["shares"]), (draw_costs, data["costs"])]
    if any(row["beside natural, %"] is not None for row in data["checks"]):
        panels.insert(1, (draw_check, data["checks"]))
    figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    for (draw, rows), ax in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(rows, ax)
    return figure


def draw_shares(rows: Sequence[Row], ax: Axes) -> Axes:
    """Bars for each domain; the interval is that of the recommended share, the tick the most that is allowed."""
    from scalelaws.figures import PALETTE

    shown = [name for name in BARS if any(row[name] is not None for row in rows)]
    width = 0.8 / len(shown)
    for place, name in enumerate(shown):
        at = [domain + (place - (len(shown) - 1) / 2) * width for domain in range(len(rows))]
        values = [row[name] or 0.0 for row in rows]
        ax.bar(at, values, width, color=PALETTE[place], label=name)
        if name == "recommended":
            reach = [[row[name] - row["low"] for row in rows], [row["high"] - row[name] for row in rows]]
            ax.errorbar(at, values, reach, fmt="none", ecolor="0.2", capsize=3, lw=1.2)
    bounded = [(number, row["at most"]) for number, row in enumerate(rows) if row["at most"] < 1]
    if bounded:
        starts = [number - 0.45 for number, _ in bounded]
        ends = [number + 0.45 for number, _ in bounded]
        ax.hlines([cap for _, cap in bounded], starts, ends, color="0.4", ls=":", label="at most")
    ax.set_xticks(range(len(rows)), [row["domain"] for row in rows], rotation=0 if len(rows) < 6 else 60)
    ax.set(ylabel="share of the training tokens", ylim=(0, None))
    ax.legend(frameon=False, fontsize="small")
    return ax


def draw_check(rows: Sequence[Row], ax: Axes) -> Axes:
    """The objective of each mixture at the larger scales beside that of the natural one, with intervals."""
    from scalelaws.figures import PALETTE

    scales = list(dict.fromkeys(row["scale"] for row in rows))
    ax.axhline(0, color=PALETTE[0], lw=1.5, label="natural")
    for place, name in enumerate(BARS[1:], start=1):
        known = [row for row in rows if row["mixture"] == name and row["beside natural, %"] is not None]
        gaps = [row["beside natural, %"] for row in known]
        reach = [
            gap - row["low, %"] if row["low, %"] is not None else 0.0 for gap, row in zip(gaps, known, strict=True)
        ]
        at = [scales.index(row["scale"]) + 0.08 * (2 * place - 3) for row in known]
        if known:
            ax.errorbar(at, gaps, reach, fmt="o", color=PALETTE[place], capsize=3, label=name)
    ax.set_xticks(range(len(scales)), scales)
    ax.set(xlabel="scale of the check", ylabel="objective beside the natural mixture (%)")
    ax.set_xlim(-0.5, len(scales) - 0.5)
    # above: the markers of a legend inside read as points of the check
    ax.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(BARS))
    return ax


def draw_costs(rows: Sequence[Row], ax: Axes) -> Axes:
    """The share of all training FLOPs that went to each scale, with its number of runs."""
    from scalelaws.figures import PALETTE

    colours = {"search": PALETTE[3], "check": "0.6"}  # none of them that of a mixture beside it
    shares = [100 * row["share of the cost"] for row in rows]
    for kind, colour in colours.items():
        places = [number for number, row in enumerate(rows) if row["for"] == kind]
        if places:
            ax.bar(places, [shares[number] for number in places], color=colour, label=kind)
    for number, row in enumerate(rows):
        told = f"{row['runs']} run{'s' if row['runs'] != 1 else ''}"
        ax.annotate(told, (number, shares[number]), ha="center", va="bottom", fontsize="small")
    ax.set_xticks(range(len(rows)), [row["scale"] for row in rows])
    ax.set(ylabel="share of the training FLOPs (%)")
    ax.margins(y=0.12)
    ax.legend(frameon=False, fontsize="small")
    return ax
