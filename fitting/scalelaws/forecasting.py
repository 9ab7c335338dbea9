"""A fit (or a published law) and a target -> a forecast with its interval and how far it reaches.

Legend: N parameters, D tokens, C training FLOPs; C = 6ND unless the target says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalelaws.basins import bend
from scalelaws.laws import (
    Chinchilla,
    LossLaw,
    PublishedLoss,
    PublishedSettings,
    SettingsDraws,
    SettingsLaw,
    get_law,
)
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, FloatArray
from scalelaws.results import Allocation, Estimate, Evidence, Fit, FitError, Forecast, Status, Target

FAR = 10.0
"""Beyond ten times the largest run a forecast carries a warning."""
OFF_PATH = float(np.log(1.25))
"""Assumption: a law in one scale holds for targets within 25 % of its runs' horizon rule (fixed D, or D per N)."""
WORST_EXCESS = 1.0
"""Excess ln loss is cut here in averages: training that broke down is not made worse by the shape's exponential."""
PUBLISHED_MESSAGE = Status.PUBLISHED.value


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
    return _forecast_published(law, target, 0.9 if level is None else level)


def allocate(law: Fit | PublishedLoss, compute_flops: float) -> Allocation:
    """The split of a budget C = 6ND that minimises the loss (closed form, Hoffmann et al. 2022, equation 4)."""
    if not (np.isfinite(compute_flops) and compute_flops > 0):
        raise ValueError(f"compute_flops must be positive and finite; got {compute_flops}")
    if isinstance(law, PublishedLoss):
        point = split_compute(law.values, compute_flops)
        return _published_allocation(law, compute_flops, [float(part[0]) for part in point])
    if not isinstance(law, Fit):
        raise ValueError("allocate needs a law of the loss in N and D, for example hoffmann or besiroglu")
    held = law if law.law == Chinchilla().name else law.loss_fit
    if held is None or held.law != Chinchilla().name:
        raise ValueError(f"allocate needs a law in N and D, and {law.law} is not one; fit chinchilla to these runs")
    _require_ok(held)
    return _fitted_allocation(held, compute_flops)


