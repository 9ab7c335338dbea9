"""TPE, GP and QMC beside random search at equal runs on planted surfaces: regret of the setting that is recommended.

The strategies are asked exactly as a study asks them; only the training is replaced by a closed form with noise. The
recommended setting is the best observed one, its regret the noiseless loss there over that at the planted optimum, less
1; what is planted is the surface of the replay runner with further settings on top.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.records import Decision, Result, RunSpec, RunStatus
from foretune.resolution import resolve_corpus
from foretune.runners.surface import Surface
from foretune.search import STRATEGIES, History
from foretune.sections import SurfaceSection
from foretune.study import Study, read_study

SEEDS = 20
RUNS = (8, 16, 32)
NAMES = ("random", "qmc", "tpe", "gp")
SURFACE = Surface(SurfaceSection())
RATE = {"peak_lr": {"low": 1e-4, "high": 0.3}}
BATCH = {"batch_tokens": {"low": 1024, "high": 65536, "factor": 2}}
DECAY = {"weight_decay": {"low": 1e-3, "high": 1.0}}
BETA2 = {"beta2": {"low": 0.8, "high": 0.999, "scale": "linear"}}
MOMENTUM = {"momentum": {"low": 0.5, "high": 0.99, "scale": "linear"}}
BEST_DECAY, BEST_BETA2, BEST_MOMENTUM = 0.05, 0.95, 0.9
SGD_LOSS, SGD_RATE = 0.01, 8.0
"""Planted: SGD ends 1 % above AdamW, and wants a learning rate 8 times as large."""


@dataclass(frozen=True)
class Problem:
    """A space over a planted surface."""

    name: str
    search: dict[str, Any]
    loss: Callable[[RunSpec], float]
    """The noiseless loss of a run; infinite where it diverges."""
    noise: float
    """Standard deviation of the log loss between seeds."""


def plant_basin(spec: RunSpec, rate_factor: float = 1.0) -> float:
    """The surface in learning rate and batch."""
    params, training = spec.model.shape.params_non_embedding, spec.training
    rate = training.peak_lr / rate_factor
    if rate > SURFACE.section.divergence_factor * SURFACE.best_lr(params, training.tokens):
        return math.inf
    return SURFACE.loss(params, training.tokens, rate, training.batch_tokens)


def plant_valley(spec: RunSpec) -> float:
    """A weight decay whose best value falls as the learning rate rises, and a beta2."""
    params, training = spec.model.shape.params_non_embedding, spec.training
    rate = training.peak_lr / SURFACE.best_lr(params, training.tokens)
    decay = math.log(training.weight_decay / BEST_DECAY * rate)
    return plant_basin(spec) * (1 + 0.004 * decay**2 + 2 * (training.beta2 - BEST_BETA2) ** 2)


def plant_tree(spec: RunSpec) -> float:
    """Two optimizers with a setting each."""
    training = spec.training
    if training.optimizer == "sgd":
        return plant_basin(spec, SGD_RATE) * (1 + SGD_LOSS) * (1 + 0.2 * (training.momentum - BEST_MOMENTUM) ** 2)
    return plant_basin(spec) * (1 + 2 * (training.beta2 - BEST_BETA2) ** 2)


TREE = [
    {"name": "adamw", "set": {"optimizer": "adamw"}, "space": BETA2},
    {"name": "sgd", "set": {"optimizer": "sgd"}, "space": MOMENTUM},
]
PROBLEMS = (
    Problem("learning rate, batch", {"space": {**RATE, **BATCH}}, plant_basin, 0.0005),
    Problem("rate, batch, decay, beta2", {"space": {**RATE, **BATCH, **DECAY, **BETA2}}, plant_valley, 0.0005),
    Problem("the same, noisier", {"space": {**RATE, **BATCH, **DECAY, **BETA2}}, plant_valley, 0.005),
    Problem(
        "rate, batch, a branch for AdamW or SGD", {"space": {**RATE, **BATCH}, "branches": TREE}, plant_tree, 0.0005
    ),
)


def main() -> None:
    """Search every problem with every strategy and print quartiles of the regret."""
    print(f"{SEEDS} seeds, batches of 4; regret of the best observed setting in %: median (quartiles)")
    for problem in PROBLEMS:
        print(f"\n{problem.name}; noise {problem.noise:.2%}")
        print(f"{'strategy':>10} " + " ".join(f"{f'{runs} runs':>20}" for runs in RUNS) + f" {'CPU s a search':>15}")
        for name in NAMES if "branches" not in problem.search else NAMES[:-1]:
            began = time.process_time()
            regrets = 100 * np.array([measure_regrets(problem, name, seed) for seed in range(SEEDS)])
            quartiles = np.quantile(regrets, [0.25, 0.5, 0.75], axis=0).T
            cells = " ".join(f"{middle:.2f} ({low:.2f} - {high:.2f})".rjust(20) for low, middle, high in quartiles)
            print(f"{name:>10} {cells} {(time.process_time() - began) / SEEDS:>15.2f}", flush=True)


def measure_regrets(problem: Problem, name: str, seed: int) -> list[float]:
    """The regret after each number of runs."""
    specs, losses = search_planted(make_study(problem, name, seed), problem, np.random.default_rng(seed))
    least = find_least(problem, specs[0])
    best = [min(range(runs), key=losses.__getitem__) for runs in RUNS]
    return [problem.loss(specs[place]) / least - 1 for place in best]


def search_planted(study: Study, problem: Problem, rng: np.random.Generator) -> tuple[Sequence[RunSpec], list[float]]:
    """The runs of a search in the order in which they were asked for, and the losses that it saw."""
    corpus, strategy = resolve_corpus(study), STRATEGIES[study.search.strategy]
    results: dict[str, Result] = {}
    decisions: tuple[Decision, ...] = ()
    seen: list[float] = []
    while True:
        asked = strategy.ask(study, corpus, History(results, decisions))
        decisions = asked.decisions
        for spec in asked.specs[len(seen) :]:
            seen.append(problem.loss(spec) * math.exp(problem.noise * rng.standard_normal()))
            results[spec.run_id] = make_result(spec, seen[-1])
        if asked.finished:
            return asked.specs, seen


def make_result(spec: RunSpec, loss: float) -> Result:
    """What the ledger would hold of the run."""
    lost = not math.isfinite(loss)
    return Result(
        run_id=spec.run_id,
        status=RunStatus.DIVERGED if lost else RunStatus.COMPLETED,
        loss=None if lost else loss,
        loss_by_domain={},
        tokens=spec.tokens,
        spent_flops=0.0,
        curve=(),
    )


def make_study(problem: Problem, name: str, seed: int) -> Study:
    """One rung, as many runs as the largest number asks for."""
    return read_study(
        {
            "study": {"name": "samplers", "seed": seed},
            "proxy": {"base_width": 64, "head_size": 16, "depth": 4},
            "scales": [{"name": "w64", "width": 64, "tokens": 16_777_216}],
            "training": {"batch_tokens": 8192, "weight_decay": BEST_DECAY, "beta2": BEST_BETA2},
            "search": {"strategy": name, "runs": max(RUNS), **problem.search},
            "runner": {"kind": "replay", "surface": {}},
        }
    )


def find_least(problem: Problem, spec: RunSpec) -> float:
    """The loss at the planted optimum, with the best of the batches that the space has."""
    tokens = spec.training.tokens
    planted = {
        "peak_lr": SURFACE.best_lr(spec.model.shape.params_non_embedding, tokens),
        "weight_decay": BEST_DECAY,
        "beta2": BEST_BETA2,
        "optimizer": "adamw",
    }
    batches = [1024 * 2**step for step in range(7)]
    trainings = [
        spec.training.model_copy(update={**planted, "batch_tokens": batch, "steps": tokens // batch})
        for batch in batches
    ]
    return min(problem.loss(spec.model_copy(update={"training": training})) for training in trainings)


if __name__ == "__main__":
    main()
