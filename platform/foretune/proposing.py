"""Which runs next? Candidates at the study's own rungs, chosen by scalelaws.design, as a study ready to launch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foretune.deriving import CorpusFacts, nearest_batch, resolve_horizon, resolve_run
from foretune.errors import InputError
from foretune.evidence import gather_observations
from foretune.planning import find_obstacle
from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.sections import PointSection, ScaleSection
from foretune.study import Study
from foretune.variation import list_rates
from scalelaws import ObservationError, Observations, Target
from scalelaws.design import choose_runs, start_design
from scalelaws.designs.candidates import Candidates, Design

if TYPE_CHECKING:
    import pandas as pd

FINER = 2**0.5
"""Candidates lie between the grid's own values, and reach a step beyond its ends."""


@dataclass(frozen=True)
class Proposal:
    """The runs to do next, and the study that does them."""

    design: Design
    points: tuple[PointSection, ...]
    study: Study
    """The same study with the points appended: its finished runs are re-used, only the new ones are trained.

    Before the first run the points stand in for the grid."""

    def to_dict(self) -> dict[str, Any]:
        """The design and its points as plain data."""
        return {**self.design.to_dict(), "points": [point.model_dump(exclude_none=True) for point in self.points]}

    def rows(self) -> list[dict[str, Any]]:
        """One row per run, for a table."""
        return [
            {
                "scale": point.scale,
                "peak_lr": point.peak_lr,
                "batch_tokens": choice.batch_tokens,
                "compute_flops": choice.cost_flops,
                "regret_before": before,
                "regret_after": choice.after.expected_regret,
            }
            for point, choice, before in zip(self.points, self.design.choices, self._before(), strict=True)
        ]

    def _before(self) -> list[float]:
        first = self.design.before.expected_regret
        return [first, *(choice.after.expected_regret for choice in self.design.choices[:-1])]


def propose_runs(
    study: Study, frame: pd.DataFrame | None, target: Target, *, parametrization: str, runs: int
) -> Proposal:
    """The `runs` runs at the study's rungs that lower the expected regret at the target most per FLOP.

    `frame` holds the runs so far; without any (None), a start design is laid out. The rung that is held out for
    verification is never a candidate: it checks the forecast. Raises InputError when nothing useful can be run.
    """
    specs = list_candidates(study, resolve_corpus(study), parametrization)
    if not specs:
        raise InputError("next: no rung of this study has a run that could be of use; add [[scales]] or raise tokens")
    candidates = describe_candidates(specs)
    try:
        observations = _gather(frame, parametrization)
        if observations is None:
            design = start_design(candidates, target, runs=runs, seed=study.study.seed)
        else:
            design = choose_runs(observations, candidates, target, runs=runs, seed=study.study.seed)
    except (ValueError, ObservationError) as error:
        raise InputError(f"next: {error}") from None
    points = tuple(_as_point(specs[row], study) for row in design.rows)
    strategy = "points" if observations is None else study.search.strategy
    search = study.search.model_copy(update={"strategy": strategy, "points": (*study.search.points, *points)})
    return Proposal(design, points, study.model_copy(update={"search": search}))


def list_candidates(study: Study, corpus: CorpusFacts, parametrization: str) -> list[RunSpec]:
    """The runs that could be done: every rung but the one that is held out, around the searched values."""
    held_out = study.verification.scale if study.verification else ""
    specs: dict[str, RunSpec] = {}
    for scale in (scale for scale in study.scales if scale.name != held_out):
        for point in _points(study, scale, corpus):
            spec = resolve_run(study, scale, {**point, "parametrization": parametrization}, corpus)
            if not find_obstacle(spec, study, corpus):
                specs.setdefault(spec.run_id, spec)
    return list(specs.values())


def describe_candidates(specs: list[RunSpec]) -> Candidates:
    """The candidates as scalelaws knows them."""
    return Candidates(
        params_non_embedding=np.array([float(spec.model.shape.params_non_embedding) for spec in specs]),
        tokens=np.array([float(spec.training.tokens) for spec in specs]),
        peak_lr=np.array([spec.training.peak_lr for spec in specs]),
        batch_tokens=np.array([float(spec.training.batch_tokens) for spec in specs]),
        cost_flops=np.array([float(spec.compute_flops) for spec in specs]),
        label=tuple(spec.scale for spec in specs),
    )


def _points(study: Study, scale: ScaleSection, corpus: CorpusFacts) -> Iterable[dict[str, Any]]:
    horizon = resolve_horizon(study, scale, corpus)
    rates = _refine(list_rates(study), 1e-7, 0.5)
    batches = study.search.axis("batch_tokens")
    sizes = {nearest_batch(batch, study, horizon) for batch in _refine(batches, study.data.seq_len, horizon)}
    for rate, batch in itertools.product(rates, sorted(sizes) or [study.training.batch_tokens]):
        yield {"peak_lr": float(f"{rate:.4g}"), "batch_tokens": batch}


def _refine(values: Iterable[Any], low: float, high: float) -> list[float]:
    """Values from a step below the smallest to a step above the largest, a factor of the root of two apart."""
    known = sorted(float(value) for value in values)
    if not known:
        return []
    steps = round(math.log(known[-1] / known[0]) / math.log(FINER))
    grid = [known[0] * FINER**step for step in range(-2, steps + 3)] if len(known) > 1 else known
    return [value for value in grid if low <= value <= high]


def _gather(frame: pd.DataFrame | None, parametrization: str) -> Observations | None:
    """The evidence, or None before the first run has ended."""
    if frame is None or frame.empty or not frame["status"].ne("failed").any():
        return None
    return gather_observations(frame, parametrization=parametrization)


def _as_point(spec: RunSpec, study: Study) -> PointSection:
    branch = spec.model.parametrization
    return PointSection(
        scale=spec.scale,
        peak_lr=spec.training.peak_lr,
        batch_tokens=spec.training.batch_tokens,
        parametrization=None if branch == study.proxy.parametrization else branch,
    )
