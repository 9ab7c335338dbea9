"""`[training]`: the optimizer and its schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.base import Section
from foretune.sections.online import MixtureLearningSection, SelfTuningSection

Optimizer = Literal["adamw", "nadamw", "nadamw_constant", "lion", "sgd", "muon", "schedulefree", "prodigy"]
Schedule = Literal["wsd", "cosine", "constant", "power"]
Reweighting = Literal["none", "linupper", "quadratic", "extremes"]
ADAMW: tuple[Optimizer, ...] = ("adamw", "nadamw", "nadamw_constant")
"""AdamW and its kin: they have a timescale of the weight decay."""
LR_FREE: tuple[Optimizer, ...] = ("schedulefree", "prodigy")
"""Optimizers without a learning-rate schedule, from their own packages."""


class TrainingSection(Section):
    """`[training]`: the optimizer and its schedule. Fields named in `[search.space]` are varied instead."""

    optimizer: Optimizer = "adamw"
    """`adamw` (Loshchilov and Hutter 2019), `nadamw` (with Nesterov momentum that rises), `nadamw_constant` (the same
    with constant momentum, as in AlgoPerf), `lion` (Chen et al. 2023), `sgd` with momentum, `muon` for hidden matrices
    with AdamW for the rest (Jordan et al. 2024), and two without a learning-rate schedule to choose: `schedulefree`
    (Defazio et al. 2024) and `prodigy` (Mishchenko and Defazio 2023)."""
    peak_lr: Annotated[Quantity, Field(gt=0)] | None = None
    """Peak learning rate, at the base width under muP; needed here or in the space."""
    batch_tokens: Count = Field(ge=1)
    """Tokens per optimizer step; a multiple of seq_len."""
    accumulation_steps: Count = Field(default=1, ge=1)
    """Micro-batches per optimizer step; a divisor of the sequences per step."""
    beta1: Quantity = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: Quantity = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    momentum: Quantity = Field(default=0.95, ge=0, lt=1)
    """Momentum of `sgd` and `muon`."""
    eps: Quantity = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: Quantity = Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices, multiplied by the learning rate; norms have none."""
    timescale: Annotated[Quantity, Field(gt=0)] | None = None
    """AdamW timescale as a share of the run, batch / (lr weight_decay tokens) (Wang and Aitchison 2024; Bergsma et al.
    2025): gives the weight decay of each run instead of `weight_decay`."""
    clip_norm: Quantity = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down."""
    schedule: Schedule = "wsd"
    """`wsd`: warm-up, constant, decay; `cosine`: warm-up, then a half cosine; `constant`: warm-up only; `power`:
    warm-up, min(peak, sequences a n^b) after n tokens, decay (Shen et al. 2024, arXiv 2408.13359)."""
    warmup: Quantity = Field(default=0.1, ge=0)
    """Linear warm-up: below 1 a fraction of the run, else tokens."""
    decay: Quantity = Field(default=0.2, ge=0)
    """Decay phase of `wsd` and `power`: up to 1 a fraction of the run, else tokens."""
    decay_shape: Literal["linear", "sqrt"] = "linear"
    """Decay of `wsd` and `power`: `linear`, or `sqrt` for 1 - sqrt(share of the phase) (Haegele et al. 2024)."""
    final_lr_fraction: Quantity = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end over its peak."""
    final_lr: Annotated[Quantity, Field(ge=0)] | None = None
    """Learning rate at the end, absolute, instead of `final_lr_fraction` (Step Law's cosine ends at 1e-5)."""
    power_coefficient: Quantity = Field(default=4.0, gt=0)
    """a of the `power` schedule (Shen et al. 2024: 4 to 4.6); refit it on proxies."""
    power_exponent: Quantity = Field(default=-0.51, ge=-2, lt=0)
    """b of the `power` schedule, in [-2, 0)."""
    ramp_tokens: Count = Field(default=0, ge=0)
    """Tokens over which the batch grows to `batch_tokens`, doubling at equal shares of them; 0 for none."""
    ramp_doublings: Count = Field(default=3, ge=1, le=10)
    """How often the batch doubles on its ramp."""
    spikes: Literal["record", "skip"] = "record"
    """What a loss spike does: `record` it only, or `skip` the step, try its batch again, and stop when spikes persist
    (Ling Team 2025, arXiv 2503.05139)."""
    reweighting: Reweighting = "none"
    """How sequences are weighed by their loss in the step (Sow et al. 2025): `linupper` plays down the easy ones,
    `quadratic` the easy and the hard, `extremes` those between. The losses that are recorded stay plain means."""
    reweighting_temperature: Quantity = Field(default=1.0, gt=0)
    """r of the weights softmax(score / r), scores in [0, 1]: the smaller, the further the weights are apart."""
    reweighting_burn_in: Quantity = Field(default=0.05, ge=0, lt=1)
    """Share of the run with equal weights, at its beginning (1,000 of 20,000 steps in the paper)."""
    mixture_learning: MixtureLearningSection | None = None
    """Learn the mixture of domains along the run, from two copies of the model."""
    dropout: Quantity = Field(default=0.0, ge=0, lt=1)
    """Share of the feed-forward's outputs that a training step leaves out at random, the others scaled up (Srivastava
    et al. 2014); nothing is left out where a run is judged."""
    self_tuning: SelfTuningSection | None = None
    """Tune regularisation along the run, by the loss on reference text."""
    diagnoses: int = Field(default=20, ge=0, le=200)
    """Measurements along the run of gradient noise, update norms and logit maxima, at most one in 16 steps; 0: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16`: autocast of the forward pass; weights and optimizer state stay float32."""
    evaluations: Count = Field(default=4, ge=1)
    """Held-out evaluations along the run, evenly spaced, the last one at its end."""
    checkpoint_tokens: Count = Field(default=0, ge=0)
    """Tokens between checkpoints, from which a killed run goes on; 0 for runs short enough to repeat."""

    @model_validator(mode="after")
    def _check_exclusive(self) -> TrainingSection:
        if self.final_lr is not None and self.final_lr_fraction:
            raise ValueError("give either final_lr or final_lr_fraction, and only one of them")
        if self.timescale is not None and self.optimizer not in ADAMW:
            raise ValueError(f"timescale is that of AdamW's weight decay; give weight_decay with {self.optimizer!r}")
        return self
