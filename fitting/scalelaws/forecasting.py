"""A fit (or a published law) and a target -> a forecast with its interval and how far it reaches.

Legend: N parameters, D tokens, C training FLOPs; C = 6ND unless the target says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scalelaws.laws import (
    Law,
    LossLaw,
    MixtureLaw,
    PublishedLoss,
    PublishedSettings,
    SettingsLaw,
    get_law,
)
from scalelaws.laws.critical_batch_law import CriticalBatchLaw
from scalelaws.observations import FloatArray
from scalelaws.published_forecasts import forecast_published
from scalelaws.results import Estimate, Evidence, Fit, FitError, Forecast, Target
from scalelaws.sweeps.recommendation import estimate_decay, estimate_regret, recommend, warn_shade

NEW_RUNS = 4000
"""Draws of a new run's loss: drawing scatter and drift adds less than 2 % to the width of a 90 % interval."""
FAR = 10.0
"""Beyond ten times the largest run a forecast carries a warning."""
OFF_PATH = float(np.log(1.25))
"""Assumption: a law in one scale holds for targets within 25 % of its runs' horizon rule (fixed D, or D per N)."""


def forecast(
    law: Fit | PublishedSettings | PublishedLoss,
    target: Target,
    *,
    loss_fit: Fit | None = None,
    level: float | None = None,
    shade: bool = False,
    seed: int = 0,
) -> Forecast:
    """What to train the target with, and what to expect.

    The intervals of learning rate and batch are for the optimum of one new cell: the law's uncertainty and the scatter
    between cells. The interval of the loss is for one new well-tuned run: the law's uncertainty, the scatter of runs
    around it, and a drift beyond the largest run. With `shade=True` the recommended learning rate is the one of least
    expected excess loss, which lies below the median because too high costs more than too low. `level` is that of the
    fit unless given. Raises FitError for a fit whose status is not ok.
    """
    if isinstance(law, Fit):
        return _forecast_fit(law, target, loss_fit, law.level if level is None else level, shade, seed)
    return forecast_published(law, target, 0.9 if level is None else level)


def _forecast_fit(fit: Fit, target: Target, loss_fit: Fit | None, level: float, shade: bool, seed: int) -> Forecast:
    require_ok(fit)
    family, rng = get_law(fit.law), np.random.default_rng(seed)
    if not isinstance(family, LossLaw | SettingsLaw | CriticalBatchLaw):
        raise ValueError(f"{fit.law} does not forecast a run from its target alone: use scalelaws.{family.asked_with}")
    settings = None
    if isinstance(family, SettingsLaw):
        settings = family.predict_settings(fit, target, rng)
    loss_source = _choose_loss_fit(fit, loss_fit, isinstance(family, LossLaw))
    loss, loss_warnings = _forecast_loss(loss_source, target, level, rng)
    rate, batch, regret = None, None, None
    if settings is not None:
        rate, batch = recommend(settings, level, shade)
        regret = estimate_regret(settings, rate, batch, level)
    return Forecast(
        target=target, peak_lr=rate, batch_tokens=batch, batch_sequences=_in_sequences(batch, target), loss=loss,
        regret=regret, level=level,
        extrapolation=measure_extrapolation(fit.evidence, target), law=fit.law, status=fit.status, message=fit.message,
        evidence=fit.evidence, scope={**fit.scope, **_SAID}, weight_decay=estimate_decay(settings, level),
        critical_batch_tokens=_predict_critical(family, fit, target, level, rng),
        warnings=(*fit.warnings, *warn_range(fit, target), *loss_warnings, *warn_shade(settings, rate, shade)),
    )  # fmt: skip


_SAID: Mapping[str, str] = {
    "settings_interval": "of the optimum of one new cell",
    "loss_interval": "of one new well-tuned run: the law, the scatter of runs, and drift beyond the largest",
}


def require_ok(fit: Fit) -> None:
    """Raises FitError, with the partial fit, for a fit whose status is not ok."""
    if not fit.status.ok:
        raise FitError(fit.status, f"this fit of {fit.law} must not be used to forecast: {fit.message}", fit)


def _choose_loss_fit(fit: Fit, given: Fit | None, is_loss: bool) -> Fit | None:
    if is_loss:
        return fit
    return given if given is not None else fit.loss_fit


