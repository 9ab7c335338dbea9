"""Figures of isoFLOP curves and of the compute-optimal size. They draw finished records and fit nothing."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from scalelaws.engines.likelihood import Profile
from scalelaws.figures.runs import BAND, PALETTE, make_axes
from scalelaws.observations import FloatArray
from scalelaws.splits.approaches import Approaches
from scalelaws.splits.isoflops import Isoflops
from scalelaws.splits.size_laws import SizeLaw

BEYOND = 30.0
"""How far beyond the largest budget N*(C) is drawn, as a factor of compute."""
LEGEND_ROWS = 14
"""More budgets than this are listed in two columns of smaller letters."""


def draw_isoflops(isoflops: Isoflops, ax: Axes | None = None) -> Axes:
    """Loss against size, one curve per budget; a star marks each optimum and a bar its interval.

    The curve is the fitted profile; a budget without an optimum shows its runs alone.
    """
    ax = make_axes(ax, (8.0, 4.6))
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(isoflops.optima)))
    for k, (item, colour) in enumerate(zip(isoflops.optima, colours, strict=True)):
        rows = isoflops.budget == item.compute_flops
        size, loss = isoflops.runs.params_non_embedding[rows], isoflops.runs.loss[rows]
        ax.plot(size, loss, "o", color=colour, ms=3.5, alpha=0.7)
        if not item.status.ok:
            ax.plot([], [], "o", color=colour, label=item.message)
            continue
        line = np.geomspace(size.min() / 1.1, size.max() * 1.1, 120)
        ax.plot(line, isoflops.predict_loss(k, line), color=colour, lw=1.3)
        bars = [[item.params.value - (item.params.low or 0)], [(item.params.high or np.inf) - item.params.value]]
        ax.errorbar(item.params.value, item.loss.value, xerr=bars, fmt="*", color=colour, mec="black", mew=0.6, ms=11,
                    capsize=3, label=f"{item.compute_flops:.3g} FLOPs")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel(f"parameters ({isoflops.runs.params_convention})".replace("_", "-"))
    ax.set_ylabel("loss (nats per token)")
    crowded = len(ax.get_legend_handles_labels()[1]) > LEGEND_ROWS
    ax.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=2 if crowded else 1,
        fontsize="xx-small" if crowded else "small",
    )  # fmt: skip
    return _finish(ax)


def draw_sizes(approaches: Approaches, ax: Axes | None = None, *, beyond: float = BEYOND) -> Axes:
    """N* against compute under every approach; the band of the best is for the optimum that one would measure."""
    ax = make_axes(ax)
    isoflops = approaches.isoflops
    largest = max(law.compute_range[1] for law in approaches.laws)
    line = np.geomspace(min(law.compute_range[0] for law in approaches.laws), beyond * largest, 60)
    for i, law in enumerate(approaches.laws):
        _draw_law(ax, law, line, PALETTE[i % len(PALETTE)], band=law is approaches.best)
    if isoflops is not None:
        found = [isoflops.optima[k] for k in isoflops.usable]
        bars = np.array([(item.params.value - (item.params.low or 0), (item.params.high or np.inf) - item.params.value)
                         for item in found]).T  # fmt: skip
        ax.errorbar([item.compute_flops for item in found], [item.params.value for item in found], yerr=bars, fmt="o",
                    color="black", ms=4, lw=1.1, label="optima of the budgets", zorder=5)  # fmt: skip
    ax.axvspan(largest, line[-1], color="0.5", alpha=0.12, lw=0, label="beyond the largest budget")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(line[0] / 1.5, line[-1])
    ax.set_xlabel("training compute (FLOPs)")
    ax.set_ylabel("compute-optimal parameters")
    ax.legend(frameon=False, fontsize="small")
    return _finish(ax)


def _draw_law(ax: Axes, law: SizeLaw, line: FloatArray, colour: str, *, band: bool) -> None:
    found = [law.predict(float(compute)) for compute in line]
    label = f"{law.approach}: a = {law.exponent.value:.3f}"
    ax.plot(line, [item.value for item in found], color=colour, lw=2.0 if band else 1.2, ls="-" if band else "--",
            label=f"{label}, {100 * law.level:g} %" if band else label)  # fmt: skip
    if band:
        low, high = [item.low or np.nan for item in found], [item.high or np.nan for item in found]
        ax.fill_between(line, low, high, color=colour, alpha=BAND, lw=0)


def draw_profile(profile: Profile, ax: Axes | None = None) -> Axes:
    """The signed root of the likelihood ratio: a straight line where Laplace is right, bent where it is not."""
    ax = make_axes(ax)
    side = np.sign(profile.grid - profile.interval.value)
    root = np.sqrt(profile.threshold)
    ax.plot(profile.grid, side * np.sqrt(profile.ratio), "o-", color=PALETTE[0], ms=4, label="profile")
    for sign in (-1, 1):
        ax.axhline(sign * root, color="0.5", lw=0.8, ls=":")
    laplace, bounds = profile.laplace, (profile.interval.low, profile.interval.high)
    if laplace.low is not None and laplace.high is not None:
        ax.plot([laplace.low, laplace.high], [-root, root], color=PALETTE[1], lw=1.2, label="Laplace")
    for i, bound in enumerate(bound for bound in bounds if bound is not None):
        ax.axvline(bound, color=PALETTE[0], lw=1, ls="--", label=None if i else f"{100 * profile.level:g} % interval")
    if profile.positive:
        ax.set_xscale("log")
    ax.set_xlim(*_frame(profile))
    ax.set_ylim(-1.6 * root, 1.6 * root)
    ax.set_xlabel(profile.quantity)
    ax.set_ylabel("signed root of the likelihood ratio")
    ax.legend(frameon=False, fontsize="small")
    return _finish(ax)


def _frame(profile: Profile) -> tuple[float, float]:
    """The part of the grid within one and a half times the interval."""
    near = profile.grid[profile.ratio <= 1.6**2 * profile.threshold]
    return float(near.min()), float(near.max())


def _finish(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    return ax
