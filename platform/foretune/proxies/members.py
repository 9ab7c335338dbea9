"""One run of a pack: how far it is, what it has recorded, where its checkpoints are, how it ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from foretune.corpora import Corpus
from foretune.proxies.checkpoint import CheckpointFolder
from foretune.proxies.feed import Order, name_stream, order_batch
from foretune.proxies.recording import Recorder, RunStopped
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.training.schedules import schedule_lr
from foretune.training.spikes import BatchOrder
from foretune.training.stability import judge_stability


class Member:
    """A run under way. It has ended when it has an outcome."""

    def __init__(
        self, spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None], corpus: Corpus, facts: dict[str, Any]
    ) -> None:
        """`folder` is this run's own; `report` gets every curve point of this attempt, its outcome the `facts`."""
        self.spec = spec
        self.recorder = Recorder(spec, report)
        self.checkpoints = CheckpointFolder(folder / "checkpoints", spec.run_id)
        self.step = 0
        self.moved = False
        """Whether the last step of the pack was one of its own: it had the batch for it, and did not skip it."""
        self.fork_step = math.inf
        """Step at which it leaves the row of a longer run, after which they differ."""
        self.own_tokens = 0
        """Tokens that this run itself computed on; those of a shared trunk are its leader's."""
        self.wall_seconds = 0.0
        self.last_lr = 0.0
        """Learning rate of the step that was recorded last."""
        self.outcome: RunOutcome | None = None
        self._batches = BatchOrder(spec.training)
        self._stream = name_stream(spec)
        self._corpus = corpus
        self._facts = facts

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return schedule_lr(self.spec.training, self.step)

    @property
    def evaluates(self) -> bool:
        """Whether it is evaluated after the steps done so far."""
        return self.moved and self.step in self.recorder.evaluation_steps

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due after the steps done so far."""
        interval = self.spec.training.checkpoint_steps
        return self.moved and interval > 0 and self.step % interval == 0

    @property
    def finished(self) -> bool:
        """Whether its last step is done."""
        return self.step >= self.spec.training.steps

    @property
    def is_due(self) -> bool:
        """Whether something must be done with it before its next step."""
        return self.evaluates or self.saves or self.finished or self.step >= self.fork_step

    @property
    def diagnosed(self) -> bool:
        """Whether its next step is diagnosed."""
        return self.step + 1 in self.recorder.diagnoses.steps

    def leaves(self, first: Member) -> bool:
        """Whether it can no longer share the row of `first`: it decays, or has to try a spike's batch sooner."""
        return self.step >= self.fork_step or (self is not first and self.order() != first.order())

    def order(self, *, ahead: bool = False) -> Order:
        """The batch of its next step, or the one that will probably come after it."""
        batch = self._batches.expect(self.step) if ahead else self._batches.choose(self.step)[0]
        return order_batch(self.spec, batch, self._stream)

    def judge(self, loss: float, gradient_norm: float) -> float:
        """The factor on the learning rate of its next step, before the update; 0 skips it."""
        if not self.recorder.spikes.skips:
            return 1.0
        again = self._batches.choose(self.step)[1]
        return self.recorder.spikes.judge(self.step + 1, loss, gradient_norm, again=again).lr_factor

    def advance(self, *, skipped: bool) -> None:
        """Its next step is done, or its update was skipped and it is still to do."""
        self._batches.settle(self.step, skipped=skipped)
        self.step += not skipped
        self.moved = not skipped

    def rest(self) -> None:
        """The pack made a step that was none of its own."""
        self.moved = False

    def record_step(
        self, step: int, lr: float, loss: float, gradient_norm: float, measured: Mapping[str, float] | None = None
    ) -> None:
        """Take what a step measured, and what was diagnosed in it; it may end the run."""
        skipped, self.last_lr = self.step < step, lr
        if measured is not None and step in self.recorder.diagnoses.steps and not skipped:
            self.recorder.diagnoses.record(step, measured)
        self._try(lambda: self.recorder.record_step(step, lr, loss, gradient_norm))

    def record_held_out(self, by_domain: dict[str, float]) -> None:
        """Take a held-out evaluation after the last step; it may end the run."""
        self._try(lambda: self.recorder.record_held_out(self.step, self.last_lr, self._mix(by_domain), by_domain))

    def finish(self) -> None:
        """End after the last step: completed, unless nothing was learned."""
        self._try(self.recorder.check_movement)
        if self.outcome is None:
            self._end(RunStatus.COMPLETED)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint with this state of weights and optimizer."""
        own = {
            "recorder": self.recorder.state(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "batches": self._batches.state(),
            "own_tokens": self.own_tokens,
            "wall_seconds": self.wall_seconds,
        }
        self.checkpoints.save(self.step, {**state, **own})

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Go on from the newest checkpoint; the state of weights and optimizer in it, or None where there is none."""
        state = self.checkpoints.load(device)
        if state is not None:
            self.recorder.restore(state["recorder"])
            torch.set_rng_state(state["rng"].cpu())
            self.step, self.own_tokens = state["step"], state["own_tokens"]
            self.wall_seconds = state["wall_seconds"]
            self._batches.restore(state["batches"])
        return state

    def _try(self, record: Callable[[], None]) -> None:
        try:
            record()
        except RunStopped as stop:
            self._end(stop.status, stop.reason)

    def _end(self, status: RunStatus, reason: str = "") -> None:
        done = status is RunStatus.COMPLETED
        self.outcome = RunOutcome(
            status=status,
            reason=reason,
            loss=self._mix(self.recorder.held_out) if done else None,
            loss_by_domain=self.recorder.held_out if done else {},
            curve=self.recorder.curve,
            diagnoses=self.recorder.diagnoses.diagnoses,
            instability=judge_stability(self.recorder.spikes.spikes, self.recorder.diagnoses.diagnoses),
            tokens=self.recorder.curve[-1].tokens,  # the step that ended it: a GPU may be some steps ahead
            wall_seconds=self.wall_seconds,
            bytes_per_token=self._bytes_per_token(),
            spent_flops=float(self.own_tokens * self.spec.model.shape.flops_per_token(self.spec.data.seq_len)),
            **self._facts,
        )

    def _mix(self, by_domain: dict[str, float]) -> float:
        """The mean over domains, weighted by the mixture; domains without a share do not count."""
        return sum(share * by_domain[name] for name, share in self.spec.data.mixture.items() if share > 0)

    def _bytes_per_token(self) -> float | None:
        ratios = {name: facts.bytes_per_token for name, facts in self._corpus.domains.items()}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        return self._mix(known) if len(known) == len(ratios) else None
