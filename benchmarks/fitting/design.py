"""Chosen runs beside random ones: regret at the target after 16, 24, ... 48 runs, and what they cost.

    python -m benchmarks.fitting.design [targets] [planted] [sensitivity]

The published dense runs are replayed: `start_design` picks 16 of them, `choose_runs` batches of 8, and after each the
surface is fitted again to what was picked. The target is the largest cell by 6ND; its own runs are no candidates and
nothing sees them but the score, which is that of `benchmarks.fitting.learning_rates` (measured loss at the shaded
recommendation over the best run, bilinear; a perfect optimum scores about .06 %). Medians over 8 seeds, which draw the
scenarios of the start, or the random runs. Random runs that the law refuses are read with the start's prior, as chosen
ones are; `random, as dear` stops where it has cost as much as 48 chosen runs. Cost in 1e20 FLOPs (6ND). The expected
regret is what the design said before the runs were done; it has no best-of-noise in it, so .06 % is to be added.

Planted surfaces have other exponents, another basin (two exponentials in the learning rate) and cells that scatter; the
target is six times as large and trained on three times the tokens, and regret is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import scalelaws
from benchmarks.fitting.datasets import read_runs
from benchmarks.fitting.learning_rates import find_cells
from scalelaws import FitOptions, Observations, Target
from scalelaws.design import DRIFT, choose_runs, start_design
from scalelaws.designs import prospects
from scalelaws.designs.candidates import Candidates
from scalelaws.designs.starts import StartPrior, start_surface
from scalelaws.laws.surface import ResponseSurface, SurfaceFit
from scalelaws.sweeps.recommendation import recommend

SEEDS, START, STEP, MOST = 8, 16, 8, 48
COUNTS = tuple(range(START, MOST + 1, STEP))
Score = Callable[[tuple[float, float]], float]


@dataclass(frozen=True, eq=False)
class Question:
    """Runs that may be picked, a target, and its regret in per cent at (ln lr, ln batch)."""

    runs: Observations
    target: Target
    score: Score
    candidates: Candidates = field(init=False)

    def __post_init__(self) -> None:
        """Offers every run."""
        runs = self.runs
        assert runs.peak_lr is not None
        offered = Candidates(runs.params_non_embedding, runs.tokens, runs.peak_lr, runs.batch_tokens)
        object.__setattr__(self, "candidates", offered)

    def judge(self, rows: np.ndarray | list[int]) -> tuple[float, float]:
        """Regret and cost of some runs."""
        done = self.runs.rows(rows)
        return self.score(recommend_from(done, self.candidates, self.target)), float(done.compute.sum()) / 1e20


def recommend_from(done: Observations, candidates: Candidates, target: Target) -> tuple[float, float]:
    """ln lr and ln batch to train the target with."""
    law = ResponseSurface()
    fit = law.estimate(done, FitOptions())
    if isinstance(fit, SurfaceFit) and fit.surface is not None and fit.surface.layout.batched and fit.status.ok:
        rate, batch = recommend(law.predict_settings(fit, target, np.random.default_rng(0)), 0.9, True)
        assert batch is not None
        return float(np.log(rate.value)), float(np.log(batch.value))
    held = start_surface(StartPrior.from_candidates(candidates), candidates, done)
    lr, size = held.predict(target.params_non_embedding, target.tokens)[0]
    return float(lr), float(size)


def replay(question: Question, seed: int, prior: StartPrior | None = None, **options: Any) -> np.ndarray:
    """(counts, 3): regret, cost, and the regret that the last design expected, after each batch."""
    drift = options.get("drift", DRIFT)
    found = start_design(question.candidates, question.target, runs=START, prior=prior, drift=drift, seed=seed)
    rows, table = list(found.rows), []
    for count in COUNTS:
        if count > START:
            found = choose_runs(
                question.runs.rows(rows), question.candidates, question.target, runs=STEP, prior=prior, seed=seed,
                **options,
            )  # fmt: skip
            rows += found.rows
        table.append((*question.judge(rows), 100 * found.after.expected_regret))
    return np.array(table)


def draw(question: Question, seed: int, budget: float | None = None) -> np.ndarray:
    """(counts, 2): regret and cost of random runs; or (1, 2) of as many as the budget pays for."""
    order = np.random.default_rng(seed).permutation(len(question.runs))
    if budget is None:
        return np.array([question.judge(order[:count]) for count in COUNTS])
    paid = int(np.searchsorted(np.cumsum(question.runs.compute[order]) / 1e20, budget, "right"))
    return np.array([question.judge(order[:paid])])


def show(name: str, tables: np.ndarray) -> None:
    """One line: medians of regret, the worst at the end, median cost."""
    middle = np.median(tables, axis=0)
    line = "".join(f"{value:8.3f}" for value in middle[:, 0]).rjust(8 * len(COUNTS))
    expected = f"{middle[-1, 2]:10.3f}" if tables.shape[2] > 2 else " " * 10
    print(f"{name:26}{line}{tables[:, -1, 0].max():9.3f}{expected}{middle[-1, 1]:9.2f}", flush=True)


def head(title: str) -> None:
    """The columns."""
    counts = "".join(f"{count:8d}" for count in COUNTS)
    print(f"\n{title}\n{'regret, %, after runs':26}{counts}{'worst':>9}{'expected':>10}{'cost':>9}")


def compare(question: Question, title: str, ways: Mapping[str, Mapping[str, Any]]) -> None:
    """Chosen runs in several ways, random ones, and all."""
    head(title)
    cheap = np.inf
    for name, options in ways.items():
        tables = np.stack([replay(question, seed, **options) for seed in range(SEEDS)])
        cheap = min(cheap, float(np.median(tables[:, -1, 1])))
        show(name, tables)
    show("random", np.stack([draw(question, seed) for seed in range(SEEDS)]))
    show("random, as dear", np.stack([draw(question, seed, cheap) for seed in range(SEEDS)]))
    show(f"all {len(question.runs)}", np.array([[question.judge(np.arange(len(question.runs)))]]))


WAYS: Mapping[str, Mapping[str, Any]] = {"chosen, gain per FLOP": {}, "chosen, gain per run": {"per": "run"}}


def list_questions() -> list[Question]:
    """The published dense runs, without the runs of the target; targets by compute, the largest first."""
    dense = Observations.from_frame(read_runs("steplaw_dense"))
    cells = sorted(find_cells(dense), key=lambda cell: -cell.target.compute)
    return [
        Question(dense.rows(np.setdiff1d(np.arange(len(dense)), cell.rows)), cell.target, cell.measure)
        for cell in cells
    ]


@dataclass(frozen=True)
class Truth:
    """A planted surface: exponents of the optimum in N and D, steepness above and below, shear."""

    lr: tuple[float, float]
    batch: tuple[float, float]
    steep: tuple[float, float]
    shear: float

    def locate(self, ln_n: float, ln_d: float) -> np.ndarray:
        """(ln lr*, ln B*) without scatter."""
        n, d = ln_n - np.log(2e8), ln_d - np.log(1e10)
        return np.array([np.log(2e-3), np.log(4e5)]) + np.array([self.lr, self.batch]) @ np.array([n, d])

    def lift(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Excess ln loss."""
        return np.asarray(0.012 * (_bend(u - self.shear * v, *self.steep) + _bend(v, 0.5, 0.9)))


