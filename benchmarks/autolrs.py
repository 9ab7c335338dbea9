"""AutoLRS: its forecaster beside the published one, and its schedules beside WSD and cosine at equal total cost.

The forecasts are of exact exponentials with noise and outliers, a hundred steps seen, the thousandth asked for. The
schedules train the same proxy; AutoLRS pays for its trials, so that the others get as many FLOPs in either of two ways:
one run that is longer by the cost of the trials, at a usual rate, or runs of the same length at rates drawn from the
same range, of which the best counts. Losses are of fresh seeds, but for the run in which AutoLRS searched.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.interpolate import UnivariateSpline
from scipy.optimize import fmin

from benchmarks.devices import describe_device
from benchmarks.studies_in_process import Searched, make_study, measure_again, search_study
from foretune.records import RunSpec
from scalelaws.curves.exponentials import forecast_loss

SERIES = 60
SEEN, ASKED = 100, 1000
NOISES = (0.0, 0.01, 0.05, 0.2)
OUTLIERS = (0.0, 0.03)
TIMES = (20.0, 500.0)
"""Time constants of the series, in steps, are log-uniform between these."""

STEPS = 400
SEEDS = (0, 1, 2)
FRESH = (100, 101, 102)
RATES = {"low": 0.001, "high": 0.1}
USUAL_RATE = 2**-6
"""A rate of which one would begin without a search: the middle of the demo study's grid (studies/lr_width_transfer)."""
AUTOLRS = {"first_stage": 0.3, "longest_stage": 0.6, "candidates": 10}
Rows = dict[str, list[float]]


def main() -> None:
    """Both tables."""
    compare_forecasts()
    compare_schedules()


def compare_forecasts() -> None:
    """Errors of the loss at the thousandth step."""
    print(f"{SERIES} exponentials a row, time constants {TIMES[0]:g} to {TIMES[1]:g} steps, {SEEN} steps seen")
    print(f"loss at step {ASKED}: median absolute error / root mean square error")
    forecasters: dict[str, Callable[[np.ndarray], float]] = {
        "foretune": lambda losses: forecast_loss(np.arange(SEEN), losses, ASKED).loss,
        "published code": forecast_as_published,
        "no change": lambda losses: float(losses[-10:].mean()),
    }
    print(f"{'noise':>6} {'outliers':>9} " + " ".join(f"{name:>17}" for name in forecasters))
    for noise in NOISES:
        for outliers in OUTLIERS:
            rng = np.random.default_rng(7)
            series = [draw_series(rng, noise, outliers) for _ in range(SERIES)]
            cells = []
            for forecast in forecasters.values():
                errors = np.array([forecast(losses) - truth for losses, truth in series])
                cells.append(f"{np.median(np.abs(errors)):.4f} / {np.sqrt(np.mean(errors**2)):.4f}".rjust(17))
            print(f"{noise:>6g} {outliers:>9g} " + " ".join(cells), flush=True)


def draw_series(rng: np.random.Generator, noise: float, outliers: float) -> tuple[np.ndarray, float]:
    """The losses seen and the one to come."""
    drop, constant, floor = rng.uniform(0.2, 2), math.exp(rng.uniform(*np.log(TIMES))), rng.uniform(1, 4)
    losses = drop * np.exp(-np.arange(SEEN) / constant) + floor + noise * rng.standard_normal(SEEN)
    losses += (rng.random(SEEN) < outliers) * rng.exponential(1.0, SEEN)
    return losses, drop * math.exp(-ASKED / constant) + floor


