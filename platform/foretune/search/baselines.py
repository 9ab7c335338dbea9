"""Fixed settings that every search is scored against: what one gets without any search.

Kasimbeg et al. 2025 (arXiv 2505.24005) calibrate one configuration of NadamW over all workloads of AlgoPerf; left as
it is, it beats the defaults of the literature and of optimizers without a learning rate. The proxies have no dropout,
label smoothing or decay of their norms, which those configurations come with. The baselines are trained under the
standard parametrization, for which they were made, and to the horizon of the rung.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.records import Result, RunSpec
from foretune.search.interface import Findings, History, score
from foretune.sections import ScaleSection
from foretune.study import Study

UNCLIPPED = 1e9
"""A gradient norm that none reaches: neither configuration of AlgoPerf clips."""
SETTINGS: dict[str, dict[str, Any]] = {
    "calibrated_nadamw": {
        "optimizer": "nadamw_constant",
        "schedule": "cosine",
        "peak_lr": 0.0017486387539278373,
        "beta1": 1 - 0.06733926164,
        "beta2": 0.9955159689799007,
        "weight_decay": 0.08121616522670176,
        "warmup": 0.02,
        "final_lr_fraction": 0.0,
        "clip_norm": UNCLIPPED,
    },
    "schedulefree": {
        "optimizer": "schedulefree",
        "schedule": "constant",
        "peak_lr": 0.0025,
        "beta1": 0.9,
        "beta2": 0.9955159689799007,
        "weight_decay": 0.08121616522670176,
        "warmup": 0.02,
        "clip_norm": UNCLIPPED,
    },
    "prodigy": {
        "optimizer": "prodigy",
        "schedule": "constant",
        "peak_lr": 1.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "clip_norm": UNCLIPPED,
    },
}
"""`calibrated_nadamw`: mlcommons/algorithmic-efficiency, prize_qualification_baselines/self_tuning,
pytorch_nadamw_full_budget.py. `schedulefree`: mlcommons/submissions_algorithms, submissions/self_tuning/
schedule_free_adamw, without its polynomial weighting. `prodigy`: the defaults of prodigyopt 1.1."""
COMMON: dict[str, Any] = {"parametrization": "standard", "eps": 1e-8, "timescale": None, "ramp_tokens": 0}
"""What all of them have."""
PLAIN: dict[str, Any] = {"reweighting": "none", "mixture_learning": None, "dropout": 0.0, "self_tuning": None}
"""What they do without, whatever the study's own runs have."""


@dataclass(frozen=True)
class Baseline:
    """A run at fixed settings."""

    name: str
    """Name in `[search] baselines`."""
    spec: RunSpec
    """The run."""


def list_baselines(study: Study, corpus: CorpusFacts) -> tuple[list[Baseline], list[Skipped]]:
    """The baselines at every rung of the search for every seed, and those that would be of no use with the reason."""
    held_out = study.verification.scale if study.verification else ""
    baselines, skipped = [], []
    for name in study.search.baselines:
        for scale in [scale for scale in study.scales if scale.name != held_out]:
            for seed in study.search.axis("seed") or (study.study.seed,):
                spec = _resolve(study, scale, {**SETTINGS[name], **COMMON, **PLAIN, "seed": seed}, corpus)
                if obstacle := find_obstacle(spec, study, corpus):
                    skipped.append(Skipped(scale.name, {"baseline": name, "seed": seed}, obstacle))
                else:
                    baselines.append(Baseline(name, spec))
    return baselines, skipped


def ask_baselines(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs of the baselines, and those left out with the reason."""
    baselines, skipped = list_baselines(study, corpus)
    return [baseline.spec for baseline in baselines], skipped


def score_against_baselines(
    findings: Findings | None, searched: Iterable[RunSpec], study: Study, corpus: CorpusFacts, history: History
) -> Findings | None:
    """The findings with a table of the baselines beside the best run of the search, rung by rung."""
    baselines, _ = list_baselines(study, corpus)
    if not any(baseline.spec.run_id in history.results for baseline in baselines):
        return findings
    found = findings or Findings("The runs are there for the laws to fit.")
    rows = _list_rows(baselines, list(searched), history.results, study.search.objective)
    sentence = f"{found.sentence} {_say(rows)}".strip()
    return replace(found, sentence=sentence, tables={**found.tables, "Against fixed settings": rows})


def _resolve(study: Study, scale: ScaleSection, point: Mapping[str, Any], corpus: CorpusFacts) -> RunSpec:
    return resolve_run(study, scale, point, corpus, role="baseline")


def _list_rows(
    baselines: list[Baseline],
    searched: list[RunSpec],
    results: Mapping[str, Result],
    objective: Mapping[str, float],
) -> list[dict[str, Any]]:
    """A row for the search and for every baseline at each rung that has one."""
    rows = []
    for scale in dict.fromkeys(baseline.spec.scale for baseline in baselines):
        whole = [spec for spec in searched if spec.scale == scale and spec.role == "search" and not spec.is_partial]
        rows.append(_describe("best run of the search", scale, whole, results, objective, takes_best=True))
        for name in dict.fromkeys(baseline.name for baseline in baselines):
            own = [item.spec for item in baselines if (item.name, item.spec.scale) == (name, scale)]
            rows.append(_describe(name, scale, own, results, objective, takes_best=False))
    return rows


def _describe(
    name: str,
    scale: str,
    specs: list[RunSpec],
    results: Mapping[str, Result],
    objective: Mapping[str, float],
    *,
    takes_best: bool,
) -> dict[str, Any]:
    """How many runs there were and what they came to; the mean of those that did, or the best of them."""
    ended = [results[spec.run_id] for spec in specs if spec.run_id in results]
    scores = [value for value in (score(result, objective) for result in ended) if math.isfinite(value)]
    told = (min(scores) if takes_best else sum(scores) / len(scores)) if scores else None
    return {
        "scale": scale,
        "settings": name,
        "score": told,
        "lowest": min(scores, default=None),
        "highest": max(scores, default=None),
        "runs": len(ended),
        "lost": len(ended) - len(scores),
        "training_flops": sum(result.spent_flops for result in ended),
    }


def _say(rows: list[dict[str, Any]]) -> str:
    """The last rung in a sentence; the search had many tries, a baseline one for each seed."""
    scale = rows[-1]["scale"]
    best, *fixed = [row for row in rows if row["scale"] == scale]
    known = [row for row in fixed if row["score"] is not None]
    if best["score"] is None or not known:
        return f"At scale {scale} there is nothing to compare with fixed settings."
    told = ", ".join(f"{row['settings']} {row['score']:.4f}" for row in known)
    return f"At scale {scale} the best of {best['runs']} runs came to {best['score']:.4f}; fixed settings: {told}."
