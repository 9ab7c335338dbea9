"""Loss spikes: what counts as one, and what a run does about it.

A step is a spike when the logarithm of its loss or of its gradient norm lies more than SPIKE_SIGMAS robust standard
deviations above its running level, the median of the last WINDOW steps after the warm-up, and the rise is no trifle.
What follows is the policy `[training] spikes`:

record  The spike is written down and training goes on.
skip    The update is not applied, and the step does not count: the batch is set aside, the run goes on with the next
        one, and RETRY_UPDATES updates later the batch is tried again (on the same weights it would spike again). If
        it still spikes, it is let through at half the learning rate of that step. More than PERSISTENT spikes among
        the last WINDOW tries end the run as diverged.

So a run that skips ends with as many updates, on the same batches, as one that does not; only their order differs, and
its compute is larger by what it tried in vain. A loss or gradient that is not a number ends a run under both.
Source of skip and retry, set the batch aside, then a smaller learning rate: Ling Team 2025, arXiv 2503.05139. It gives
no thresholds; those here are named below.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal

from foretune.records import TrainingSpec

WINDOW = 64
"""Steps that the running level is taken over: half of what OLMo-core's SkipStepOptimizer takes, since proxies are short
(assumption)."""
LEAST_SEEN = 32
"""Steps after the warm-up before a level is known (assumption: proxies are too short to wait for half the window)."""
SPIKE_SIGMAS = 6.0
"""Robust standard deviations above the level (OLMo-core's SkipStepOptimizer has 6, of the plain kind)."""
LEAST_LOSS_RISE = 1.1
"""Loss over its level up to which there is no spike (assumption)."""
LEAST_NORM_RISE = 4.0
"""Gradient norm over its level up to which there is no spike. Single batches of other text double or treble it in
healthy runs (measured on Python source at widths 32 and 64, three learning rates each, 200 to 400 steps)."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation, 1 / Phi^-1(3/4)."""
REFRESH_STEPS = 8
"""Steps between computations of the level, which moves slowly (assumption)."""
RETRY_UPDATES = 1
"""Updates before a batch that was set aside is tried again (assumption)."""
PERSISTENT = 8
"""Spikes within a window above which a run that skips is given up (assumption: every eighth step)."""
HALVED = 0.5
"""Factor on the learning rate of the step that lets a spike through (assumption: the source says only that it is less).
"""


class Action(StrEnum):
    """What is done with the update of a step."""

    APPLY = "applied"
    SKIP = "skipped"
    HALVE = "applied at half the learning rate"

    @property
    def lr_factor(self) -> float:
        """Factor on the learning rate of the step."""
        return {Action.APPLY: 1.0, Action.SKIP: 0.0, Action.HALVE: HALVED}[self]


@dataclass(frozen=True)
class Spike:
    """One spike."""

    step: int
    """Optimizer step in which it came, counted from 1."""
    quantity: Literal["loss", "gradient norm"]
    """What rose; the loss where both did."""
    value: float
    """How high; nats per token for a loss."""
    level: float
    """Running level at that step."""
    action: Action
    """What was done with its update."""


class RunningLevel:
    """Median and robust standard deviation of the logarithms of the last values of a positive series.

    The standard deviation is that of the differences between neighbours over sqrt(2), which a trend hardly raises.
    """

    def __init__(self, least_rise: float) -> None:
        """Nothing is known until LEAST_SEEN values were added; `least_rise` is a factor."""
        self._least_rise = math.log(least_rise)
        self._logs: deque[float] = deque(maxlen=WINDOW)
        self._median = self._sigma = math.nan
        self._age = 0

    def exceeds(self, value: float) -> bool:
        """Whether a value is a spike over the level; False while no level is known, and for what is no number."""
        rise = max(SPIKE_SIGMAS * self._sigma, self._least_rise)
        return 0 < value < math.inf and math.log(value) > self._median + rise

    @property
    def value(self) -> float:
        """The level, in the unit of the series."""
        return math.exp(self._median)

    def add(self, value: float) -> None:
        """Take a value in, a spike too: the median bears it, and a new plateau becomes the level in time."""
        if not (value > 0 and math.isfinite(value)):
            return
        self._logs.append(math.log(value))
        self._age += 1
        if len(self._logs) >= LEAST_SEEN and (math.isnan(self._median) or self._age % REFRESH_STEPS == 0):
            self._refresh()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        return {"logs": list(self._logs), "median": self._median, "sigma": self._sigma, "age": self._age}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._logs = deque(state["logs"], maxlen=WINDOW)
        self._median, self._sigma, self._age = state["median"], state["sigma"], state["age"]

    def _refresh(self) -> None:
        self._median = statistics.median(self._logs)
        difference = statistics.median(abs(later - earlier) for earlier, later in pairwise(self._logs))
        self._sigma = MAD_TO_SIGMA * difference / math.sqrt(2)


class SpikeWatch:
    """Watches the steps of one run, and says what becomes of each update."""

    def __init__(self, training: TrainingSpec) -> None:
        """The policy is that of `training`."""
        self.skips = training.spikes == "skip"
        self.spikes: list[Spike] = []
        self.last: Spike | None = None
        """What the step that was judged last was."""
        self._warmup_steps = training.warmup_steps
        self._losses = RunningLevel(LEAST_LOSS_RISE)
        self._norms = RunningLevel(LEAST_NORM_RISE)
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    @property
    def gives_up(self) -> bool:
        """Whether spikes have become too many for a run that skips them."""
        return self.skips and sum(self._recent) > PERSISTENT

    def judge(self, step: int, loss: float, gradient_norm: float, *, again: bool = False) -> Action:
        """Take a step (counted from 1) before its update; `again` when its batch has been set aside before."""
        self.last = spike = self._find(step, loss, gradient_norm, again)
        if step > self._warmup_steps:
            self._losses.add(loss)
            self._norms.add(gradient_norm)
            self._recent.append(spike is not None)
        if spike is None:
            return Action.APPLY
        self.spikes.append(spike)
        return spike.action

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        return {
            "spikes": [asdict(spike) | {"action": spike.action.value} for spike in self.spikes],
            "losses": self._losses.state(),
            "norms": self._norms.state(),
            "recent": list(self._recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.spikes = [Spike(**spike | {"action": Action(spike["action"])}) for spike in state["spikes"]]
        self._losses.restore(state["losses"])
        self._norms.restore(state["norms"])
        self._recent = deque(state["recent"], maxlen=WINDOW)

    def _find(self, step: int, loss: float, gradient_norm: float, again: bool) -> Spike | None:
        action = Action.APPLY if not self.skips else Action.HALVE if again else Action.SKIP
        if self._losses.exceeds(loss):
            return Spike(step, "loss", loss, self._losses.value, action)
        if self._norms.exceeds(gradient_norm):
            return Spike(step, "gradient norm", gradient_norm, self._norms.value, action)
        return None


class BatchOrder:
    """Which batch a run trains on next: 0, 1, 2, ..., but for those that were set aside."""

    def __init__(self, training: TrainingSpec) -> None:
        """At the beginning of a run."""
        self._training = training
        self._fresh = 0
        self._aside: list[tuple[int, int]] = []  # batch, updates done when it was set aside

    def choose(self, updates: int) -> tuple[int, bool]:
        """The batch of the next try after so many updates, and whether it was tried before."""
        if self._aside and self._is_due(updates):
            return self._aside[0][0], True
        return self._fresh, False

    def begin(self, updates: int) -> int:
        """The updates that were done when the batch of the next try was tried first: now, or when it was set aside."""
        return self._aside[0][1] if self.choose(updates)[1] else updates

    def expect(self, updates: int) -> int:
        """The batch of the try after the next one, if neither is a spike."""
        return self._fresh + (not self.choose(updates)[1])

    def settle(self, updates: int, *, skipped: bool) -> None:
        """Take note of what became of the try that `choose(updates)` gave, before the update is counted."""
        batch, again = self.choose(updates)
        if again:
            del self._aside[0]
        else:
            self._fresh += 1
        if skipped:
            self._aside.append((batch, updates))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        return {"fresh": self._fresh, "aside": self._aside}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._fresh = state["fresh"]
        self._aside = [(batch, since) for batch, since in state["aside"]]

    def _is_due(self, updates: int) -> bool:
        """Late enough, or the last chance: at the end of the run or of a phase of the batch ramp."""
        training, (batch, since) = self._training, self._aside[0]
        if self._fresh >= training.steps or updates >= since + RETRY_UPDATES:
            return True
        return training.batch_tokens_at(self._fresh) != training.batch_tokens_at(batch)
