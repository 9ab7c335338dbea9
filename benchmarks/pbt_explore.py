"""Two ways to explore in a population, on planted surfaces whose best settings move while a run trains.

The strategy itself decides; the settings of a copy are perturbed, or chosen by a bandit. Random search trains the same
first members to the end, at the same cost.

Symbols
    u  share of the run     x  settings in the unit cube of their axes     best(u)  the best ones     w  weights
    progress = int_0^u 1 - 2 sum_j w_j (x_j - best_j)^2 du     loss = 2 + 2 (progress + .05)^-.25 + noise
A schedule that is the best all along comes to a progress of 1; what the winner lacks of it, without noise, is its
regret.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretune.deriving import CorpusFacts
from foretune.records import Decision, Result, RunOutcome, RunSpec, RunStatus, record_outcome, result_of
from foretune.search import STRATEGIES, History
from foretune.study import Study, read_study

Floats = NDArray[np.float64]

BEST: dict[str, Callable[[Floats], Floats]] = {
    "drifts": lambda u: 0.8 - 0.6 * u,
    "jumps": lambda u: np.where(u < 0.5, 0.75, 0.3),
    "rests": lambda u: np.full_like(u, 0.6),
}
"""best(u) of the learning rate."""
RESTING = 0.4
"""best(u) of all other settings."""
BOUNDS = {"peak_lr": (1e-4, 0.1), "weight_decay": (0.01, 1.0), "eps": (1e-12, 1e-6), "clip_norm": (0.1, 10.0)}
WEIGHTS = {"peak_lr": 1.0, "weight_decay": 0.3, "eps": 0.3, "clip_norm": 0.1}
"""The settings in the order in which they are added, and w."""
WAYS = ("random", "perturb", "bandit")
SEEDS, SIZES, DIMENSIONS = 20, (4, 8, 16), (1, 2, 4)
STEPS, BATCH, GENERATIONS = 80, 1024, 8
NOISE = 0.003
"""Standard deviation of a loss, as of the small proxies between seeds."""
CORPUS = CorpusFacts("planted", 257, {"docs": 1.0}, {"docs": 10_000_000})


@dataclass(frozen=True)
class Moving:
    """A planted surface."""

    name: str
    """How the best learning rate moves."""
    settings: int
    """Settings that are searched, the first of `WEIGHTS`; others do not matter."""

    def measure_progress(self, spec: RunSpec) -> float:
        """The progress of a run at its end, by the middles of its steps."""
        starts = [0, *(phase.start_step for phase in spec.phases)]
        ends = [*starts[1:], spec.last_step]
        return sum(self._move(spec, start, end) for start, end in zip(starts, ends, strict=True))

    def _move(self, spec: RunSpec, start: int, end: int) -> float:
        u, training = (np.arange(start, end) + 0.5) / STEPS, spec.training_at(start)
        lacking = np.zeros(end - start)
        for key in [*WEIGHTS][: self.settings]:
            best = BEST[self.name](u) if key == "peak_lr" else RESTING
            lacking += WEIGHTS[key] * (find_share(key, getattr(training, key)) - best) ** 2
        return float(np.sum(1 - 2 * lacking)) / STEPS

    def train(self, spec: RunSpec) -> Result:
        """The planted loss of a run, with noise that is the run's own."""
        noise = NOISE * float(np.random.default_rng(int(spec.run_id, 16)).standard_normal())
        loss = 2 + 2 * (max(self.measure_progress(spec), 0.0) + 0.05) ** -0.25 + noise
        return result_of(record_outcome(spec, RunOutcome(status=RunStatus.COMPLETED, loss=loss, tokens=spec.tokens)))


def main() -> None:
    """A line for each surface, number of settings and size of the population."""
    print(f"regret in %, mean and standard error over {SEEDS} seeds; {GENERATIONS} generations, noise {NOISE}")
    print(f"{'best rate':>9} {'settings':>8} {'members':>7} " + " ".join(f"{way:>14}" for way in WAYS))
    for name, settings, size in itertools.product(BEST, DIMENSIONS, SIZES):
        cells = [describe_way(Moving(name, settings), size, way) for way in WAYS]
        print(f"{name:>9} {settings:>8} {size:>7} " + " ".join(f"{cell:>14}" for cell in cells), flush=True)


def describe_way(surface: Moving, size: int, way: str) -> str:
    """Mean and standard error of the regret."""
    regrets = [100 * measure_regret(seed, surface, size, way) for seed in range(SEEDS)]
    return f"{statistics.fmean(regrets):.2f} +- {statistics.stdev(regrets) / math.sqrt(SEEDS):.2f}"


def measure_regret(seed: int, surface: Moving, size: int, way: str) -> float:
    """What the winner of one search lacks of the best schedule."""
    study = make_study(seed, surface, size, "perturb" if way == "random" else way)
    ends = begin(study) if way == "random" else drive(study, surface)
    winner = min(ends, key=lambda spec: surface.train(spec).loss or math.inf)
    return 1 - surface.measure_progress(winner)


def make_study(seed: int, surface: Moving, size: int, explore: str) -> Study:
    """A population on a surface."""
    space = {key: {"low": BOUNDS[key][0], "high": BOUNDS[key][1]} for key in [*WEIGHTS][: surface.settings]}
    return read_study(
        {
            "study": {"name": "moving", "seed": seed},
            "proxy": {"base_width": 32, "head_size": 16, "depth": 2},
            "scales": [{"name": "w32", "width": 32, "tokens": STEPS * BATCH}],
            "training": {"batch_tokens": BATCH},
            "data": {"seq_len": 64},
            "search": {
                "strategy": "pbt",
                "space": space,
                "population": {"size": size, "ready_tokens": STEPS * BATCH // GENERATIONS, "explore": explore},
            },
        }
    )


def begin(study: Study) -> list[RunSpec]:
    """The first members of a population, trained to the end without copies."""
    first = STRATEGIES["pbt"].ask(study, CORPUS, History()).specs
    return [spec.model_copy(update={"stop_step": 0, "keep_state": False}) for spec in first]


def drive(study: Study, surface: Moving) -> list[RunSpec]:
    """The runs at the end of a population."""
    decisions: tuple[Decision, ...] = ()
    results: dict[str, Result] = {}
    while True:
        asked = STRATEGIES["pbt"].ask(study, CORPUS, History(results, decisions))
        missing = [spec for spec in asked.specs if spec.run_id not in results]
        if not missing:
            return [spec for spec in asked.specs if not spec.is_partial]
        results |= {spec.run_id: surface.train(spec) for spec in missing}
        decisions = asked.decisions


def find_share(key: str, value: float) -> float:
    """The place of a value on its logarithmic axis."""
    low, high = BOUNDS[key]
    return math.log(value / low) / math.log(high / low)


if __name__ == "__main__":
    main()
