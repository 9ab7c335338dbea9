"""The runs that check a forecast: the held-out scale, at the predicted learning rate and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, find_obstacle
from foretune.records import RunSpec
from foretune.settings import LR_RANGE
from foretune.study import Study
from foretune.variation import list_rates


@dataclass(frozen=True)
class Centre:
    """The settings that were predicted for the held-out scale."""

    parametrization: str
    """Branch of the study."""
    peak_lr: float
    """Predicted peak learning rate."""
    batch_tokens: int
    """Predicted batch, a whole number of sequences; the study's own where it was not searched."""


def ask_verification(
    study: Study, corpus: CorpusFacts, centres: Sequence[Centre]
) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs around each centre, for every seed of the space."""
    assert study.verification is not None
    scale = study.scale_named(study.verification.scale)
    seeds = study.search.axis("seed") or (study.study.seed,)
    specs, skipped = [], []
    for point in [{**point, "seed": seed} for centre in centres for point in _points(study, centre) for seed in seeds]:
        spec = resolve_run(study, scale, point, corpus, role="verification")
        if obstacle := find_obstacle(spec, study, corpus):
            skipped.append(Skipped(scale.name, point, obstacle))
        else:
            specs.append(spec)
    return specs, skipped


def expect_verification(study: Study, corpus: CorpusFacts) -> list[RunSpec]:
    """Stand-ins for the verification runs before there is a forecast: their cost is known, their settings are not."""
    if study.verification is None:
        return []
    branches = study.search.axis("parametrization") or (study.proxy.parametrization,)
    stand_in = (list_rates(study) or LR_RANGE)[0]  # the cost does not depend on it, so any does where a rule gives it
    centres = [Centre(str(branch), stand_in, study.training.batch_tokens) for branch in branches]
    return ask_verification(study, corpus, centres)[0]


def _points(study: Study, centre: Centre) -> list[Mapping[str, Any]]:
    verification = study.verification
    assert verification is not None
    steps = range(-verification.lr_steps, verification.lr_steps + 1)
    return [
        {
            "parametrization": centre.parametrization,
            "peak_lr": centre.peak_lr * verification.lr_factor**step,
            "batch_tokens": centre.batch_tokens,
        }
        for step in steps
    ]
