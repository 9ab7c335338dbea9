"""Scores of larger runs from smaller ones: two steps, one step, items by difficulty, beside the usual procedures.

Measured on the folder's downstream scores (gadre: mean score over tasks, two corpora, 5.7M to 360M parameters): laws
see the runs with C <= Cmax / k and predict the others. The OLMo ladder's rows in the folder hold task losses without
accuracies: its first step is measured (190M to 760M -> 1B), the published errors at 13B cannot be reproduced here. The
forecast by difficulty is measured on planted item responses. Errors of scores in points (hundredths).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd

import scalelaws
from benchmarks.fitting.datasets import read_runs
from scalelaws import Observations, Target
from scalelaws.downstream.difficulty import ItemScores, forecast_by_difficulty
from scalelaws.downstream.scores import predict_score

FACTORS = (4, 10, 30)
DRAWS = 400
OURS = ("two steps", "one step (N, D)", "one step (C)")
Errors = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Errors, whether the interval held, and its width, per held-out run."""


def read_scores() -> dict[str, Observations]:
    """Runs of each corpus with the held-out loss on C4 and the mean score over tasks."""
    table = read_runs("gadre")
    return {
        str(corpus): Observations(
            rows.N, rows.D, rows.loss_c4_val, covariates={"score": rows.icl_mean}, scope={"loss_kind": "C4 validation"}
        )
        for corpus, rows in table.groupby("train_set")
    }


def predict_ours(train: Observations, test: Observations) -> dict[str, Errors]:
    loss = scalelaws.fit("chinchilla", train, bootstrap=DRAWS)
    targets = [Target(n, d) for n, d in zip(test.params_non_embedding, test.tokens, strict=True)]
    found = {}
    for label, law in zip(OURS, ("score_sigmoid", "score_single_step", "score_compute"), strict=True):
        fit = scalelaws.fit(law, train, bootstrap=DRAWS)
        scores = [predict_score(fit, target, loss_fit=loss).score for target in targets]
        found[label] = judge(
            test, *(np.array([getattr(item, name) for item in scores]) for name in ("value", "low", "high"))
        )
    return found


