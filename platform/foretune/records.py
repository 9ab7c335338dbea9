"""What passes between the parts: RunSpec (what to train), RunOutcome (what came of it), RunRecord (a row of the table).

A run's id is the hash of its resolved content, so the same run is the same id on every machine and in every study.
Labels (study, scale, role) and places (paths) are carried along but not hashed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.accounting import ModelShape
from foretune.errors import InputError
from foretune.sections import DataSection, Parametrization, RunnerSection

PROXY_TRAINER = "foretune.proxies@1"
"""The trainer of this package; the number grows when the same spec would train differently."""


class Frozen(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class ModelSpec(Frozen):
    """The model, resolved."""

    architecture: Literal["decoder"]
    """Kind of model."""
    parametrization: Parametrization
    """Rule by which initial weights, learning rates and multipliers follow the width."""
    width: int
    """Size of the residual stream."""
    depth: int
    """Blocks."""
    head_size: int
    """Size of an attention head."""
    ffn_width: int
    """Inner size of the feed-forward."""
    vocab_size: int
    """Rows of the embedding."""
    base_width: int
    """Width at which muP equals standard."""
    base_head_size: int
    """Head size at the base width."""
    base_ffn_width: int
    """Inner size of the feed-forward at the base width."""
    qk_norm: bool
    """RMSNorm on queries and keys."""
    tied_head: bool
    """Embedding used as output head."""
    rope_base: float
    """Base of the rotary frequencies."""

    @property
    def shape(self) -> ModelShape:
        """The shape, for counting parameters and FLOPs."""
        return ModelShape(
            width=self.width,
            depth=self.depth,
            head_size=self.head_size,
            ffn_width=self.ffn_width,
            vocab_size=self.vocab_size,
            tied_head=self.tied_head,
            qk_norm=self.qk_norm,
        )


class DataSpec(Frozen):
    """The data, by content."""

    corpus_digest: str
    """SHA-256 of the tokens of every domain and split."""
    seq_len: int
    """Tokens per sequence."""
    mixture: dict[str, float]
    """Share of training sequences per domain; sums to 1."""
    validation_sequences: int
    """Held-out sequences per domain."""
    section: DataSection
    """Where the text is found, for a worker that has to prepare it; a place, not content."""


class TrainingSpec(Frozen):
    """The optimizer and its schedule, resolved to tokens and steps."""

    optimizer: Literal["adamw"]
    """Optimizer."""
    schedule: Literal["wsd", "cosine"]
    """Shape of the learning rate over the run."""
    peak_lr: float
    """Peak learning rate, at the base width under muP."""
    batch_tokens: int
    """Tokens per optimizer step."""
    steps: int
    """Optimizer steps."""
    warmup_steps: int
    """Steps of linear warm-up."""
    decay_steps: int
    """Steps of linear decay at the end (wsd); 0 for cosine."""
    final_lr_fraction: float
    """Learning rate at the end over its peak."""
    beta1: float
    """Decay of the first moment."""
    beta2: float
    """Decay of the second moment."""
    eps: float
    """Added to the root of the second moment."""
    weight_decay: float
    """Decoupled weight decay of matrices."""
    clip_norm: float
    """Largest global gradient norm."""
    accumulation_steps: int
    """Micro-batches per step."""
    precision: Literal["float32", "bfloat16"]
    """Precision of the forward pass."""
    evaluations: int
    """Held-out evaluations along the run."""
    checkpoint_steps: int
    """Steps between checkpoints; 0 for none."""

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.steps * self.batch_tokens


class RunSpec(Frozen):
    """One run to execute: everything that decides its result."""

    study: str
    """Study that asked for it; a label."""
    scale: str
    """Rung of the ladder; a label."""
    role: Literal["search", "verification"] = "search"
    """Whether a fit may see it; a label."""
    trainer: str = PROXY_TRAINER
    """What executes it: the proxies of this package, a replay, or `package.module:function`."""
    model: ModelSpec
    """The model."""
    data: DataSpec
    """The data."""
    training: TrainingSpec
    """The optimizer and its schedule."""
    seed: int
    """Seed of initial weights and data order."""

    def content(self) -> dict[str, Any]:
        """What is hashed: all that decides the result, no labels, no places, no bookkeeping."""
        content = self.model_dump(mode="json", exclude={"study", "scale", "role"})
        del content["training"]["checkpoint_steps"], content["data"]["section"]
        return content

    @property
    def run_id(self) -> str:
        """16 hex digits of the SHA-256 of the content."""
        return hash_content(self.content())[:16]

    @property
    def compute_flops(self) -> int:
        """Training FLOPs by `ModelShape.flops_per_token`."""
        return self.model.shape.flops_per_token(self.data.seq_len) * self.training.tokens


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


class RunRecord(Frozen):
    """A row of the run table, and its curve. Imported rows have no spec and may leave columns empty.

    `tokens` is the horizon that the run was planned for, `tokens_trained` how far it came: less where it diverged.
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
    created_at: str = ""
    mix: dict[str, float] = Field(default_factory=dict)
    loss_by_domain: dict[str, float] = Field(default_factory=dict)
    spec: dict[str, Any] | None = None
    curve: tuple[CurvePoint, ...] = ()


def record_outcome(spec: RunSpec, outcome: RunOutcome) -> RunRecord:
    """The row of the run table for an executed run."""
    shape, training = spec.model.shape, spec.training
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
        params_active=shape.params_total,
        width=shape.width,
        depth=shape.depth,
        tokens=training.tokens,
        compute_flops=float(spec.compute_flops),
        seq_len=spec.data.seq_len,
        batch_tokens=training.batch_tokens,
        batch_sequences=training.batch_tokens / spec.data.seq_len,
        steps=training.steps,
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
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        mix=spec.data.mixture,
        loss_by_domain=outcome.loss_by_domain,
        spec=spec.content(),
        curve=outcome.curve,
    )


def hash_content(content: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def trainer_of(trainable: str, runner: RunnerSection) -> str:
    """The trainer's name in a run's content: a replayed run is never taken for a trained one."""
    if runner.kind == "replay":
        source = runner.surface.model_dump(mode="json") if runner.surface else hash_file(Path(runner.table))
        return f"replay:{hash_content(source)[:12]}"
    return f"{trainable}#{hash_module(trainable.partition(':')[0])[:12]}" if trainable else PROXY_TRAINER


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; InputError when there is none."""
    if not path.is_file():
        raise InputError(f"runner.table: {path} is no file; give the path of a run table (CSV or Parquet)")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def hash_module(name: str) -> str:
    """SHA-256 of a module's source, so that an edited trainer means new runs; the module itself is not run."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"trainable: cannot find module {name!r} ({error}); put its folder on PYTHONPATH") from None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise InputError(f"trainable: cannot find module {name!r}; install it, or put its folder on PYTHONPATH")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
