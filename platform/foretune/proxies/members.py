"""One run of a pack: how far it is, what it has recorded, where its checkpoints are, how it ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from foretune.corpora import Corpus
from foretune.proxies.checkpoint import CheckpointFolder
from foretune.proxies.feed import Order, StreamName, name_streams, order_batch
from foretune.proxies.recording import Recorder, RunStopped
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus, TrainingSpec
from foretune.training.lineages import cut_run
from foretune.training.schedules import schedule_lr
from foretune.training.spikes import BatchOrder
from foretune.training.stability import judge_stability

_log = logging.getLogger(__name__)


class Member:
    """A run under way. It has ended when it has an outcome."""

    def __init__(
        self, spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None], corpus: Corpus, facts: dict[str, Any]
    ) -> None:
        """`folder` is this run's own; `report` gets every curve point of this attempt, its outcome the `facts`."""
        self.spec = spec
        self.recorder = Recorder(spec, report)
        self.checkpoints = find_checkpoints(folder, spec.run_id)
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
        self._streams = name_streams(spec)
        self._phase_starts = frozenset(phase.start_step for phase in spec.phases)
        self._corpus = corpus
        self._facts = facts

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return schedule_lr(self.training, self.step)

    @property
    def training(self) -> TrainingSpec:
        """Settings of the next step."""
        return self.spec.training_at(self.step)

    @property
    def begins_phase(self) -> bool:
        """Whether other settings hold from the next step on."""
        return self.step in self._phase_starts

    @property
    def evaluates(self) -> bool:
        """Whether it is evaluated after the steps done so far."""
        return self.moved and self.step in self.recorder.evaluation_steps

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due after the steps done so far: also of a final state that others may go on from."""
        interval = self.spec.training.checkpoint_steps
        due = interval > 0 and self.step % interval == 0
        return self.moved and (due or (self.finished and self.is_continued))

    @property
    def is_continued(self) -> bool:
        """Whether its final state is kept."""
        return self.spec.keep_state or self.spec.is_partial

    @property
    def finished(self) -> bool:
        """Whether its last step is done."""
        return self.step >= self.spec.last_step

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
        if ahead:
            return order_batch(self.spec, self._batches.expect(self.step), self._stream_at(self.step + 1))
        batch, begun = self._batches.choose(self.step)[0], self._batches.begin(self.step)
        return order_batch(self.spec, batch, self._stream_at(begun))

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

    def finish(self, facts: Mapping[str, Any]) -> None:
        """End after the last step: completed, unless nothing was learned; the outcome gets these `facts` besides."""
        self._facts = {**self._facts, **facts}
        self._try(self.recorder.check_movement)
        if self.outcome is None:
            self._end(RunStatus.COMPLETED)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights and optimizer."""
        return {
            "recorder": self.recorder.state(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "batches": self._batches.state(),
            "own_tokens": self.own_tokens,
            "wall_seconds": self.wall_seconds,
        }

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint with this state of weights and optimizer."""
        self.checkpoints.save(self.step, {**state, **self.state()})

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """Go on from the newest checkpoint, or from the parent's last.

        The state of weights and optimizer in it; None where there is none, which costs time and changes no result.
        """
        state = self.checkpoints.load(device)
        if state is not None:
            self._restore(state)
            self.own_tokens, self.wall_seconds = state["own_tokens"], state["wall_seconds"]
        elif self.spec.parent_run_id:
            state = self._find_parent().load(device, self.spec.parent_step)
            if state is not None:
                self.go_on(state)
            else:
                lost = (self.spec.run_id, self.spec.parent_run_id, self.spec.parent_step)
                _log.warning("run %s: no state of run %s after step %d; trained from the beginning", *lost)
        return state

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin where the parent ended; what that has cost is not counted again."""
        parent = cut_run(self.spec, self.spec.parent_step)
        assert parent.run_id == self.spec.parent_run_id, f"{self.spec.run_id} does not begin as its parent"
        self._restore(state)

    def _stream_at(self, step: int) -> StreamName:
        return self._streams[max(start for start in self._streams if start <= step)]

    def _find_parent(self) -> CheckpointFolder:
        runs, parent = self.checkpoints.folder.parent.parent, self.spec.parent_run_id
        return find_checkpoints(runs / parent, parent)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.recorder.restore(state["recorder"])
        torch.set_rng_state(state["rng"].cpu())
        self.step = state["step"]
        self._batches.restore(state["batches"])

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
            bytes_per_token=mix_bytes_per_token(self._corpus, self._mixture),
            spent_flops=float(self.own_tokens * self.spec.flops_per_token),
            **self._facts,
        )

    def _mix(self, by_domain: dict[str, float]) -> float:
        return mix_losses(by_domain, self._mixture)

    @property
    def _mixture(self) -> dict[str, float]:
        """That of its last step."""
        return self.spec.mixture_at(max(0, self.step - 1))


def find_checkpoints(folder: Path, run_id: str) -> CheckpointFolder:
    """The checkpoints of a run in its own folder."""
    return CheckpointFolder(folder / "checkpoints", run_id)


def mix_losses(by_domain: Mapping[str, float], mixture: Mapping[str, float]) -> float:
    """The mean over domains, weighted by the mixture; domains without a share do not count."""
    return sum(share * by_domain[name] for name, share in mixture.items() if share > 0)


def mix_bytes_per_token(corpus: Corpus, mixture: Mapping[str, float]) -> float | None:
    """UTF-8 bytes per held-out token under a mixture; None where a domain's are not known."""
    ratios = {name: facts.bytes_per_token for name, facts in corpus.domains.items()}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    return mix_losses(known, mixture) if len(known) == len(ratios) else None
