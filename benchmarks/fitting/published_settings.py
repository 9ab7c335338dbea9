"""Published laws of settings on the Step Law runs, beside fits in size and horizon and in compute alone.

    python -m benchmarks.fitting.published_settings

Regret: loss of the measured run nearest in (log2 lr, log2 batch) to what a law says, over the best run of its cell,
minus one; mean and largest over the dense cells. A fitted law never sees the cell (leave one cell out). Laws of M D are
given width, depth and sequence length. Unfair to laws tuned under other schedules; fair to a reader who copies them.
Second table: the critical batch of each size and loss, from runs of several horizons, beside Power Lines' constants.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

import scalelaws
from benchmarks.fitting.datasets import read_runs
from scalelaws import Observations, Target, get_published
from scalelaws.laws import FitOptions
from scalelaws.laws.base import SettingsLaw
from scalelaws.laws.compute_settings import ComputeOptimumLaw
from scalelaws.laws.critical_batch_law import CriticalBatchLaw, find_critical_batches
from scalelaws.laws.settings import OptimumLaw

PUBLISHED = ("step_law", "porian", "deepseek", "moonlight", "greater_leverage")
CONSTANTS = ((2e-3, 5e5), (3e-4, 5e5))
FITTED: tuple[SettingsLaw, ...] = (OptimumLaw(), ComputeOptimumLaw())

Rule = Callable[[Target], tuple[float, float]]


def quote(name: str) -> Rule:
    def answer(target: Target) -> tuple[float, float]:
        found = scalelaws.forecast(get_published(name), target)
        assert found.peak_lr is not None
        assert found.batch_tokens is not None
        return found.peak_lr.value, found.batch_tokens.value

    return answer


def fit_without(runs: pd.DataFrame, law: SettingsLaw) -> Rule:
    """Fits all cells but the target's."""

    def answer(target: Target) -> tuple[float, float]:
        other = (runs["N"] != target.params_non_embedding) | (runs["D"] != target.tokens)
        fit = law.estimate(Observations.from_frame(runs[other]), FitOptions(bootstrap=200))
        drawn = law.predict_settings(fit, target, np.random.default_rng(0))
        assert drawn.ln_batch_tokens is not None
        return float(np.exp(np.median(drawn.ln_peak_lr))), float(np.exp(np.median(drawn.ln_batch_tokens)))

    return answer


def measure_regret(runs: pd.DataFrame, rule: Rule) -> list[float]:
    regrets = []
    for (params, tokens), cell in runs.groupby(["N", "D"]):
        first = cell.iloc[0]
        shape = {"width": float(first["d_model"]), "depth": float(first["n_layers"])}
        rate, batch = rule(Target(float(params), float(tokens), int(first["seq_len"]), covariates=shape))
        far = np.hypot(np.log2(cell["lr"] / rate), np.log2(cell["bs_tokens"] / batch))
        regrets.append(float(cell["loss"].loc[far.idxmin()] / cell["loss"].min() - 1))
    return regrets


def main() -> None:
    runs = read_runs("steplaw_dense")
    rules: dict[str, Rule] = {name: quote(name) for name in PUBLISHED}
    rules |= {f"constant {lr:g}, {batch:g} tokens": lambda _, pair=(lr, batch): pair for lr, batch in CONSTANTS}
    rules |= {f"{law.name}, cell left out": fit_without(runs, law) for law in FITTED}
    print(f"{'regret, %':<32}{'mean':>8}{'largest':>9}")
    for name, rule in rules.items():
        regrets = measure_regret(runs, rule)
        print(f"{name:<32}{100 * np.mean(regrets):8.3f}{100 * max(regrets):9.3f}")
    observations = Observations.from_frame(runs)
    published = get_published("power_lines").critical_batch_tokens
    assert published is not None
    print(f"\n{'critical batch, M tokens':<32}{'ours':>8}{'90 %':>16}{'Power Lines':>13}")
    for item in find_critical_batches(observations):
        found, fewest = item.tradeoff.critical_batch_tokens, item.tradeoff.tokens_min.value
        theirs = published(Target(item.params, fewest))
        span = f"{(found.low or np.nan) / 1e6:.2f} to {(found.high or np.nan) / 1e6:.2f}"
        print(
            f"N {item.params:.3g}, D_min {fewest:.3g}".ljust(32)
            + f"{found.value / 1e6:8.2f}{span:>16}{theirs / 1e6:13.2f}"
        )
    print("\n" + scalelaws.fit(CriticalBatchLaw(), observations).summary())


if __name__ == "__main__":
    main()