def split_compute(values: FloatArray, compute_flops: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """N, D and loss at the optimum for each row (E, A, B, alpha, beta)."""
    _, a, b, alpha, beta = values.T
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        params = ratio * (compute_flops / FLOPS_PER_PARAM_TOKEN) ** (beta / (alpha + beta))
        tokens = compute_flops / FLOPS_PER_PARAM_TOKEN / params
        return params, tokens, values[:, 0] + a * params**-alpha + b * tokens**-beta


def _forecast_fit(fit: Fit, target: Target, loss_fit: Fit | None, level: float, shade: bool, seed: int) -> Forecast:
    _require_ok(fit)
    family, rng = get_law(fit.law), np.random.default_rng(seed)
    settings = None
    if isinstance(family, SettingsLaw):
        settings = family.predict_settings(fit, target, rng)
    loss_source = _choose_loss_fit(fit, loss_fit, isinstance(family, LossLaw))
    loss, loss_warnings = _forecast_loss(loss_source, target, level, rng)
    rate = _recommend(settings, level, shade) if settings is not None else None
    batch = _estimate_batch(settings, level)
    return Forecast(
        target=target, peak_lr=rate, batch_tokens=batch, batch_sequences=_in_sequences(batch, target), loss=loss,
        regret=_estimate_regret(settings, rate, batch, level), level=level,
        extrapolation=measure_extrapolation(fit.evidence, target), law=fit.law, status=fit.status, message=fit.message,
        evidence=fit.evidence, scope={**fit.scope, **_SAID},
        warnings=(*fit.warnings, *_warn_range(fit, target), *loss_warnings, *_warn_shade(settings, rate, shade)),
    )  # fmt: skip


_SAID: Mapping[str, str] = {
    "settings_interval": "of the optimum of one new cell",
    "loss_interval": "of one new well-tuned run: the law, the scatter of runs, and drift beyond the largest",
}


def _require_ok(fit: Fit) -> None:
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
    _require_ok(fit)
    off = _leaves_path(fit, target)
    if off:
        return None, (off,)
    draws = law.predict_loss(fit.draws, target)
    draws = draws * np.exp(_spread_beyond(fit, fit.evidence.compare_compute(target)) * rng.standard_normal(len(draws)))
    value = float(law.predict_loss(fit.values[None, :], target)[0])
    return Estimate.from_draws(draws, level, value=value, unit="nats"), fit.warnings


def _spread_beyond(fit: Fit, compute_ratio: float) -> float:
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


def _recommend(settings: SettingsDraws, level: float, shade: bool) -> Estimate:
    middle = float(np.median(settings.ln_peak_lr))
    if shade:
        middle = _shade(settings, middle)
    return Estimate.from_draws(np.exp(settings.ln_peak_lr), level, value=float(np.exp(middle)))


def _shade(settings: SettingsDraws, middle: float) -> float:
    """The ln learning rate of least expected excess loss."""
    offsets = np.linspace(-1.5, 0.5, 201) * max(float(np.std(settings.ln_peak_lr)), 1e-6)
    expected = [_excess_rate(settings, middle + offset).mean() for offset in offsets]
    return middle + float(offsets[int(np.argmin(expected))])


def _excess_rate(settings: SettingsDraws, ln_lr: float) -> FloatArray:
    """Excess ln loss at a learning rate, for each draw of the optimum."""
    with np.errstate(over="ignore"):
        excess = settings.lr_curvature * bend(ln_lr - settings.ln_peak_lr, settings.lr_skew)
    return np.asarray(np.minimum(excess, WORST_EXCESS))


def _estimate_batch(settings: SettingsDraws | None, level: float) -> Estimate | None:
    if settings is None or settings.ln_batch_tokens is None:
        return None
    return Estimate.from_draws(np.exp(settings.ln_batch_tokens), level, unit="tokens")


def _in_sequences(batch: Estimate | None, target: Target) -> Estimate | None:
    if batch is None or target.seq_len is None:
        return None
    low, high = (None if bound is None else bound / target.seq_len for bound in (batch.low, batch.high))
    return Estimate(batch.value / target.seq_len, low, high, "sequences")


def _estimate_regret(
    settings: SettingsDraws | None, rate: Estimate | None, batch: Estimate | None, level: float
) -> Estimate | None:
    """Relative loss above the best reachable; the value is the mean over the draws."""
    if settings is None or rate is None:
        return None
    excess = _excess_rate(settings, float(np.log(rate.value)))
    if batch is not None and settings.ln_batch_tokens is not None and settings.batch_curvature is not None:
        gap = np.log(batch.value) - settings.ln_batch_tokens
        excess = np.minimum(excess + 0.5 * settings.batch_curvature * gap**2, WORST_EXCESS)
    regret = np.expm1(excess)
    return Estimate.from_draws(regret, level, value=float(regret.mean()))


def measure_extrapolation(evidence: Evidence, target: Target) -> dict[str, float | None]:
    """Target over the largest observed."""
    return {
        "params": target.params_non_embedding / evidence.params[1],
        "tokens": target.tokens / evidence.tokens[1],
        "compute": evidence.compare_compute(target),
    }


def _warn_range(fit: Fit, target: Target) -> list[str]:
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


def _warn_shade(settings: SettingsDraws | None, rate: Estimate | None, shade: bool) -> tuple[str, ...]:
    if not shade or settings is None or rate is None:
        return ()
    share = 1 - rate.value / float(np.exp(np.median(settings.ln_peak_lr)))
    return (f"the learning rate is shaded {100 * share:.1f} % below the median optimum: too high costs more",)


def _forecast_published(law: PublishedSettings | PublishedLoss, target: Target, level: float) -> Forecast:
    rate = batch = loss = None
    if isinstance(law, PublishedSettings):
        rate, batch = Estimate(law.peak_lr(target)), Estimate(law.batch_tokens(target), unit="tokens")
    else:
        loss = Estimate(law.predict_loss(target), unit="nats")
    return Forecast(
        target=target, peak_lr=rate, batch_tokens=batch, batch_sequences=_in_sequences(batch, target), loss=loss,
        regret=None, level=level, extrapolation=_published_reach(law, target), law=law.name, status=Status.PUBLISHED,
        message=PUBLISHED_MESSAGE, evidence=None, scope=law.scope, warnings=tuple(_warn_published(law, target)),
    )  # fmt: skip


def _published_reach(law: PublishedSettings | PublishedLoss, target: Target) -> dict[str, float | None]:
    at = {"params": target.params_non_embedding, "tokens": target.tokens, "compute": target.compute}
    spans = {"params": law.params_range, "tokens": law.tokens_range, "compute": law.compute_range}
    return {name: None if span is None else at[name] / span[1] for name, span in spans.items()}


def _warn_published(law: PublishedSettings | PublishedLoss, target: Target) -> list[str]:
    warnings = ["published without an interval that can be carried to a target"]
    at = {"params": target.params_non_embedding, "tokens": target.tokens, "compute": target.compute}
    spans = {"params": law.params_range, "tokens": law.tokens_range, "compute": law.compute_range}
    known = {name: span for name, span in spans.items() if span is not None}
    if not known:
        warnings.append("the range of the runs behind this law is not recorded: treat any target as extrapolation")
    for name, (low, high) in known.items():
        if not low <= at[name] <= high:
            warnings.append(f"{name} {at[name]:.3g} lies outside of the fitted range, {low:.3g} to {high:.3g}")
    if law.compute_convention == "M D" and target.compute_flops is None:
        warnings.append("the law counts compute as M D with attention; 6ND was used: give compute_flops to be exact")
    return warnings


def _fitted_allocation(fit: Fit, compute_flops: float) -> Allocation:
    parts = split_compute(fit.draws, compute_flops)
    point = [float(part[0]) for part in split_compute(fit.values[None, :], compute_flops)]
    usable = np.asarray(np.isfinite(np.stack(parts)).all(axis=0) & (fit.draws[:, 3:] > 0).all(axis=1))
    params, tokens, loss = (part[usable] for part in parts)
    spread = np.random.default_rng(0).standard_normal(len(loss)) * _spread_beyond(
        fit, compute_flops / fit.evidence.largest_6nd
    )
    at = Target(point[0], point[1], compute_flops=compute_flops)
    warnings = list(_warn_range(fit, at))
    if not usable.all():
        warnings.append(f"{int((~usable).sum())} of {len(usable)} draws have an exponent <= 0 and were left out")
    level = fit.level
    return Allocation(
        compute_flops, Estimate.from_draws(params, level, value=point[0]),
        Estimate.from_draws(tokens, level, value=point[1], unit="tokens"),
        Estimate.from_draws(tokens / params, level, value=point[1] / point[0]),
        Estimate.from_draws(loss * np.exp(spread), level, value=point[2], unit="nats"), level,
        measure_extrapolation(fit.evidence, at), fit.law, fit.status, fit.message,
        {**fit.scope, "compute_convention": "6ND"}, (*fit.warnings, *warnings),
    )  # fmt: skip


def _published_allocation(law: PublishedLoss, compute_flops: float, point: list[float]) -> Allocation:
    params, tokens, loss = point
    at = Target(params, tokens, compute_flops=compute_flops)
    return Allocation(
        compute_flops, Estimate(params), Estimate(tokens, unit="tokens"), Estimate(tokens / params),
        Estimate(loss, unit="nats"), 0.9, _published_reach(law, at), law.name, Status.PUBLISHED, PUBLISHED_MESSAGE,
        law.scope, tuple(_warn_published(law, at)),
    )  # fmt: skip