def _forecast_loss(
    fit: Fit | None, target: Target, level: float, rng: np.random.Generator
) -> tuple[Estimate | None, tuple[str, ...]]:
    """Loss at the target with drift, or None with the reason."""
    if fit is None:
        return None, ("no law of the loss could be fitted to these runs: the loss is not predicted",)
    law = get_law(fit.law)
    if not isinstance(law, LossLaw):
        raise ValueError(f"loss_fit must be a fit of a law of the loss; got {fit.law}")
    require_ok(fit)
    if isinstance(law, MixtureLaw):
        law.require_domains(fit, target)
    off = _leaves_path(fit, target)
    if off:
        return None, (off,)
    draws = draw_loss(law, fit, target, rng)
    value = float(law.predict_loss(fit.values[None, :], target)[0])
    return Estimate.from_draws(draws, level, value=value, unit="nats"), fit.warnings


def draw_loss(law: LossLaw, fit: Fit, target: Target, rng: np.random.Generator, count: int = NEW_RUNS) -> FloatArray:
    """Draws of the loss of `count` new runs: the law's uncertainty, the scatter of runs, and drift beyond the largest.

    Every new run has a scatter and a drift of its own, and the draws of the law come in random order: those of two fits
    with one seed would otherwise move together.
    """
    rows = rng.permutation(np.arange(count) % len(fit.draws))
    spread = spread_beyond(fit, fit.evidence.compare_compute(target))
    return np.asarray(law.predict_loss(fit.draws, target)[rows] * np.exp(spread * rng.standard_normal(count)))


def spread_beyond(fit: Fit, compute_ratio: float) -> float:
    """Standard deviation of ln loss of one new run around the law: scatter of runs, and drift beyond the largest."""
    reach = max(float(np.log(compute_ratio)), 0.0)
    return float(np.hypot(fit.scatter_log, fit.drift_log_per_efold * reach))


def _leaves_path(fit: Fit, target: Target) -> str:
    """Why a law in one scale does not hold at the target, or an empty string."""
    if not fit.law.startswith("power_law_") or fit.evidence.horizon_path is None:
        return ""
    expected = _expect_tokens(fit, target)
    if fit.law == "power_law_tokens":
        fixed = fit.evidence.params[1]
        if abs(np.log(target.params_non_embedding / fixed)) <= OFF_PATH:
            return ""
        return f"the loss is not predicted: {fit.law} was fitted at N = {fixed:.4g}, the target has another size"
    if abs(np.log(target.tokens / expected)) <= OFF_PATH:
        return ""
    return (
        f"the loss is not predicted: {fit.law} was fitted where D = {expected:.4g} at this size, and the target has "
        f"D = {target.tokens:.4g}; vary the horizon and fit chinchilla"
    )


def _expect_tokens(fit: Fit, target: Target) -> float:
    """The horizon that the rule of the runs gives at the target's size."""
    assert fit.evidence.horizon_path is not None
    intercept, slope = fit.evidence.horizon_path
    return float(np.exp(intercept + slope * np.log(target.params_non_embedding)))


def _predict_critical(
    family: Law[Any], fit: Fit, target: Target, level: float, rng: np.random.Generator
) -> Estimate | None:
    return family.predict_critical_batch(fit, target, level, rng) if isinstance(family, CriticalBatchLaw) else None


def _in_sequences(batch: Estimate | None, target: Target) -> Estimate | None:
    if batch is None or target.seq_len is None:
        return None
    return batch.scaled(1 / target.seq_len, "sequences")


def measure_extrapolation(evidence: Evidence, target: Target) -> dict[str, float | None]:
    """Target over the largest observed."""
    return {
        "params": target.params_non_embedding / evidence.params[1],
        "tokens": target.tokens / evidence.tokens[1],
        "compute": evidence.compare_compute(target),
    }


def warn_range(fit: Fit, target: Target) -> list[str]:
    """Warnings about reach and conventions."""
    far = {name: ratio for name, ratio in measure_extrapolation(fit.evidence, target).items() if ratio and ratio > FAR}
    warnings = [f"the target has {ratio:.3g} times the {name} of the largest run" for name, ratio in far.items()]
    if fit.evidence.params_convention != "non_embedding":
        warnings.append(f"the runs count parameters as {fit.evidence.params_convention}; give the target's likewise")
    if fit.evidence.horizon_path is not None:
        ratio = target.tokens / _expect_tokens(fit, target)
        if abs(np.log(ratio)) > OFF_PATH:
            warnings.append(
                f"the target's horizon is {ratio:.3g} times what the runs' rule gives at its size, and the effect of "
                "that is unknown"
            )
    return warnings
