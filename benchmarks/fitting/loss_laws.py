"""Laws of the loss on published sets: fit the runs of C <= Cmax / k, forecast every run above; k = 4, 10, 30.

Ours: the law's default objective, its interval for a new run. Usual: Huber 1e-3 on every run (Hoffmann et al. 2022) and
the interval of resampled parameters. Both fit E + A / N^alpha + B / D^beta; where runs cannot hold it, a power of C.
Means of a row are over its runs, totals are means over the sets. Errors are of the loss, in %; the score is that of
Winkler (1972) for 90 % intervals, in % of the loss: width plus 20 times the distance of a miss.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from types import ModuleType
from unittest.mock import patch

import numpy as np

from benchmarks.fitting.loss_sets import find_optimal_sizes, read_sets
from scalelaws import Fit, Observations, Status, Target, fit, forecast, get_law
from scalelaws.engines import powerfits, weighting

REACHES = (4, 10, 30)
LEVEL = 0.9
RESAMPLES = 400
CHANGES: tuple[tuple[ModuleType, str, float], ...] = (
    (weighting, "EXCESS_OF_MISFIT", weighting.EXCESS_OF_MISFIT),
    (weighting, "EXCESS_OF_MISFIT", 0.05),
    (weighting, "EXCESS_OF_MISFIT", 0.2),
    (weighting, "DRIFT_LOG_PER_EFOLD", 0.002),
    (weighting, "DRIFT_LOG_PER_EFOLD", 0.01),
    (powerfits, "WEIGHT_SCALE_SD", 0.1),
    (powerfits, "WEIGHT_SCALE_SD", 1.0),
    (powerfits, "PRIOR_EXPONENT", 0.25),
    (powerfits, "PRIOR_EXPONENT", 0.4),
    (powerfits, "PRIOR_EXPONENT_SD", 0.25),
    (powerfits, "PRIOR_EXPONENT_SD", 1.0),
)
"""What `compare_constants` changes; the first line changes nothing."""
ONE_LEVEL = 0.2
"""Runs that span less than this in ln C hold no law of compute."""


@dataclass(frozen=True)
class Score:
    """One procedure on one set and reach."""

    error: float
    covered: float
    winkler: float
    size_errors: tuple[float, ...]
    seconds: float


def main() -> None:
    """Prints a table for each reach and procedure."""
    sets = read_sets()
    print(f"{'set':<48} {'k':>3} | {'ours %':>6} {'cover':>5} {'score':>6} {'N* %':>5} {'s':>5} "
          f"| {'usual':>6} {'cover':>5} {'score':>6} {'N* %':>5} {'s':>5}")  # fmt: skip
    for reach in REACHES:
        rows = []
        for name, runs in sets.items():
            both = [measure(name, runs, reach, objective) for objective in ("auto", "huber")]
            ours, usual = both
            if ours is None or usual is None:
                print(f"{name:<48} {reach:>3} | the runs below the cut cannot hold a law")
                continue
            rows.append((ours, usual))
            print(f"{name:<48} {reach:>3} | {show(ours)} | {show(usual)}", flush=True)
        totals = [summarise([row[column] for row in rows]) for column in (0, 1)]
        print(f"{'mean over the sets':<48} {reach:>3} | {show(totals[0])} | {show(totals[1])}\n", flush=True)


def compare_constants() -> None:
    """How the totals depend on the constants of the default objective; one line for each changed constant."""
    sets = read_sets()
    print("constant = value: mean error % at k = 4, 10, 30 | error of N* % at k = 4, 10, 30")
    for module, constant, value in CHANGES:
        with patch.object(module, constant, value):
            totals = [
                summarise([score for name, runs in sets.items() if (score := measure(name, runs, reach, "auto", 50))])
                for reach in REACHES
            ]
        label = f"{constant} = {value:g}"
        errors = " ".join(f"{total.error:.2f}" for total in totals)
        sizes = " ".join(f"{np.mean(total.size_errors):.1f}" for total in totals)
        print(f"{label:<28} {errors} | {sizes}", flush=True)


def measure(name: str, runs: Observations, reach: float, objective: str, resamples: int = RESAMPLES) -> Score | None:
    """Fits the small runs and scores the forecasts of the large ones; None where no law could be fitted."""
    small = runs.compute <= runs.compute.max() / reach
    started = time.process_time()
    fitted = fit_law(runs.rows(np.flatnonzero(small)), objective, resamples) if small.any() else None
    if fitted is None:
        return None
    seconds = time.process_time() - started
    large = runs.rows(np.flatnonzero(~small))
    columns = zip(large.params_non_embedding, large.tokens, large.compute, strict=True)
    bounds = np.array([predict(fitted, Target(n, d, compute_flops=c), objective) for n, d, c in columns])
    value, low, high = bounds.T / large.loss
    miss = np.maximum(low - 1, 0) + np.maximum(1 - high, 0)
    sizes = find_optimal_sizes(name, runs)
    return Score(
        100 * float(np.abs(value - 1).mean()), float((miss == 0).mean()),
        100 * float((high - low + 2 / (1 - LEVEL) * miss).mean()),
        tuple(100 * abs(best_size(fitted, c) / n - 1) for c, n in sizes.items() if c > runs.compute.max() / reach),
        seconds,
    )  # fmt: skip


def fit_law(runs: Observations, objective: str, resamples: int = RESAMPLES) -> Fit | None:
    """The law in N and D, or that in compute where the runs cannot hold it; a fit that stopped early is scored too."""
    for law in ("chinchilla", "power_law_compute"):
        fitted = fit(law, runs, objective=objective, bootstrap=resamples, throw=False)
        if np.isfinite(fitted.values).all():
            return replace(fitted, status=Status.CONVERGED)
        if fitted.status is Status.NOT_IDENTIFIED and np.ptp(np.log(runs.compute)) < ONE_LEVEL:
            return None
    return None


def predict(fitted: Fit, target: Target, objective: str) -> tuple[float, float, float]:
    """Value and interval of the loss of a new run."""
    if objective == "auto":
        loss = forecast(fitted, target).loss
        assert loss is not None
        assert loss.low is not None
        assert loss.high is not None
        return loss.value, loss.low, loss.high
    law = get_law(fitted.law)
    draws = law.predict_loss(np.vstack([fitted.values, fitted.draws]), target)
    low, high = np.quantile(draws[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(draws[0]), float(low), float(high)


def best_size(fitted: Fit, compute_flops: float) -> float:
    """Compute-optimal N (Hoffmann et al. 2022, equation 4)."""
    _, a, b, alpha, beta = fitted.values
    return float((alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (compute_flops / 6) ** (beta / (alpha + beta)))


def summarise(scores: list[Score]) -> Score:
    """Means over sets; the errors of sizes over all levels of all sets."""
    sizes = tuple(error for score in scores for error in score.size_errors)
    means = [float(np.mean([getattr(score, name) for score in scores])) for name in ("error", "covered", "winkler")]
    return Score(*means, sizes, float(np.mean([score.seconds for score in scores])))


def show(score: Score) -> str:
    """One procedure's half of a line."""
    size = f"{np.mean(score.size_errors):>5.1f}" if score.size_errors else f"{'-':>5}"
    return f"{score.error:>6.2f} {score.covered:>5.2f} {score.winkler:>6.2f} {size} {score.seconds:>5.2f}"


if __name__ == "__main__":
    compare_constants() if "constants" in sys.argv[1:] else main()