def judge(test: Observations, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Errors:
    truth = test.covariates["score"]
    return 100 * (value - truth), (low <= truth) & (truth <= high), 100 * (high - low)


def predict_usual(train: Observations, test: Observations) -> dict[str, Errors]:
    """Least squares, intervals by its covariance: in ln C, and the exponential in the loss of Gadre et al. 2024."""
    loss = scalelaws.fit("chinchilla", train, bootstrap=DRAWS)
    law = scalelaws.get_law("chinchilla")
    targets = [Target(n, d) for n, d in zip(test.params_non_embedding, test.tokens, strict=True)]
    reached = np.array([law.predict_loss(loss.values[None], target)[0] for target in targets])
    return {
        "line in ln C": judge(test, *fit_usual(line, np.log(train.compute), train, np.log(test.compute))),
        "logistic in ln C": judge(test, *fit_usual(logistic, np.log(train.compute), train, np.log(test.compute))),
        "eps - k exp(-g L)": judge(test, *fit_usual(exponential, train.loss, train, reached)),
    }


def line(x: np.ndarray, level: float, slope: float) -> np.ndarray:
    return level + slope * (x - 40)


def logistic(x: np.ndarray, floor: float, gain: float, slope: float, middle: float) -> np.ndarray:
    return floor + gain / (1 + np.exp(-slope * (x - middle)))


def exponential(x: np.ndarray, floor: float, height: float, rate: float) -> np.ndarray:
    return floor + height * np.exp(-rate * x)


def fit_usual(
    curve: Callable[..., np.ndarray], x: np.ndarray, train: Observations, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from scipy.optimize import curve_fit

    score, draws = train.covariates["score"], np.random.default_rng(0)
    starts = {line: [0.25, 0.01], logistic: [0.24, 0.5, 0.3, x.max()], exponential: [0.24, 1.5, 1.0]}
    uppers = {line: [1.0, 1.0], logistic: [1.0, 1.0, 5.0, x.max() + 20], exponential: [1.0, 100.0, 10.0]}
    best, covariance = curve_fit(curve, x, score, p0=starts[curve], bounds=(0, uppers[curve]), max_nfev=20000)
    scatter = np.sqrt(np.sum((curve(x, *best) - score) ** 2) / (len(x) - len(best)))
    drawn = draws.multivariate_normal(best, covariance, DRAWS, check_valid="ignore")
    values = np.array([curve(at, *row) for row in drawn]) + scatter * draws.standard_normal((DRAWS, 1))
    return curve(at, *best), np.quantile(values, 0.05, axis=0), np.quantile(values, 0.95, axis=0)


def measure_scores() -> pd.DataFrame:
    rows = []
    for corpus, runs in read_scores().items():
        for factor in FACTORS:
            below = runs.compute <= runs.compute.max() / factor
            train, test = runs.rows(np.flatnonzero(below)), runs.rows(np.flatnonzero(~below))
            for label, (error, held, width) in {**predict_ours(train, test), **predict_usual(train, test)}.items():
                rows += [(corpus, factor, label, e, h, w) for e, h, w in zip(error, held, width, strict=True)]
    return pd.DataFrame(rows, columns=["corpus", "k", "procedure", "error", "held", "width"])


def measure_ladder() -> pd.DataFrame:
    """First step of the OLMo ladder: task loss (bits per byte) of the 1B runs from 190M, 370M and 760M."""
    table = read_runs("olmo_ladder")
    small, large = table[table["size"] != "1B"], table[table["size"] == "1B"]
    rows = []
    for column in [name for name in table.columns if name.startswith("bpb_")]:
        fit = scalelaws.fit("chinchilla", Observations(small.N, small.D, small[column]), bootstrap=DRAWS, throw=False)
        label = column.removeprefix("bpb_").removesuffix("_rc_5shot_bpb")
        if not fit.status.ok:
            rows.append((label, np.nan, np.nan, np.nan, fit.message))
            continue
        found = [scalelaws.forecast(fit, Target(n, d)).loss for n, d in zip(large.N, large.D, strict=True)]
        value, low, high = (np.array([getattr(item, name) for item in found]) for name in ("value", "low", "high"))
        truth = large[column].to_numpy()
        held = (low <= truth) & (truth <= high)
        rows.append(
            (label, 100 * np.abs(value / truth - 1).mean(), held.mean(), (100 * (high - low) / truth).mean(), "")
        )
    return pd.DataFrame(rows, columns=["task", "error_percent", "coverage", "width_percent", "status"])


def plant_items(seed: int, reach: float) -> tuple[ItemScores, float, float]:
    """Eight small models and a target on 400 items of six difficulties, a tenth of them without any trend."""
    rng = np.random.default_rng(seed)
    compute = np.append(np.geomspace(1e20, 1e23, 8), 1e23 * reach)
    kind = rng.choice(6, size=400, p=rng.dirichlet(np.full(6, 2.0)))
    middle = np.exp(rng.uniform(np.log(3e19), np.log(3e25), 6)[kind] + 0.4 * rng.standard_normal(400))
    slope = rng.uniform(0.25, 0.7, 6)[kind] * np.exp(0.1 * rng.standard_normal(400))
    effective = compute * np.exp(0.08 * rng.standard_normal(9))
    truth = np.exp(-np.log(2) * (effective[:, None] / middle) ** -slope)
    odd = rng.random(400) < 0.1
    truth[:, odd] = rng.uniform(0.1, 0.9, odd.sum())
    rates = rng.binomial(100, truth) / 100
    return ItemScores(rates[:-1], compute[:-1]), float(compute[-1]), float(rates[-1].mean())


def measure_items(seeds: int = 40) -> pd.DataFrame:
    rows = []
    for reach in (10.0, 100.0):
        for seed in range(seeds):
            scores, compute, truth = plant_items(seed, reach)
            for label, diameter in (("by difficulty", 0.3), ("one curve", np.inf)):
                score = forecast_by_difficulty(scores, compute, max_diameter=diameter, draws=200).score
                held = score.low <= truth <= score.high
                rows.append((reach, label, 100 * (score.value - truth), held, 100 * (score.high - score.low)))
    return pd.DataFrame(rows, columns=["reach", "procedure", "error", "held", "width"])


def tabulate(found: pd.DataFrame, by: list[str]) -> str:
    groups = found.assign(size=found.error.abs()).groupby(by, sort=False)
    return groups.agg(
        mean_abs_error=("size", "mean"), largest=("size", "max"), bias=("error", "mean"), coverage=("held", "mean"),
        width=("width", "mean"), runs=("error", "size"),
    ).to_string(float_format="{:.2f}".format)  # fmt: skip


def main() -> None:
    started = time.process_time()
    print(__doc__)
    scores = measure_scores()
    print("Mean score over tasks (gadre), runs above Cmax / k from those below; 90 % intervals\n")
    print(tabulate(scores, ["k", "procedure"]), "\n")
    print(tabulate(scores, ["corpus", "procedure"]), "\n")
    print("Task loss of the OLMo ladder's 1B runs from 190M to 760M, relative error and 90 % intervals\n")
    ladder = measure_ladder()
    print(ladder.to_string(index=False, float_format="{:.2f}".format))
    print(f"mean error {ladder.error_percent.mean():.2f} %, coverage {ladder.coverage.mean():.2f}\n")
    print("Planted items, target at 10 and 100 times the largest of eight small models\n")
    print(tabulate(measure_items(), ["reach", "procedure"]))
    print(f"\n{time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()
