"""What it costs to find a good mixture: searches replayed on published runs.

    python -m benchmarks mixture_search          (LightGBM from the extra `bench`, BoTorch from `dev`)

RegMix: 17 domains, 768 mixtures at 1M parameters, 256 at 60M, the target; losses: mean of 13, and Pile-CC. Pile-4: four
domains, 24 mixtures at 200M parameters and 8B tokens, the target; 16 others at 90M and 3B or 6B, five at 200M and 3B
to 7B. The runs at 1B of RegMix's paper, and the fine-tuning runs of ADMIRE-BayesOpt, are not among the data here.

A search asks for runs of these and gets their losses; a mixture that was not run cannot be asked for. Regret is the
measured loss at the target of the mixture that is *recommended*: 0 is the best of the pool, 1 its median. Cost: 1 is a
run at the target; another costs its parameters x tokens, and in the second table no less than a tenth, which the search
knows (methods without a search recommend the same there at the cost of their runs). Every seed draws its own first
runs. BoTorch's rows have the same first runs, pools, batches and costs, and fewer seeds, for they are slow; each
recommends by its own posterior mean at the target. "Stays" is the cost after which the regret never rises above .1
again within the budget. A regression on proxies alone has no run at the target; the proxies of a search that has none
either are random at first, then its own choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.fitting.datasets import read_runs
from benchmarks.mixture_peers import advise_by_entropy, advise_by_improvement, is_installed
from foretune.search.mixing.problem import Candidates, Fidelity, MixingProblem, Observed
from foretune.search.mixing.proposal import propose
from foretune.search.mixing.recommendation import recommend
from foretune.search.mixing.surrogates import SURROGATES, Surrogate

SEEDS = 10
PEER_SEEDS = 3
"""Of BoTorch's searches: the first of the seeds above."""
GOOD = 0.1
"""Regret that is to be reached."""
FLOOR = 0.1
"""Least cost of a run in the second table."""
CHECKPOINTS = (0.3, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Costs at which the regret is printed."""
BUDGET = 20.0
"""Cost at which a search ends, in runs at the target."""
FIRST_RUNS = 16
"""Random runs at the cheapest fidelity before a search over fidelities begins; four at the target for one without."""
MOST_ROUNDS = 16
"""A search asks this often at most: cheap runs come in batches of 4 (the budget of 20 is 1200 runs at 1M)."""
BATCH = 4
PROXIES = (16, 32, 64, 128, 256, 512)
"""Numbers of random runs at the cheapest fidelity for methods that do not search."""
Path = list[tuple[float, float, int]]
"""(cost, regret, runs at the target) after every step."""
Method = Callable[["Task", int], Path]
"""Task, seed -> what came of it."""
Advisor = Callable[[MixingProblem, Observed, Candidates, int, np.random.Generator], tuple[np.ndarray, list[int]]]
"""Problem, runs so far, pool, batch, generator -> recommended shares (d,), and rows of the pool to run next."""


@dataclass(frozen=True)
class Task:
    """A pool of runs with their losses."""

    name: str
    problem: MixingProblem
    pool: Candidates
    loss: np.ndarray

    @property
    def at_target(self) -> np.ndarray:
        """Numbers of the runs at the target."""
        return np.flatnonzero(self.pool.level == self.problem.target)

    @property
    def cheapest(self) -> np.ndarray:
        """Numbers of the runs at the cheapest fidelity."""
        return np.flatnonzero(self.pool.level == 0)

    def measure_regret(self, shares: np.ndarray) -> float:
        """Of a mixture of the pool at the target."""
        losses = self.loss[self.at_target]
        row = int(np.argmin(np.abs(self.pool.shares[self.at_target] - shares).sum(axis=1)))
        return float((losses[row] - losses.min()) / (np.median(losses) - losses.min()))

    def take(self, rows: list[int]) -> Observed:
        """What a search sees after these runs."""
        return Observed(self.pool.shares[rows], self.pool.level[rows], self.loss[rows])

    def pay(self, rows: list[int]) -> float:
        """Cost of runs."""
        return float(self.problem.costs[self.pool.level[rows]].sum())


def build_task(name: str, frame: pd.DataFrame, loss: pd.Series, target: tuple[float, float]) -> Task:
    """The fidelities are the (N, D) of the runs, the target last, the others by cost."""
    domains = [column for column in frame.columns if column.startswith("w_")]
    sizes = set(frame[["N", "D"]].itertuples(index=False, name=None)) - {target}
    sizes = [*sorted(sizes, key=lambda size: (size[0] * size[1], size)), target]
    fidelities = tuple(Fidelity(f"{n / 1e6:g}M, {d / 1e9:g}B", n, d, n * d) for n, d in sizes)
    shares = frame[domains].to_numpy()
    level = np.array([sizes.index(size) for size in frame[["N", "D"]].itertuples(index=False, name=None)])
    pool = Candidates(shares / shares.sum(axis=1, keepdims=True), level)
    return Task(name, MixingProblem(tuple(name[2:] for name in domains), fidelities), pool, loss.to_numpy())


def list_tasks() -> Iterator[Task]:
    regmix = read_runs("regmix")
    losses = [column for column in regmix.columns if column.startswith("loss_")]
    yield build_task("RegMix, mean of 13 losses", regmix, regmix[losses].mean(axis=1), (6e7, 1e9))
    yield build_task("RegMix, Pile-CC", regmix, regmix.loss_pile_cc, (6e7, 1e9))
    pile = read_runs("pile4_mixtures")
    pile = pile[pile.N < 4e8]
    losses = [column for column in pile.columns if column.startswith("loss_")]
    yield build_task("Pile-4, mean of 4 losses", pile, pile[losses].mean(axis=1), (2e8, 8e9))


def search_fidelities(advise: Advisor) -> Method:
    """A search over fidelities, from random runs at the cheapest."""

    def run(task: Task, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        first = rng.choice(task.cheapest, min(FIRST_RUNS, len(task.cheapest) // 2), replace=False)
        return _search(task, first, rng, advise)

    return run


def search_target(advise: Advisor) -> Method:
    """A search at the target alone."""

    def run(task: Task, seed: int) -> Path:
        rng, rows = np.random.default_rng(seed), task.at_target
        problem = replace(task.problem, fidelities=task.problem.fidelities[-1:])
        alone = Task(task.name, problem, Candidates(task.pool.shares[rows], np.zeros(len(rows), int)), task.loss[rows])
        return _search(alone, rng.choice(len(rows), 4, replace=False), rng, advise)

    return run


def advise_by_surface(
    problem: MixingProblem, seen: Observed, pool: Candidates, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[int]]:
    """The search of this package."""
    found = recommend(problem, seen, rng, pool, draws=1)
    asked = propose(problem, seen, count, rng, pool)
    return found.shares, [find_row(pool, item.level, item.shares) for item in asked]


def find_row(pool: Candidates, level: int, shares: np.ndarray) -> int:
    """Number of a run."""
    same = (pool.level == level) & (np.abs(pool.shares - shares).max(axis=1) < 1e-12)
    return int(np.flatnonzero(same)[0])


def _search(task: Task, first: np.ndarray, rng: np.random.Generator, advise: Advisor) -> Path:
    rows, path = [int(row) for row in first], []
    for _ in range(MOST_ROUNDS):
        seen = task.take(rows)
        shares, batch = advise(task.problem, seen, task.pool, BATCH, rng)
        path.append((task.pay(rows), task.measure_regret(shares), int((seen.level == task.problem.target).sum())))
        if batch and task.pool.level[batch[0]] == task.problem.target:
            batch = batch[:1]
        if not batch or task.pay(rows + batch) > BUDGET:
            break
        rows += batch
    return path


def regress(name: str) -> Method:
    """A regression on random runs at the cheapest fidelity, without a search."""

    def run(task: Task, seed: int) -> Path:
        order, path = np.random.default_rng(seed).permutation(task.cheapest), []
        candidates = task.pool.shares[task.at_target]
        for count in [count for count in PROXIES if count <= len(order)]:
            seen = task.take(list(order[:count]))
            mean = SURROGATES[name].fit(seen.shares, seen.loss).predict(candidates)[0]
            path.append((task.pay(list(order[:count])), task.measure_regret(candidates[int(np.argmin(mean))]), 0))
        return path

    return run


def draw(task: Task, seed: int) -> Path:
    """Random runs at the target; the best of them is recommended."""
    order, path = np.random.default_rng(seed).permutation(task.at_target), []
    for count in range(1, min(int(BUDGET), len(order)) + 1):
        best = order[int(np.argmin(task.loss[order[:count]]))]
        path.append((float(count), task.measure_regret(task.pool.shares[best]), count))
    return path


SEARCH = "multi-fidelity search"
METHODS: dict[str, Method] = {
    SEARCH: search_fidelities(advise_by_surface),
    "search at the target": search_target(advise_by_surface),
    "RegMix (LightGBM, cheapest)": regress("lightgbm"),
    "log-linear law, cheapest": regress("log_linear"),
    "process, cheapest": regress("gp"),
    "random at the target": draw,
}
PEERS: dict[str, Method] = {
    "BoTorch, entropy per cost": search_fidelities(advise_by_entropy),
    "BoTorch, EI at the target": search_target(advise_by_improvement),
}


def find_first(path: Path) -> float:
    """Cost at which the regret is first good."""
    return next((cost for cost, regret, _ in path if regret <= GOOD), np.inf)


def find_last(path: Path) -> float:
    """Cost from which on the regret stays good."""
    bad = [i for i, (_, regret, _) in enumerate(path) if regret > GOOD]
    after = bad[-1] + 1 if bad else 0
    return path[after][0] if after < len(path) else np.inf


def read_at(path: Path, cost: float) -> float:
    """Regret once this much is spent; NaN before the first recommendation."""
    return next((regret for spent, regret, _ in reversed(path) if spent <= cost), np.nan)


def describe(values: list[float]) -> str:
    """Median and quartiles of costs, infinite where the regret was not reached."""
    quartiles = np.quantile(values, (0.5, 0.25, 0.75), method="nearest")
    return "{} ({}-{})".format(*(f"{item:.2f}" if np.isfinite(item) else "never" for item in quartiles))


def report_costs(tasks: list[Task], title: str, methods: Mapping[str, Method], seeds: int = SEEDS) -> None:
    print(f"{title}; {seeds} seeds, median (quartiles)")
    for task in tasks:
        costs = ", ".join(f"{cost:.3g}" for cost in task.problem.costs)
        print(f"  {task.name}: {len(task.at_target)} mixtures at the target, costs {costs}")
        print(f"    {'':28} {'cost to .1, first':22} {'stays':22} regret at {CHECKPOINTS}; runs at the target, CPU s")
        for name, method in methods.items():
            started = time.process_time()
            paths = [method(task, seed) for seed in range(seeds)]
            seconds = (time.process_time() - started) / seeds
            regrets = "  ".join(_show_regret([read_at(path, cost) for path in paths]) for cost in CHECKPOINTS)
            first, last = describe([find_first(path) for path in paths]), describe([find_last(path) for path in paths])
            large = np.median([path[-1][2] for path in paths])
            print(f"    {name:28} {first:22} {last:22} {regrets}   {large:3.0f} {seconds:5.1f}", flush=True)


def _show_regret(regrets: list[float]) -> str:
    return f"{np.nanmedian(regrets):.2f}" if np.isfinite(regrets).any() else "  - "


def report_ranks(tasks: list[Task]) -> None:
    print(
        f"\nSpearman's rank correlation at the target of regressions on the cheapest fidelity; {SEEDS} seeds, mean (sd)"
    )
    for task in tasks:
        candidates, truth = task.pool.shares[task.at_target], task.loss[task.at_target]
        for name, surrogate in SURROGATES.items():
            cells = []
            for count in [count for count in PROXIES if count <= len(task.cheapest)]:
                found = [_rank(task, surrogate, count, seed, candidates, truth) for seed in range(SEEDS)]
                cells.append(f"{count}: {np.mean(found):.3f} ({np.std(found):.3f})")
            print(f"  {task.name:26} {name:12} {'  '.join(cells)}", flush=True)


def _rank(task: Task, surrogate: Surrogate, count: int, seed: int, candidates: np.ndarray, truth: np.ndarray) -> float:
    seen = task.take(list(np.random.default_rng(seed).permutation(task.cheapest)[:count]))
    mean = surrogate.fit(seen.shares, seen.loss).predict(candidates)[0]
    return float(spearmanr(mean, truth).statistic) if len(set(mean)) > 1 else 0.0


def main() -> None:
    tasks = list(list_tasks())
    title = "Cost in runs at the target, by parameters x tokens"
    report_costs(tasks, title, METHODS)
    if is_installed():
        report_costs(tasks, f"\n{title}: BoTorch", PEERS, PEER_SEEDS)
    else:
        print("\nBoTorch is not installed (extra `dev`): its rows are left out")
    floored = [replace(task, problem=replace(task.problem, cost_floor=FLOOR)) for task in tasks]
    report_costs(floored, f"\nThe same where no run costs less than {FLOOR:g}", {SEARCH: METHODS[SEARCH]})
    report_ranks(tasks)


if __name__ == "__main__":
    main()
