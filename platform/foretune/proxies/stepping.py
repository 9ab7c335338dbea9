"""One training step of all members of a pack at once: forward, backward, clip, update.

Shapes
    K  members    B  sequences    T  positions    S  held-out sequences    P  parameters of one member
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foretune.corpora import Corpus, take_validation_batches
from foretune.parametrization import choose_rules
from foretune.proxies.causal_lm import CausalLM
from foretune.proxies.decoder import Decoder, measure_losses, measure_sequences
from foretune.proxies.diagnostics import StepProbe
from foretune.proxies.elementwise import ElementwiseOptimizer
from foretune.proxies.optimizers import build_optimizer
from foretune.proxies.process import autocast, send
from foretune.proxies.reweighting import Reweighter
from foretune.proxies.state import StackedState
from foretune.records import DecoderSpec, RunSpec, TrainingSpec

CLIP_EPS = 1e-6
"""Added to the norm that a gradient is divided by, as torch.nn.utils.clip_grad_norm_ does."""
GRAPH_PARAMS = 50_000_000
"""Most parameters of a pack that is run as CUDA graphs (assumption: above, kernels take longer than their launches)."""
RECOMPILATIONS = 64
"""Sizes that a pack may have in turn, as runs end and trunks fork, before torch.compile gives up (its default is 8)."""

Measure = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From token ids to the losses of the members and to what is minimised, each [K]."""


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device."""

    losses: Tensor
    """Mean training loss of each member, [K], before the update, nats per token."""
    norms: Tensor
    """Gradient norm of each member before clipping, [K]."""
    probe: StepProbe | None = None
    """What looks at the step beside, where it is diagnosed."""


class Stepper:
    """Model, optimizer and held-out text of K members; member k is row k of everything."""

    def __init__(self, specs: Sequence[RunSpec], corpus: Corpus, device: torch.device, *, compiled: bool) -> None:
        """Initial weights are a pure function of each member's spec."""
        first = specs[0]
        self.specs = list(specs)
        self.training = [spec.training_at(0) for spec in specs]
        """Settings that each member trains with now."""
        self.device = device
        self.compiled = compiled
        self.model = self.build_model(first, len(specs))
        for member, spec in enumerate(specs):
            self.model.initialise(member, spec.seed)
        self.model.to(device)
        stacked = isinstance(first.model, DecoderSpec)
        self.state = StackedState(self.model, self.model.groups(), stacked=stacked)
        rules = {rule.name: rule for rule in choose_rules(first.model, first.training.optimizer)}
        self.optimizer = build_optimizer(self.state, rules, self.training)
        held_out = take_validation_batches(corpus, first.data.seq_len, first.data.validation_sequences)
        self.held_out = {name: torch.from_numpy(rows).to(device) for name, rows in held_out.items()}
        self._measure: Measure = self._measure_losses
        if compiled:
            self._measure = compile_measure(self._measure, first, len(specs), device)
            if device.type == "cuda" and isinstance(self.optimizer, ElementwiseOptimizer):  # else it has what is faster
                self.optimizer.step = torch.compile(self.optimizer.step, dynamic=False)  # type: ignore[method-assign]
        self._set_limits()

    def build_model(self, spec: RunSpec, members: int) -> Decoder | CausalLM:
        """The model of a run, `members` of them side by side; those of `transformers` come alone."""
        if isinstance(spec.model, DecoderSpec):
            return Decoder(spec.model, members, spec.data.seq_len)
        assert members == 1, members
        return CausalLM(spec.model, spec.data.seq_len)

    def step(self, tokens: Tensor, lr: Sequence[float], apply: Sequence[bool] | None = None) -> StepResult:
        """Train on token ids [K, B, T + 1]; members that are not to `apply` it stay as they are, as if asleep."""
        result = self.measure(tokens)
        self.update(result, lr, apply)
        return result

    def measure(self, tokens: Tensor, *, diagnose: bool = False) -> StepResult:
        """The first half of a step: losses and clipped gradients. What is diagnosed changes only how they round."""
        probe = StepProbe(self.state, self.optimizer) if diagnose else None
        losses = self.accumulate(tokens, probe)
        return StepResult(losses, self.clip(), probe)

    def update(self, result: StepResult, lr: Sequence[float], apply: Sequence[bool] | None = None) -> Tensor | None:
        """The second half: the update from those gradients. What was diagnosed, [len(MEASURES), K], or None."""
        applied = self._choose_applied(result.losses, result.norms, apply)
        self.optimizer.step(send(lr, self.device), applied)
        measures = result.probe.read() if result.probe else None
        self.state.gradients.zero_()
        return measures

    def accumulate(self, tokens: Tensor, probe: StepProbe | None = None) -> Tensor:
        """Add up the gradients of all micro-batches; the mean losses [K]."""
        parts = self._count_parts(tokens.shape[1], split=probe is not None)
        losses = torch.zeros(len(tokens), device=self.device)
        self.model.begin_step()
        for number, micro in enumerate(tokens.chunk(parts, dim=1)):
            self.draw_masks(number * micro.shape[1])
            losses += self.backward(micro, parts, probe)
        return losses

    def draw_masks(self, first: int) -> None:
        """What dropout leaves out of a micro-batch that begins with sequence `first` of the step."""
        if isinstance(self.model, Decoder) and self.model.dropout.active:
            self.model.dropout.draw(self.optimizer.steps, first)

    def backward(self, micro: Tensor, parts: int, probe: StepProbe | None = None) -> Tensor:
        """Gradients of one of `parts` micro-batches, added to those before; its share of the losses [K]."""
        if probe is None:
            losses, targets = self._measure(micro)
        else:
            with probe.forward():
                losses, targets = self._measure_losses(micro, probe)
        (targets / parts).sum().backward()  # type: ignore[no-untyped-call]
        if probe is not None:
            probe.see_backward()
        return losses.detach() / parts

    def clip(self) -> Tensor:
        """Scale the gradients of each member down to its largest norm; the norms before [K]."""
        norms: Tensor = torch.linalg.vector_norm(self.state.gradients, dim=1)
        scales = (self._limits / (norms + CLIP_EPS)).clamp(max=1.0)
        self.state.gradients.mul_(scales[:, None])
        return norms

    def evaluate(self, members: Sequence[int]) -> list[dict[str, float]]:
        """Held-out loss per domain of some members, nats per token, always on the same sequences."""
        rows = None if len(members) == self.state.members else torch.tensor(members)
        with torch.no_grad(), self.optimizer.evaluation(), self.state.only(rows):
            means = torch.stack([self._measure_held_out(rows) for rows in self.held_out.values()], dim=1)
        return [dict(zip(self.held_out, member, strict=True)) for member in means.tolist()]

    def take(self, rows: Sequence[int]) -> None:
        """Keep the members `rows`, in that order; one that is named twice is copied."""
        self.specs = [self.specs[row] for row in rows]
        self.training = [self.training[row] for row in rows]
        index = torch.tensor(rows)
        self.state.take(index)
        self.optimizer.take(index)
        self._set_limits()

    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """Train on with these settings, one specification a member; the learning rate comes with each step."""
        if list(training) != self.training:
            self.training = list(training)
            self.optimizer.retune(training)
            self._set_limits()

    def recast(self, rows: Sequence[int], specs: Sequence[RunSpec]) -> None:
        """Make these rows, in this order, the members of another pack of the same `pack_key`."""
        self.take(rows)
        self.specs = list(specs)
        self._set_limits()

    def state_of(self, member: int) -> dict[str, Any]:
        """Weights and optimizer state of a member, for a checkpoint; copies."""
        return {"weights": self.state.weights[member].clone(), "optimizer": self.optimizer.state_of(member)}

    def facts_of(self, member: int) -> dict[str, Any]:
        """Fields of the outcome of a member that has ended, besides its losses."""
        return {}

    def load_state_of(self, member: int, state: dict[str, Any]) -> None:
        """Put back what `state_of` gave."""
        self.state.weights[member].copy_(state["weights"])
        self.optimizer.load_state_of(member, state["optimizer"])

    def _count_parts(self, sequences: int, *, split: bool) -> int:
        """Micro-batches of a step. A whole batch is halved for the noise scale where the mean stays the same.

        The load-balancing loss of experts is not the mean of that of two halves, nor is a reweighted loss.
        """
        parts, shape = self.specs[0].training.accumulation_steps, self.specs[0].model.shape
        whole = shape.params_active < shape.params_total or self._reweighter is not None
        return 2 if split and parts == 1 and sequences % 2 == 0 and not whole else parts

    def _measure_losses(self, tokens: Tensor, probe: StepProbe | None = None) -> tuple[Tensor, Tensor]:
        """Losses of a micro-batch [K], and what is minimised [K]: the same unless sequences are reweighted, and the
        auxiliary losses of experts."""
        with autocast(self.device, self.specs[0].training.precision):
            logits = self.model(tokens[..., :-1])
            losses, targets = self._weigh_losses(logits, tokens[..., 1:])
        if probe is not None:
            probe.see_logits(logits)
        auxiliary = self.model.auxiliary_losses()
        return losses, targets if auxiliary is None else targets + auxiliary

    def _weigh_losses(self, logits: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses of the members, and those that are minimised; the same but in training that reweights."""
        if self._reweighter is None or not torch.is_grad_enabled():
            losses = measure_losses(logits, following)
            return losses, losses
        sequences = measure_sequences(logits, following)
        weights = self._reweighter.weigh(sequences, self.optimizer.steps)
        return sequences.mean(dim=1), (weights * sequences).sum(dim=1)

    def _measure_held_out(self, rows: Tensor) -> Tensor:
        """Mean loss of sequences [S, T + 1] under each member that is bound now, [K]."""
        training, seq_len = self.specs[0].training, self.specs[0].data.seq_len
        largest = training.batch_tokens // seq_len // training.accumulation_steps
        members = self.state.members
        totals = [
            self._measure_losses(part.expand(members, -1, -1))[0] * len(part) for part in torch.split(rows, largest)
        ]
        return torch.stack(totals).sum(dim=0) / len(rows)

    def _choose_applied(self, losses: Tensor, norms: Tensor, apply: Sequence[bool] | None) -> Tensor | None:
        """Who takes this step: not those whose loss or gradient is not finite. The host hears of it later."""
        finite = losses.isfinite() & norms.isfinite()
        if self.device.type == "cpu" and apply is None and bool(finite.all()):  # here it costs nothing to look
            return None
        return finite if apply is None else finite & send(apply, self.device)

    def _set_limits(self) -> None:
        self._limits = send([training.clip_norm for training in self.training], self.device)
        if isinstance(self.model, Decoder):
            rates, seeds = [training.dropout for training in self.training], [spec.seed for spec in self.specs]
            self.model.dropout.configure(rates, seeds, self.device)
        reweighs = self.training[0].reweighting != "none"
        self._reweighter = Reweighter(self.training, self.device) if reweighs else None


def compile_measure(measure: Measure, spec: RunSpec, members: int, device: torch.device) -> Measure:
    """The same, compiled; on a GPU small models become CUDA graphs, because launching takes longer than they do."""
    import torch._dynamo  # it takes a second, which runs that are not compiled need not wait

    torch._dynamo.reset()  # packs that this process trained before would count as recompilations
    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    small = spec.model.shape.params_total * members <= GRAPH_PARAMS
    mode = "reduce-overhead" if device.type == "cuda" and small else "default"
    compiled: Measure = torch.compile(measure, dynamic=False, mode=mode)
    return compiled
