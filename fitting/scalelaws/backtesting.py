"""Fit the small runs, forecast the large ones, and score it: the evidence for choosing a law.

Legend: C training FLOPs; an origin k is a fit to the runs of C <= Cmax / k, and the cells (N, D) above it are held out.
A forecast of the loss is scored by its relative error and by the interval score of Gneiting and Raftery 2007, equation
43: width + 2 / (1 - level) times the distance by which the interval misses, here over the measured loss. A forecast of
settings is scored by its regret: the measured loss at the recommendation over the best of the cell's sweep, less one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from scalelaws.engines.repeats import average_repeats
from scalelaws.estimation import fit
from scalelaws.forecasting import forecast
from scalelaws.laws import Law, LossLaw, SettingsLaw, find_cell_optima, get_law
from scalelaws.laws.loss import keep_tuned
from scalelaws.observations import Observations
from scalelaws.results import Estimate, Fit, Forecast, Target
from scalelaws.sweeps.regrets import measure_regret

HeldOut = Literal["loss", "settings"]
FRACTIONS = (4.0, 10.0, 30.0)
"""Origins that are usual for backtests of scaling laws: a half to one and a half decades of compute."""


@dataclass(frozen=True)
class HeldOutCell:
    """One law's forecast of one cell that it had not seen."""

    law: str
    fraction: float
    """k of the origin."""
    params: float
    tokens: float
    compute_flops: float
    extrapolation: float
    """Compute over that of the largest run that was fitted."""
    predicted: float
    """Loss, or peak learning rate."""
    low: float
    high: float
    """The interval of the prediction at the backtest's level."""
    actual: float
    """Loss of the tuned run (mean of its repeats), or the best peak learning rate of the cell."""
    error: float
    """Relative error of the loss (predicted over actual, less one), or regret; NaN outside of the sweep."""
    inside: bool
    """Whether the interval holds the actual value."""
    score: float
    """Interval score over the actual value, for losses; the regret, for settings. Lower is better."""
    log_density: float
    """Of ln actual, under the normal with the forecast's median and width in ln; for averages of laws."""


@dataclass(frozen=True)
class Unfitted:
    """A law that could say nothing at an origin, and why."""

    law: str
    fraction: float
    reason: str


@dataclass(frozen=True)
class Summary:
    """One law over its cells; a cell counts once for each origin that forecast it."""

    law: str
    cells: int
    mean: float
    """Mean size of the error (or mean regret)."""
    percentile_90: float
    coverage: float
    """Share of the cells whose actual value lies in its interval."""
    score: float
    """Mean interval score (or mean regret)."""


