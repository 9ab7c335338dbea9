"""Repeated data: the joint fit beside the published constants and the published two-stage procedure.

    python -m benchmarks.fitting.repetition

Runs: datablations (C4), the part that is at hand. A held-out run is scored by |ln predicted loss - ln loss|. "usable"
are the runs whose loss has not turned upwards (`find_turned`, judged over all runs); the law cannot say more of the
others, and they are scored apart. Every procedure sees the same training runs; the published one with and without
those that turned, which its authors leave out by hand. Coverage: share of usable held-out runs in our 90 % interval for
a new run (parameters, scatter, and drift beyond the largest training run).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.fitting.datasets import read_runs
from scalelaws import Observations
from scalelaws.engines.nonlinear import Task, find_best
from scalelaws.laws import FitOptions
from scalelaws.laws.repetition import PUBLISHED_REPETITION, Repetition, find_turned, fit_in_stages
from scalelaws.observations import FloatArray

FEWEST_HELD_OUT = 3
REACHES = (4.0, 10.0, 30.0)
"""Largest compute of all runs over that of the training runs."""

Procedure = Callable[[Observations], FloatArray]


def fit_jointly(runs: Observations) -> FloatArray:
    return Repetition().estimate(runs, FitOptions(bootstrap=50)).values


def fit_with_equal_weights(runs: Observations) -> FloatArray:
    usable = runs.select(~find_turned(runs), "turned upwards")
    law, options = Repetition(), FitOptions()
    task = Task(law, read(usable), np.log(usable.loss), np.ones(len(usable)), law.expect_noise(options))
    return find_best(task, law.starts(task.columns, usable.loss))


def fit_usable_in_stages(runs: Observations) -> FloatArray:
    return fit_in_stages(runs.select(~find_turned(runs), "turned upwards"))


PROCEDURES: dict[str, Procedure] = {
    "published constants": lambda runs: np.array(PUBLISHED_REPETITION),
    "published procedure": fit_in_stages,
    "published, usable runs": fit_usable_in_stages,
    "joint, equal weights": fit_with_equal_weights,
    "joint (ours)": fit_jointly,
}


def read(runs: Observations) -> dict[str, FloatArray]:
    return {name: runs.column(name) for name in Repetition().needs}


def predict(values: FloatArray, runs: Observations) -> FloatArray:
    return np.asarray(Repetition().evaluate(values[None], read(runs))[0][0])


def leave_sizes_out(runs: Observations) -> Iterator[tuple[str, np.ndarray]]:
    for size in np.unique(runs.params_non_embedding):
        yield f"N = {size:.3g}", runs.params_non_embedding == size


def extrapolate(runs: Observations) -> Iterator[tuple[str, np.ndarray]]:
    for reach in REACHES:
        yield f"C > max / {reach:g}", runs.compute > runs.compute.max() / reach


def count_covered(train: Observations, held_out: Observations) -> int:
    """How many of the held-out losses lie in our interval for a new run."""
    fit = Repetition().estimate(train, FitOptions(bootstrap=400))
    draws, _ = Repetition().evaluate(fit.draws, read(held_out))
    reach = np.maximum(np.log(held_out.compute / fit.evidence.compute_flops[1]), 0)
    spread = np.hypot(fit.scatter_log, fit.drift_log_per_efold * reach)
    noisy = draws + spread * np.random.default_rng(0).standard_normal(draws.shape)
    low, high = np.quantile(noisy, [0.05, 0.95], axis=0)
    return int(((low <= np.log(held_out.loss)) & (np.log(held_out.loss) <= high)).sum())


def score(runs: Observations, splits: Iterator[tuple[str, np.ndarray]], each: bool) -> None:
    """Prints mean absolute errors in percent, over the usable held-out runs and over those that turned."""
    covered = counted = 0
    turned, pooled = find_turned(runs), {name: np.full(len(runs), np.nan) for name in PROCEDURES}
    for title, left in splits:
        if (left & ~turned).sum() < FEWEST_HELD_OUT:
            continue
        train = runs.rows(np.flatnonzero(~left))
        if Repetition().refuse(train) is not None:
            print(f"  {title:<22} the runs left hold too little to fit")
            continue
        counted += int((left & ~turned).sum())
        covered += count_covered(train, runs.rows(np.flatnonzero(left & ~turned)))
        line = []
        for name, procedure in PROCEDURES.items():
            started = time.process_time()
            error = 100 * np.abs(predict(procedure(train), runs) - np.log(runs.loss))
            pooled[name][left] = error[left]
            line.append(f"{error[left & ~turned].mean():8.2f} ({time.process_time() - started:.1f} s)")
        if each:
            print(f"  {title:<14} {int((left & ~turned).sum()):>4} runs " + "  ".join(f"{item:>22}" for item in line))
    print(f"  coverage of our 90 % intervals: {covered / counted:.2f} of {counted} runs")
    if not each:
        for kind, rows in (("usable", ~turned), ("turned", turned)):
            means = [f"{np.nanmean(error[rows]):8.2f}" for error in pooled.values()]
            print(f"  all sizes, {kind:<12}        " + "  ".join(f"{item:>22}" for item in means))


def main() -> None:
    table = read_runs("datablations")
    runs = Observations(
        table["N"], table["D"], table["loss"], covariates={"unique_tokens": table["D_unique"]},
        params_convention="unspecified",
    )  # fmt: skip
    print(f"datablations: {len(runs)} runs, {int(find_turned(runs).sum())} of them turned upwards")
    print("mean |ln predicted - ln measured|, percent (CPU seconds of the fit)")
    print(" " * 26 + "  ".join(f"{name:>22}" for name in PROCEDURES))
    print("fit the small, predict the large:")
    score(runs, extrapolate(runs), each=True)
    print("leave one size out:")
    score(runs, leave_sizes_out(runs), each=False)


if __name__ == "__main__":
    main()
