"""Watches the losses of a run: keeps the curve, and stops a run that has diverged or whose loss cannot be true."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import TypeAdapter

from foretune.records import CurvePoint, RunSpec, RunStatus
from foretune.training.diagnosing import DiagnosisLog
from foretune.training.schedules import choose_evaluation_steps
from foretune.training.spikes import PERSISTENT, WINDOW, Action, SpikeWatch

CURVE_POINTS = 200
"""Most training losses kept of a run, and of the last phase of one that ends early, from which forecasts are made;
held-out losses are kept besides, and the first spikes."""
SPIKE_POINTS = 100
"""Most spikes kept on the curve of a run that takes no notice of them."""
PATIENCE_STEPS = 50
"""Steps in a row with a loss too high after which a run counts as diverged (assumption)."""
_CURVE = TypeAdapter(tuple[CurvePoint, ...])


class RunStopped(Exception):
    """A run ends before its last step; carries the status and the reason of its outcome."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        """`reason` is a sentence for the run table."""
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Recorder:
    """The curve of one run. A loss is too high above ln(vocabulary) + 1, or above twice the first one."""

    def __init__(self, spec: RunSpec, report: Callable[[CurvePoint], None]) -> None:
        """`report` gets every point that is kept, as soon as it is known."""
        training = spec.training
        planned = choose_evaluation_steps(training)
        self.evaluation_steps = frozenset([*(step for step in planned if step < spec.last_step), spec.last_step])
        self.curve: tuple[CurvePoint, ...] = ()
        self.held_out: dict[str, float] = {}
        self.spikes = SpikeWatch(training)
        self.diagnoses = DiagnosisLog(training)
        self._training = training
        self._report = report
        self._stride = math.ceil(training.steps / CURVE_POINTS)
        self._dense = _find_dense(spec)
        self._uniform_loss = math.log(spec.model.vocab_size)
        self._limit = math.inf
        self._last_loss: float | None = None
        self._steps_too_high = 0

    def record_step(self, step: int, lr: float, loss: float, gradient_norm: float) -> None:
        """Take the training loss of a finished step (counted from 1). Raises RunStopped when the run is lost.

        A run that skips spikes had them judged before the update; the others have it done here.
        """
        if not self.spikes.skips:
            self.spikes.judge(step, loss, gradient_norm)
        elif self.spikes.last and self.spikes.last.action is Action.SKIP:
            self._record_skip(step, lr, loss)
            return
        divergence = self._find_divergence(step, loss, gradient_norm)
        leaks = loss <= 0 and not divergence
        spike = self.spikes.last is not None and len(self.spikes.spikes) <= SPIKE_POINTS
        due = (spike or self._is_regular(step)) and step not in self.evaluation_steps
        if divergence or leaks or due:
            self._keep(step, lr, loss if math.isfinite(loss) else None)  # the last point of a curve, too
        if divergence:
            self._stop_diverged(divergence, lr)
        if leaks:
            raise RunStopped(RunStatus.FAILED, f"training loss {loss:g} at step {step} is not above 0: labels leak")
        self._last_loss = loss

    def record_held_out(self, step: int, lr: float, loss: float, by_domain: dict[str, float]) -> None:
        """Take a held-out evaluation after a step whose training loss is recorded."""
        finite = math.isfinite(loss)
        self._keep(step, lr, self._last_loss, loss if finite else None)
        if not finite:
            self._stop_diverged(f"held-out loss is {loss} at step {step}", lr)
        if loss <= 0:
            raise RunStopped(RunStatus.FAILED, f"held-out loss {loss:g} at step {step} is not above 0: labels leak")
        self.held_out = by_domain

    def check_movement(self) -> None:
        """Refuse a finished run whose held-out loss never changed: weights so large that nothing flows any more."""
        points = [point for point in self.curve if point.held_out is not None]
        if len(points) > 1 and len({point.held_out for point in points}) == 1:
            stuck = f"held-out loss stayed at {points[0].held_out:.4f} in {len(points)} evaluations"
            self._stop_diverged(f"{stuck}: nothing is learned", self._training.peak_lr)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        return {
            "curve": _CURVE.dump_json(self.curve).decode(),
            "held_out": self.held_out,
            "limit": self._limit,
            "last_loss": self._last_loss,
            "steps_too_high": self._steps_too_high,
            "spikes": self.spikes.state(),
            "diagnoses": self.diagnoses.state(),
            "dense": self._dense,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, which may be that of a parent, whose last phase is not that of this run."""
        self.held_out = state["held_out"]
        self._limit = state["limit"]
        self._last_loss = state["last_loss"]
        self._steps_too_high = state["steps_too_high"]
        self.spikes.restore(state["spikes"])
        self.diagnoses.restore(state["diagnoses"])
        self.curve = tuple(self._adopt(_CURVE.validate_json(state["curve"]), state.get("dense", self._dense)))

    def _is_regular(self, step: int) -> bool:
        """Whether the loss of a step is kept whatever it is."""
        return step % self._stride == 0 or _is_dense(step, self._dense)

    def _adopt(self, curve: Sequence[CurvePoint], dense: Sequence[int]) -> Iterator[CurvePoint]:
        """The points that this run would have kept: a parent was evaluated at its end, and had another last phase."""
        spikes = {spike.step - (spike.action is Action.SKIP) for spike in self.spikes.spikes}
        for point in curve:
            kept = self._is_regular(point.step) or point.step in spikes
            if point.step in self.evaluation_steps:
                yield point
            elif kept or (point.held_out is None and not _is_dense(point.step, dense)):
                yield point.model_copy(update={"held_out": None})

    def _find_divergence(self, step: int, loss: float, gradient_norm: float) -> str:
        """What is wrong with a step, or nothing."""
        if not math.isfinite(loss):
            return f"training loss is {loss} at step {step}"
        if not math.isfinite(gradient_norm):
            return f"gradient norm is {gradient_norm} at step {step}"
        if self._last_loss is None:
            self._limit = min(self._uniform_loss + 1, 2 * loss)
        self._steps_too_high = self._steps_too_high + 1 if loss > self._limit else 0
        if self._steps_too_high >= PATIENCE_STEPS:
            return f"training loss above {self._limit:.3f} for {PATIENCE_STEPS} steps up to step {step}"
        return ""

    def _record_skip(self, step: int, lr: float, loss: float) -> None:
        """A try of this step whose update was not applied: its point has the steps done before it, and no rate."""
        self._keep(step - 1, lr, loss)
        if self.spikes.gives_up:
            problem = f"more than {PERSISTENT} spikes among the last {WINDOW} tries, up to step {step}"
            self._stop_diverged(problem, self._training.peak_lr)

    def _stop_diverged(self, problem: str, lr: float) -> None:
        last = "none" if self._last_loss is None else f"{self._last_loss:.4f}"
        raise RunStopped(RunStatus.DIVERGED, f"{problem} (last finite loss {last}, learning rate {lr:.3g})")

    def _keep(self, step: int, lr: float, loss: float | None, held_out: float | None = None) -> None:
        tokens = self._training.tokens_at(step)
        point = CurvePoint(step=step, tokens=tokens, lr=lr, loss=loss, held_out=held_out)
        self.curve = (*self.curve, point)
        self._report(point)


def _find_dense(spec: RunSpec) -> tuple[int, int]:
    """From which step on how many steps lie between training losses that are kept: the last phase of an early end.

    Powers of two, so that a parent that ends sooner in the same phase has kept what this run would have.
    """
    begin = spec.phases[-1].start_step if spec.phases and spec.is_partial else spec.last_step
    return begin, 2 ** math.ceil(math.log2(max(1.0, (spec.last_step - begin) / CURVE_POINTS)))


def _is_dense(step: int, dense: Sequence[int]) -> bool:
    begin, stride = dense
    return step > begin and step % stride == 0
