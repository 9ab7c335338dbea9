"""Planted laws of the mixture: three domains, the loss written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from planting import Planted
from scalelaws import Observations, Target

DOMAINS = ("books", "code", "web")
MIDDLE = {"books": 0.3, "code": 0.2, "web": 0.5}
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Shares (n, 3), parameters / 1e8 (n,), tokens / 1e9 (n,) -> loss (n,)."""


def sample_shares(mixtures: int, seed: int = 1) -> np.ndarray:
    """Shares over the whole simplex, corners included."""
    inside = np.random.default_rng(seed).dirichlet(np.ones(len(DOMAINS)), mixtures - len(DOMAINS))
    return np.vstack([np.eye(len(DOMAINS)), inside])


def observe(loss: Loss, shares: np.ndarray, sizes: list[float], horizons: list[float]) -> Callable[..., Observations]:
    """Runs of every mixture at every size (in 1e8) and horizon (in 1e9)."""
    row, n, d = (grid.ravel() for grid in np.meshgrid(np.arange(len(shares)), sizes, horizons))
    r = shares[row.astype(int)]
    exact = loss(r, n, d)

    def give(noise: float, seed: int) -> Observations:
        error = np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))
        mixture = {name: r[:, j] for j, name in enumerate(DOMAINS)}
        return Observations(n * 1e8, d * 1e9, exact * error, mixture=mixture)

    return give


def plant(
    loss: Loss, truth: Mapping[str, float], shares: np.ndarray, sizes: list[float], horizons: list[float]
) -> Planted:
    middle = np.array([list(MIDDLE.values())])
    target = Target(sizes[-1] * 1e8, horizons[-1] * 1e9, mixture=MIDDLE)
    response = float(loss(middle, np.array(sizes[-1:]), np.array(horizons[-1:]))[0])
    return Planted(observe(loss, shares, sizes, horizons), truth, 1e-3, target, response)


def name(symbol: str, values: np.ndarray) -> dict[str, float]:
    return {f"{symbol}_{domain}": float(value) for domain, value in zip(DOMAINS, values, strict=True)}


def name_own(planted: Planted) -> Planted:
    """The same with the first domain called as a bare bimix calls the one it reads."""

    def rename(mixture: Mapping) -> dict:
        return {"own" if domain == DOMAINS[0] else domain: share for domain, share in mixture.items()}

    def give(noise: float, seed: int) -> Observations:
        runs = planted.runs(noise, seed)
        return replace(runs, mixture=rename(runs.mixture))

    return replace(planted, runs=give, target=replace(planted.target, mixture=rename(planted.target.mixture)))


K, A, B = np.array([0.9, 1.6, 0.5]), np.array([0.4, 0.7, 0.5]), np.array([0.8, 0.3, 0.5])
RETURNS, WORTH, POWERS = np.array([0.12, -0.03, 0.05]), np.array([1.2, 0.4, 0.7]), np.array([0.5, 0.9, 0.4])


def log_linear(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.8 + 0.7 * np.exp(r @ np.log(K / 0.7))


def diminishing(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.8 + np.prod(K**r * (1 + r / 0.02) ** -RETURNS, axis=1)


def bimix(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return r[:, 0] ** -0.08 * (1.1 * d**-0.4 + 2.1)


def nested(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.5 + np.prod(K**r, axis=1) + np.prod(A**r, axis=1) * n**-0.4 + np.prod(B**r, axis=1) * d**-0.35


def additive(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.5 + 1 / (r**POWERS @ WORTH) + 0.5 * n**-0.4 + 0.6 * d**-0.35


def joint(r: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.5 + 1 / (r**POWERS @ WORTH) + (r @ A) ** 1.2 * n**-0.4 + (r @ B) ** 0.8 * d**-0.35


SIZES, HORIZONS = [0.5, 2.0, 8.0, 30.0], [1.0, 4.0, 16.0, 60.0]
EXPONENTS = {"alpha": 0.4, "beta": 0.35}

PLANTED = {
    "log_linear_mixture": plant(log_linear, {"c": 1.8, **name("k", K)}, sample_shares(80), [1.0], [4.0]),
    "diminishing_mixture": plant(
        diminishing, {"c": 1.8, "e": 0.02, **name("k", K), **name("a", RETURNS)}, sample_shares(120), [1.0], [4.0]
    ),
    "bimix": name_own(
        plant(bimix, {"a": 0.08, "B": 1.1, "b": 0.4, "C": 2.1}, 0.02 + 0.94 * sample_shares(20), [1.0], HORIZONS)
    ),
    "nested_mixture": plant(
        nested, {"c": 1.5, **name("k", K), **name("A", A), **name("B", B), **EXPONENTS}, sample_shares(40), SIZES,
        HORIZONS,
    ),
    "additive_mixture": plant(
        additive, {"E": 1.5, **name("C", WORTH), **name("g", POWERS), "A": 0.5, "B": 0.6, **EXPONENTS},
        sample_shares(40), SIZES, HORIZONS,
    ),
    "joint_mixture": plant(
        joint, {
            "E": 1.5, **name("C", WORTH), **name("g", POWERS), **name("A", A), **name("B", B), "gA": 1.2, "gB": 0.8,
            **EXPONENTS,
        },
        sample_shares(40), SIZES, HORIZONS,
    ),
}  # fmt: skip
