"""Sweeps that hold the further laws of settings: against compute, the Power scheduler, weight decay, critical batch."""

from __future__ import annotations

import numpy as np

from planting import Planted
from planting.basics import lift
from scalelaws import Observations, Target

SKEW, CURVATURE, BATCH_CURVATURE = 1.5, 0.03, 0.014
SIZES = np.geomspace(1e7, 1e9, 4)
HORIZONS = np.geomspace(4e8, 4e10, 4)


def find_floor(params: float, tokens: float) -> float:
    """The planted loss of a tuned run."""
    return float(1.7 + 400 * params**-0.34 + 1100 * tokens**-0.3)


def sweep(best: float, steps: np.ndarray) -> np.ndarray:
    """Powers of two around an optimum that lies between them."""
    return np.asarray(2.0 ** np.round(np.log2(best)) * 2.0**steps)


def plant_compute(noise: float, seed: int) -> Observations:
    """lr* = 0.3 C^-.125 and B* = 0.3 C^.33 at 20 tokens per parameter, 6 rates x 5 batches in five cells."""
    rng, rows = np.random.default_rng(seed), []
    for n in np.geomspace(2e7, 2e9, 5):
        d, compute = 20 * n, 120 * n * n
        best_lr, best_batch = 0.3 * compute**-0.125, 0.3 * compute**0.33
        for lr in sweep(best_lr, np.arange(-3, 3)):
            for batch in sweep(best_batch, np.arange(-2, 3)):
                x, z = np.log(lr / best_lr), np.log(batch / best_batch)
                excess = lift(x, SKEW, CURVATURE) + 0.5 * BATCH_CURVATURE * z * z
                rows.append((n, d, find_floor(n, d) * np.exp(excess + noise * rng.standard_normal()), lr, batch))
    n, d, loss, lr, batch = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)


def plant_schedule(noise: float, seed: int, power: float = 1.0) -> Observations:
    """lr* = .002 B^power D^-.5 whatever the size, each cell with a batch of its own."""
    rng, rows = np.random.default_rng(seed), []
    for i, n in enumerate(SIZES[:3]):
        for j, d in enumerate(HORIZONS):
            batch = 2.0 ** (17 + (i + j) % 3)
            best = 0.002 * batch**power * d**-0.5 * 1e5 ** (1 - power)
            for lr in sweep(best, np.arange(-3, 4)):
                excess = lift(np.log(lr / best), SKEW, CURVATURE)
                rows.append((n, d, find_floor(n, d) * np.exp(excess + noise * rng.standard_normal()), lr, batch))
    n, d, loss, lr, batch = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)


def plant_decay(noise: float, seed: int, pairs: int = 2) -> Observations:
    """tau* = 1.084 (D / N)^-.527 at four sizes and three ratios, one or two pairs of rate and batch each."""
    rng, rows = np.random.default_rng(seed), []
    for n in SIZES:
        for ratio in (10.0, 40.0, 160.0):
            for rate, batch in ((1e-2, 2.0**18), (5e-3, 2.0**19))[:pairs]:
                d = ratio * n
                best = batch / (rate * 1.084 * ratio**-0.527 * d)
                for decay in sweep(best, np.arange(-3, 4)):
                    excess = lift(np.log(decay / best), 0.5, CURVATURE)
                    loss = find_floor(n, d) * np.exp(excess + noise * rng.standard_normal())
                    rows.append((n, d, loss, rate, batch, decay))
    n, d, loss, lr, batch, decay = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch, covariates={"weight_decay": decay})


