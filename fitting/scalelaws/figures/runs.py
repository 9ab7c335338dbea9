"""Figures of finished records. Every function computes nothing new: it takes records and an Axes, and returns the Axes.

Colours: ordered scales by viridis, parametrizations by the palette of Okabe and Ito; colour-blind readers see both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scalelaws.laws import CellOptimum, LossLaw, SettingsLaw, get_law
from scalelaws.observations import FloatArray, Observations
from scalelaws.optima import Optimum
from scalelaws.results import Fit, Forecast, Target
from scalelaws.transfer import Drift

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, Color Universal Design."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BAND = 0.2
"""Opacity of uncertainty bands."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """One measured sweep of the learning rate and the optimum found in it."""

    label: str
    peak_lr: FloatArray
    loss: FloatArray
    optimum: Optimum


def make_axes(ax: Axes | None = None, size: tuple[float, float] = (6.4, 4.2)) -> Axes:
    """The Axes given, or those of a new Figure that no global state holds."""
    return Figure(figsize=size, layout="constrained").subplots() if ax is None else ax


def draw_basins(sweeps: Sequence[Sweep], ax: Axes | None = None, *, excess: bool = False) -> Axes:
    """Loss against learning rate, one curve for each sweep; a star and a bar mark each optimum and its interval.

    With `excess=True` the height is the loss above each sweep's own optimum in percent, which shows the valleys of
    models of very different loss side by side.
    """
    ax = make_axes(ax, (8.0, 4.2))
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(sweeps)))
    floors = [_floor(sweep) for sweep in sweeps]
    heights = [_lift(sweep.loss, floor, excess) for sweep, floor in zip(sweeps, floors, strict=True)]
    top = _frame_losses(ax, heights, excess)
    for i, (sweep, floor) in enumerate(zip(sweeps, floors, strict=True)):
        _draw_sweep(ax, sweep, heights[i], (floor, excess), (colours[i], MARKERS[i % len(MARKERS)], top))
    _draw_lost(ax, sweeps, heights, top)
    use_rate_axis(ax, "x")
    ax.set_ylabel("loss above the optimum (%)" if excess else "held-out loss (nats per token)")
    ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return finish_axes(ax)


def _floor(sweep: Sweep) -> float:
    """Loss at the optimum, or of the best run where there is none."""
    if sweep.optimum.loss is not None:
        return sweep.optimum.loss.value
    losses = np.asarray(sweep.loss)
    return float(losses[np.isfinite(losses)].min())


def _lift(loss: FloatArray, floor: float, excess: bool) -> FloatArray:
    return np.asarray(100 * (np.asarray(loss) / floor - 1) if excess else np.asarray(loss), dtype=np.float64)


def _draw_sweep(
    ax: Axes, sweep: Sweep, height: FloatArray, lift: tuple[float, bool], look: tuple[FloatArray, str, float]
) -> None:
    colour, marker, top = look
    rates, best = np.asarray(sweep.peak_lr), sweep.optimum
    shown = np.isfinite(height) & (height <= top)
    ax.plot(rates[shown], height[shown], marker, color=colour, ms=5, label=sweep.label)
    if best.basin is None or best.loss is None or best.low is None or best.high is None:
        return
    used = rates[best.used]
    line = np.geomspace(used.min(), used.max(), 200)
    ax.plot(line, _lift(best.basin.predict(line), *lift), color=colour, lw=1.4)
    bottom = float(_lift(np.array([best.loss.value]), *lift)[0])
    ax.plot([best.low, best.high], [bottom] * 2, color=colour, lw=6, alpha=0.45, solid_capstyle="butt")
    ax.plot(best.value, bottom, "*", color=colour, ms=13, mec="white", mew=0.8, zorder=5)


def _frame_losses(ax: Axes, heights: Sequence[FloatArray], excess: bool) -> float:
    """Shows the valleys: the frame ends 15 % above the highest optimum (10 % of excess); returns that height."""
    lowest = [float(height[np.isfinite(height)].min()) for height in heights]
    finite = np.concatenate([height[np.isfinite(height)] for height in heights])
    top, bottom = min(float(finite.max()), 10.0 if excess else 1.15 * max(lowest)), min(lowest)
    height = (top - bottom) or abs(top) or 1.0  # losses may all be equal, and a frame needs a height
    ax.set_ylim(bottom - 0.06 * height, top + 0.12 * height)
    return top


def _draw_lost(ax: Axes, sweeps: Sequence[Sweep], heights: Sequence[FloatArray], top: float) -> None:
    """Crosses on the upper edge: runs that diverged or lie above the frame."""
    pairs = zip(sweeps, heights, strict=True)
    lost = np.concatenate([np.asarray(sweep.peak_lr)[~(height <= top)] for sweep, height in pairs])
    if len(lost):
        level = np.full(len(lost), 0.97)
        ax.plot(lost, level, "x", color="0.4", ms=6, transform=ax.get_xaxis_transform(), label="diverged or higher")


def use_rate_axis(ax: Axes, which: str) -> None:
    """A logarithmic axis of learning rates with plain numbers."""
    axis, low_high = (ax.xaxis, ax.get_xlim()) if which == "x" else (ax.yaxis, ax.get_ylim())
    if which == "x":
        ax.set_xscale("log", base=2)
        ax.set_xlabel("peak learning rate")
    else:
        ax.set_yscale("log")
        narrow = low_high[0] > 0 and low_high[1] / low_high[0] < 30
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if narrow else (1.0, 3.0)))
        ax.set_ylabel("optimal peak learning rate")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_law(fit: Fit, observations: Observations, ax: Axes | None = None, *, target: Target | None = None) -> Axes:
    """Loss against the scale of a law of the loss, with its band; what lies beyond the largest run is shaded.

    A law in N and D is drawn along compute, at the horizon rule of the runs nearest in compute: its points are
    predictions at each run's own N and D.
    """
    ax = make_axes(ax)
    law = get_law(fit.law)
    if not isinstance(law, LossLaw):
        raise ValueError(f"draw_law draws laws of the loss; got {fit.law}")
    if fit.law == "chinchilla":
        return _draw_horizons(fit, law, observations, ax)
    scale, name = _scale_of(fit.law, observations)
    reach = _reach_of(fit.law, target)
    end = scale.max() * 4 if reach is None else max(reach * 1.5, scale.max())
    line = np.geomspace(scale.min() / 1.3, end, 200)
    draws = np.stack([law.predict_loss(fit.draws, Target(x, x, compute_flops=x)) for x in line])
    _draw_band(ax, line, draws, fit.level, PALETTE[0], "law")
    ax.plot(scale, observations.loss, "o", color="black", ms=5, label="runs", zorder=4)
    _shade_beyond(ax, float(scale.max()), end)
    if reach is not None:
        ax.axvline(reach, color=PALETTE[1], ls="--", lw=1.2, label="target")
    return _finish_law(ax, name)


def _draw_horizons(fit: Fit, law: LossLaw, observations: Observations, ax: Axes) -> Axes:
    """A law in N and D: loss against tokens, one curve for each of at most six sizes."""
    sizes = np.unique(observations.params_non_embedding)
    sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), 6)).round().astype(int))]
    line = np.geomspace(observations.tokens.min(), 4 * observations.tokens.max(), 120)
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(sizes)))
    for i, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
        draws = np.stack([law.predict_loss(fit.draws, Target(size, tokens)) for tokens in line])
        _draw_band(ax, line, draws, fit.level, colour, "")
        at = np.isclose(observations.params_non_embedding, size)
        ax.plot(observations.tokens[at], observations.loss[at], MARKERS[i % len(MARKERS)], color=colour, ms=5,
                label=f"{_count(size)} params")  # fmt: skip
    _shade_beyond(ax, float(observations.tokens.max()), float(line[-1]))
    return _finish_law(ax, "training tokens")


def draw_settings(
    fit: Fit, cells: Sequence[CellOptimum], ax: Axes | None = None, *, target: Target | None = None
) -> Axes:
    """Optimal learning rate against size with the band for a new cell, at the target's horizon (or the longest)."""
    ax = make_axes(ax)
    law = get_law(fit.law)
    if not isinstance(law, SettingsLaw):
        raise ValueError(f"draw_settings draws laws of settings; got {fit.law}")
    usable = [cell for cell in cells if cell.optimum.status.ok]
    sizes = np.array([cell.params for cell in usable])
    tokens = max(cell.tokens for cell in usable) if target is None else target.tokens
    end = sizes.max() * 4 if target is None else max(target.params_non_embedding * 1.5, sizes.max())
    line = np.geomspace(sizes.min() / 1.3, end, 80)
    draws = [np.exp(law.predict_settings(fit, Target(n, tokens), np.random.default_rng(0)).ln_peak_lr) for n in line]
    _draw_band(ax, line, np.stack(draws), fit.level, PALETTE[0], f"law at {_count(tokens)} tokens")
    exponent = fit.parameters["lr_exponent_tokens"].value
    for i, cell in enumerate(usable):
        moved = (tokens / cell.tokens) ** exponent
        bars = [[moved * bar for bar in side] for side in measure_bars(cell.optimum)]
        ax.errorbar(cell.params, moved * cell.optimum.value, yerr=bars, fmt="o", color="black", ms=5, lw=1.2,
                    label=None if i else _name_cells(usable, tokens))  # fmt: skip
    _shade_beyond(ax, float(sizes.max()), float(end))
    if target is not None:
        ax.axvline(target.params_non_embedding, color=PALETTE[1], ls="--", lw=1.2, label="target")
    use_rate_axis(ax, "y")
    return _finish_law(ax, "non-embedding parameters", "optimal peak learning rate")


