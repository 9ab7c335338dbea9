"""Learning-rate schedules: piecewise linear in the step, with jumps, and how far the rate has fallen by a step.

Legend: u step (real), eta(u) learning rate, S(u) = integral of eta from 0 to u ("summed learning rate"). The rate of
update k holds on (k - 1, k], so S(u) is the sum over updates wherever the rate is constant between jumps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalelaws.observations import BoolArray, FloatArray

BLOCKS = 32
"""A falling rate is cut into blocks of at most this share of its fall, and of its time. Measured in
tests/scalelaws/test_curves.py: within 1e-4 of the sum over single updates."""

JUMP_SHARE = 0.1
"""Assumption: between two logged steps a change of more than this share of the peak is a jump, if it is lonely."""
LONELY = 5.0
"""Assumption: a jump exceeds the changes just before and after it by this factor; else the schedule is steep there."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """A learning rate over the steps of a run: linear between knots; two knots at one step are a jump."""

    step: FloatArray
    """Steps of the knots, from 0, never descending."""
    lr: FloatArray
    """Learning rate at the knots, not negative."""

    def __post_init__(self) -> None:
        """Converts to read-only float64 and refuses what is no schedule."""
        for name in ("step", "lr"):
            array = np.array(getattr(self, name), dtype=np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.step.ndim != 1 or self.step.shape != self.lr.shape or len(self.step) < 2:
            raise ValueError(
                f"a schedule needs two or more knots, a step and a rate each; got shapes {self.step.shape} and "
                f"{self.lr.shape}"
            )
        if self.step[0] != 0 or (np.diff(self.step) < 0).any() or not self.step[-1] > 0:
            raise ValueError(f"a schedule's steps must start at 0 and never descend; got {_brief(self.step)}")
        if not (np.isfinite(self.lr).all() and (self.lr >= 0).all() and self.lr.max() > 0):
            raise ValueError(f"a schedule's rates must be finite, not negative, not all 0; got {_brief(self.lr)}")

    @classmethod
    def of_updates(cls, lr: ArrayLike) -> Schedule:
        """The schedule of one rate per update, update 1 first."""
        rates = np.asarray(lr, dtype=np.float64)
        return cls.of_log(np.arange(1.0, len(rates) + 1), rates)

    @classmethod
    def of_log(cls, step: ArrayLike, lr: ArrayLike, *, warmup_steps: float = 0.0) -> Schedule:
        """The schedule behind the rates logged at some steps.

        It is linear between them, but for lonely jumps, which stand just before the update that first has the new rate.
        Before the first logged step it rises linearly to the first logged rate over `warmup_steps`, then stays there.
        """
        steps, rates = np.asarray(step, dtype=np.float64), np.asarray(lr, dtype=np.float64)
        if steps.ndim != 1 or steps.shape != rates.shape or len(steps) == 0:
            raise ValueError(
                f"a log needs a step and a rate per row, one row at least; got {steps.shape}, {rates.shape}"
            )
        if not 0 <= warmup_steps <= steps[0]:
            raise ValueError(
                f"warmup_steps counts the steps of a warm-up that was not logged: between 0 and the first logged step, "
                f"{steps[0]:g}; got {warmup_steps:g}"
            )
        knots = [(0.0, 0.0), (warmup_steps, rates[0])] if warmup_steps else [(0.0, rates[0])]
        jumps = _find_jumps(rates)
        for i in range(len(steps)):
            if jumps[i]:
                at = max(steps[i] - 1, steps[i - 1])
                knots += [(at, rates[i - 1]), (at, rates[i])]
            knots.append((steps[i], rates[i]))
        return cls(*np.array(knots).T)

    @classmethod
    def constant(cls, steps: float, peak_lr: float, *, warmup_steps: float = 0.0) -> Schedule:
        """A linear warm-up, then the peak to the end."""
        return _after_warmup(warmup_steps, peak_lr, [warmup_steps, steps], [peak_lr, peak_lr])

    @classmethod
    def cosine(
        cls, steps: float, peak_lr: float, *, end_lr: float, warmup_steps: float = 0.0, knots: int = 400
    ) -> Schedule:
        """A linear warm-up, then half a cosine from the peak to `end_lr` at `steps`."""
        share = np.linspace(0, 1, knots)
        rates = end_lr + 0.5 * (peak_lr - end_lr) * (1 + np.cos(np.pi * share))
        return _after_warmup(warmup_steps, peak_lr, warmup_steps + share * (steps - warmup_steps), rates)

    @classmethod
    def wsd(
        cls, steps: float, peak_lr: float, *, end_lr: float, decay_share: float = 0.2, warmup_steps: float = 0.0
    ) -> Schedule:
        """Warm-up, stable, then a linear decay to `end_lr` over the last `decay_share` of the steps."""
        turn = max(steps * (1 - decay_share), warmup_steps)
        return _after_warmup(warmup_steps, peak_lr, [warmup_steps, turn, steps], [peak_lr, peak_lr, end_lr])

    @property
    def steps(self) -> float:
        """Length of the run."""
        return float(self.step[-1])

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        return float(self.lr.max())

    @property
    def end_lr(self) -> float:
        """Learning rate at the end."""
        return float(self.lr[-1])

    @property
    def warmup_steps(self) -> float:
        """Step at which the peak is first reached."""
        return float(self.step[np.argmax(self.lr)])

    @property
    def rises(self) -> bool:
        """Whether the rate rises again after it has fallen from its peak."""
        return bool((np.diff(self.lr[np.argmax(self.lr) :]) > 0).any())

    def until(self, step: float) -> Schedule:
        """The schedule up to this step, which lies in (0, steps]."""
        if step >= self.steps:
            return self
        before = self.step < step
        return Schedule(np.append(self.step[before], step), np.append(self.lr[before], self.at(step)))

    def at(self, step: ArrayLike) -> FloatArray:
        """Learning rate at real steps; at a jump, the rate before it."""
        u = np.asarray(step, dtype=np.float64)
        left, share = self._locate(u)
        return np.asarray(self.lr[left] + share * (self.lr[left + 1] - self.lr[left]))

    def area(self, step: ArrayLike) -> FloatArray:
        """Summed learning rate from 0 to these steps."""
        u = np.asarray(step, dtype=np.float64)
        left, _ = self._locate(u)
        whole = np.append(0.0, np.cumsum(np.diff(self.step) * 0.5 * (self.lr[1:] + self.lr[:-1])))
        return np.asarray(whole[left] + (u - self.step[left]) * 0.5 * (self.lr[left] + self.at(u)))

    def to_dict(self) -> dict[str, list[float]]:
        """The knots as plain data."""
        return {"step": self.step.tolist(), "lr": self.lr.tolist()}

    def _locate(self, u: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
        """The knot that begins the piece in which each step lies, and the share of the piece that has passed."""
        right = np.clip(np.searchsorted(self.step, u, side="left"), 1, len(self.step) - 1)
        width = self.step[right] - self.step[right - 1]
        share = np.where(width > 0, (u - self.step[right - 1]) / np.where(width > 0, width, 1.0), 0.0)
        return right - 1, np.clip(share, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Drops:
    """What has fallen by each of n logged steps: one entry per pair of a step and a block that began before it.

    A block is a jump, or a stretch over which the rate falls little; at a step inside a block, the part that has
    fallen. Entries are sorted by `row`.
    """

    row: NDArray[np.int64]
    """The logged step of each pair, 0 to n - 1."""
    fall: FloatArray
    """Rate before the block minus rate after it (or at the logged step)."""
    lr: FloatArray
    """Rate after a jump; rate at the centre of a stretch, the mean step of its fall."""
    area: FloatArray
    """Summed learning rate from the centre of the block to the logged step."""
    age: FloatArray
    """Steps from the centre of the block to the logged step."""


def find_drops(schedule: Schedule, step: FloatArray) -> Drops:
    """The falls of the rate after the warm-up, as seen from each logged step (see `Drops`)."""
    start, end, before, after = _cut_blocks(schedule)
    row, block = np.nonzero(start[None, :] < step[:, None])
    u, a = step[row], start[block]
    e = np.minimum(end[block], u)
    jump = end[block] == a
    reached = np.where(e < end[block], schedule.at(e), after[block])
    fall = before[block] - reached
    centre = _find_centre(schedule, a, e, before[block], fall)
    area = schedule.area(step)[row] - schedule.area(centre)
    return Drops(row, fall, np.where(jump, after[block], schedule.at(centre)), area, u - centre)


def _find_centre(
    schedule: Schedule, start: FloatArray, end: FloatArray, before: FloatArray, fall: FloatArray
) -> FloatArray:
    """Mean step of the fall within each block: the integral of u d(-eta) over its size, by parts."""
    area = schedule.area(end) - schedule.area(start)
    moment = start * before - end * (before - fall) + area
    return np.asarray(np.clip(np.where(fall != 0, moment / np.where(fall != 0, fall, 1.0), start), start, end))


def _cut_blocks(schedule: Schedule) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Start, end, rate before and rate after of every block in which the rate changes."""
    first = int(np.argmax(schedule.lr))
    step, lr = schedule.step[first:], schedule.lr[first:]
    width, change = np.diff(step), np.diff(lr)
    jump = (width == 0) & (change != 0)
    edges = _place_edges(step, np.where(jump, 0.0, np.abs(change)), width)
    inner = np.stack([edges[:-1], edges[1:]])
    after_left = _rates_after(step, lr, inner[0])
    start = np.concatenate([inner[0], step[:-1][jump]])
    end = np.concatenate([inner[1], step[:-1][jump]])
    before = np.concatenate([after_left, lr[:-1][jump]])
    after = np.concatenate([schedule.at(inner[1]), lr[1:][jump]])
    moved = before != after
    return start[moved], end[moved], before[moved], after[moved]


