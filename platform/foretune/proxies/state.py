"""Weights and gradients of all members as rows: what is done to every weight is done in few kernels.

Shapes
    K  members    P  parameters of one member
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in a member's row."""

    name: str
    """Its name in the module."""
    group: str
    """Its group in the parametrization."""
    start: int
    """First place in the row."""
    stop: int
    """One after the last."""
    shape: tuple[int, ...]
    """Shape of one member's tensor."""


class StackedState:
    """Rows [K, P] of weights and of gradients; the parameters of the module are views of them."""

    weights: Tensor
    """float32 [K, P]."""
    gradients: Tensor
    """float32 [K, P]; a backward pass adds to it."""
    slots: tuple[Slot, ...]
    """The parameters in the order of the module; tied ones appear once."""

    def __init__(self, module: nn.Module, groups: Mapping[str, str], *, stacked: bool = True) -> None:
        """Move the parameters of `module` into rows.

        Their shapes are [K, *shape], or with `stacked` false those of an ordinary module, which is K = 1. `groups`
        gives the group of every parameter by name.
        """
        self._stacked = stacked
        self._parameters = dict(module.named_parameters())
        self.slots = tuple(_lay_out(self._parameters, groups, stacked))
        parameters = list(self._parameters.values())
        members = parameters[0].shape[0] if stacked else 1
        with torch.no_grad():
            self.weights = torch.cat([parameter.reshape(members, -1).float() for parameter in parameters], dim=1)
        self._bind()

    @property
    def members(self) -> int:
        """K."""
        return len(self.weights)

    @staticmethod
    def view(rows: Tensor, slot: Slot) -> Tensor:
        """The part of rows [K, P] that is one parameter: [K, *shape]."""
        return rows[:, slot.start : slot.stop].view(len(rows), *slot.shape)

    def take(self, rows: Tensor) -> None:
        """Keep the members `rows` (a LongTensor), in that order; one that is named twice is copied."""
        self.weights = self.weights[rows.to(self.weights.device)]
        self._bind()

    @contextmanager
    def only(self, rows: Tensor | None) -> Iterator[None]:
        """Within it, the module and `weights` are those of the members `rows`, to be read only; None means all."""
        weights = self.weights
        if rows is None:
            yield
            return
        try:
            self.weights = weights[rows.to(weights.device)]
            self._bind_weights()
            yield
        finally:
            self.weights = weights
            self._bind_weights()

    def _bind(self) -> None:
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        for slot in self.slots:
            self._parameters[slot.name].grad = None  # one of the old shape would refuse the new data
        self._bind_weights()
        self.gradients = torch.zeros_like(self.weights)
        for slot in self.slots:
            gradient = self.view(self.gradients, slot)
            self._parameters[slot.name].grad = gradient if self._stacked else gradient[0]

    def _bind_weights(self) -> None:
        for slot in self.slots:
            weight = self.view(self.weights, slot)
            self._parameters[slot.name].data = weight if self._stacked else weight[0]


def _lay_out(parameters: Mapping[str, nn.Parameter], groups: Mapping[str, str], stacked: bool) -> Iterator[Slot]:
    start = 0
    for name, parameter in parameters.items():
        shape = tuple(parameter.shape[1:] if stacked else parameter.shape)
        yield Slot(name, groups[name], start, start + prod(shape), shape)
        start += prod(shape)
