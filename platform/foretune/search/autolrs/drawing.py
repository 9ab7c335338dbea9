"""The figure of AutoLRS: the learning rate of every model against its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foretune.quantities import format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (6.4, 4.3)
"""Size of the panel, inches."""


def draw_rates(schedules: Sequence[Mapping[str, Any]]) -> Figure:
    """One line a model, from the `schedules` of the findings; bold: that with the lowest loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from scalelaws.figures import PALETTE

    figure = Figure(figsize=PANEL, layout="constrained")
    ax = figure.subplots()
    best = min(schedules, key=lambda found: found["loss"])
    for place, found in enumerate(schedules):
        tokens = [*(rate["tokens"] for rate in found["rates"]), found["tokens"]]
        rates = [rate["peak_lr"] for rate in found["rates"]]
        ax.step(
            tokens,
            [*rates, rates[-1]],
            where="post",
            color=PALETTE[place % len(PALETTE)],
            lw=2.8 if found is best else 1.0,
            label=f"{found['scale']}, seed {found['seed']}: {found['loss']:.4f}",
        )
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    ax.set(xlabel="training tokens", ylabel="peak learning rate")
    ax.legend(title="held-out loss", fontsize="x-small", frameon=False)
    return figure
