"""Pure planning: a study, the facts of its corpus and what is already measured become the runs still to do.

Nothing here reads a clock, a disk or a device, so the same study always plans the same runs under the same ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.accounting import choose_ffn_width
from foretune.errors import InputError
from foretune.quantities import TokensPerParam, format_count
from foretune.records import DataSpec, ModelSpec, RunSpec, RunStatus, TrainingSpec, trainer_of
from foretune.sections import RUN_LIMIT, ScaleSection, TrainingSection
from foretune.study import Study

MIN_STEPS = 10
"""Runs of fewer optimizer steps are skipped: such a loss says nothing of a longer run's settings (an assumption)."""


@dataclass(frozen=True)
class CorpusFacts:
    """What planning needs to know of a corpus."""

    digest: str
    """SHA-256 of its tokens."""
    vocab_size: int
    """Rows of the embedding."""
    mixture: Mapping[str, float]
    """Share of training sequences per domain."""
    train_tokens: Mapping[str, int]
    """Distinct training tokens per domain; empty when nothing is trained (replay)."""
    notes: tuple[str, ...] = ()
    """What a person ought to know of the corpus, a missing domain for instance."""


@dataclass(frozen=True)
class Skipped:
    """A run that the space contains and that is not planned, with the reason."""

    scale: str
    point: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Plan:
    """The runs of a study, sorted into those to do, those done and those skipped."""

    study: str
    todo: tuple[RunSpec, ...]
    done: tuple[tuple[RunSpec, RunStatus], ...]
    skipped: tuple[Skipped, ...]

    @property
    def tokens(self) -> int:
        """Training tokens still to spend."""
        return sum(spec.training.tokens for spec in self.todo)

    @property
    def flops(self) -> float:
        """Training FLOPs still to spend."""
        return float(sum(spec.compute_flops for spec in self.todo))

    @property
    def total_tokens(self) -> int:
        """Training tokens of the whole study, done ones included."""
        return self.tokens + sum(spec.training.tokens for spec, _ in self.done)

    @property
    def total_flops(self) -> float:
        """Training FLOPs of the whole study, done ones included."""
        return self.flops + sum(spec.compute_flops for spec, _ in self.done)


