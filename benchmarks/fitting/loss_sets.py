"""Published sets of losses over (N, D), each as observations, and the compute-optimal sizes that are known of them.

A set is one data set, metric and set-up. Gadre's runs are scored on two of their losses that show no break; the loss on
the validation part of a training corpus (paloma_redpajama) drops by a tenth between two runs of a ladder: left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from benchmarks.fitting.datasets import read_runs
from scalelaws import Observations
from scalelaws.engines.weighting import find_excess

MARIN = {1e18: 3.522, 3e18: 3.339, 1e19: 3.154, 3e19: 3.000, 1e20: 2.848, 3e20: 2.725}
"""Loss at compute-optimal budgets (marin-community/marin, issue 4447); N and D follow at 20 tokens per parameter."""
NEAR = 0.05
"""Runs within 5 % of a level's best say where its minimum is."""


def read_sets() -> dict[str, Observations]:
    """All sets by name."""
    return dict(_iterate())


def _iterate() -> Iterator[tuple[str, Observations]]:
    yield "chinchilla (figure)", _observe(read_runs("chinchilla_epoch").query("kept_240"))
    for name, part in read_runs("athena_isoflops").query("not outlier").groupby("experiment"):
        yield f"isoflop {name}", _observe(part)
    for name, part in read_runs("formll_isoflops").groupby("experiment"):
        yield f"porian {'|'.join(str(name).split('|')[2:])}", _observe(part)
    for name, part in read_runs("gadre").groupby("train_set"):
        for loss in ("loss_c4_val", "loss_openlm"):
            yield f"gadre {name} {loss[5:]}", _observe(part, loss)
    yield "gemstone", _observe(read_runs("gemstone"))
    for loss in ("loss_c4_en", "loss_pile"):
        yield f"olmo ladder {loss[5:]}", _observe(read_runs("olmo_ladder").rename(columns={"C_6ND": "C"}), loss)
    sweeps = read_runs("steplaw_dense")
    best = sweeps.loc[sweeps.groupby(["N", "D"])["loss"].idxmin()]
    yield "step law, best of each cell", _observe(best.assign(C=6.0 * best["N"].astype(float) * best["D"]))
    once = read_runs("datablations").query("epochs <= 1")
    yield "datablations, one epoch", _observe(once.assign(C=6 * once["N"] * once["D"]))
    budgets = pd.DataFrame({"C": list(MARIN), "loss": list(MARIN.values())})
    size = np.sqrt(budgets["C"] / 120)
    yield "marin, optimal budgets", _observe(budgets.assign(N=size, D=20 * size))


def _observe(frame: pd.DataFrame, loss: str = "loss") -> Observations:
    frame = frame[np.isfinite(frame[loss])]
    return Observations(frame["N"], frame["D"], frame[loss], compute_flops=frame["C"], params_convention="unspecified")


def find_optimal_sizes(name: str, observations: Observations) -> dict[float, float]:
    """Compute-optimal N by compute: as published, else the minimum of a parabola in a level's runs near its best."""
    if name.startswith("porian"):
        published = read_runs("formll_published_optima")
        chosen = published[published["experiment"].str.endswith(name.removeprefix("porian "))]
        return dict(zip(chosen["C"], chosen["N_opt"], strict=True))
    if not name.startswith("isoflop"):
        return {}
    near = find_excess(observations) <= NEAR
    levels = {c: near & (observations.compute == c) for c in np.unique(observations.compute)}
    found = {float(c): _find_minimum(observations.rows(np.flatnonzero(rows))) for c, rows in levels.items()}
    return {c: size for c, size in found.items() if size is not None}


def _find_minimum(level: Observations) -> float | None:
    """The minimum of ln loss in ln N where it lies inside of the level's sizes."""
    x = np.log(level.params_non_embedding)
    if len(np.unique(x)) < 4:
        return None
    bend, slope, _ = np.polyfit(x - x.mean(), np.log(level.loss), 2)
    at = x.mean() - slope / (2 * bend)
    return float(np.exp(at)) if bend > 0 and x.min() < at < x.max() else None
