"""What this platform adds to a run on Ray Tune: 1,000 runs that do nothing, against Ray Tune alone.

Alone: the same function under `tune.Tuner`, workers reused, no loggers, nothing kept of a result but Tune's own state.
Here: `execute_study` from a study to a ledger that holds every run. Both in one process on one Ray that has been
warmed up, with the same settings of Ray (`runners/environment.py`), in turn. What counts is the wall time; the CPU time
of this process, in which Tune's loop and ours run side by side while both wait for workers, says where it could go.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.runners.environment import prepare_environment
from foretune.study import Study, load_study

RUNS, ROUNDS, WARM_UP = 1000, 3, 50
STUDY = """
trainable = "benchmarks.ray_overhead:do_nothing"
[study]
name = "overhead"
[proxy]
base_width = 32
head_size = 8
depth = 2
[[scales]]
name = "w32"
width = 32
tokens = 51_200
[data]
seq_len = 128
[training]
batch_tokens = 512
peak_lr = 0.01
[search.space]
seed = {seeds}
[runner]
kind = "ray"
concurrency = {workers}
"""


def do_nothing(spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """The run of both sides."""
    return RunOutcome(status=RunStatus.COMPLETED, loss=1.0)


def main() -> None:
    """Seconds for each run, the ratio of each round, and their median."""
    workers = os.cpu_count() or 1
    with start_ray(), tempfile.TemporaryDirectory() as name:
        run_alone(WARM_UP, workers, Path(name))
        run_here(WARM_UP, workers, Path(name))
        rounds = [measure_round(number, workers, Path(name)) for number in range(ROUNDS)]
    print(f"{RUNS} runs that do nothing, {workers} workers, {ROUNDS} rounds in turn; load {os.getloadavg()[0]:.1f}")
    for place, label in enumerate(("wall time", "CPU time of the driver")):
        alone, here = ([pair[side][place] / RUNS * 1e3 for pair in rounds] for side in (0, 1))
        ratios = sorted(b / a for a, b in zip(alone, here, strict=True))
        print(
            f"{label}: Ray Tune alone {statistics.median(alone):.1f} ms a run, here {statistics.median(here):.1f} ms; "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def measure_round(number: int, workers: int, folder: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """(wall, CPU) seconds alone and here; which goes first alternates."""
    sides = [run_alone, run_here]
    found = {side: timed(lambda side=side: side(RUNS, workers, folder)) for side in sides[:: 1 - 2 * (number % 2)]}
    return found[run_alone], found[run_here]


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@contextmanager
def start_ray() -> Iterator[None]:
    """A Ray as foretune starts it."""
    prepare_environment("local")
    from foretune.runners import raytune

    raytune.start_ray()
    yield
    raytune.ray.shutdown()


def run_alone(runs: int, workers: int, folder: Path) -> None:
    """Ray Tune, as fast as its settings make it."""
    from ray import tune

    def train(config: dict[str, Any]) -> dict[str, float]:
        return {"loss": 1.0}

    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(runs)))},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=workers),
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    )
    losses = [result.metrics["loss"] for result in tuner.fit()]
    assert losses == [1.0] * runs


def run_here(runs: int, workers: int, folder: Path) -> None:
    """The same number of runs from a study to a ledger."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        study = write_study(Path(name), runs, workers)
        with open_ledger(Path(name) / "ledger.db", create=True) as ledger:
            runner = make_runner(study.runner, workspace=Path(name))
            execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
            assert ledger.runs("overhead")["status"].eq("completed").sum() == runs


def write_study(folder: Path, runs: int, workers: int) -> Study:
    """A study of so many seeds."""
    path = folder / "study.toml"
    path.write_text(STUDY.format(seeds=list(range(runs)), workers=workers), encoding="utf-8")
    return load_study(path)


if __name__ == "__main__":
    main()
