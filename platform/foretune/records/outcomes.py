"""RunOutcome (what a trainer returns) and RunRecord (a row of the run table)."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from foretune.records.frozen import Frozen
from foretune.records.specs import RunSpec


class RunStatus(StrEnum):
    """How a run stands."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether the run is done with: a failed one is tried again by the next launch."""
        return self is not RunStatus.FAILED


class CurvePoint(Frozen):
    """One point of a run's curve; `loss` is the training loss of that step, `held_out` where it was evaluated."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens seen."""
    lr: float
    """Learning rate of that step."""
    loss: float | None
    """Training loss of the step, nats per token; None where it was not finite."""
    held_out: float | None = None
    """Held-out loss, nats per token, where it was evaluated."""


class Diagnosis(Frozen):
    """What was measured beside the loss at one step; None where this run cannot measure it."""

    step: int
    """Optimizer steps done."""
    gradient_norm: float | None
    """Norm of the gradient before clipping."""
    update_norm: float | None
    """Norm of the change of all weights."""
    update_cosine: float | None
    """Cosine between the change of the weights and the descent direction, minus the gradient."""
    saturated_share: float | None
    """Share of weights at which Adam's |m / sqrt(v)| exceeds .9 (Molybog et al. 2023)."""
    noise_scale_tokens: float | None
    """Simple gradient noise scale, smoothed: an estimate of the critical batch (McCandlish et al. 2018)."""
    logit_max: float | None
    """Largest logit."""
    attention_logit_max: float | None
    """Largest query-key product before the softmax."""
    near_eps_share: float | None = None
    """Share of the weights of hidden matrices at which Adam's sqrt(v) is below its eps (Molybog et al. 2023)."""


class LearnedPoint(Frozen):
    """What a run had learned so far."""

    step: int
    """Optimizer steps done."""
    values: dict[str, float]
    """By name: the share of each domain, or settings in their own unit."""


class RunOutcome(Frozen):
    """What a trainer returns."""

    status: RunStatus
    """completed, diverged or failed."""
    reason: str = ""
    """Why it is not completed; empty when it is."""
    loss: float | None = None
    """Held-out loss at the end, nats per token, weighted by the mixture; None unless completed."""
    loss_by_domain: dict[str, float] = Field(default_factory=dict)
    """Held-out loss per domain."""
    curve: tuple[CurvePoint, ...] = ()
    """The curve, kept also when the run diverged."""
    tokens: int = 0
    """Tokens trained on."""
    wall_seconds: float = 0.0
    """Time in the trainer, all attempts from the last checkpoint on."""
    device: str = ""
    """What it ran on, with the torch build."""
    bytes_per_token: float | None = None
    """UTF-8 bytes per held-out token, by which bits per byte are derived."""
    diagnoses: tuple[Diagnosis, ...] = ()
    """What was measured beside the loss."""
    instability: str = ""
    """Verdict on the run's stability: empty when nothing was seen, else what was seen and when."""
    spent_flops: float | None = None
    """FLOPs that this run cost: less than `compute_flops` where a trunk was shared or the run ended early."""
    pack_size: int = 1
    """Runs that were trained together on the device."""
    learned: dict[str, float] = Field(default_factory=dict)
    """What the run learned besides its weights, the mean over its second half: the share of each domain where it
    learned its mixture, the settings that it tuned; empty for others."""
    learned_path: tuple[LearnedPoint, ...] = ()
    """How that moved."""


class RunRecord(Frozen):
    """A row of the run table, with its curve and diagnoses. Imported rows have no spec and may leave columns empty.

    `tokens` is what the run was to train on, `tokens_trained` how far it came: less where it diverged.
    `horizon_tokens` is what its schedule was made for: more than `tokens` where it was to end before. `setting_changes`
    counts its phases.
    """

    run_id: str
    study: str
    source: str
    status: RunStatus
    reason: str = ""
    scale: str = ""
    role: str = "search"
    parent_run_id: str | None = None
    params_total: int | None = None
    params_non_embedding: int | None = None
    params_active: int | None = None
    width: int | None = None
    depth: int | None = None
    tokens: int | None = None
    compute_flops: float | None = None
    seq_len: int | None = None
    batch_tokens: int | None = None
    batch_sequences: float | None = None
    steps: int | None = None
    peak_lr: float | None = None
    weight_decay: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    parametrization: str | None = None
    seed: int | None = None
    loss: float | None = None
    loss_unit: str = "nats_per_token"
    loss_kind: str = "held_out"
    bits_per_byte: float | None = None
    tokens_trained: int | None = None
    wall_seconds: float | None = None
    device: str | None = None
    activation_ratio: float | None = None
    spent_flops: float | None = None
    pack_size: int | None = None
    instability: str | None = None
    horizon_tokens: int | None = None
    setting_changes: int | None = None
    created_at: str = ""
    mix: dict[str, float] = Field(default_factory=dict)
    loss_by_domain: dict[str, float] = Field(default_factory=dict)
    spec: dict[str, Any] | None = None
    curve: tuple[CurvePoint, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    learned: dict[str, float] = Field(default_factory=dict)
    learned_path: tuple[LearnedPoint, ...] = ()


def record_outcome(spec: RunSpec, outcome: RunOutcome) -> RunRecord:
    """The row of the run table for an executed run; of settings that changed on its way, those at its end."""
    shape, training = spec.model.shape, spec.training_at(spec.last_step - 1)
    nats_per_bit = math.log(2)
    ratio = outcome.bytes_per_token
    return RunRecord(
        run_id=spec.run_id,
        study=spec.study,
        source="replay" if spec.trainer.startswith("replay:") else "trained",
        status=outcome.status,
        reason=outcome.reason,
        scale=spec.scale,
        role=spec.role,
        params_total=shape.params_total,
        params_non_embedding=shape.params_non_embedding,
        params_active=shape.params_active,
        width=spec.model.width,
        depth=spec.model.depth,
        parent_run_id=spec.parent_run_id or None,
        tokens=spec.tokens,
        compute_flops=float(spec.compute_flops),
        seq_len=spec.data.seq_len,
        batch_tokens=training.batch_tokens,
        batch_sequences=training.batch_tokens / spec.data.seq_len,
        steps=spec.last_step,
        peak_lr=training.peak_lr,
        weight_decay=training.weight_decay,
        optimizer=training.optimizer,
        schedule=training.schedule,
        parametrization=spec.model.parametrization,
        seed=spec.seed,
        loss=outcome.loss,
        bits_per_byte=outcome.loss / nats_per_bit / ratio if outcome.loss is not None and ratio else None,
        tokens_trained=outcome.tokens or None,
        wall_seconds=outcome.wall_seconds,
        device=outcome.device,
        activation_ratio=shape.activation_ratio,
        spent_flops=outcome.spent_flops,
        pack_size=outcome.pack_size,
        instability=outcome.instability,
        horizon_tokens=training.tokens,
        setting_changes=len(spec.phases),
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        mix=spec.mixture_at(spec.last_step - 1),
        loss_by_domain=outcome.loss_by_domain,
        spec=spec.content(),
        curve=outcome.curve,
        diagnoses=outcome.diagnoses,
        learned=outcome.learned,
        learned_path=outcome.learned_path,
    )
