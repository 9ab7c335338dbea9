"""RunSpec: one run to execute, everything that decides its result, resolved.

A run's id is the hash of its resolved content, so the same run is the same id on every machine and in every study.
Labels (study, scale, role), places (paths) and what only saves work (a parent to go on from) are carried along but not
hashed. A run whose settings change on its way, or that ends before its schedule does, says so in its content: it is the
same run whether it was trained in one go or went on from the state of a parent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from foretune.accounting import MeasuredShape, ModelShape
from foretune.records.frozen import Frozen
from foretune.records.hashing import PROXY_TRAINER, hash_content
from foretune.sections import DataSection, Optimizer, Parametrization, Reweighting, Schedule


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
    unique_tokens: dict[str, int] = Field(default_factory=dict)
    """Training tokens of a domain that the run may see, where it must not see all of them."""
    section: DataSection
    """Where the text is found, for a worker that has to prepare it; a place, not content."""


class RampPhase(Frozen):
    """A stretch of the batch ramp."""

    steps: int
    """Optimizer steps."""
    batch_tokens: int
    """Tokens per step."""


class ReferenceSpec(Frozen):
    """The held-out text by which a run learns more than its weights, resolved."""

    objective: dict[str, float]
    """Weight of the loss on each domain's reference text; sums to 1."""
    reference_share: float
    """Reference sequences that are drawn at once over the training sequences of a step; times these a whole number."""
    reference_sequences: int
    """Held-out sequences per domain that they are drawn from."""


class MixtureLearningSpec(ReferenceSpec):
    """A mixture that is learned along the run, resolved."""

    penalty: float
    """alpha: weight of the training loss against the reference loss."""
    logit_lr: float
    """Peak learning rate of the logits of the shares."""


class SelfTuningSpec(ReferenceSpec):
    """Regularisation that is tuned along the run, resolved."""

    start: dict[str, float]
    """Value that each tuned setting begins with, by name: `dropout`, `l2`."""
    train_steps: int
    """Training steps of a round."""
    tune_steps: int
    """Steps of the settings after them."""
    warmup_steps: int
    """Training steps without the latter, at the beginning."""
    lr: float
    """Adam's learning rate of the settings, in their unconstrained form, and of the width of their noise."""
    width: float
    """Width of the noise at the beginning."""
    entropy: float
    """Weight of the entropy of the noise."""


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
    reweighting: Reweighting = "none"
    """How sequences are weighed by their loss in the step."""
    reweighting_temperature: float = 1.0
    """r of the weights softmax(score / r); 1 without reweighting."""
    reweighting_burn_in_steps: int = 0
    """Steps with equal weights, at the beginning; 0 without reweighting."""
    mixture_learning: MixtureLearningSpec | None = None
    """How the mixture is learned along the run."""
    dropout: float = 0.0
    """Share of the feed-forward's outputs that a training step leaves out."""
    self_tuning: SelfTuningSpec | None = None
    """How regularisation is tuned along the run."""

    @property
    def reference(self) -> ReferenceSpec | None:
        """The text that it learns more than weights by; None where it learns weights alone."""
        return self.mixture_learning or self.self_tuning

    @property
    def passes_per_token(self) -> float:
        """Tokens that pass through a model for each training token: more where two copies see reference text, too, or
        where settings are tuned by it, which is counted as if it began with the first step."""
        if self.mixture_learning:
            return 2 * (1 + self.mixture_learning.reference_share)
        if self.self_tuning:
            return 1 + self.self_tuning.reference_share * self.self_tuning.tune_steps / self.self_tuning.train_steps
        return 1.0

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


Changeable = Literal["peak_lr", "weight_decay", "beta1", "beta2", "eps", "clip_norm", "momentum"]
"""Fields of TrainingSpec that may change along a run: none of them decides a shape, a count or a schedule's phases."""
CHANGEABLE: tuple[Changeable, ...] = get_args(Changeable)


class Phase(Frozen):
    """Settings that a run has from a step on, in place of those that it had before."""

    start_step: int
    """Steps done when it begins."""
    settings: dict[Changeable, float] = Field(default_factory=dict)
    """What is replaced; `peak_lr` is the peak of the whole schedule's shape."""
    mixture: dict[str, float] = Field(default_factory=dict)
    """Share of training sequences per domain; empty leaves it as it was."""


Role = Literal["search", "verification", "baseline", "soup"]
"""What a run is for: fits see those of a search; verification runs check a forecast, baselines a search; a soup is the
mean of others."""


