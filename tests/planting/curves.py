"""Curves made from the laws of the curve, with the parameters that Luo et al. and Tissue et al. publish for theirs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planting import Planted
from scalelaws.curves.records import Curve, Curves
from scalelaws.curves.schedules import Schedule
from scalelaws.laws.curve import Annealing, CurveLaw, MultiPower

WARMUP = 500.0
SCHEDULES: Mapping[str, Schedule] = {
    "constant": Schedule.constant(20000, 3e-4, warmup_steps=WARMUP),
    "cosine": Schedule.cosine(20000, 3e-4, end_lr=3e-5, warmup_steps=WARMUP),
    "wsd": Schedule.wsd(20000, 3e-4, end_lr=3e-5, warmup_steps=WARMUP),
    "high": Schedule.wsd(20000, 1e-3, end_lr=1e-5, decay_share=0.5, warmup_steps=WARMUP),
    **{
        f"drop to {lr:g}": Schedule([0, WARMUP, 8000, 8000, 16000], [0, peak, peak, lr, lr])
        for peak, lr in ((3e-4, 1e-4), (3e-4, 1e-5), (1e-3, 3e-4), (1e-3, 3e-5))
    },
}
MULTI_POWER = {"L0": 3.1, "A": 0.53, "alpha": 0.51, "B": 364.0, "C": 2.07, "beta": 0.58, "gamma": 0.64}
"""Luo et al. 2025, table of the 25M model, with L0 raised by what their sum over the warm-up adds."""
ANNEALING = {"L0": 3.158, "A": 0.514, "alpha": 0.513, "C": 0.402, "memory_steps": 999.5}
"""A refit of the law of Tissue et al. 2024 with lambda = .999 to the curves of that model."""


def plant(law: CurveLaw, truth: Mapping[str, float], noise: float, seed: int) -> Curves:
    """Curves under all `SCHEDULES`, with independent noise of ln loss at each logged step."""
    rng, values = np.random.default_rng(seed), np.array([list(truth.values())])
    made = []
    for label, schedule in SCHEDULES.items():
        jump = schedule.step[np.flatnonzero(np.diff(schedule.step) == 0)]
        close = [at + np.geomspace(2, 1000, 30) for at in jump]
        step = np.unique(np.round(np.concatenate([np.linspace(WARMUP, schedule.steps, 90), *close])))
        loss = law.predict(values, schedule, step)[0] * np.exp(noise * rng.standard_normal(len(step)))
        made.append(Curve(label, schedule, step, loss))
    return Curves(tuple(made))


PLANTED: dict[str, Planted] = {
    "annealing": Planted(lambda noise, seed: plant(Annealing(), ANNEALING, noise, seed), ANNEALING, 1e-3),
    # The prior of C is wide (sd 1.5 of its logarithm), yet two per cent of its distance from the truth remain.
    "multi_power": Planted(
        lambda noise, seed: plant(MultiPower(), MULTI_POWER, noise, seed), MULTI_POWER, 1e-3, recovers=0.05
    ),
}
