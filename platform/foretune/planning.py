"""Pure planning: a study, the facts of its corpus and what is already measured become the runs still to do.

Nothing here reads a clock, a disk or a device, so the same study always plans the same runs under the same ids.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.quantities import format_count
from foretune.records import RunSpec, RunStatus
from foretune.sections import RUN_LIMIT
from foretune.study import Study

MIN_STEPS = 10
"""Runs of fewer optimizer steps are skipped: such a loss says nothing of a longer run's settings (an assumption)."""


@dataclass(frozen=True)
class Skipped:
    """A run that the space contains and that is not planned, with the reason."""

    scale: str
    point: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The runs of a study, sorted into those to do, those done, those skipped, and those not yet decided on."""

    study: str
    todo: tuple[RunSpec, ...]
    done: tuple[tuple[RunSpec, RunStatus], ...]
    skipped: tuple[Skipped, ...]
    later: tuple[RunSpec, ...] = ()
    """Stand-ins for runs that the search will ask for when it has seen results: their cost is known."""
    again: tuple[RunSpec, ...] = ()
    """Runs that are done and trained again from the beginning, because a soup needs states of theirs that are gone."""

    @property
    def tokens(self) -> int:
        """Training tokens still to spend."""
        return sum(spec.own_tokens for spec in (*self.todo, *self.later, *self.again))

    @property
    def flops(self) -> float:
        """Training FLOPs still to spend."""
        return float(sum(spec.own_flops for spec in (*self.todo, *self.later, *self.again)))

    @property
    def total_tokens(self) -> int:
        """Training tokens of the whole study, done ones included."""
        return self.tokens + sum(spec.own_tokens for spec, _ in self.done)

    @property
    def total_flops(self) -> float:
        """Training FLOPs of the whole study, done ones included."""
        return self.flops + sum(spec.own_flops for spec, _ in self.done)


def plan_runs(
    study: Study,
    specs: Sequence[RunSpec],
    skipped: Sequence[Skipped],
    statuses: Mapping[str, RunStatus],
    later: Sequence[RunSpec] = (),
) -> Plan:
    """Sort specs by what the ledger holds: final runs are done, failed and absent ones are to do; ids are unique."""
    unique = {spec.run_id: spec for spec in specs}
    done = {key: statuses[key] for key in unique if key in statuses and statuses[key].final}
    return Plan(
        study=study.study.name,
        todo=tuple(spec for key, spec in unique.items() if key not in done),
        done=tuple((unique[key], status) for key, status in done.items()),
        skipped=tuple(skipped),
        later=tuple(later),
    )


@dataclass(frozen=True)
class Spent:
    """What a study has cost beside the runs of its plan."""

    runs: int = 0
    tokens: int = 0
    flops: float = 0.0


NOTHING = Spent()
"""A study that was never launched."""


def check_budget(study: Study, plan: Plan, hours: float = 0.0, spent: Spent = NOTHING) -> None:
    """Refuse a plan over the study's budget; what is already done counts, except in hours."""
    budget = study.budget
    costs = {
        "runs": (len(plan.todo) + len(plan.later) + len(plan.done) + spent.runs, budget.runs),
        "tokens": (plan.total_tokens + spent.tokens, budget.tokens),
        "flops": (plan.total_flops + spent.flops, budget.flops),
        "hours": (hours, budget.hours),
    }
    over = [
        f"budget.{name}: the plan needs {cost:.4g}, the limit is {limit:.4g}"
        for name, (cost, limit) in costs.items()
        if cost > limit
    ]
    if over:
        raise InputError("\n".join([*over, "raise the budget, or search fewer values, scales or tokens"]))


def find_obstacle(spec: RunSpec, study: Study, corpus: CorpusFacts) -> str:
    """Why a run would be of no use, or an empty string."""
    training = spec.training
    if training.steps < MIN_STEPS:
        return f"{training.steps} steps of {training.batch_tokens} tokens are fewer than {MIN_STEPS}"
    if training.warmup_steps >= training.steps:
        return (
            f"training.warmup: its {training.warmup_steps} steps are not fewer than the {training.steps} of the run; "
            "lower it (below 1 it is a fraction of the run)"
        )
    if training.warmup_steps + training.decay_steps > training.steps + 1:
        return (
            f"training.warmup and training.decay: their {training.warmup_steps} and {training.decay_steps} steps do "
            f"not fit into the {training.steps} of the run, whose learning rate would never reach the peak; lower one"
        )
    if training.ramp and sum(phase.steps for phase in training.ramp) >= training.steps:
        return f"training.ramp_tokens: it is not below the {training.tokens} tokens of the run; lower it"
    if training.final_lr_fraction > 1:
        return (
            f"its final_lr {training.final_lr_fraction * training.peak_lr:g} is above its peak_lr {training.peak_lr:g}"
        )
    for domain, tokens in corpus.train_tokens.items():
        unique = spec.data.unique_tokens.get(domain, tokens)
        epochs = _expect_tokens(spec, domain) / max(1, unique)
        if epochs > study.data.max_epochs:
            return (
                f"{epochs:.1f} epochs of the {format_count(unique)} tokens of domain {domain} "
                f"(data.max_epochs is {study.data.max_epochs:g})"
            )
    return ""


def _expect_tokens(spec: RunSpec, domain: str) -> float:
    """Training tokens of a domain, under each mixture of the run for as long as it holds."""
    starts = [0, *(phase.start_step for phase in spec.phases if phase.mixture)]
    tokens = [spec.training.tokens_at(step) for step in (*starts, spec.training.steps)]
    shares = [spec.mixture_at(start).get(domain, 0.0) for start in starts]
    return math.fsum(
        share * (end - begin) for share, (begin, end) in zip(shares, itertools.pairwise(tokens), strict=True)
    )


def check_decays(study: Study, specs: Sequence[RunSpec]) -> None:
    """Refuse weight decays that would take away all of the weights in a step, or more."""
    worst = max(specs, key=_share_decayed, default=None)
    if worst is None or (share := _share_decayed(worst)) < 1:
        return
    training, is_derived = (
        worst.training,
        study.training.timescale is not None or "timescale" in study.search.list_keys(),
    )
    key, remedy = "weight_decay", f"lower it below {1 / training.peak_lr:.3g}"
    if is_derived:
        key, remedy = "timescale", f"raise it above {training.batch_tokens / training.tokens:.3g}"
    raise InputError(
        f"{'search.space' if key in study.search.list_keys() else 'training'}.{key}: a step at a learning rate of "
        f"{training.peak_lr:g} would take away {share:.3g} times the weights of scale {worst.scale!r} (learning rate "
        f"x weight decay, {training.weight_decay:.4g}), and turn their signs; {remedy}"
    )


def _share_decayed(spec: RunSpec) -> float:
    """What a step at the peak takes away of the weights; Prodigy's rate is only a factor of one it estimates."""
    training = spec.training
    return 0.0 if training.optimizer == "prodigy" else training.peak_lr * training.weight_decay


def check_counts(study: Study, runs: int) -> None:
    """Refuse grids that are larger than anyone means."""
    if runs > RUN_LIMIT:
        raise InputError(f"search.space: {runs} runs, more than {RUN_LIMIT}; search fewer values or scales")