def _bend(x: np.ndarray, above: float, below: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray((np.expm1(above * x) / above + np.expm1(-below * x) / below) / (above + below))


TRUTHS = {
    "lr N^-.35 D^-.1, B N^.1 D^.4": Truth((-0.35, -0.1), (0.1, 0.4), (1.6, 0.5), 0.3),
    "lr N^-.9 D^.4, B D^.7": Truth((-0.9, 0.4), (0.0, 0.7), (2.5, 0.3), -0.3),
    "lr N^.05 D^-.3, B N^-.1 D^.3": Truth((0.05, -0.3), (-0.1, 0.3), (1.0, 1.0), 0.6),
}


def plant(truth: Truth, seed: int, scatter: float = 0.06, noise: float = 5e-4) -> Question:
    """Grids of 11 x 9 settings in steps of sqrt 2 over 14 cells; a part of a cell's scatter is its size's."""
    rng, columns = np.random.default_rng(seed), []
    offset = np.array([(i, j) for i in range(-5, 6) for j in range(-4, 5)]) * 0.5 * np.log(2)
    for n in np.geomspace(5e7, 6e8, 4):
        shared = scatter / np.sqrt(2) * rng.standard_normal(2)
        for d in np.geomspace(2e9, 3e10, 4):
            if d < 8 * n:
                continue
            best = truth.locate(np.log(n), np.log(d)) + shared + scatter / np.sqrt(2) * rng.standard_normal(2)
            middle = 0.5 * truth.locate(np.log(n), np.log(d)) + 0.5 * np.log([2e-3, 4e5])
            tried = middle + offset
            floor = np.log(1.7 + 400 * n**-0.34 + 1100 * d**-0.3)
            loss = floor + truth.lift(*(tried - best).T) + noise * rng.standard_normal(len(offset))
            columns.append(np.column_stack([np.full(len(offset), n), np.full(len(offset), d), loss, tried]))
    n, d, loss, ln_lr, ln_batch = np.concatenate(columns).T
    target = Target(3.6e9, 9e10)
    best = truth.locate(np.log(3.6e9), np.log(9e10)) + scatter * rng.standard_normal(2)
    runs = Observations(n, d, np.exp(loss), peak_lr=np.exp(ln_lr), batch_tokens=np.exp(ln_batch))

    def score(point: tuple[float, float]) -> float:
        gap = np.asarray(point) - best
        return 100 * min(float(truth.lift(gap[:1], gap[1:])[0]), 1.0)

    return Question(runs, target, score)


def compare_planted(title: str, truth: Truth) -> None:
    """Every seed plants its own cells."""
    head(f"planted: {title}")
    questions = [plant(truth, seed) for seed in range(SEEDS)]
    for name, options in WAYS.items():
        show(name, np.stack([replay(question, seed, **options) for seed, question in enumerate(questions)]))
    show("random", np.stack([draw(question, seed) for seed, question in enumerate(questions)]))
    everything = [[question.judge(np.arange(len(question.runs)))] for question in questions]
    show(f"all {len(questions[0].runs)}", np.array(everything))


def show_sensitivity(question: Question) -> None:
    """The drift, the scenarios, the prior and the objective."""
    head("the largest cell: what each choice does")
    for drift in (0.0, DRIFT / 2, DRIFT, 2 * DRIFT, 4 * DRIFT):
        show(f"drift {drift:g}", np.stack([replay(question, seed, drift=drift) for seed in range(SEEDS)]))
    held = prospects.SCENARIOS
    for count in (3, 48):
        options = {"scenarios": count}
        show(f"scenarios {count} (not {held})", np.stack([replay(question, s, **options) for s in range(SEEDS)]))
    law = StartPrior.from_law(scalelaws.get_published("step_law"), question.candidates)
    show("prior: the published law", np.stack([replay(question, seed, law) for seed in range(SEEDS)]))
    show("objective: interval", np.stack([replay(question, s, objective="interval") for s in range(SEEDS)]))


def main() -> None:
    """The largest target; further parts by name."""
    questions, parts = list_questions(), sys.argv[1:]
    for question in questions[: 3 if "targets" in parts else 1]:
        n, d = question.target.params_non_embedding, question.target.tokens
        compare(question, f"target N = {n:.3g}, D = {d:.3g}", WAYS)
    for title, truth in TRUTHS.items() if "planted" in parts else ():
        compare_planted(title, truth)
    if "sensitivity" in parts:
        show_sensitivity(questions[0])


if __name__ == "__main__":
    main()
