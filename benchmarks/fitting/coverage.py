"""Coverage of 90 % intervals on simulated truths: 200 truths, 400 resamples each; the law is true and the noise normal.

Truths have exponents from .25 to .45 and noises from .1 to .5 % of the loss, on 7 sizes x 7 horizons (a ladder of 12
sizes for the power law). Counted are the parameters, the law's loss at the largest run and at ten times its
compute (parameters alone), and the loss of a new run there under the forecast, which also allows for drift. The error
is that of the loss at ten times the compute: what an objective loses where the law that it distrusts is true.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from scalelaws import Fit, Observations, Status, Target, fit, forecast, get_law
from scalelaws.laws import LossLaw
from scalelaws.observations import FloatArray

TRUTHS = 200
RESAMPLES = 400
NOISES = (0.001, 0.002, 0.005)
Simulation = Callable[[np.random.Generator, float], tuple[Observations, FloatArray, Target]]


def main(truths: int = TRUTHS) -> None:
    """One line for each law and objective."""
    print(f"{'law':<12} {'objective':<14} {'parameters':>10} {'(least .. most)':>16} {'at largest':>10} "
          f"{'at 10 x C':>10} {'new run':>8} {'error %':>8} {'s each':>7}")  # fmt: skip
    for name, simulate in (("chinchilla", simulate_plane), ("power_law", simulate_ladder)):
        for objective in ("auto", "map", "huber", "lad", "least_squares"):
            started = time.process_time()
            found = [count_hits(name, simulate, objective, seed) for seed in range(truths)]
            hits, error = np.array([item[0] for item in found]), 100 * np.mean([item[1] for item in found])
            shares, seconds = hits.mean(axis=0), (time.process_time() - started) / truths
            parameters = shares[:-3]
            print(f"{name:<12} {objective:<14} {parameters.mean():>10.3f} "
                  f"{parameters.min():>8.3f} .. {parameters.max():.3f} {shares[-3]:>10.3f} {shares[-2]:>10.3f} "
                  f"{shares[-1]:>8.3f} {error:>8.3f} {seconds:>7.2f}", flush=True)  # fmt: skip


def count_hits(name: str, simulate: Simulation, objective: str, seed: int) -> tuple[list[bool], float]:
    """Which intervals of one truth hold: the parameters, the two losses of the law, the loss of a new run; and the
    error of ln loss beyond the runs."""
    rng = np.random.default_rng(seed)
    noise = NOISES[seed % len(NOISES)]
    runs, truth, largest = simulate(rng, noise)
    fitted = fit(name, runs, objective=objective, bootstrap=RESAMPLES, seed=seed, throw=False)
    law = get_law(fitted.law)
    assert isinstance(law, LossLaw)
    beyond = Target(largest.params_non_embedding * 10**0.5, largest.tokens * 10**0.5)
    if name == "power_law":
        beyond = Target(largest.params_non_embedding * 10, largest.tokens)
    hits = [bool(low <= value <= high) for value, (low, high) in zip(truth, find_bounds(fitted.draws), strict=True)]
    for target in (largest, beyond):
        low, high = find_bounds(law.predict_loss(fitted.draws, target)[:, None])[0]
        hits.append(bool(low <= law.predict_loss(truth[None], target)[0] <= high))
    said, true = law.predict_loss(np.stack([fitted.values, truth]), beyond)
    new = float(true * np.exp(noise * rng.standard_normal()))
    return [*hits, is_inside(fitted, beyond, new)], float(abs(np.log(said / true)))


def is_inside(fitted: Fit, target: Target, loss: float) -> bool:
    """Whether the forecast's interval holds the loss of a new run; draws that stopped early are counted too."""
    said = forecast(replace(fitted, status=Status.CONVERGED), target).loss
    assert said is not None
    assert said.low is not None
    assert said.high is not None
    return said.low <= loss <= said.high


def find_bounds(draws: FloatArray) -> FloatArray:
    """Central 90 % intervals of the columns, (columns, 2)."""
    return np.quantile(draws, [0.05, 0.95], axis=0).T


def simulate_plane(rng: np.random.Generator, noise: float) -> tuple[Observations, FloatArray, Target]:
    """7 sizes x 7 horizons of E + A / N^alpha + B / D^beta; the terms are .8 and 1 nats in the middle."""
    alpha, beta = rng.uniform(0.25, 0.45, 2)
    truth = np.array([rng.uniform(1.5, 2.1), 0.8 * 1e8**alpha, 5e9**beta, alpha, beta])
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(5e8, 5e10, 7)))
    loss = truth[0] + truth[1] * n**-alpha + truth[2] * d**-beta
    runs = Observations(n, d, loss * np.exp(noise * rng.standard_normal(len(n))))
    return runs, truth, Target(1e9, 5e10)


def simulate_ladder(rng: np.random.Generator, noise: float) -> tuple[Observations, FloatArray, Target]:
    """12 sizes of E + A / N^alpha at one horizon."""
    alpha = rng.uniform(0.25, 0.45)
    truth = np.array([rng.uniform(1.5, 2.1), 0.8 * 1e8**alpha, alpha])
    n = np.geomspace(1e6, 1e9, 12)
    loss = (truth[0] + truth[1] * n**-alpha) * np.exp(noise * rng.standard_normal(12))
    return Observations(n, np.full(12, 1e10), loss), truth, Target(1e9, 1e10)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TRUTHS)
