"""A search over mixtures on real training, against random search at the same training FLOPs.

    python -m benchmarks mixture_live

The standard library's own source: three domains, two sizes. `mixture` spends on both; `at the target alone` is the same
search without the small size; `random` draws its mixtures evenly from the same bounds, trains them at the target size
and takes the best it measured. Every search may spend as much as `TARGET_RUNS` runs at the target size, its first
mixtures, the natural one and the confirmations included. What is judged is the mixture that it ends with, trained anew
at the target size with seeds that no search saw: the weighted held-out loss beside that of the natural mixture.

The documentation is wanted most, of which the natural mixture has 8 %. With equal weights there is nothing to find: of
a lattice of 21 mixtures, three seeds each, at 196,608 tokens, the best lay .07 % below the natural one, and the noise
between seeds was .7 %.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.progress import ProgressBar
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search.interface import score
from foretune.search.mixing.course import read_advice, read_trials
from foretune.searching import Searching
from foretune.study import Study, read_study

SEARCHES = 3
"""Seeds of each search."""
TARGET_RUNS = 10
"""Cost of each search, in runs at the target size."""
CONFIRMATIONS = 2
"""Of them, runs of what is recommended."""
FRESH = tuple(range(1001, 1007))
"""Seeds with which every mixture is trained anew."""
SMALL = {"name": "w24", "width": 24, "tokens": 131_072}
TARGET = {"name": "w48", "width": 48, "tokens": 393_216}
BOUNDS = {"minimum": {"code": 0.02, "docs": 0.02, "tests": 0.02}}
OBJECTIVE = {"code": 0.2, "docs": 0.6, "tests": 0.2}
Shares = Mapping[str, float]


def main() -> None:
    """One line a search, then what the methods come to."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, open_ledger(str(Path(folder) / "ledger.db"), create=True) as ledger:
        natural = measure(ledger, resolve_corpus(make_study("natural", {}, [TARGET])).mixture)
        print(f"natural mixture: {natural:.4f} nats per token, mean of {len(FRESH)} fresh seeds")
        gaps: dict[str, list[float]] = {}
        for seed in range(SEARCHES):
            for method, study in list_searches(seed).items():
                shares, cost, runs = search(study, ledger)
                gaps.setdefault(method, []).append(100 * (measure(ledger, shares) / natural - 1))
                told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
                print(f"  {method:20} seed {seed}: {gaps[method][-1]:+.2f} %  {told}  ({runs} runs, {cost:.3g} FLOPs)")
    for method, found in gaps.items():
        spread = f", standard deviation {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        print(f"{method:20} {statistics.fmean(found):+.2f} % beside the natural mixture{spread}, {len(found)} searches")
    print(f"{time.process_time() - began:.0f} s of processor time")


def list_searches(seed: int) -> dict[str, Study]:
    """A study for each method, all with the same bounds, objective and cost."""
    flops = (TARGET_RUNS - CONFIRMATIONS) * count_flops()
    mixture = {"strategy": "mixture", "runs": 200, "batch": 2}
    rules = {"confirmations": CONFIRMATIONS, "flops": flops}
    return {
        "mixture": make_study(f"both-{seed}", {**mixture, "mixture": {**rules, "initial": 6}}, [SMALL, TARGET], seed),
        "at the target alone": make_study(
            f"target-{seed}", {**mixture, "mixture": {**rules, "initial": 4}}, [TARGET], seed
        ),
        "random": make_study(f"random-{seed}", {"strategy": "random", "runs": TARGET_RUNS}, [TARGET], seed),
    }


def make_study(name: str, search: dict[str, Any], scales: list[dict[str, Any]], seed: int = 0) -> Study:
    """A study of the embedded corpus."""
    return read_study(
        {
            "study": {"name": name, "seed": seed},
            "proxy": {"base_width": 32, "head_size": 8, "depth": 2, "ffn_ratio": 2.5},
            "scales": scales,
            "data": {"seq_len": 64, "validation_sequences": 64},
            "training": {"batch_tokens": 2048, "peak_lr": 2**-6, "evaluations": 1},
            "search": {"objective": OBJECTIVE, "space": {"mixture": BOUNDS}, **(search or {"strategy": "random"})},
            "runner": {"kind": "inline"},
        }
    )


def count_flops() -> float:
    """Of a run at the target size."""
    study = make_study("cost", {"strategy": "random", "runs": 1}, [TARGET])
    return float(Searching(study, resolve_corpus(study), None).ask().specs[0].compute_flops)


def search(study: Study, ledger: Ledger) -> tuple[Shares, float, int]:
    """The mixture that a search ends with, its training FLOPs, and its runs."""
    searching = execute(study, ledger)
    asked = searching.ask()
    results = {result.run_id: result for result in ledger.results([spec.run_id for spec in asked.specs])}
    cost = float(sum(spec.compute_flops for spec in asked.specs))
    if study.search.strategy == "mixture":
        assert len(read_trials(asked.decisions)) == len(asked.specs)
        return read_advice(asked.decisions)[-1].shares, cost, len(asked.specs)
    best = min(asked.specs, key=lambda spec: score(results[spec.run_id], OBJECTIVE))
    return best.data.mixture, cost, len(asked.specs)


def measure(ledger: Ledger, shares: Shares) -> float:
    """The mean objective of a mixture at the target size over the fresh seeds."""
    name = "fresh-" + "-".join(f"{round(1e5 * share)}" for share in shares.values())
    space = {"mixture": [dict(shares)], "seed": list(FRESH)}
    study = make_study(name, {"strategy": "grid", "space": space}, [TARGET])
    specs = execute(study, ledger).ask().specs
    return statistics.fmean(score(result, OBJECTIVE) for result in ledger.results([spec.run_id for spec in specs]))


def execute(study: Study, ledger: Ledger) -> Searching:
    """Train what the study asks for."""
    corpus = resolve_corpus(study)
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(study.runner, address="local", workspace=Path(folder))
        execute_study(study, ledger, runner, corpus, ProgressBar(quiet=True))
        runner.close()
    return Searching(study, corpus, ledger)
