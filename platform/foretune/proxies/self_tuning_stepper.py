"""The steps of a run that tunes its regularisation: some on training text, then one on reference text, and so on.

Shapes
    H  hyperparameters    R  reference sequences    T  positions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from foretune.corpora import Corpus
from foretune.proxies.decoder import measure_losses
from foretune.proxies.diagnostics import StepProbe
from foretune.proxies.learning import LearnedPath, ReferenceText
from foretune.proxies.process import autocast
from foretune.proxies.self_tuning import SelfTuner, SelfTuningDecoder
from foretune.proxies.stepping import Stepper, StepResult
from foretune.records import DecoderSpec, RunSpec, SelfTuningSpec


class SelfTuningStepper(Stepper):
    """One run that tunes itself. It is judged at its hyperparameters, without noise and without dropout."""

    model: SelfTuningDecoder

    def __init__(self, spec: RunSpec, corpus: Corpus, device: torch.device) -> None:
        """W has the initial weights of the run's seed."""
        self._tuning = _tuning_of(spec)
        self.tuner = SelfTuner(self._tuning, spec.seed, device)
        super().__init__([spec], corpus, device, compiled=False)
        self._path = LearnedPath(self.tuner.names, spec.training.steps, device)
        self._reference = ReferenceText(corpus, spec, device)
        self._trained = self._tuned = 0
        self._now = self.tuner.read(self.tuner.centre)

    def build_model(self, spec: RunSpec, members: int) -> SelfTuningDecoder:
        """See Stepper."""
        assert members == 1, members
        return SelfTuningDecoder(cast(DecoderSpec, spec.model), spec.data.seq_len, len(self.tuner.names))

    def measure(self, tokens: Tensor, *, diagnose: bool = False) -> StepResult:
        """See Stepper; under disturbed hyperparameters, the same in all micro-batches."""
        self._respond(self.tuner.disturb().detach(), regularised=True)
        return super().measure(tokens, diagnose=diagnose)

    def update(self, result: StepResult, lr: Sequence[float], apply: Sequence[bool] | None = None) -> Tensor | None:
        """See Stepper; after the last training step of a round the hyperparameters move, too."""
        assert apply is None, "a run that tunes itself skips no step"
        measures = super().update(result, lr, apply)
        self._trained += 1
        beyond = self._trained - self._tuning.warmup_steps
        if beyond > 0 and beyond % self._tuning.train_steps == 0:
            for _ in range(self._tuning.tune_steps):
                self._tune()
        self._path.note(self.tuner.values())
        return measures

    def evaluate(self, members: Sequence[int]) -> list[dict[str, float]]:
        """See Stepper."""
        self._respond(self.tuner.centre, regularised=False)
        return super().evaluate(members)

    def state_of(self, member: int) -> dict[str, Any]:
        """See Stepper; and the hyperparameters."""
        counts = {"trained": self._trained, "tuned": self._tuned}
        return {**super().state_of(member), **counts, "tuner": self.tuner.state(), "path": self._path.state()}

    def load_state_of(self, member: int, state: Mapping[str, Any]) -> None:
        """See Stepper."""
        super().load_state_of(member, dict(state))
        self.tuner.restore(state["tuner"])
        self._path.restore(state["path"])
        self._trained, self._tuned = state["trained"], state["tuned"]

    def facts_of(self, member: int) -> dict[str, Any]:
        """See Stepper; the hyperparameters, each in its own unit."""
        return {"learned": self._path.average(), "learned_path": self._path.points()}

    def _tune(self) -> None:
        """A step of the hyperparameters on reference text, where nothing regularises but what the weights answer."""
        self._respond(self.tuner.disturb(), regularised=False)
        tokens = self._reference.draw(self._tuned)[None]  # 1 R T + 1
        with autocast(self.device, self.specs[0].training.precision):
            losses = measure_losses(self.model(tokens[..., :-1]), tokens[..., 1:])
        self.tuner.step(losses.sum())
        self._tuned += 1

    def _respond(self, h: Tensor, *, regularised: bool) -> None:
        """Weights that answer to h, [H], and its regularisation, or none."""
        self.model.respond(h)
        self._now = self.tuner.read(h)
        dropout, fixed = self.model.dropout, self.training[0].dropout > 0
        dropout.active = regularised and (fixed or "dropout" in self._now)
        if regularised and "dropout" in self._now:
            dropout.rates = self._now["dropout"][None]

    def _measure_losses(self, tokens: Tensor, probe: StepProbe | None = None) -> tuple[Tensor, Tensor]:
        """See Stepper; what is minimised has the penalty in it."""
        losses, targets = super()._measure_losses(tokens, probe)
        if "l2" in self._now and torch.is_grad_enabled():
            targets = targets + self._now["l2"] * self.model.penalise()
        return losses, targets


def _tuning_of(spec: RunSpec) -> SelfTuningSpec:
    assert spec.training.self_tuning is not None, "only runs that tune themselves come here"
    return spec.training.self_tuning
