"""Runs that could be done, and the record of those that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, FloatArray, Observations

SAME_SETTING = 1e-3
"""Two runs whose ln N, ln D, ln learning rate and ln batch all differ by less are one and the same."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that could be done, one row each; arrays are float64 of equal length, positive and finite."""

    params_non_embedding: FloatArray
    """Parameters per model, counted as in the runs done so far and in the target."""
    tokens: FloatArray
    """Training tokens (the horizon)."""
    peak_lr: FloatArray
    """Peak learning rate."""
    batch_tokens: FloatArray | None = None
    """Tokens per optimizer step; None where the batch is not searched."""
    cost_flops: FloatArray | None = None
    """Training FLOPs, forward and backward; 6ND where not given."""
    label: tuple[str, ...] | None = None
    """Identifiers, for the reader."""

    def __post_init__(self) -> None:
        """Converts to read-only float64 and refuses what is not positive."""
        for name in _COLUMNS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _read(name, getattr(self, name)))
        sizes = {name: len(getattr(self, name)) for name in (*_COLUMNS, "label") if getattr(self, name) is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"candidates: every column must have one entry per run; got {sizes}")
        if self.label is not None:
            object.__setattr__(self, "label", tuple(str(item) for item in self.label))

    def __len__(self) -> int:
        """Number of candidate runs."""
        return len(self.peak_lr)

    @property
    def cost(self) -> FloatArray:
        """Training FLOPs as given, else 6ND."""
        if self.cost_flops is not None:
            return self.cost_flops
        return FLOPS_PER_PARAM_TOKEN * self.params_non_embedding * self.tokens

    def rows(self, index: ArrayLike) -> Candidates:
        """The candidates numbered `index`."""
        chosen = np.asarray(index, dtype=np.int64)
        columns = {name: getattr(self, name) for name in _COLUMNS}
        taken: dict[str, Any] = {name: None if v is None else v[chosen] for name, v in columns.items()}
        return Candidates(**taken, label=None if self.label is None else tuple(self.label[row] for row in chosen))

    def cells(self) -> tuple[np.ndarray, ...]:
        """Row numbers of each cell (candidates of the same size and horizon), cells ascending in (N, D)."""
        if len(self) == 0:
            return ()
        return Observations(self.params_non_embedding, self.tokens, np.ones(len(self))).cells()

    def find_new(self, done: Observations) -> np.ndarray:
        """Rows that are not among the runs done so far (diverged ones included)."""
        if done.peak_lr is None:
            raise ValueError("the runs done so far need peak_lr to be told from the candidates; this table has none")
        pairs = [
            (self.params_non_embedding, done.params_non_embedding),
            (self.tokens, done.tokens),
            (self.peak_lr, done.peak_lr),
        ]
        if self.batch_tokens is not None and done.batch_tokens is not None:
            pairs.append((self.batch_tokens, done.batch_tokens))
        near = np.ones((len(self), len(done)), dtype=bool)
        for ours, theirs in pairs:
            near &= np.abs(np.log(ours)[:, None] - np.log(theirs)[None, :]) < SAME_SETTING
        return np.flatnonzero(~near.any(axis=1))


_COLUMNS = ("params_non_embedding", "tokens", "peak_lr", "batch_tokens", "cost_flops")


def _read(name: str, values: ArrayLike) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 1 or not bool(np.all(np.isfinite(array) & (array > 0))):
        raise ValueError(f"candidates: {name} must be one positive finite number per run; look at the column")
    array.setflags(write=False)
    return array


@dataclass(frozen=True)
class Precision:
    """How well the settings of the target are known; expected values under the posterior."""

    expected_regret: float
    """Excess ln loss of the target if trained at the settings of least expected excess."""
    peak_lr_width: float
    """Width of the 90 % interval of ln learning rate."""
    batch_tokens_width: float | None
    """Width of the 90 % interval of ln batch; None where the batch is not searched."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Choice:
    """One chosen run."""

    row: int
    """Its number among the candidates."""
    label: str
    params_non_embedding: float
    tokens: float
    peak_lr: float
    batch_tokens: float | None
    cost_flops: float
    gain: float
    """By how much it lowers the expected regret, after the runs chosen before it."""
    after: Precision
    """What is known once it is done."""

    @property
    def gain_per_exaflop(self) -> float:
        """Gain per 1e18 FLOPs."""
        return self.gain / self.cost_flops * 1e18

    def to_dict(self) -> dict[str, Any]:
        """The choice as plain data."""
        return {**vars(self), "gain_per_exaflop": self.gain_per_exaflop, "after": self.after.to_dict()}


@dataclass(frozen=True)
class Design:
    """The runs to do next, in the order in which they were chosen, and what they are expected to tell."""

    choices: tuple[Choice, ...]
    before: Precision
    """What is known before the first of them."""
    objective: str
    """What was reduced: `regret` (expected excess loss), `interval` (width) or `determinant` (volume)."""
    per: str
    """`flops` or `run`: what the reduction was divided by."""
    drift: float
    """Standard deviation by which the optimum leaves its law, per root e-fold of N and of D away from the target."""
    status: str
    """A sentence: what was chosen from how many, and what it is expected to do."""
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of the chosen runs among the candidates."""
        return tuple(choice.row for choice in self.choices)

    @property
    def after(self) -> Precision:
        """What is known once all of them are done."""
        return self.choices[-1].after if self.choices else self.before

    @property
    def cost_flops(self) -> float:
        """Training FLOPs of all of them."""
        return float(sum(choice.cost_flops for choice in self.choices))

    def to_dict(self) -> dict[str, Any]:
        """The design as plain data."""
        return {
            "choices": [choice.to_dict() for choice in self.choices],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "cost_flops": self.cost_flops,
            "objective": self.objective,
            "per": self.per,
            "drift": self.drift,
            "status": self.status,
            "warnings": list(self.warnings),
        }


def record_choices(candidates: Candidates, rows: Sequence[int], known: Sequence[Precision]) -> tuple[Choice, ...]:
    """The chosen rows as records; `known` holds what is known before the first and after each of them."""
    batch = candidates.batch_tokens
    return tuple(
        Choice(
            int(row), "" if candidates.label is None else candidates.label[row],
            float(candidates.params_non_embedding[row]), float(candidates.tokens[row]),
            float(candidates.peak_lr[row]), None if batch is None else float(batch[row]),
            float(candidates.cost[row]), before.expected_regret - after.expected_regret, after,
        )
        for row, before, after in zip(rows, known[:-1], known[1:], strict=True)
    )  # fmt: skip
