"""How a search came down: the loss of every setting that it tried against the FLOPs that it had spent by then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foretune.records import Result
from foretune.search.comparing import measure_noise
from foretune.search.interface import Findings
from foretune.search.tried import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DESCENT = "descent"
"""Name of the figure, and of its data in the findings."""
PANEL = (5.6, 4.3)
"""Size of one panel, inches."""

Row = Mapping[str, Any]


def add_descent(
    findings: Findings | None, settings: Iterable[Setting], results: Mapping[str, Result]
) -> Findings | None:
    """The findings with what the figure shows; a setting that was gone on with counts at every stop."""
    if findings is None:
        return None
    by_scale: dict[str, list[Setting]] = {}
    for item in settings:
        if item.has_ended and not item.obstacle:
            by_scale.setdefault(item.scale, []).append(item)
    rows = [row for tried in by_scale.values() for row in list_steps(tried, list(results))]
    return replace(findings, data={**findings.data, DESCENT: rows})


def list_steps(settings: Sequence[Setting], order: Sequence[str]) -> list[dict[str, Any]]:
    """A row for every setting of one rung in the order in which they ended; `order`: all runs in that order.

    `best_loss` is the lowest so far of those at their horizon; `noise_sd` the scatter of log losses between seeds, None
    without replicates.
    """
    places = {run_id: place for place, run_id in enumerate(order)}
    whole = [item for item in settings if not item.specs[0].is_partial]
    noise = measure_noise([item.losses for item in whole if item.losses])
    spent, best = 0.0, math.inf
    rows = []
    for item in sorted(settings, key=lambda item: max(places[spec.run_id] for spec in item.specs)):
        spent += _sum_cost(item)
        is_whole = not item.specs[0].is_partial
        best = min(best, item.mean) if is_whole else best
        rows.append(
            {
                "scale": item.scale,
                "spent_flops": spent,
                "tokens": item.specs[0].tokens,
                "is_whole": is_whole,
                "loss": item.mean if math.isfinite(item.mean) else None,
                "best_loss": best if math.isfinite(best) else None,
                "noise_sd": noise.sd if noise else None,
            }
        )
    return rows


def _sum_cost(setting: Setting) -> float:
    """Training FLOPs of its runs; of one that was looked up, what it would have cost."""
    pairs = zip(setting.specs, setting.results, strict=True)
    return math.fsum(result.spent_flops or spec.own_flops for spec, result in pairs)


def draw_descent(rows: Sequence[Row]) -> Figure:
    """One panel a rung."""
    from matplotlib.figure import Figure

    scales = list(dict.fromkeys(row["scale"] for row in rows))
    figure = Figure(figsize=(PANEL[0] * len(scales), PANEL[1]), layout="constrained")
    for scale, ax in zip(scales, figure.subplots(1, len(scales), squeeze=False)[0], strict=True):
        draw_steps([row for row in rows if row["scale"] == scale], ax)
        ax.set_title(scale)
    return figure


def draw_steps(rows: Sequence[Row], ax: Axes) -> Axes:
    """The settings of one rung as points, the best loss so far as a line with the scatter of seeds as its band."""
    from scalelaws.figures import PALETTE

    _draw_best([row for row in rows if row["best_loss"] is not None], ax)
    kinds = (("o", PALETTE[0], "settings at their horizon", True), ("o", "none", "stopped before", False))
    for marker, face, label, is_whole in kinds:
        shown = [row for row in rows if row["is_whole"] is is_whole and row["loss"] is not None]
        at = [row["spent_flops"] for row in shown], [row["loss"] for row in shown]
        if shown:
            ax.plot(*at, marker, ls="", ms=5, mfc=face, mec=PALETTE[0], label=label, zorder=3)
    lost = [row["spent_flops"] for row in rows if row["loss"] is None]
    if lost:
        ax.plot(
            lost, [0.97] * len(lost), "x", color="0.4", transform=ax.get_xaxis_transform(), label="diverged or failed"
        )
    ax.set_xlim(left=0)
    ax.set_xlabel("training FLOPs spent")
    ax.set_ylabel("held-out loss (nats per token)")
    ax.legend(frameon=False, fontsize="small")
    return ax


def _draw_best(rows: Sequence[Row], ax: Axes) -> None:
    from scalelaws.figures import PALETTE

    if not rows:
        return
    spent, best = ([row[key] for row in rows] for key in ("spent_flops", "best_loss"))
    ax.step(spent, best, where="post", color=PALETTE[1], lw=1.8)
    star = spent[best.index(best[-1])], best[-1]
    ax.plot(*star, "*-", color=PALETTE[1], ms=13, mec="white", label="best so far", zorder=4)
    sd = rows[0]["noise_sd"]
    if sd is not None:
        low, high = ([value * math.exp(sign * sd) for value in best] for sign in (-1, 1))
        label = "one standard deviation between seeds"
        ax.fill_between(spent, low, high, step="post", color=PALETTE[1], alpha=0.2, lw=0, label=label)