def plan_runs(
    study: Study, specs: Sequence[RunSpec], skipped: Sequence[Skipped], statuses: Mapping[str, RunStatus]
) -> Plan:
    """Sort specs by what the ledger holds: final runs are done, failed and absent ones are to do; ids are unique."""
    unique = {spec.run_id: spec for spec in specs}
    done = {key: statuses[key] for key in unique if key in statuses and statuses[key].final}
    return Plan(
        study=study.study.name,
        todo=tuple(spec for key, spec in unique.items() if key not in done),
        done=tuple((unique[key], status) for key, status in done.items()),
        skipped=tuple(skipped),
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
        "runs": (len(plan.todo) + len(plan.done) + spent.runs, budget.runs),
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


def resolve_run(
    study: Study, scale: ScaleSection, point: Mapping[str, Any], corpus: CorpusFacts, *, verification: bool = False
) -> RunSpec:
    """One run with every derived number in it. `point` gives the searched values by their names in the space."""
    training = study.training.model_copy(update={k: v for k, v in point.items() if k in TrainingSection.model_fields})
    return RunSpec(
        study=study.study.name,
        scale=scale.name,
        role="verification" if verification else "search",
        trainer=trainer_of(study.trainable, study.runner),
        model=_resolve_model(study, scale, str(point.get("parametrization", study.proxy.parametrization)), corpus),
        data=DataSpec(
            corpus_digest=corpus.digest,
            seq_len=study.data.seq_len,
            mixture=dict(corpus.mixture),
            validation_sequences=study.data.validation_sequences,
            section=study.data,
        ),
        training=_resolve_training(training, resolve_horizon(study, scale, corpus)),
        seed=int(point.get("seed", study.study.seed)),
    )


def resolve_horizon(study: Study, scale: ScaleSection, corpus: CorpusFacts) -> int:
    """The rung's training tokens, rounded up to a whole number of steps at every batch size of the space.

    Runs of one cell must see the same number of tokens whatever their batch, or batch and horizon are confounded.
    """
    batches = study.search.axis("batch_tokens") or (study.training.batch_tokens,)
    multiple = math.lcm(*batches)
    if multiple > 4 * max(batches):
        raise InputError(
            f"search.space.batch_tokens: the values {list(batches)} have no common multiple below {4 * max(batches)}, "
            "so the runs of a cell could not see the same number of tokens; take batches a factor 2 apart"
        )
    tokens = scale.tokens
    if isinstance(tokens, TokensPerParam):
        tokens = round(tokens.ratio * study.shape(scale, corpus.vocab_size).params_non_embedding)
    return math.ceil(tokens / multiple) * multiple


def nearest_batch(batch_tokens: float, study: Study, horizon_tokens: int) -> int:
    """The batch nearest to the given one, in logs, that divides the horizon: its runs see the same tokens."""
    unit = study.data.seq_len * study.training.accumulation_steps
    steps_at_one_unit = max(1, horizon_tokens // unit)
    small = [d for d in range(1, math.isqrt(steps_at_one_unit) + 1) if steps_at_one_unit % d == 0]
    divisors = {divisor for d in small for divisor in (d, steps_at_one_unit // d)}
    return unit * min(divisors, key=lambda divisor: abs(math.log(divisor * unit / batch_tokens)))


def find_obstacle(spec: RunSpec, study: Study, corpus: CorpusFacts) -> str:
    """Why a run would be of no use, or an empty string."""
    training = spec.training
    if training.steps < MIN_STEPS:
        return f"{training.steps} steps of {training.batch_tokens} tokens are fewer than {MIN_STEPS}"
    if training.warmup_steps >= training.steps:
        return f"warm-up of {training.warmup_steps} steps is not shorter than the run of {training.steps}"
    if training.warmup_steps + training.decay_steps > training.steps + 1:
        return (
            f"warm-up of {training.warmup_steps} and decay of {training.decay_steps} steps do not fit into the run of "
            f"{training.steps}: its learning rate would never reach the peak"
        )
    for domain, tokens in corpus.train_tokens.items():
        epochs = corpus.mixture.get(domain, 0.0) * training.tokens / max(1, tokens)
        if epochs > study.data.max_epochs:
            return (
                f"{epochs:.1f} epochs of the {format_count(tokens)} tokens of domain {domain} "
                f"(data.max_epochs is {study.data.max_epochs:g})"
            )
    return ""


def check_counts(study: Study, runs: int) -> None:
    """Refuse grids that are larger than anyone means."""
    if runs > RUN_LIMIT:
        raise InputError(f"search.space: {runs} runs, more than {RUN_LIMIT}; search fewer values or scales")


def _resolve_model(study: Study, scale: ScaleSection, parametrization: str, corpus: CorpusFacts) -> ModelSpec:
    shape, proxy = study.shape(scale, corpus.vocab_size), study.proxy
    return ModelSpec(
        architecture=proxy.architecture,
        parametrization="mup" if parametrization == "mup" else "standard",
        width=shape.width,
        depth=shape.depth,
        head_size=shape.head_size,
        ffn_width=shape.ffn_width,
        vocab_size=shape.vocab_size,
        base_width=proxy.base_width,
        base_head_size=proxy.head_size,
        base_ffn_width=choose_ffn_width(proxy.base_width, proxy.ffn_ratio),
        qk_norm=proxy.qk_norm,
        tied_head=proxy.tied_head,
        rope_base=proxy.rope_base,
    )


def _resolve_training(training: TrainingSection, tokens: int) -> TrainingSpec:
    steps = max(1, tokens // training.batch_tokens)
    decay = _phase_steps(training.decay, steps, training.batch_tokens) if training.schedule == "wsd" else 0
    assert training.peak_lr is not None, "Study checks that a learning rate is given"
    return TrainingSpec(
        optimizer=training.optimizer,
        schedule=training.schedule,
        peak_lr=training.peak_lr,
        batch_tokens=training.batch_tokens,
        steps=steps,
        warmup_steps=_phase_steps(training.warmup, steps, training.batch_tokens, whole_fraction=1.0 - 1e-12),
        decay_steps=decay,
        final_lr_fraction=training.final_lr_fraction,
        beta1=training.beta1,
        beta2=training.beta2,
        eps=training.eps,
        weight_decay=training.weight_decay,
        clip_norm=training.clip_norm,
        accumulation_steps=training.accumulation_steps,
        precision=training.precision,
        evaluations=min(training.evaluations, steps),
        checkpoint_steps=math.ceil(training.checkpoint_tokens / training.batch_tokens),
    )


def _phase_steps(phase: float, steps: int, batch_tokens: int, whole_fraction: float = 1.0) -> int:
    """Steps of a phase given as a fraction of the run (up to `whole_fraction`) or in tokens."""
    return round(phase * steps) if phase <= whole_fraction else math.ceil(phase / batch_tokens)
