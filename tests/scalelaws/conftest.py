"""Planted truths and the folder of published runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import scalelaws
from scalelaws import Observations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def published_runs() -> Callable[[str], pd.DataFrame]:
    """Reads one file of published runs, or skips with the reason."""
    folder = Path(os.environ.get("FORETUNE_PUBLIC_DATA", ROOT.parent / "shared" / "data"))

    def read(name: str) -> pd.DataFrame:
        path = folder / f"{name}.csv"
        if not path.is_file():
            pytest.skip(f"the published runs {path} are not here; set FORETUNE_PUBLIC_DATA to their folder")
        return pd.read_csv(path)

    return read


@pytest.fixture(scope="session")
def fewest_hits() -> Callable[[int], int]:
    """Fewest hits of so many intervals at 90 %, but for a chance of 0.1 %; more hits are caution, not error."""
    return lambda repetitions: int(binom.ppf(0.001, repetitions, 0.9))


def lift(x: np.ndarray, skew: float, curvature: float) -> np.ndarray:
    """Excess ln loss of an asymmetric basin whose minimum is at x = 0."""
    if skew == 0:
        return 0.5 * curvature * x * x
    return curvature * (np.expm1(skew * x) - skew * x) / skew**2


@pytest.fixture
def basin() -> Callable[[np.ndarray, float, float], np.ndarray]:
    return lift


@pytest.fixture
def plant_loss() -> Callable[..., Observations]:
    """Tuned runs on a grid of sizes and horizons with a Chinchilla loss: E 1.7, A 400, B 1100, alpha .34, beta .3."""

    def plant(sizes: int = 6, horizons: int = 6, noise: float = 0.0, seed: int = 0) -> Observations:
        n, d = np.meshgrid(np.geomspace(1e7, 3e9, sizes), np.geomspace(1e9, 1e11, horizons))
        n, d = n.ravel(), d.ravel()
        loss = 1.7 + 400 * n**-0.34 + 1100 * d**-0.3
        loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
        return Observations(n, d, loss)

    return plant


@pytest.fixture
def plant_settings() -> Callable[..., Observations]:
    """Sweeps whose optimum is lr* = 2 N^-.35 D^.1 and, with batches, B* = 30 D^.4; basins of skew 1.5."""

    def plant(
        sizes: int = 3,
        horizons: int = 3,
        *,
        batches: int = 1,
        noise: float = 3e-4,
        scatter: float = 0.0,
        seed: int = 0,
        tie: bool = False,
    ) -> Observations:
        rng, rows = np.random.default_rng(seed), []
        for n in np.geomspace(1e7, 1e7 * 4.0 ** (sizes - 1), sizes):
            for d in [20 * n] if tie else np.geomspace(4e8, 4e8 * 4.0 ** (horizons - 1), horizons):
                shift = scatter * rng.standard_normal()
                best_lr, best_batch = np.exp(shift) * 2 * n**-0.35 * d**0.1, 30 * d**0.4
                middle = 2.0 ** np.round(np.log2(best_lr))
                steps = [0.0] if batches == 1 else np.arange(batches) - batches // 2
                for lr in middle * 2.0 ** np.arange(-3, 3):
                    for batch in 2.0 ** np.round(np.log2(best_batch)) * 2.0 ** np.asarray(steps):
                        z = np.log(batch / best_batch) if batches > 1 else 0.0
                        excess = lift(np.log(lr / best_lr), 1.5, 0.03) + 0.5 * 0.014 * z * z
                        loss = 1.7 + 400 * n**-0.34 + 1100 * d**-0.3
                        rows.append((n, d, loss * np.exp(excess + noise * rng.standard_normal()), lr, batch))
        n, d, loss, lr, batch = np.array(rows).T
        return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)

    return plant


@pytest.fixture
def evidence_for(plant_loss, plant_settings) -> Callable[[str], Observations]:
    """Runs that hold the law of that name."""

    def give(law: str) -> Observations:
        if law == "lr_batch":
            return plant_settings(batches=3)
        if law == "chinchilla":
            return plant_loss(8, 8, noise=1e-4)
        x = np.geomspace(1e8, 1e11, 30)
        noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(30))
        loss = (1.9 + 200 * x**-0.28) * noise
        fixed = np.full(30, 1e9)
        if law == "power_law_params":
            return Observations(x, fixed, loss)
        if law == "power_law_tokens":
            return Observations(fixed, x, loss)
        return Observations(fixed, x / 6e9, loss, compute_flops=x)

    return give


@pytest.fixture
def law_names() -> tuple[str, ...]:
    return tuple(law.name for law in scalelaws.LAWS)