def _name_cells(cells: Sequence[CellOptimum], tokens: float) -> str:
    moved = any(abs(np.log(cell.tokens / tokens)) > 0.01 for cell in cells)
    return "cells, moved to this horizon by the law" if moved else "optima of the cells"


def draw_forecast(
    forecast: Forecast, peak_lr: FloatArray, loss: FloatArray, ax: Axes | None = None, *, label: str = "measured"
) -> Axes:
    """Runs at the target (which the fit has not seen) against the predicted learning rate and loss."""
    ax = make_axes(ax)
    order = np.argsort(peak_lr)
    rates, losses = np.asarray(peak_lr)[order], np.asarray(loss)[order]
    finite = np.isfinite(losses)
    ax.plot(rates[finite], losses[finite], "o-", color="black", ms=5, lw=1, label=label)
    use_rate_axis(ax, "x")
    level = f"{100 * forecast.level:g} %"
    if forecast.peak_lr is not None:
        ax.axvline(forecast.peak_lr.value, color=PALETTE[0], lw=1.6, label=f"predicted learning rate, {level}")
        if forecast.peak_lr.low is not None and forecast.peak_lr.high is not None:
            ax.axvspan(forecast.peak_lr.low, forecast.peak_lr.high, color=PALETTE[0], alpha=BAND, lw=0)
    if forecast.loss is not None:
        ax.axhline(forecast.loss.value, color=PALETTE[1], lw=1.6, label=f"predicted loss, {level}")
        if forecast.loss.low is not None and forecast.loss.high is not None:
            ax.axhspan(forecast.loss.low, forecast.loss.high, color=PALETTE[1], alpha=BAND, lw=0)
    ax.set_ylabel("held-out loss (nats per token)")
    ax.legend(frameon=False, fontsize="small")
    return finish_axes(ax)


