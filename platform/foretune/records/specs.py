"""RunSpec: one run to execute, everything that decides its result, resolved.

A run's id is the hash of its resolved content, so the same run is the same id on every machine and in every study.
Labels (study, scale, role) and places (paths) are carried along but not hashed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from foretune.accounting import MeasuredShape, ModelShape
from foretune.records.frozen import Frozen
from foretune.records.hashing import PROXY_TRAINER, hash_content
from foretune.sections import DataSection, Optimizer, Parametrization, Schedule


class ModelSpec(Frozen):
    """What every kind of model has."""

    parametrization: Parametrization
    """Rule by which initial weights, learning rates and multipliers follow width and depth."""
    width: int
    """Size of the residual stream."""
    depth: int
    """Blocks."""
    vocab_size: int
    """Rows of the embedding."""
    base_width: int
    """Width at which muP equals standard."""
    base_depth: int
    """Depth at which the depth rules equal muP."""


class ExpertsSpec(Frozen):
    """A mixture of experts, resolved."""

    count: int
    """Routed experts in a block."""
    active: int
    """Routed experts that each token goes through."""
    shared: int
    """Experts that every token goes through."""
    width: int
    """Inner size of one expert."""
    base_width: int
    """Inner size of one expert at the base width."""
    balance: Literal["global", "micro", "none"]
    """Over what the load is balanced."""
    balance_weight: float
    """Weight of the load-balancing loss."""
    router_z_weight: float
    """Weight of the squared log-sum-exp of the router's logits."""


class DecoderSpec(ModelSpec):
    """The decoder of this package, resolved."""

    architecture: Literal["decoder"] = "decoder"
    """Kind of model."""
    head_size: int
    """Size of an attention head."""
    ffn_width: int
    """Inner size of the feed-forward."""
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
    activation: Literal["swiglu", "relu2"] = "swiglu"
    """Non-linearity of the feed-forward."""
    queries_per_key: int = 1
    """Query heads that share one key and value head."""
    experts: ExpertsSpec | None = None
    """Experts instead of the dense feed-forward."""

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
            activation=self.activation,
            queries_per_key=self.queries_per_key,
            experts=self.experts.count if self.experts else 0,
            active_experts=self.experts.active if self.experts else 0,
            shared_experts=self.experts.shared if self.experts else 0,
            expert_width=self.experts.width if self.experts else 0,
        )


class CausalLMSpec(ModelSpec):
    """A causal language model of the `transformers` library, resolved."""

    architecture: Literal["transformers"] = "transformers"
    """Kind of model."""
    config: dict[str, Any]
    """Fields of its configuration at this size, `model_type` among them."""
    base_config: dict[str, Any]
    """The same at the base width and depth."""
    double_config: dict[str, Any]
    """The same at twice the base width and depth, by which it is found what grows."""
    shape: MeasuredShape
    """Its counts, read off the model built without memory."""


Model = Annotated[DecoderSpec | CausalLMSpec, Field(discriminator="architecture")]


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


class RampPhase(Frozen):
    """A stretch of the batch ramp."""

    steps: int
    """Optimizer steps."""
    batch_tokens: int
    """Tokens per step."""


class TrainingSpec(Frozen):
    """The optimizer and its schedule, resolved to tokens and steps."""

    optimizer: Optimizer
    """Optimizer."""
    schedule: Schedule
    """Shape of the learning rate over the run."""
    peak_lr: float
    """Peak learning rate, at the base width under muP."""
    batch_tokens: int
    """Tokens per optimizer step, after the ramp if there is one."""
    steps: int
    """Optimizer steps."""
    warmup_steps: int
    """Steps of linear warm-up."""
    decay_steps: int
    """Steps of decay at the end (wsd, power); 0 for the others."""
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
    momentum: float = 0.95
    """Momentum of sgd and muon."""
    decay_shape: Literal["linear", "sqrt"] = "linear"
    """Shape of the decay phase."""
    power_coefficient: float = 0.0
    """a of the power schedule over the tokens of a sequence, so that it multiplies a batch in tokens; 0 for others."""
    power_exponent: float = 0.0
    """b of the power schedule; 0 for others."""
    ramp: tuple[RampPhase, ...] = ()
    """The smaller batches that it begins with."""
    spikes: Literal["record", "skip"] = "record"
    """What a loss spike does."""
    diagnoses: int = 0
    """Measurements along the run beside the loss; they change no weight."""

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.tokens_at(self.steps)

    def tokens_at(self, step: int) -> int:
        """Training tokens after so many steps."""
        total, left = 0, step
        for phase in self.ramp:
            done = min(left, phase.steps)
            total, left = total + done * phase.batch_tokens, left - done
        return total + left * self.batch_tokens

    def batch_tokens_at(self, step: int) -> int:
        """Tokens of step 0, 1, ..."""
        for phase in self.ramp:
            if step < phase.steps:
                return phase.batch_tokens
            step -= phase.steps
        return self.batch_tokens


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
    model: Model
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
        del content["training"]["checkpoint_steps"], content["training"]["diagnoses"], content["data"]["section"]
        return content

    @property
    def run_id(self) -> str:
        """16 hex digits of the SHA-256 of the content."""
        return hash_content(self.content())[:16]

    @property
    def compute_flops(self) -> int:
        """Training FLOPs by `ModelShape.flops_per_token`."""
        return self.model.shape.flops_per_token(self.data.seq_len) * self.training.tokens