def plant_transferred(noise: float, seed: int) -> Observations:
    """lr* = 20 D^-.32 and B* = 30 D^.4 whatever the size, 6 rates x 3 batches in nine cells."""
    rng, rows = np.random.default_rng(seed), []
    for n in SIZES[:3]:
        for d in HORIZONS[:3]:
            best_lr, best_batch = 20 * d**-0.32, 30 * d**0.4
            for lr in sweep(best_lr, np.arange(-3, 3)):
                for batch in sweep(best_batch, np.arange(-1, 2)):
                    x, z = np.log(lr / best_lr), np.log(batch / best_batch)
                    excess = lift(x, SKEW, CURVATURE) + 0.5 * BATCH_CURVATURE * z * z
                    rows.append((n, d, find_floor(n, d) * np.exp(excess + noise * rng.standard_normal()), lr, batch))
    n, d, loss, lr, batch = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)


def find_fewest_tokens(tokens: float, batch: float) -> float:
    """D_min of D = D_min (1 + B / (50 D_min^.45)), by bisection of its logarithm."""
    low, high = np.log(tokens) - 20, np.log(tokens)
    for _ in range(80):
        middle = (low + high) / 2
        needed = middle + np.log1p(batch / (50 * np.exp(0.45 * middle)))
        low, high = (middle, high) if needed < np.log(tokens) else (low, middle)
    return float(np.exp((low + high) / 2))


def plant_critical(noise: float, seed: int, smallest: int = 16) -> Observations:
    """B_crit = 50 D_min^.45: the loss of a run is that of D_min tokens in small batches."""
    rng, rows = np.random.default_rng(seed), []
    for n in np.geomspace(5e7, 5e8, 3):
        for d in np.geomspace(1e9, 3e10, 4):
            for batch in 2.0 ** np.arange(smallest, smallest + 8):
                loss = find_floor(n, find_fewest_tokens(d, batch))
                rows.append((n, d, loss * np.exp(noise * rng.standard_normal()), batch))
    n, d, loss, batch = np.array(rows).T
    return Observations(n, d, loss, batch_tokens=batch)


COMPUTE_TARGET = Target(2e8, 4e9)
SCHEDULE_TARGET = Target(1e8, 4e9, 2048, covariates={"batch_tokens": 2.0**18})
DECAY_TARGET = Target(1e8, 4e9, covariates={"peak_lr": 1e-2, "batch_tokens": 2.0**18})

PLANTED: dict[str, Planted] = {
    "lr_batch_compute": Planted(
        plant_compute, {"lr_coefficient": 0.3, "lr_exponent_compute": -0.125, "batch_exponent_compute": 0.33},
        3e-4, COMPUTE_TARGET, find_floor(2e8, 4e9), recovers=0.05,
    ),
    "lr_transferred": Planted(
        plant_transferred,
        {"lr_coefficient": 20.0, "lr_exponent_tokens": -0.32, "batch_coefficient": 30.0, "batch_exponent_tokens": 0.4},
        3e-4, Target(2e8, 1e10), find_floor(2e8, 1e10), recovers=0.2,
    ),
    "power_schedule": Planted(
        lambda noise, seed: plant_schedule(noise, seed),
        {"schedule_coefficient": 0.002, "schedule_exponent_tokens": -0.5}, 3e-4, SCHEDULE_TARGET, find_floor(1e8, 4e9),
        recovers=0.15,
    ),
    "power_schedule_sqrt": Planted(
        lambda noise, seed: plant_schedule(noise, seed, 0.5),
        {"schedule_coefficient": 0.002 * 1e5**0.5, "schedule_exponent_tokens": -0.5}, 3e-4, SCHEDULE_TARGET,
        find_floor(1e8, 4e9), recovers=0.15,
    ),
    "weight_decay": Planted(
        lambda noise, seed: plant_decay(noise, seed),
        {"timescale_coefficient": 1.084, "timescale_exponent_tokens_per_param": -0.527},
        3e-4, DECAY_TARGET, find_floor(1e8, 4e9), recovers=0.02,
    ),
    "critical_batch": Planted(
        lambda noise, seed: plant_critical(noise, seed),
        {"critical_coefficient": 50.0, "critical_exponent_tokens": 0.45}, 3e-4, Target(2e8, 1e10),
        recovers=0.02,
    ),
}  # fmt: skip