class RunSpec(Frozen):
    """One run to execute: everything that decides its result."""

    study: str
    """Study that asked for it; a label."""
    scale: str
    """Rung of the ladder; a label."""
    role: Role = "search"
    """What it is for; a label."""
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
    stop_step: int = 0
    """Steps after which it ends, before its schedule does; 0: at the end of the schedule."""
    phases: tuple[Phase, ...] = ()
    """Settings that change along the run, in the order of their steps."""
    parent_run_id: str = ""
    """Run whose final state it goes on from: the same up to `parent_step`. Saves work and decides nothing; a label."""
    parent_step: int = 0
    """Steps that the parent has done; a label."""
    keep_state: bool = False
    """Whether the state at its end is kept, for runs that go on from it; a label."""
    soup: Literal["", "greedy", "uniform"] = ""
    """How it is made of the final weights of `members`; empty for a run that is trained."""
    members: tuple[RunSpec, ...] = ()
    """Runs whose weights are averaged, best first; its own settings are those of the first."""

    def content(self) -> dict[str, Any]:
        """What is hashed: all that decides the result, no labels, no places, no bookkeeping."""
        content = self.model_dump(mode="json", exclude={*LABELS, "members"})
        if self.members:
            content["members"] = [member.run_id for member in self.members]
        del content["training"]["checkpoint_steps"], content["training"]["diagnoses"], content["data"]["section"]
        if not self.data.unique_tokens:  # came after ids were given out, as did LATER_FIELDS
            del content["data"]["unique_tokens"]
        for name in LATER_FIELDS:
            if content[name] == RunSpec.model_fields[name].default or not content[name]:
                del content[name]
        for name in LATER_TRAINING_FIELDS:
            if content["training"][name] == TrainingSpec.model_fields[name].default:
                del content["training"][name]
        return content

    @cached_property  # a search asks for the ids of all its runs after every result
    def run_id(self) -> str:
        """16 hex digits of the SHA-256 of the content."""
        return hash_content(self.content())[:16]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RunSpec:
        """A changed copy, with an id of its own: pydantic would copy what was looked up before."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("run_id", "trainings"):
            copied.__dict__.pop(name, None)
        return copied

    @property
    def last_step(self) -> int:
        """Steps after which it ends."""
        return self.stop_step or self.training.steps

    @property
    def is_partial(self) -> bool:
        """Whether it ends before its schedule does."""
        return self.last_step < self.training.steps

    @property
    def tokens(self) -> int:
        """Training tokens up to its end."""
        return self.training.tokens_at(self.last_step)

    @property
    def own_tokens(self) -> int:
        """Training tokens that are left when it goes on from its parent."""
        return self.tokens - self.training.tokens_at(self.parent_step)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per training token: those of `ModelShape.flops_per_token` for every pass through a model."""
        return round(self.model.shape.flops_per_token(self.data.seq_len) * self.training.passes_per_token)

    @property
    def compute_flops(self) -> int:
        """Training FLOPs up to its end by `ModelShape.flops_per_token`, those of its parents included."""
        return self.flops_per_token * self.tokens

    @property
    def own_flops(self) -> int:
        """Training FLOPs that are left when it goes on from its parent."""
        return self.flops_per_token * self.own_tokens

    def phase_number_at(self, step: int) -> int:
        """How many of its phases have begun when so many steps are done."""
        return sum(phase.start_step <= step for phase in self.phases)

    def training_at(self, step: int) -> TrainingSpec:
        """The optimizer and schedule of step 0, 1, ...: every phase so far has replaced what it names."""
        return self.trainings[self.phase_number_at(step)] if self.phases else self.training

    @cached_property  # asked for in every step
    def trainings(self) -> tuple[TrainingSpec, ...]:
        """The optimizer and schedule before the first phase, and in each."""
        found = [self.training]
        for phase in self.phases:
            found.append(found[-1].model_copy(update=dict(phase.settings.items())))
        return tuple(found)

    def mixture_at(self, step: int) -> dict[str, float]:
        """The mixture of step 0, 1, ..."""
        named = [phase.mixture for phase in self.phases[: self.phase_number_at(step)] if phase.mixture]
        return named[-1] if named else self.data.mixture


LABELS = ("study", "scale", "role", "parent_run_id", "parent_step", "keep_state")
"""Fields of RunSpec that decide nothing of its result."""
LATER_FIELDS = ("stop_step", "phases", "soup")
"""Fields that came after ids were given out: at their default they are no part of the content, and old ids stay."""
LATER_TRAINING_FIELDS = (
    "reweighting",
    "reweighting_temperature",
    "reweighting_burn_in_steps",
    "mixture_learning",
    "dropout",
    "self_tuning",
)
"""The same of TrainingSpec."""
