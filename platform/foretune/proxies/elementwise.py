"""Optimizers of stacked members: whole rows are updated at once, every member with settings of its own.

Symbols
    K  members   P  parameters of a member   w, g  weights and gradients [K, P]   m, v  first and second moment [K, P]

A member that a step is not applied to keeps weights, buffers and count whatever its gradient, NaN included: its
gradient is read as 0, and all rates by which its row would move are 0. Nothing here waits for the device.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foretune.parametrization import GroupRule
from foretune.proxies.state import Slot, StackedState
from foretune.records import TrainingSpec

CACHE_ELEMENTS = 16384
"""Numbers updated at once by a thread of a CPU, so that the passes over them stay in its cache."""
Rates = Mapping[str, Tensor]
"""Numbers of this step by name, each [K, 1] float32."""


class StackedOptimizer(ABC):
    """What the trainer needs of an optimizer of K members; their settings may all differ but for `optimizer`."""

    state: StackedState
    """Weights and gradients of the members."""
    buffers: dict[str, Tensor]
    """What is kept beside each weight, by name: [K, P] float32."""
    steps: Tensor
    """Updates done by each member: [K] int64."""

    @abstractmethod
    def step(self, lr: Tensor, apply: Tensor | None = None) -> None:
        """Update from `state.gradients` with learning rates `lr` [K], before the multipliers of the groups.

        `apply` [K] bool names the members that take the step; None stands for all.
        """

    @abstractmethod
    def take(self, rows: Tensor) -> None:
        """Keep or duplicate members, in this order, as `StackedState.take` does with their weights."""

    @abstractmethod
    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """Train on with these settings, one specification a member; moments and counts stay as they are."""

    @abstractmethod
    def state_of(self, member: int) -> dict[str, Tensor]:
        """What one member has beside its weights, for a checkpoint; copies."""

    @abstractmethod
    def load_state_of(self, member: int, state: Mapping[str, Tensor]) -> None:
        """Put back what `state_of` gave."""

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within it, the weights are those to evaluate; they are the trained ones unless an optimizer averages."""
        yield