def draw_drift(drifts: Mapping[str, Drift], ax: Axes | None = None) -> Axes:
    """Optimal learning rate against width for each parametrization; an open arrow marks an optimum that is a bound."""
    ax = make_axes(ax)
    for i, (name, drift) in enumerate(drifts.items()):
        _draw_ladder(ax, name, drift, PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], 1.02 ** (2 * i - 1))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    use_rate_axis(ax, "y")
    ax.set_xlabel("width")
    ax.legend(frameon=False, fontsize="small")
    return finish_axes(ax)


def _draw_ladder(ax: Axes, name: str, drift: Drift, colour: str, marker: str, shift: float) -> None:
    """One parametrization; `shift` moves its points sideways, so that bars do not hide each other."""
    found = [(w * shift, item) for w, item in zip(drift.width, drift.optima, strict=True) if item.status.ok]
    said = "" if drift.slope is None else f" ({drift.slope.value:+.2f} per doubling)"
    ax.plot([w for w, _ in found], [item.value for _, item in found], color=colour, lw=1.4, marker=marker, ms=6,
            label=f"{name}: {drift.verdict}{said}")  # fmt: skip
    for width, item in found:
        ax.errorbar(width, item.value, yerr=measure_bars(item), color=colour, lw=1.4, capsize=3)
    for width, item in zip(drift.width * shift, drift.optima, strict=True):
        if not item.status.ok and (item.low is not None or item.high is not None):
            ax.plot(width, item.value, "^" if item.low is not None else "v", color=colour, mfc="none", ms=8)


def measure_bars(optimum: Optimum) -> list[list[float]]:
    """Lengths of an optimum's error bar, below and above."""
    assert optimum.low is not None
    assert optimum.high is not None
    return [[optimum.value - optimum.low], [optimum.high - optimum.value]]


def _draw_band(ax: Axes, x: FloatArray, draws: FloatArray, level: float, colour: str | FloatArray, label: str) -> None:
    low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=1)
    ax.plot(x, middle, color=colour, lw=1.6, label=f"{label}, {100 * level:g} %" if label else None)
    ax.fill_between(x, low, high, color=colour, alpha=BAND, lw=0)


def _shade_beyond(ax: Axes, start: float, end: float) -> None:
    if end > start:
        ax.set_xscale("log")
        ax.axvspan(start, end, color="0.5", alpha=0.12, lw=0, label="beyond the largest run")
        ax.set_xlim(right=end)


def _scale_of(law: str, observations: Observations) -> tuple[FloatArray, str]:
    scales = {
        "power_law_params": (observations.params_non_embedding, "non-embedding parameters"),
        "power_law_tokens": (observations.tokens, "training tokens"),
        "power_law_compute": (observations.compute, "training compute (FLOPs)"),
    }
    return scales[law]


def _reach_of(law: str, target: Target | None) -> float | None:
    if target is None:
        return None
    return {
        "power_law_params": target.params_non_embedding,
        "power_law_tokens": target.tokens,
        "power_law_compute": target.compute,
    }[law]


def _finish_law(ax: Axes, x_name: str, y_name: str = "held-out loss (nats per token)") -> Axes:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if _span_decades(ax) < 2 else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if y_name.startswith("held-out"):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(x_name)
    ax.set_ylabel(y_name)
    ax.legend(frameon=False, fontsize="small")
    return finish_axes(ax)


def _span_decades(ax: Axes) -> float:
    low, high = ax.get_xlim()
    return float(np.log10(high / max(low, 1.0)))


def finish_axes(ax: Axes) -> Axes:
    """The look that all figures share."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    return ax


def _count(value: float) -> str:
    """A count with its prefix, three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
