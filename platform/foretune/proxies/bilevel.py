"""A run that learns its mixture: first-order bilevel optimisation with two copies of the model.

After ScaleBiO (Pan et al. 2024, arXiv 2406.19976), which writes the choice of shares p = softmax(lambda) such that the
model trained on them is best on reference text as

    min over lambda, w  max over u   L1(w) + alpha (L2(lambda, w) - L2(lambda, u))

L1 is the loss on reference text, L2 that on training text under the shares. Copy u is a plain model in training; copy w
is pulled towards the reference text besides. A domain whose loss falls more in w than in u is one that the reference
text asks for, and its share grows. All move at once: w and u by the run's optimizer, lambda by Adam.

Sequences come from the mixture q that the run was given and count p / q, so that u trains as on a mixture of p. What is
reported of the run, its losses and its held-out evaluations, is that of u, which never sees the reference text.

Shapes
    B  training sequences of a step    R  reference sequences    T  positions    D  domains
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretune.corpora import BatchStream, Corpus
from foretune.proxies.decoder import measure_sequences
from foretune.proxies.learning import LearnedPath, ReferenceText
from foretune.proxies.process import autocast, send
from foretune.proxies.stepping import Stepper, StepResult
from foretune.records import MixtureLearningSpec, RunSpec, TrainingSpec

W, U = 0, 1
"""The rows of the two copies."""


class LearnedShares:
    """The shares of the domains: a softmax of logits, which begins at the mixture that sequences come from."""

    def __init__(
        self, sampled: Mapping[str, float], learning: MixtureLearningSpec, steps: int, device: torch.device
    ) -> None:
        """`sampled` is the mixture q by domain, in the order of the domains' numbers; `steps` those of the run."""
        self.path = LearnedPath(list(sampled), steps, device)
        self._sampled = send(list(sampled.values()), device).double()
        self._logits = self._sampled.log().requires_grad_()
        self._learning = learning
        self._optimizer = torch.optim.Adam([self._logits], lr=learning.logit_lr)

    def shares(self) -> Tensor:
        """p by domain, [D]."""
        return torch.softmax(self._logits, dim=0)

    def weigh(self, domains: Tensor) -> Tensor:
        """p / q of the domain of each sequence, [B]; has a gradient to the logits."""
        return (self.shares() / self._sampled)[domains]

    def step(self, excess: Tensor, domains: Tensor, lr_factor: float) -> None:
        """Move the shares down the gradient of alpha (L2(lambda, w) - L2(lambda, u)).

        `excess` is how far the loss of w lies above that of u on each sequence, [B]; `lr_factor` the learning rate of
        the step over the run's peak.
        """
        penalised = self._learning.penalty * (self.weigh(domains) * excess.double()).mean()
        (self._logits.grad,) = torch.autograd.grad(penalised, self._logits)
        self._optimizer.param_groups[0]["lr"] = self._learning.logit_lr * lr_factor
        self._optimizer.step()
        self.path.note(self.shares().detach())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        logits, optimizer = self._logits.detach().clone(), self._optimizer.state_dict()
        return {"logits": logits, "optimizer": optimizer, "path": self.path.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        with torch.no_grad():
            self._logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.path.restore(state["path"])


@dataclass(frozen=True, kw_only=True)
class BilevelResult(StepResult):
    """What a step measured: `losses` and `norms` are those of u, [1]; not finite where those of w are not."""

    copies: StepResult
    """Losses and norms of both copies, [2]."""
    excess: Tensor
    """Loss of w less that of u on each training sequence, [B]."""
    domains: Tensor
    """Domain of each of them, [B]."""


class BilevelStepper(Stepper):
    """One run that learns its mixture, for the loop over steps the one member of its pack."""

    def __init__(self, spec: RunSpec, corpus: Corpus, device: torch.device) -> None:
        """Both copies have the initial weights of the run's seed."""
        super().__init__([spec, spec], corpus, device, compiled=False)
        mixture = corpus.resolve_mixture(spec.data.mixture)
        self.learned = LearnedShares(mixture, _learning_of(spec), spec.training.steps, device)
        self._stream = BatchStream(corpus, mixture, spec.data.seq_len, spec.seed, spec.data.unique_tokens)
        self._reference = ReferenceText(corpus, spec, device)
        self._step = 0

    def measure(self, tokens: Tensor, *, diagnose: bool = False) -> BilevelResult:
        """See Stepper; token ids [1, B, T + 1]. Nothing is diagnosed: half of what is seen is no training."""
        sequences = tokens.shape[1]
        domains = send(self._stream.domains_of(self._step * sequences, sequences).tolist(), self.device)
        losses = self._measure_copies(torch.cat((tokens[0], self._reference.draw(self._step))))
        trained = losses[:, :sequences]
        inner = (self.learned.weigh(domains).detach().float() * trained).mean(dim=1)
        outer = losses[W, sequences:].mean()
        auxiliary = self.model.auxiliary_losses()
        targets = inner if auxiliary is None else inner + auxiliary
        penalty = _learning_of(self.specs[U]).penalty
        total = targets.sum() + outer / penalty  # all over alpha, so that the part of u is its plain loss
        total.backward()  # type: ignore[no-untyped-call]
        copies = StepResult(trained.detach().mean(dim=1), self.clip())
        finite = (copies.losses.isfinite() & copies.norms.isfinite()).all()
        return BilevelResult(
            losses=torch.where(finite, copies.losses[U:], torch.nan),
            norms=copies.norms[U:],
            copies=copies,
            excess=(trained[W] - trained[U]).detach(),
            domains=domains,
        )

    def update(self, result: StepResult, lr: Sequence[float], apply: Sequence[bool] | None = None) -> None:
        """See Stepper; the shares move, too."""
        assert isinstance(result, BilevelResult), result
        assert apply is None, "a run that learns its mixture skips no step"
        super().update(result.copies, [*lr, *lr])
        self.learned.step(result.excess, result.domains, lr[0] / self.specs[U].training.peak_lr)
        self._step += 1

    def evaluate(self, members: Sequence[int]) -> list[dict[str, float]]:
        """See Stepper; of u, which has seen no reference text."""
        return super().evaluate([U for _ in members])

    def take(self, rows: Sequence[int]) -> None:
        """See Stepper; there is nobody to leave or to be copied."""
        assert list(rows) == [0], rows

    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """See Stepper; both copies train with the settings of the one member."""
        super().retune([training[0]] * 2)

    def state_of(self, member: int) -> dict[str, Any]:
        """See Stepper; of both copies and the shares."""
        copies = [super(BilevelStepper, self).state_of(copy) for copy in (W, U)]
        return {"copies": copies, "learned": self.learned.state(), "steps_learned": self._step}

    def load_state_of(self, member: int, state: dict[str, Any]) -> None:
        """See Stepper."""
        for copy in (W, U):
            super().load_state_of(copy, state["copies"][copy])
        self.learned.restore(state["learned"])
        self._step = state["steps_learned"]

    def facts_of(self, member: int) -> dict[str, Any]:
        """See Stepper; the shares."""
        return {"learned": self.learned.path.average(), "learned_path": self.learned.path.points()}

    def _measure_copies(self, sequences: Tensor) -> Tensor:
        """Losses of both copies on each of these sequences, [2, B + R]."""
        both = sequences.expand(2, -1, -1)
        self.model.begin_step()
        self.draw_masks(0)
        with autocast(self.device, self.specs[U].training.precision):
            return measure_sequences(self.model(both[..., :-1]), both[..., 1:])


def _learning_of(spec: RunSpec) -> MixtureLearningSpec:
    assert spec.training.mixture_learning is not None, "only runs that learn their mixture come here"
    return spec.training.mixture_learning