@dataclass(frozen=True)
class Backtest:
    """Every forecast with its score, and what could not be forecast."""

    held_out: HeldOut
    level: float
    cells: tuple[HeldOutCell, ...]
    unfitted: tuple[Unfitted, ...]

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws that forecast at least one cell."""
        return tuple(dict.fromkeys(cell.law for cell in self.cells))

    def summarise(self, law: str, fraction: float | None = None, *, shared: bool = False) -> Summary:
        """One law over all origins, or one; `shared` takes the cells alone that every law forecast."""
        chosen = [cell for cell in self.cells if cell.law == law and fraction in (None, cell.fraction)]
        if shared:
            common = self._find_shared()
            chosen = [cell for cell in chosen if _identify(cell) in common]
        errors = np.array([abs(cell.error) for cell in chosen if np.isfinite(cell.error)])
        if len(errors) == 0:
            return Summary(law, 0, np.nan, np.nan, np.nan, np.nan)
        scores = [cell.score for cell in chosen if np.isfinite(cell.score)]
        return Summary(
            law, len(chosen), float(errors.mean()), float(np.quantile(errors, 0.9)),
            float(np.mean([cell.inside for cell in chosen])), float(np.mean(scores)),
        )  # fmt: skip

    @property
    def ranking(self) -> tuple[Summary, ...]:
        """The laws by mean score over the cells that all of them forecast, best first."""
        summaries = [self.summarise(law, shared=True) for law in self.laws]
        return tuple(sorted((item for item in summaries if item.cells), key=lambda item: item.score))

    def _find_shared(self) -> set[tuple[float, float, float]]:
        sets = [{_identify(cell) for cell in self.cells if cell.law == law} for law in self.laws]
        return set.intersection(*sets) if sets else set()

    def to_dict(self) -> dict[str, Any]:
        """The `backtest` object that the command line prints; what is not finite becomes null."""
        return {
            "held_out": self.held_out,
            "level": self.level,
            "cells": [_clean(asdict(cell)) for cell in self.cells],
            "summary": [_clean(asdict(self.summarise(law))) for law in self.laws],
            "ranking": [item.law for item in self.ranking],
            "unfitted": [asdict(item) for item in self.unfitted],
        }

    def summary(self) -> str:
        """A text table of the laws, best first, with what could not be fitted."""
        what = "error" if self.held_out == "loss" else "regret"
        lines = [f"{'law':<24} {'cells':>5} {'mean ' + what:>12} {'90th pct':>9} {'coverage':>8} {'score':>8}"]
        lines += [
            f"{item.law:<24} {item.cells:>5} {100 * item.mean:>10.3g} % {100 * item.percentile_90:>7.3g} % "
            f"{item.coverage:>8.2f} {100 * item.score:>6.3g} %"
            for item in (self.summarise(ranked.law) for ranked in self.ranking)
        ]
        lines += [f"not fitted: {item.law} below 1/{item.fraction:g}: {item.reason}" for item in self.unfitted]
        return "\n".join(lines)


def backtest(
    observations: Observations,
    laws: Sequence[Law[Observations] | str] = ("chinchilla",),
    *,
    fractions: Sequence[float] = FRACTIONS,
    held_out: HeldOut = "loss",
    level: float = 0.9,
    seed: int = 0,
    **options: Any,
) -> Backtest:
    """Fits each law to the runs of C <= Cmax / k for each k of `fractions`, and forecasts every larger cell.

    `held_out="loss"` scores the loss of the tuned run of each cell, `"settings"` the recommended learning rate (and
    batch) on the cell's own sweep. Further options go to `fit`. A law that cannot be fitted or asked at an origin is
    listed with the reason; fractions that part the runs in the same way count once. Raises ValueError where no fraction
    leaves runs on both sides.
    """
    chosen = [get_law(law) if isinstance(law, str) else law for law in laws]
    cells: list[HeldOutCell] = []
    unfitted: list[Unfitted] = []
    splits: dict[int, float] = {}
    for fraction in sorted(fractions):
        small = observations.compute <= observations.compute.max() / fraction
        if fraction < 1 or not small.any() or small.all() or int(small.sum()) in splits:
            continue
        splits[int(small.sum())] = fraction
        for law in chosen:
            known, unknown = (observations.rows(np.flatnonzero(mask)) for mask in (small, ~small))
            found = _test(law, known, unknown, fraction, held_out, {**options, "level": level, "seed": seed})
            if isinstance(found, Unfitted):
                unfitted.append(found)
            else:
                cells += found
    if not splits:
        listed = ", ".join(f"{fraction:g}" for fraction in fractions)
        raise ValueError(f"backtest: no fraction of {listed} leaves runs on both sides; give smaller ones, above 1")
    return Backtest(held_out, level, tuple(cells), tuple(unfitted))


def _test(
    law: Law[Any],
    known: Observations,
    unknown: Observations,
    fraction: float,
    held_out: HeldOut,
    options: dict[str, Any],
) -> list[HeldOutCell] | Unfitted:
    """One law at one origin."""
    if held_out == "settings" and not isinstance(law, SettingsLaw):
        return Unfitted(law.name, fraction, "it is no law of settings")
    if held_out == "loss" and not isinstance(law, LossLaw | SettingsLaw):
        return Unfitted(law.name, fraction, "it is no law of the loss")
    try:
        fitted = fit(law, known, throw=False, **options)
    except (ValueError, TypeError) as error:
        return Unfitted(law.name, fraction, str(error))
    if not fitted.status.ok:
        return Unfitted(law.name, fraction, fitted.message)
    largest = float(known.compute.max())
    score = _score_losses if held_out == "loss" else _score_settings
    found = score(fitted, unknown, fraction, largest)
    return found or Unfitted(law.name, fraction, f"it gives no {held_out} for the cells above")


def _score_losses(fitted: Fit, unknown: Observations, fraction: float, largest: float) -> list[HeldOutCell]:
    if unknown.diverged.all():
        return []
    runs, _ = average_repeats(keep_tuned(unknown))
    found = []
    for row in range(len(runs)):
        loss = forecast(fitted, target_of(runs, row)).loss
        if loss is not None:
            found.append(_score(fitted, runs, row, fraction, largest, loss, float(runs.loss[row])))
    return found


def _score_settings(fitted: Fit, unknown: Observations, fraction: float, largest: float) -> list[HeldOutCell]:
    found = []
    for rows in unknown.cells():
        sweep = unknown.rows(rows)
        if sweep.peak_lr is None or sweep.diverged.all():
            continue
        asked: Forecast = forecast(fitted, target_of(sweep, 0))
        if asked.peak_lr is None:
            continue
        batch = None if asked.batch_tokens is None else asked.batch_tokens.value
        regret = measure_regret(sweep, asked.peak_lr.value, batch)
        found.append(_score(fitted, sweep, 0, fraction, largest, asked.peak_lr, _find_best_rate(sweep), regret))
    return found


def _find_best_rate(sweep: Observations) -> float:
    """The optimum of the cell's basin, else the rate of its best run."""
    optimum = find_cell_optima(sweep)[0].optimum
    if optimum.status.ok:
        return optimum.peak_lr.value
    assert sweep.peak_lr is not None
    return float(sweep.peak_lr[np.nanargmin(np.where(sweep.diverged, np.nan, sweep.loss))])


