"""Population-based training against random search on real proxies at equal tokens, over five seeds.

Random search trains the very members of the population, initial weights and settings as drawn, to the end without
copies. The best of eight single losses flatters a study, so the winner of each (a schedule, or settings) is trained
again from scratch with three seeds that neither has seen: these losses are compared, and their cost is the same too.
The fixed baseline, the calibrated NAdamW configuration of `search.baselines`, is trained with the same three seeds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.places import POPULATION
from foretune.deriving import CorpusFacts
from foretune.launching import launch_study
from foretune.ledger import open_ledger
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search.baselines import ask_baselines
from foretune.search.population.lineage import Stretch, find_winner, make_schedule, read_stretches
from foretune.search.replaying.schedule import Schedule, SchedulePhase, replay_schedule
from foretune.study import Study, load_study, read_study

SEEDS = (0, 1, 2, 3, 4)
FRESH = (100, 101, 102)
"""Seeds of the runs that are compared."""
SCALE = "w32"


def main() -> None:
    """One line a seed, then the gain over the seeds, and the baseline."""
    study = load_study(POPULATION)
    print(f"held-out loss, nats per token: best end of a search, its winner again over {len(FRESH)} fresh seeds")
    print(f"seed {'pbt best':>9} {'pbt again':>9} {'random best':>11} {'random again':>12} {'gain':>8} {'lost':>4}")
    gains = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            pbt, rand, lost = compare(write_study(study, seed), Path(folder))
        gains.append(rand[1] - pbt[1])
        print(
            f"{seed:>4} {pbt[0]:>9.4f} {pbt[1]:>9.4f} {rand[0]:>11.4f} {rand[1]:>12.4f} {gains[-1]:>+8.4f} {lost:>4}",
            flush=True,
        )
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    print(f"gain of the population: {statistics.fmean(gains):+.4f} +- {error:.4f} (standard error over seeds)")
    with tempfile.TemporaryDirectory() as folder:
        fixed = train(study, ask_fixed(study), Path(folder))
    print(f"fixed baseline: {statistics.fmean(fixed):.4f}, standard deviation {statistics.stdev(fixed):.4f}")


def write_study(study: Study, seed: int) -> Study:
    """The small population on its own rung, without replays, under another seed."""
    raw = study.snapshot()
    raw["study"]["seed"] = seed
    raw["scales"] = [scale for scale in raw["scales"] if scale["name"] == SCALE]
    del raw["search"]["replay"]
    return read_study(raw)


def compare(study: Study, folder: Path) -> tuple[tuple[float, float], tuple[float, float], int]:
    """(best, again) of the population and of random search, and the ends that were lost in both."""
    corpus, name = resolve_corpus(study), study.study.name
    with open_ledger(folder / "ledger.db", create=True) as ledger:
        launch_study(study, ledger, results=folder, quiet=True)
        decisions = ledger.decisions(name)
        results = {item.run_id: item for item in ledger.results([item.run_id for item in decisions])}
    stretches = read_stretches(decisions)
    winner = find_winner(stretches, results, {})
    if winner is None:
        raise SystemExit("every member was lost: the space of the study is not meant to do that")
    own = results[winner.run_id].loss or math.inf
    pbt = own, again(study, corpus, make_schedule(name, winner, stretches, own), folder)
    roots = [item for item in stretches if item.generation == 1]
    specs = [replay_schedule(study, study.scales[0], keep_settings(item), item.seed, corpus) for item in roots]
    ends = train(study, specs, folder)
    best = min(range(len(ends)), key=ends.__getitem__)
    lost = sum(item.loss is None for item in results.values()) + sum(map(math.isinf, ends))
    return pbt, (ends[best], again(study, corpus, keep_settings(roots[best]), folder)), lost


def keep_settings(root: Stretch) -> Schedule:
    """The settings that a member began with, to the end."""
    phase = SchedulePhase(start_share=0.0, settings=root.root)
    return Schedule(study="random", run_id=root.run_id, tokens=root.horizon_tokens, score=0.0, phases=(phase,))


def again(study: Study, corpus: CorpusFacts, schedule: Schedule, folder: Path) -> float:
    """Mean loss of a schedule over the fresh seeds."""
    specs = [replay_schedule(study, study.scales[0], schedule, seed, corpus) for seed in FRESH]
    return statistics.fmean(train(study, specs, folder))


def ask_fixed(study: Study) -> list[RunSpec]:
    """The calibrated configuration at the rung of the population, with the fresh seeds."""
    specs = []
    for seed in FRESH:
        raw = write_study(study, seed).snapshot()
        raw["search"]["baselines"] = ["calibrated_nadamw"]
        fixed = read_study(raw)
        specs += ask_baselines(fixed, resolve_corpus(fixed))[0]
    return specs


def train(study: Study, specs: Sequence[RunSpec], folder: Path) -> list[float]:
    """The loss of every run, infinite where it has none."""
    runner = make_runner(study.runner, workspace=folder / "runs")
    try:
        ended = {spec.run_id: outcome.loss for spec, outcome in runner.run(specs, lambda spec, point: None)}
    finally:
        runner.close()
    return [math.inf if ended[spec.run_id] is None else float(ended[spec.run_id] or 0.0) for spec in specs]


if __name__ == "__main__":
    main()
