"""What to train with: from draws of the optimum at a target to recommended settings, intervals and expected regret.

Legend: x, z ln learning rate and ln batch less those of a draw's optimum; phi, K, k, rho as in `surfaces`
    excess ln loss = K_1 phi_k1(x - rho_1 z) + K_2 phi_k2(z - rho_2 x)     (without batches the first term)
"""

from __future__ import annotations

import numpy as np

from scalelaws.laws.base import SettingsDraws
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate
from scalelaws.sweeps.basins import bend

WORST_EXCESS = 1.0
"""Excess ln loss is cut here in averages: training that broke down is not made worse by the shape's exponential."""
SHADES = np.linspace(-1.5, 1.0, 101)
"""Offsets from the median that are tried, in standard deviations of the draws."""
SHADE_ROUNDS = 3
"""Rounds in which the learning rate and the batch are shaded in turn."""


def recommend(settings: SettingsDraws, level: float, shade: bool) -> tuple[Estimate, Estimate | None]:
    """Learning rate and batch: medians of the draws, or the point of least expected excess; with their intervals."""
    rate, batch = shade_settings(settings) if shade else find_middle(settings)
    lr = Estimate.from_draws(np.exp(settings.ln_peak_lr), level, value=float(np.exp(rate)))
    if settings.ln_batch_tokens is None or batch is None:
        return lr, None
    draws = np.exp(settings.ln_batch_tokens)
    return lr, Estimate.from_draws(draws, level, value=float(np.exp(batch)), unit="tokens")


def find_middle(settings: SettingsDraws) -> tuple[float, float | None]:
    """Medians of ln learning rate and ln batch."""
    batch = settings.ln_batch_tokens
    return float(np.median(settings.ln_peak_lr)), None if batch is None else float(np.median(batch))


def shade_settings(settings: SettingsDraws) -> tuple[float, float | None]:
    """ln learning rate and ln batch of least expected excess loss."""
    rate, batch = find_middle(settings)
    for _ in range(SHADE_ROUNDS if batch is not None else 1):
        rates = find_middle(settings)[0] + SHADES * max(float(np.std(settings.ln_peak_lr)), 1e-6)
        rate = float(rates[np.argmin([measure_excess(settings, item, batch).mean() for item in rates])])
        if batch is not None and settings.ln_batch_tokens is not None:
            batches = np.median(settings.ln_batch_tokens) + SHADES * max(float(np.std(settings.ln_batch_tokens)), 1e-6)
            batch = float(batches[np.argmin([measure_excess(settings, rate, item).mean() for item in batches])])
    return rate, batch


def measure_excess(settings: SettingsDraws, ln_lr: float, ln_batch: float | None) -> FloatArray:
    """Excess ln loss at a learning rate (and a batch), for each draw of the optimum."""
    x = ln_lr - settings.ln_peak_lr
    with np.errstate(over="ignore", invalid="ignore"):
        if ln_batch is None or settings.ln_batch_tokens is None or settings.batch_curvature is None:
            return np.asarray(np.minimum(settings.lr_curvature * bend(x, settings.lr_skew), WORST_EXCESS))
        z = ln_batch - settings.ln_batch_tokens
        along_lr, along_batch = x - _or_zero(settings.lr_shear) * z, z - _or_zero(settings.batch_shear) * x
        excess = settings.lr_curvature * bend(along_lr, settings.lr_skew)
        excess = excess + settings.batch_curvature * bend(along_batch, _or_zero(settings.batch_skew))
        return np.asarray(np.minimum(excess, WORST_EXCESS))


def _or_zero(values: FloatArray | None) -> FloatArray | float:
    return 0.0 if values is None else values


def estimate_decay(settings: SettingsDraws | None, level: float) -> Estimate | None:
    """Weight decay with its interval, where the law gives one."""
    if settings is None or settings.ln_weight_decay is None:
        return None
    return Estimate.from_draws(np.exp(settings.ln_weight_decay), level)


def _excess_decay(settings: SettingsDraws) -> FloatArray:
    """Excess ln loss at the median weight decay, for each draw of the optimum; 0 where the law gives none."""
    if settings.ln_weight_decay is None or settings.weight_decay_curvature is None:
        return np.zeros(1)
    gap = np.median(settings.ln_weight_decay) - settings.ln_weight_decay
    with np.errstate(over="ignore"):
        excess = settings.weight_decay_curvature * bend(gap, _or_zero(settings.weight_decay_skew))
    return np.asarray(np.minimum(excess, WORST_EXCESS))


def estimate_regret(settings: SettingsDraws, rate: Estimate, batch: Estimate | None, level: float) -> Estimate:
    """Relative loss above the best reachable at the recommendation; the value is the mean over the draws."""
    excess = measure_excess(settings, float(np.log(rate.value)), None if batch is None else float(np.log(batch.value)))
    regret = np.expm1(np.minimum(excess + _excess_decay(settings), WORST_EXCESS))
    return Estimate.from_draws(regret, level, value=float(regret.mean()))


def warn_shade(settings: SettingsDraws | None, rate: Estimate | None, shade: bool) -> tuple[str, ...]:
    """By how much the recommended learning rate lies below the median optimum."""
    if not shade or settings is None or rate is None:
        return ()
    share = 1 - rate.value / float(np.exp(np.median(settings.ln_peak_lr)))
    return (f"the learning rate is shaded {100 * share:.1f} % below the median optimum: too high costs more",)
