"""Sweeps and tuned runs that hold the laws of settings and the sums of powers."""

from __future__ import annotations

import numpy as np

from planting import Planted
from scalelaws import Observations, Target

E, A, B, ALPHA, BETA = 1.7, 400.0, 1100.0, 0.34, 0.3
"""The planted loss: E + A / N^ALPHA + B / D^BETA."""
LR, LR_N, LR_D, BATCH, BATCH_D = 2.0, -0.35, 0.1, 30.0, 0.4
"""The planted optimum: LR N^LR_N D^LR_D and BATCH D^BATCH_D."""


def lift(x: np.ndarray, skew: float, curvature: float) -> np.ndarray:
    """Excess ln loss of an asymmetric basin whose minimum is at x = 0."""
    if skew == 0:
        return 0.5 * curvature * x * x
    return curvature * (np.expm1(skew * x) - skew * x) / skew**2


def plant_loss(sizes: int = 6, horizons: int = 6, noise: float = 0.0, seed: int = 0) -> Observations:
    """Tuned runs on a grid of sizes and horizons."""
    n, d = np.meshgrid(np.geomspace(1e7, 3e9, sizes), np.geomspace(1e9, 1e11, horizons))
    n, d = n.ravel(), d.ravel()
    loss = E + A * n**-ALPHA + B * d**-BETA
    return Observations(n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n))))


def plant_settings(
    sizes: int = 3,
    horizons: int = 3,
    *,
    batches: int = 1,
    noise: float = 3e-4,
    scatter: float = 0.0,
    seed: int = 0,
    tie: bool = False,
) -> Observations:
    """Sweeps with basins of skew 1.5 around the planted optimum; `scatter` moves the optimum of each cell."""
    rng, rows = np.random.default_rng(seed), []
    for n in np.geomspace(1e7, 1e7 * 4.0 ** (sizes - 1), sizes):
        for d in [20 * n] if tie else np.geomspace(4e8, 4e8 * 4.0 ** (horizons - 1), horizons):
            shift = scatter * rng.standard_normal()
            best_lr, best_batch = np.exp(shift) * LR * n**LR_N * d**LR_D, BATCH * d**BATCH_D
            middle = 2.0 ** np.round(np.log2(best_lr))
            steps = [0.0] if batches == 1 else np.arange(batches) - batches // 2
            for lr in middle * 2.0 ** np.arange(-3, 3):
                for batch in 2.0 ** np.round(np.log2(best_batch)) * 2.0 ** np.asarray(steps):
                    z = np.log(batch / best_batch) if batches > 1 else 0.0
                    excess = lift(np.log(lr / best_lr), 1.5, 0.03) + 0.5 * 0.014 * z * z
                    loss = E + A * n**-ALPHA + B * d**-BETA
                    rows.append((n, d, loss * np.exp(excess + noise * rng.standard_normal()), lr, batch))
    n, d, loss, lr, batch = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)


def plant_power(variable: str, noise: float, seed: int) -> Observations:
    """Thirty runs along one scale with L = 1.9 + 200 / x^.28."""
    x = np.geomspace(1e8, 1e11, 30)
    loss = (1.9 + 200 * x**-0.28) * np.exp(noise * np.random.default_rng(seed).standard_normal(30))
    fixed = np.full(30, 1e9)
    if variable == "params":
        return Observations(x, fixed, loss)
    if variable == "tokens":
        return Observations(fixed, x, loss)
    return Observations(fixed, x / 6e9, loss, compute_flops=x)


_AT = 1e10
_POWER = {"E": 1.9, "A": 200.0, "alpha": 0.28}
_ON_POWER = 1.9 + 200 * _AT**-0.28
_SETTINGS = {
    "lr_exponent_params": LR_N,
    "lr_exponent_tokens": LR_D,
    "batch_exponent_tokens": BATCH_D,
    "lr_coefficient": LR,
    "batch_coefficient": BATCH,
}
PLANTED = {
    "response_surface": Planted(
        lambda noise, seed: plant_settings(batches=5, noise=noise, seed=seed),
        {"lr_exponent_params": LR_N, "lr_exponent_tokens": LR_D, "batch_exponent_tokens": BATCH_D}, 3e-4,
        Target(4e7, 1.6e9), E + A * 4e7**-ALPHA + B * 1.6e9**-BETA, recovers=0.1,
    ),
    "lr_batch": Planted(
        lambda noise, seed: plant_settings(batches=3, noise=noise, seed=seed), _SETTINGS, 3e-4, Target(4e7, 1.6e9),
        E + A * 4e7**-ALPHA + B * 1.6e9**-BETA, recovers=0.3,
    ),
    "chinchilla": Planted(
        lambda noise, seed: plant_loss(8, 8, noise, seed), {"E": E, "A": A, "B": B, "alpha": ALPHA, "beta": BETA}, 1e-4,
        Target(3e8, 2e10), E + A * 3e8**-ALPHA + B * 2e10**-BETA, recovers=0.05,
    ),
    "power_law_params": Planted(
        lambda noise, seed: plant_power("params", noise, seed), _POWER, 1e-4, Target(_AT, 1e9), _ON_POWER
    ),
    "power_law_tokens": Planted(
        lambda noise, seed: plant_power("tokens", noise, seed), _POWER, 1e-4, Target(1e9, _AT), _ON_POWER
    ),
    "power_law_compute": Planted(
        lambda noise, seed: plant_power("compute", noise, seed), _POWER, 1e-4,
        Target(1e9, _AT / 6e9, compute_flops=_AT), _ON_POWER,
    ),
}  # fmt: skip
