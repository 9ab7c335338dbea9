"""Planted truths of the further laws of the loss. The losses are written out here, apart from the laws' own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from planting import Planted
from scalelaws import Observations, Target

KAPLAN = {"N_c": 4e13, "D_c": 2e13, "alpha_N": 0.08, "alpha_D": 0.1}
AVERAGE = {"E": 1.7, "A": 400.0, "B": 1100.0, "alpha": 0.34, "beta": 0.3}
REPETITION = {"E": 1.7, "A": 400.0, "B": 1100.0, "alpha": 0.34, "beta": 0.31, "R_D": 11.0, "R_N": 4.0}
BROKEN = {"a": 1.6, "b": 900.0, "c_0": 0.15, "d_1": 2e20, "f_1": 0.4, "c_1": -0.08}
LEVERAGE = {"E": 1.6, "K": 700.0, "g": 0.145, "a": 1.1, "d": -0.06, "beta": -0.14, "gamma": 0.02, "A_s": 0.02}
TRAJECTORY = {"N_c": 3e13, "alpha_N": 0.085, "S_c": 3e3, "alpha_S": 0.7, "B_star": 1.2e8, "alpha_B": 0.23}


def spread(*axes: np.ndarray) -> list[np.ndarray]:
    """All combinations of the axes, as columns."""
    return [column.ravel() for column in np.meshgrid(*axes, indexing="ij")]


def shake(loss: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))


def kaplan_loss(n, d, truth: Mapping[str, float] = KAPLAN):
    by_size = (truth["N_c"] / n) ** (truth["alpha_N"] / truth["alpha_D"])
    return (by_size + truth["D_c"] / d) ** truth["alpha_D"]


def kaplan_runs(noise: float, seed: int) -> Observations:
    n, d = spread(np.geomspace(1e6, 3e9, 9), np.geomspace(2e7, 4e10, 9))
    return Observations(n, d, shake(kaplan_loss(n, d), noise, seed))


def power_loss(n, d, truth: Mapping[str, float] = AVERAGE):
    return truth["E"] + truth["A"] / n ** truth["alpha"] + truth["B"] / d ** truth["beta"]


def average_runs(noise: float, seed: int) -> Observations:
    """Dense runs, and runs pruned half way to a third of their size."""
    n, d, kept = spread(np.geomspace(1e7, 3e9, 7), np.geomspace(1e9, 1e11, 7), np.array([1.0, 1 / 3]))
    average = n * (1 + kept) / 2
    loss = shake(power_loss(average, d), noise, seed)
    return Observations(n * kept, d, loss, compute_flops=6 * average * d, covariates={"params_average": average})


def repeated_loss(n, d, unique, truth: Mapping[str, float] = REPETITION):
    """The law with every case spelt out, one run at a time."""
    e, a, b, alpha, beta, by_repeats, by_surplus = truth.values()
    fresh = min(d, unique)
    tokens = fresh + fresh * by_repeats * (1 - np.exp(-(d / fresh - 1) / by_repeats))
    best = (alpha * a / (beta * b)) ** (1 / alpha) * fresh ** (beta / alpha)
    used = min(n, best)
    params = used + used * by_surplus * (1 - np.exp(-(n / used - 1) / by_surplus))
    return e + a / params**alpha + b / tokens**beta


def repetition_runs(noise: float, seed: int) -> Observations:
    n, unique, passes = spread(np.geomspace(2e7, 5e9, 7), np.geomspace(4e8, 4e10, 4), np.array([1.0, 2, 5, 12, 40]))
    loss = np.array([repeated_loss(*run) for run in zip(n, unique * passes, unique, strict=True)])
    return Observations(n, unique * passes, shake(loss, noise, seed), covariates={"unique_tokens": unique})


def broken_loss(c, truth: Mapping[str, float] = BROKEN):
    floor, scale, first, place, width, change = truth.values()
    return floor + scale * c**-first * (1 + (c / place) ** (1 / width)) ** (-change * width)


def broken_runs(noise: float, seed: int) -> Observations:
    c = np.geomspace(1e17, 1e23, 50)
    return Observations(np.full(50, 1e9), c / 6e9, shake(broken_loss(c), noise, seed), compute_flops=c)


def leveraged_loss(c, ratio, granularity, truth: Mapping[str, float] = LEVERAGE):
    floor, scale, g, a, d, beta, gamma, shift = truth.values()
    octaves = np.log2(granularity)
    gain = (ratio + shift) ** (a + d * np.log10(c) + beta * octaves + gamma * octaves**2)
    return floor + scale / (gain * c) ** g


def leverage_runs(noise: float, seed: int) -> Observations:
    c, ratio, g = spread(np.geomspace(3e17, 1e21, 6), np.array([1, 0.25, 0.1, 0.03, 0.01]), 2.0 ** np.arange(1, 5))
    loss = shake(leveraged_loss(c, ratio, g), noise, seed)
    covariates = {"activation_ratio": ratio, "granularity": g}
    return Observations(np.full(len(c), 1e9), c / 6e9, loss, compute_flops=c, covariates=covariates)


def trajectory_loss(n, batch, steps, truth: Mapping[str, float] = TRAJECTORY):
    """The implicit equation by bisection: what stands on the right falls as the loss rises."""
    n_c, alpha_n, s_c, alpha_s, b_star, alpha_b = truth.values()
    low, high = np.full(np.shape(n), 1e-3), np.full(np.shape(n), 1e6)
    for _ in range(200):
        loss = np.sqrt(low * high)
        right = (n_c / n) ** alpha_n + (s_c * (1 + b_star * loss ** (-1 / alpha_b) / batch) / steps) ** alpha_s
        low, high = np.where(right > loss, loss, low), np.where(right > loss, high, loss)
    return np.sqrt(low * high)


def trajectory_runs(noise: float, seed: int) -> Observations:
    n, batch, steps = spread(np.geomspace(3e6, 2e8, 5), np.geomspace(3e4, 4e6, 5), np.geomspace(2e3, 1e5, 6))
    loss = shake(trajectory_loss(n, batch, steps), noise, seed)
    label = tuple(f"{size:.3g}/{tokens:.3g}" for size, tokens in zip(n, batch, strict=True))
    return Observations(n, batch * steps, loss, batch_tokens=batch, label=label, covariates={"steps": steps})


def plant(
    runs: Callable[[float, int], Observations], truth: Mapping[str, float], target: Target, response: float
) -> Planted:
    return Planted(runs, truth, 2e-3, target, float(response))


PLANTED: dict[str, Planted] = {
    "kaplan": plant(kaplan_runs, KAPLAN, Target(2e8, 3e9), kaplan_loss(2e8, 3e9)),
    "average_params": plant(
        average_runs, AVERAGE, Target(2e8, 2e10, covariates={"params_average": 4e8}), power_loss(4e8, 2e10)
    ),
    "repetition": plant(
        repetition_runs,
        REPETITION,
        Target(1e9, 4e10, covariates={"unique_tokens": 5e9}),
        repeated_loss(1e9, 4e10, 5e9),
    ),
    "broken_power_law_compute": plant(broken_runs, BROKEN, Target(1e9, 5e10, compute_flops=3e20), broken_loss(3e20)),
    "efficiency_leverage": plant(
        leverage_runs,
        LEVERAGE,
        Target(1e9, 1e10, compute_flops=1e20, covariates={"activation_ratio": 0.05, "granularity": 6.0}),
        leveraged_loss(1e20, 0.05, 6.0),
    ),
    "trajectory": plant(
        trajectory_runs,
        TRAJECTORY,
        Target(5e7, 2e10, covariates={"batch_tokens": 5e5, "steps": 4e4}),
        trajectory_loss(5e7, 5e5, 4e4),
    ),
}
