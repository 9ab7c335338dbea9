"""Planted scores: the truths of the laws in `scalelaws.laws.downstream`; noise is that of the score, not of ln loss."""

from __future__ import annotations

import numpy as np

from planting import Planted
from scalelaws import Observations, Target

SIGMOID = {"floor": 0.25, "gain": 0.62, "k": 4.5, "L0": 1.1}
STEP = {"floor": 0.25, "gain": 0.6, "offset": 3.0, "A": 1.2, "alpha": 0.36, "B": 1.6, "beta": 0.28}
COMPUTE = {"floor": 0.25, "gain": 0.6, "offset": 2.5, "A": 2.5, "alpha": 0.3}


def squash(z):
    return 1 / (1 + np.exp(-z))


def grid(sizes: int = 16, horizons: int = 16) -> tuple[np.ndarray, np.ndarray]:
    n, d = np.meshgrid(np.geomspace(1e6, 1e11, sizes), np.geomspace(1e8, 1e13, horizons))
    return n.ravel(), d.ravel()


def task_loss(n, d):
    return 0.55 + 90 * n**-0.3 + 250 * d**-0.3


def give(n, d, score, noise: float, seed: int) -> Observations:
    """Runs whose score has that noise and whose loss is exact."""
    noisy = score + noise * np.random.default_rng(seed).standard_normal(len(n))
    return Observations(n, d, task_loss(n, d), covariates={"score": np.clip(noisy, 0, 1)})


def sigmoid_score(loss):
    p = SIGMOID
    return p["floor"] + p["gain"] * squash(p["k"] * (p["L0"] - loss))


def step_score(n, d):
    p = STEP
    z = p["offset"] - p["A"] * (n / 1e9) ** -p["alpha"] - p["B"] * (d / 2e10) ** -p["beta"]
    return p["floor"] + p["gain"] * squash(z)


def compute_score(c):
    p = COMPUTE
    return p["floor"] + p["gain"] * squash(p["offset"] - p["A"] * (c / 1e20) ** -p["alpha"])


def plant_sigmoid(noise: float = 0.0, seed: int = 0) -> Observations:
    n, d = grid()
    return give(n, d, sigmoid_score(task_loss(n, d)), noise, seed)


def plant_step(noise: float = 0.0, seed: int = 0) -> Observations:
    n, d = grid()
    return give(n, d, step_score(n, d), noise, seed)


def plant_compute(noise: float = 0.0, seed: int = 0) -> Observations:
    n = np.geomspace(1e7, 3e11, 120)
    return give(n, 20 * n, compute_score(120 * n**2), noise, seed)


PLANTED = {
    "score_sigmoid": Planted(plant_sigmoid, SIGMOID, 0.005),
    "score_single_step": Planted(plant_step, STEP, 0.005, Target(3e9, 3e11), float(step_score(3e9, 3e11))),
    "score_compute": Planted(plant_compute, COMPUTE, 0.005, Target(3e9, 6e10), float(compute_score(1.08e21))),
}
"""`score_sigmoid` reads the task loss: of a target alone it says nothing; `predict_score` joins it with a loss law."""
