"""Every strategy of search at equal cost, beside settings that nobody searched: one table on real proxies, one planted.

A search may spend as much as 16 runs of the full length: what is stopped early or goes on from another run counts only
what it trains itself. The best run of a search is lucky as well as good, so its settings, schedule and phases are
trained again from scratch under fresh seeds, and these losses are compared. On the planted surface the loss without
noise stands for them. Runs that were lost count in the cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.devices import describe_device
from benchmarks.studies_in_process import Searched, make_study, measure_again, search_study
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.runners.surface import Surface
from foretune.search.baselines import list_baselines
from foretune.sections import SurfaceSection

STEPS, BATCH = 200, 512
SEEDS, PLANTED_SEEDS = range(5), range(20)
FRESH = tuple(range(100, 108))
RUNS = 16
RATE = {"peak_lr": {"low": 2**-10, "high": 2**-3}}
SPACE = {**RATE, "weight_decay": {"low": 0.01, "high": 1.0}}
HORIZON = STEPS * BATCH
POPULATION = {"size": RUNS, "ready_tokens": HORIZON // 8, "burn_in_tokens": HORIZON // 4}
STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"runs": RUNS, "space": SPACE},
    "qmc": {"runs": RUNS, "space": SPACE},
    "tpe": {"runs": RUNS, "space": SPACE},
    "gp": {"runs": RUNS, "space": SPACE},
    "halving": {"runs": 58, "space": SPACE, "halving": {"min_tokens": HORIZON // 8, "reduction": 3}},
    "pbt": {
        "space": SPACE,
        "population": POPULATION,
    },
    "pbt, bandit": {"strategy": "pbt", "space": SPACE, "population": {**POPULATION, "explore": "bandit"}},
    "autolrs": {
        "space": RATE,
        "autolrs": {"first_stage": 0.5, "longest_stage": 0.5, "trial": 0.15, "candidates": 7},
        "batch": 10,
    },
}
"""The `[search]` table of each; AutoLRS searches the rate alone."""
MODELS = 9
"""Initial weights that AutoLRS can pay for: a search of one costs 1.8 runs."""
SURFACE = SurfaceSection(
    lr_coefficient=1.0, lr_params_exponent={"mup": -0.4}, lr_tokens_exponent=0.0, lr_curvature=0.02, noise=0.003
)
"""A best rate of .02 at this size, and as much noise between seeds as the proxies have."""


def main() -> None:
    """Both tables; the planted one first, which takes a minute or two."""
    compare_planted()
    compare_trained()


def compare_planted() -> None:
    """Regret of the best run of each search on the surface, in percent of the loss."""
    print(f"planted surface, {len(PLANTED_SEEDS)} seeds, noise {SURFACE.noise:.1%}: regret of the best run found, in %")
    print(f"{'':>20} {'cost':>6} {'median':>8} {'quartiles':>15} {'lost':>6}")
    for name, search in STRATEGIES.items():
        regrets, costs, lost = [], [], 0
        for seed in PLANTED_SEEDS:
            found = run_search(name, search, seed, {"kind": "replay", "surface": SURFACE.model_dump()})
            regrets.append(100 * measure_regret(found.find_best()))
            costs.append(sum(spec.own_flops for spec in found.specs) / found.find_best().compute_flops)
            lost += found.lost
        low, middle, high = np.quantile(regrets, [0.25, 0.5, 0.75])
        print(f"{name:>20} {np.mean(costs):>6.2f} {middle:>8.3f} {f'{low:.3f} - {high:.3f}':>15} {lost:>6}", flush=True)


def compare_trained() -> None:
    """Losses of what each search found, trained again."""
    print(f"\n{describe_device('float32')}; width 32, {STEPS} steps of {BATCH} tokens; {len(SEEDS)} searches each")
    print(f"what they found is trained again under {len(FRESH)} fresh seeds; losses in nats per token")
    print(f"{'':>20} {'cost':>6} {'loss':>8} {'sd':>7} {'of the search':>14} {'lost':>6} {'CPU s':>6}")
    for name, search in STRATEGIES.items():
        began, again, own, costs, lost = time.process_time(), [], [], [], 0
        for seed in SEEDS:
            found = run_search(name, search, seed, {})
            best = found.find_best()
            again.append(average(measure_again(best, FRESH)))
            own.append(found.score_of(best))
            costs.append(found.spent_flops / best.compute_flops)
            lost += found.lost
        print_row(name, costs, again, own, lost, time.process_time() - began)
    for name, spec in list_fixed():
        began = time.process_time()
        losses = measure_again(spec, FRESH)
        print_row(name, [1.0], losses, losses, sum(map(math.isinf, losses)), time.process_time() - began)


def run_search(name: str, search: dict[str, Any], seed: int, runner: dict[str, Any]) -> Searched:
    """A search in a ledger of its own."""
    tables: dict[str, dict[str, Any]] = {
        "training": {"batch_tokens": BATCH, "schedule": "wsd"},
        "search": {"strategy": name, **search},
    }
    if name == "autolrs":
        models = list(range(MODELS * seed, MODELS * (seed + 1)))
        tables["training"]["schedule"] = "constant"
        tables["search"]["space"] = {**search["space"], "seed": models}
    if runner:
        tables["runner"] = {"pack": "auto", **runner}
    return search_study(make_study(STEPS, seed, **tables))


def measure_regret(spec: RunSpec) -> float:
    """The loss of a run without noise over that at the planted optimum, less 1."""
    surface = Surface(SURFACE.model_copy(update={"noise": 0.0}))
    loss, params = surface.evaluate(spec).loss, spec.model.shape.params_non_embedding
    best = spec.model_copy(update={"phases": (), "training": _at_best_rate(spec, surface, params)})
    least = surface.evaluate(best).loss
    assert loss is not None, "the best run of a search has not diverged"
    assert least is not None, "the optimum does not diverge"
    return loss / least - 1


def _at_best_rate(spec: RunSpec, surface: Surface, params: int) -> Any:
    return spec.training.model_copy(update={"peak_lr": surface.best_lr(params, spec.training.tokens)})


def list_fixed() -> list[tuple[str, RunSpec]]:
    """The baselines of the same problem."""
    names = ["calibrated_nadamw", "schedulefree", "prodigy"]
    tables = {
        "training": {"batch_tokens": BATCH, "peak_lr": 2**-6},
        "search": {"space": {"seed": [0]}, "baselines": names},
    }
    study = make_study(STEPS, 0, **tables)
    return [(item.name, item.spec) for item in list_baselines(study, resolve_corpus(study))[0]]


def average(losses: Sequence[float]) -> float:
    """The mean; infinite when one of them is."""
    return sum(losses) / len(losses)


def print_row(
    name: str, costs: Sequence[float], again: Sequence[float], own: Sequence[float], lost: int, seconds: float
) -> None:
    """Means over searches, and how far these lie apart."""
    known = [loss for loss in again if math.isfinite(loss)]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else math.nan
    mean = average(known) if known else math.nan
    gone = f" ({len(again) - len(known)} lost when trained again)" if len(known) < len(again) else ""
    print(
        f"{name:>20} {average(costs):>6.2f} {mean:>8.4f} {spread:>7.4f} {average(own):>14.4f} {lost:>6} "
        f"{seconds:>6.0f}{gone}",
        flush=True,
    )


if __name__ == "__main__":
    main()