def forecast_as_published(losses: np.ndarray) -> float:
    """The steps of YuchenJin/autolrs, autolrs_server.py: splines, the worst 3 % of the first half, Nelder-Mead."""
    steps = kept_steps = np.arange(len(losses))
    kept = losses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(10):
            gaps = np.abs(kept - UnivariateSpline(kept_steps, kept, k=2)(kept_steps))
            worst = np.argsort(gaps)[round(len(gaps) * 0.97) :]
            left = np.setdiff1d(np.arange(len(gaps)), worst[worst < kept_steps[(len(gaps) - 1) // 2]])
            kept_steps, kept = kept_steps[left], kept[left]
        smooth = UnivariateSpline(kept_steps, kept, k=2)(steps)
        rate = -math.exp(fmin(lambda log_rate: project(-math.exp(log_rate[0]), steps, smooth)[1], 0, disp=False)[0])
    (drop, floor), _ = project(rate, steps, smooth)
    return float(drop * math.exp(rate * ASKED) + floor)


def project(rate: float, steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, float]:
    """The best a and c for a rate, and the sum of squares."""
    columns = np.column_stack([np.exp(rate * steps), np.ones(len(steps))])
    found, squares, _, _ = np.linalg.lstsq(columns, losses, rcond=None)
    return found, float(squares[0]) if len(squares) else math.inf


def compare_schedules() -> None:
    """Losses under fresh seeds, study by study, and their mean and spread."""
    print(f"\n{describe_device('float32')}; width 32, {STEPS} steps of 512 tokens; study seeds {SEEDS}")
    print(f"each schedule trained again under {len(FRESH)} fresh seeds; cost in runs of that length")
    rows: Rows = {}
    costs: Rows = {}
    for seed in SEEDS:
        began = time.process_time()
        found = search_study(make_study(STEPS, seed, **list_tables("constant", "autolrs", autolrs=AUTOLRS, batch=10)))
        whole = found.find_best().compute_flops
        cost = found.spent_flops / whole
        keep(rows, costs, "autolrs, its schedule replayed", measure_again(found.find_best(), FRESH), cost)
        keep(rows, costs, "autolrs, the run that was searched", [found.score_of(found.find_best())], cost)
        for schedule in ("wsd", "cosine"):
            longer = make_study(round(STEPS * cost), seed, **list_tables(schedule, "grid", {"peak_lr": [USUAL_RATE]}))
            losses = measure_again(search_study(longer).find_best(), FRESH)
            keep(rows, costs, f"{schedule}, one longer run", losses, cost)
            runs = math.ceil(cost)
            drawn = search_study(make_study(STEPS, seed, **list_tables(schedule, "random", runs=runs)))
            keep(rows, costs, f"{schedule}, best of random rates", measure_again(drawn.find_best(), FRESH), runs)
        print(f"seed {seed}: {tell(found)}; {time.process_time() - began:.0f} s of CPU", flush=True)
    print(f"{'':>36} {'cost':>6} {'mean loss':>10} {'sd over studies':>16} {'lost':>5}")
    for name, losses in rows.items():
        known = [loss for loss in losses if math.isfinite(loss)]
        spread = np.std(known, ddof=1) if len(known) > 1 else math.nan
        cells = f"{np.mean(costs[name]):>6.2f} {np.mean(known):>10.4f} {spread:>16.4f} {len(losses) - len(known):>5}"
        print(f"{name:>36} {cells}")


def list_tables(schedule: str, strategy: str, space: dict[str, Any] | None = None, **search: Any) -> dict[str, Any]:
    """The tables of a study that are not those of the problem."""
    fields = {"strategy": strategy, "space": space or {"peak_lr": RATES}, **search}
    return {"training": {"schedule": schedule}, "search": fields}


def keep(rows: Rows, costs: Rows, name: str, losses: Sequence[float], cost: float) -> None:
    """The mean of a study's losses; infinite when one of them is."""
    rows.setdefault(name, []).append(sum(losses) / len(losses))
    costs.setdefault(name, []).append(cost)


def tell(found: Searched) -> str:
    """The rates of the schedule."""
    spec: RunSpec = found.find_best()
    return " -> ".join(f"{phase.settings['peak_lr']:.3g} from step {phase.start_step}" for phase in spec.phases)


if __name__ == "__main__":
    main()