class ElementwiseOptimizer(StackedOptimizer):
    """An optimizer that updates every number from its own gradient and buffers."""

    buffer_names: ClassVar[tuple[str, ...]]
    """Names of the buffers."""
    setting_names: ClassVar[tuple[str, ...]]
    """Fields of TrainingSpec that it reads beside the learning rate."""

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """`rules` by group, one TrainingSpec a member."""
        self.state, self.rules = state, rules
        members, device = len(training), state.weights.device
        assert members == len(state.weights), (members, state.weights.shape)
        self.steps = torch.zeros(members, dtype=torch.int64, device=device)
        self.buffers = {name: torch.zeros_like(state.weights) for name in self.buffer_names}
        self.member_buffers: dict[str, Tensor] = {}
        self.settings = {
            name: column.to(device) for name, column in _read_settings(training, self._named_settings()).items()
        }
        self.lr_multipliers = spread_multipliers(state, rules, lambda rule: rule.lr_multiplier)
        self.decay_multipliers = spread_multipliers(
            state, rules, lambda rule: rule.lr_multiplier * rule.weight_decay_multiplier
        )
        self._chunks = self._choose_chunks()

    @torch.no_grad()
    def step(self, lr: Tensor, apply: Tensor | None = None) -> None:
        """See StackedOptimizer."""
        applied = torch.ones_like(self.steps) if apply is None else apply.to(torch.int64)
        self.steps += applied
        mask = applied[:, None].to(torch.float64)
        rates = {name: rate.float() for name, rate in self.choose_rates(lr[:, None] * mask, mask).items()}
        rates["decay"] = (lr[:, None] * mask * self.settings["weight_decay"]).float()
        self.update_rows(rates, None if apply is None else apply[:, None])

    def take(self, rows: Tensor) -> None:
        """See StackedOptimizer."""
        rows = rows.to(self.steps.device)
        self.steps = self.steps[rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        self.member_buffers = {name: column[rows] for name, column in self.member_buffers.items()}
        self.settings = {name: column[rows] for name, column in self.settings.items()}
        self._chunks = self._choose_chunks()

    def retune(self, training: Sequence[TrainingSpec]) -> None:
        """See StackedOptimizer. In place, for what is compiled."""
        for name, column in _read_settings(training, self._named_settings()).items():
            self.settings[name].copy_(column)

    def state_of(self, member: int) -> dict[str, Tensor]:
        """See StackedOptimizer."""
        return {name: rows[member].clone() for name, rows in self._member_tensors().items()}

    @torch.no_grad()
    def load_state_of(self, member: int, state: Mapping[str, Tensor]) -> None:
        """See StackedOptimizer."""
        for name, rows in self._member_tensors().items():
            rows[member].copy_(state[name])

    @abstractmethod
    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The numbers of this step, [K, 1] float64. `lr` is 0 where `applied` [K, 1] is 0, 1 elsewhere."""

    @abstractmethod
    def update(self, part: slice, gradients: Tensor, rates: Rates) -> None:
        """Update the columns `part` of all rows."""

    def update_rows(self, rates: Rates, apply: Tensor | None) -> None:
        """Update all rows, chunk by chunk."""
        for part in self._chunks:
            self.update(part, self.gradients_in(part, apply), rates)

    def gradients_in(self, part: slice, apply: Tensor | None) -> Tensor:
        """The gradients in these columns, 0 for members that the step is not applied to."""
        gradients = self.state.gradients[:, part]
        return gradients if apply is None else torch.where(apply, gradients, 0.0)

    def descend(self, part: slice, direction: Tensor, rates: Rates) -> None:
        """w <- (1 - lr weight_decay) w - lr direction, with the multipliers of the groups.

        The decay is decoupled (Loshchilov and Hutter 2019).
        """
        weights = self.state.weights[:, part]
        weights.addcmul_(weights * rates["decay"], self.decay_multipliers[part], value=-1)
        weights.addcmul_(direction * self.lr_multipliers[part], rates["lr"], value=-1)

    def slots(self) -> list[Slot]:
        """The parameters that are updated number by number: all of them."""
        return list(self.state.slots)

    def _choose_chunks(self) -> list[slice]:
        """On a GPU few large kernels; on a CPU columns that its cache holds."""
        members, width = len(self.steps), self.state.weights.shape[1]
        if self.state.weights.device.type == "cpu":
            width = max(1, CACHE_ELEMENTS * torch.get_num_threads() // members)
        return [
            slice(first, min(first + width, part.stop))
            for part in join_slots(self.slots())
            for first in range(part.start, part.stop, width)
        ]

    def _named_settings(self) -> tuple[str, ...]:
        return (*self.setting_names, "weight_decay")

    def _member_tensors(self) -> dict[str, Tensor]:
        return {**self.buffers, **self.member_buffers, "steps": self.steps}


class Lion(ElementwiseOptimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2): the sign of an interpolated momentum."""

    buffer_names = ("momentum",)
    setting_names = ("beta1", "beta2")

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The direction mixes in 1 - beta1 of the gradient, the momentum 1 - beta2."""
        return {
            "mix": 1 - self.settings["beta1"],
            "momentum": applied * (1 - self.settings["beta2"]),
            "lr": lr,
        }

    def update(self, part: slice, gradients: Tensor, rates: Rates) -> None:
        """c = beta1 m + (1 - beta1) g;  w <- w - lr (sign(c) + weight_decay w);  m <- beta2 m + (1 - beta2) g."""
        momentum = self.buffers["momentum"][:, part]
        direction = torch.lerp(momentum, gradients, rates["mix"]).sign_()
        momentum.lerp_(gradients, rates["momentum"])
        self.descend(part, direction, rates)


class SGD(ElementwiseOptimizer):
    """Stochastic gradient descent with momentum, as torch.optim.SGD, but with decoupled weight decay."""

    buffer_names = ("momentum",)
    setting_names = ("momentum",)

    def choose_rates(self, lr: Tensor, applied: Tensor) -> dict[str, Tensor]:
        """The momentum of a member that is not applied is kept whole."""
        return {"momentum": 1 - applied * (1 - self.settings["momentum"]), "lr": lr}

    def update(self, part: slice, gradients: Tensor, rates: Rates) -> None:
        """m <- momentum m + g;  w <- (1 - lr weight_decay) w - lr m."""
        momentum = self.buffers["momentum"][:, part]
        momentum.mul_(rates["momentum"]).add_(gradients)
        self.descend(part, momentum, rates)


def _read_settings(training: Sequence[TrainingSpec], names: Sequence[str]) -> dict[str, Tensor]:
    """Settings of all members by name, [K, 1] float64."""
    return {name: torch.tensor([[getattr(spec, name)] for spec in training], dtype=torch.float64) for name in names}


def spread_multipliers(
    state: StackedState, rules: Mapping[str, GroupRule], read: Callable[[GroupRule], float]
) -> Tensor:
    """A multiplier of every parameter, [P] float32; one number is stored where they are all alike."""
    values = [read(rules[slot.group]) for slot in state.slots]
    width, device = state.weights.shape[1], state.weights.device
    if len(set(values)) == 1:
        return torch.tensor(values[0], dtype=torch.float32, device=device).expand(width)
    spread = torch.empty(width, dtype=torch.float32, device=device)
    for slot, value in zip(state.slots, values, strict=True):
        spread[slot.start : slot.stop] = value
    return spread


def join_slots(slots: Sequence[Slot]) -> list[slice]:
    """The columns of slots that are in order, neighbours as one."""
    joined: list[slice] = []
    for slot in slots:
        if joined and joined[-1].stop == slot.start:
            joined[-1] = slice(joined[-1].start, slot.stop)
        else:
            joined.append(slice(slot.start, slot.stop))
    return joined