def _score(
    fitted: Fit, runs: Observations, row: int, fraction: float, largest: float, said: Estimate, actual: float,
    regret: float | None = None,
) -> HeldOutCell:  # fmt: skip
    low = said.value if said.low is None else said.low
    high = said.value if said.high is None else said.high
    miss = max(low - actual, actual - high, 0.0)
    spread = max(np.log(high / low) / (2 * _normal_quantile(fitted.level)), 1e-9)
    away = (np.log(actual) - 0.5 * np.log(low * high)) / spread
    return HeldOutCell(
        law=fitted.law, fraction=fraction, params=float(runs.params_non_embedding[row]), tokens=float(runs.tokens[row]),
        compute_flops=float(runs.compute[row]), extrapolation=float(runs.compute[row]) / largest,
        predicted=said.value, low=low, high=high, actual=actual,
        error=said.value / actual - 1 if regret is None else regret,
        inside=bool(low <= actual <= high),
        score=(high - low + 2 / (1 - fitted.level) * miss) / actual if regret is None else regret,
        log_density=float(-np.log(spread) - 0.5 * np.log(2 * np.pi) - 0.5 * away**2),
    )  # fmt: skip


def target_of(runs: Observations, row: int) -> Target:
    """The run of that row as a target, with all that a law may need to know of it."""
    covariates = {name: float(values[row]) for name, values in runs.covariates.items()}
    if runs.width is not None:
        covariates["width"] = float(runs.width[row])
    return Target(
        float(runs.params_non_embedding[row]), float(runs.tokens[row]), compute_flops=float(runs.compute[row]),
        covariates=covariates, mixture={name: float(values[row]) for name, values in runs.mixture.items()},
    )  # fmt: skip


def _normal_quantile(level: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)


def _identify(cell: HeldOutCell) -> tuple[float, float, float]:
    return cell.fraction, cell.params, cell.tokens


def _clean(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in record.items()
    }
