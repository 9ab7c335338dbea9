"""Figures of scores: finished fits and forecasts in, an Axes out; nothing is fitted here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from scalelaws.downstream.scores import ScoreForecast
from scalelaws.figures.runs import BAND, PALETTE, make_axes
from scalelaws.laws import get_law
from scalelaws.laws.downstream import ScoreFit, ScoreSigmoid
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Estimate


def draw_score(
    fit: ScoreFit,
    runs: Observations,
    held_out: Observations | None = None,
    forecasts: Sequence[ScoreForecast] = (),
    ax: Axes | None = None,
) -> Axes:
    """Score against task loss: the runs, the sigmoid with the interval of a new run, held-out runs, forecasts.

    The loss falls to the right, so that better models stand on the right.
    """
    law = get_law(fit.law)
    if not isinstance(law, ScoreSigmoid) or fit.loss_seen is None:
        raise ValueError(f"draw_score shows a sigmoid in the task loss; got a fit of {fit.law}")
    ax = make_axes(ax)
    losses = [fit.loss_seen, *((item.loss.value,) * 2 for item in forecasts if item.loss is not None)]
    losses += [] if held_out is None else [(float(held_out.loss.min()), float(held_out.loss.max()))]
    low, high = min(pair[0] for pair in losses), max(pair[1] for pair in losses)
    _draw_band(ax, law, fit, np.linspace(low - 0.05 * (high - low), high, 200))
    ax.axvspan(low - 0.05 * (high - low), fit.loss_seen[0], color="0.94", zorder=0, label="beyond the runs")
    ax.plot(runs.loss, runs.covariates["score"], "o", color=PALETTE[0], ms=5, mec="white", mew=0.5, label="fitted runs")
    if held_out is not None:
        points = ax.plot(
            held_out.loss, held_out.covariates["score"], "D", color=PALETTE[1], ms=8, label="held-out runs"
        )
        points[0].set(markeredgecolor="white", zorder=5)
    _draw_forecasts(ax, forecasts)
    ax.set_xlim(high, low - 0.05 * (high - low))
    ax.set_xlabel("task loss (falls to the right)")
    ax.set_ylabel("score (share)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def _draw_band(ax: Axes, law: ScoreSigmoid, fit: ScoreFit, losses: FloatArray) -> None:
    """The curve and the interval of one new run at a known loss."""
    noise = fit.scatter_log * np.random.default_rng(0).standard_normal((len(fit.draws), 1))
    scores = law.evaluate(fit.draws, {"loss": losses})[0] + noise
    tail = (1 - fit.level) / 2
    low, high = np.clip(np.quantile(scores, [tail, 1 - tail], axis=0), 0, 1)
    band = f"{100 * fit.level:g} % interval of a run"
    ax.fill_between(losses, low, high, color=PALETTE[0], alpha=BAND, lw=0, label=band)
    ax.plot(losses, law.evaluate(fit.values[None], {"loss": losses})[0][0], color=PALETTE[0], lw=1.6)


def _draw_forecasts(ax: Axes, forecasts: Sequence[ScoreForecast]) -> None:
    """A cross for each forecast: intervals of its loss and of its score."""
    label = "two-step forecast"
    for item in forecasts:
        if item.loss is None:
            continue
        at = (item.loss.value, item.score.value)
        ax.errorbar(*at, xerr=_arms(item.loss), yerr=_arms(item.score), color=PALETTE[2], lw=1.4, label=label, zorder=4)
        label = "_nolegend_"


def _arms(estimate: Estimate) -> list[list[float]]:
    """Lengths of the bars to the two bounds; a value may lie outside of its interval."""
    low, high = estimate.low, estimate.high
    down, up = (0.0 if low is None else estimate.value - low), (0.0 if high is None else high - estimate.value)
    return [[max(down, 0.0)], [max(up, 0.0)]]