def _place_edges(step: FloatArray, change: FloatArray, width: FloatArray) -> FloatArray:
    """Edges of blocks: ends of flat stretches, jumps, and equal shares of fall and time in between."""
    moving = change > 0
    kinks = np.flatnonzero(np.diff(np.concatenate([[False], moving, [False]])))
    gaps = np.flatnonzero(width == 0)
    fixed = [step[kinks], step[gaps], step[[0, -1]]]
    for part in (change, np.where(moving, width, 0.0)):
        passed = np.append(0.0, np.cumsum(part))
        if passed[-1] > 0:
            fixed.append(np.interp(np.linspace(0, 1, BLOCKS + 1), passed / passed[-1], step))
    return np.unique(np.concatenate(fixed))


def _rates_after(step: FloatArray, lr: FloatArray, u: FloatArray) -> FloatArray:
    """Learning rate just after these steps: at a jump, the rate behind it."""
    left = np.clip(np.searchsorted(step, u, side="right") - 1, 0, len(step) - 2)
    width = step[left + 1] - step[left]
    return np.asarray(lr[left] + (u - step[left]) / np.where(width > 0, width, 1.0) * (lr[left + 1] - lr[left]))


def _find_jumps(lr: FloatArray) -> BoolArray:
    """Whether the rate jumped at each logged step, rather than moved there gradually."""
    change = np.abs(np.diff(lr, prepend=lr[0], append=lr[-1]))
    around = np.maximum(np.append(0.0, change[:-2]), change[1:])
    return np.asarray((change[:-1] > JUMP_SHARE * lr.max()) & (change[:-1] > LONELY * around))


def _after_warmup(warmup_steps: float, peak_lr: float, step: ArrayLike, lr: ArrayLike) -> Schedule:
    steps, rates = np.asarray(step, dtype=np.float64), np.asarray(lr, dtype=np.float64)
    if warmup_steps < 0 or warmup_steps >= steps[-1]:
        raise ValueError(f"warmup_steps must lie in [0, steps); got {warmup_steps} of {steps[-1]}")
    return Schedule(np.append(0.0, steps), np.append(0.0, rates)) if warmup_steps else Schedule(steps, rates)


def _brief(values: FloatArray) -> str:
    return np.array2string(values, threshold=6, precision=4)
