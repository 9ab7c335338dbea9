"""`[training.mixture_learning]` and `[training.self_tuning]`: runs that learn more than weights while they train."""

from __future__ import annotations

from pydantic import Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.base import Section


class ReferenceSection(Section):
    """The held-out text by which a run learns. None of it is among the sequences that runs are judged by."""

    objective: dict[str, Quantity] = Field(default_factory=dict)
    """What is learned for: a weight for the loss on each domain's reference text. Empty: a mixture is learned for every
    domain alike, other settings for the run's own mixture."""
    reference_share: Quantity = Field(default=0.25, gt=0, le=1)
    """Reference sequences of a step per training sequence, rounded, at least one (assumption: a quarter is enough)."""
    reference_sequences: Count = Field(default=32, ge=1)
    """Held-out sequences per domain from which the reference text of each step is drawn."""

    @model_validator(mode="after")
    def _check_objective(self) -> ReferenceSection:
        bad = {name: weight for name, weight in self.objective.items() if weight < 0}
        if bad or (self.objective and not any(self.objective.values())):
            raise ValueError(f"objective: weights must not be negative, and one must be above 0, got {self.objective}")
        return self


class MixtureLearningSection(ReferenceSection):
    """`[training.mixture_learning]`: first-order bilevel optimisation of the mixture (ScaleBiO, arXiv 2406.19976)."""

    penalty: Quantity = Field(default=10.0, gt=0)
    """alpha: how much more the training loss counts than the reference loss in the copy that sees both (10 in the
    authors' published scripts)."""
    logit_reach: Quantity = Field(default=10.0, gt=0, le=1000)
    """How far Adam at its peak rate could move the logit of a share in the whole run: the rate is this over the steps,
    and follows the run's schedule. Natural units: a share that gains 3 grows twentyfold beside the others. The authors'
    published scripts have a rate of 0.01, which is a reach of 10 in 1,000 steps."""


class SelfTuningSection(ReferenceSection):
    """`[training.self_tuning]`: regularisation is tuned by gradient along the run (MacKay et al. 2019, 1903.03088).

    What is missing here cannot be tuned so: the training loss is no function of a learning rate, nor of a weight decay
    that is decoupled from it.
    """

    dropout: Quantity = Field(default=0.1, ge=0, lt=1)
    """Dropout that it begins with, in place of `training.dropout`; 0: it is not tuned (assumption)."""
    l2: Quantity = Field(default=0.0, ge=0)
    """Coefficient that it begins with of half the sum of squares of the feed-forward's matrices, added to the training
    loss; 0: there is none, and it is not tuned. It is no weight decay: AdamW scales its gradient like any other."""
    train_steps: Count = Field(default=2, ge=1)
    """Training steps of a round (2 in the authors' code)."""
    tune_steps: Count = Field(default=1, ge=1)
    """Steps of the settings after them, each on reference text (1 in the authors' code)."""
    warmup: Quantity = Field(default=0.1, ge=0, lt=1)
    """Share of the run before the first of these (assumption; five epochs in the authors' code)."""
    lr: Quantity = Field(default=0.003, gt=0, le=1)
    """Adam's learning rate of the settings and of the width of their noise (the authors' code), of the logit of a
    dropout and the logarithm of a coefficient: at most about this a step."""
    width: Quantity = Field(default=0.5, gt=0)
    """Width of the noise on the settings at the beginning (the authors' code), in the same units."""
    entropy: Quantity = Field(default=1e-3, ge=0)
    """Weight of the noise's entropy in nats, which keeps it from vanishing (1e-3 in the authors' image networks)."""
    reference_share: Quantity = Field(default=1.0, gt=0, le=1)
    """Reference sequences of a step of the settings per training sequence of a step, rounded, at least one (the
    authors' batches are of one size)."""

    @model_validator(mode="after")
    def _check_tuned(self) -> SelfTuningSection:
        if not (self.dropout or self.l2):
            raise ValueError("nothing is tuned with dropout = 0 and l2 = 0; give one of them a value to begin with")
        return self
