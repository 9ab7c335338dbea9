"""Measures one training step of all members beside its losses, without waiting for the device and without changing it.

Shapes
    K  members    P  parameters of one member    B  sequences    T  positions    H  heads    h  head size

A diagnosed step keeps a copy of the weights, and one of the gradients after each micro-batch: the difference of two
copies is a micro-batch's own gradient, which the noise scale is made of (`foretune.training.diagnosing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foretune.proxies.adam import Adam
from foretune.proxies.elementwise import StackedOptimizer, join_slots
from foretune.proxies.state import Slot, StackedState

MEASURES = (
    "update_norm",
    "update_cosine",
    "saturated_share",
    "near_eps_share",
    "small_square",
    "logit_max",
    "attention_logit_max",
)
"""The rows of what `StepProbe.read` gives; NaN where a run cannot measure one."""
SATURATED = 0.9
"""|m / sqrt(v)| above which a weight counts as saturated (Molybog et al. 2023, arXiv 2304.09871)."""
SCORE_ELEMENTS = 2**20
"""Query-key products held at once while the largest is looked for: 4 MB, which a CPU's cache holds."""


class StepProbe:
    """One diagnosed step: made before its first forward pass, read after its update."""

    def __init__(self, state: StackedState, optimizer: StackedOptimizer) -> None:
        """Of the members as they are now."""
        self._state = state
        self._optimizer = optimizer
        self._before = state.weights.clone()
        self._seen: Tensor | None = None
        self._squares = self._unknown().fill_(0.0)
        self._logits = self._unknown()
        self._attention = self._unknown()
        self.parts = 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass of the model itself, not of its compiled form: looks at every attention in it."""
        with _AttentionProbe(self._see_attention):
            yield

    @torch.no_grad()
    def see_logits(self, logits: Tensor) -> None:
        """After a forward pass: logits K B T V."""
        self._logits = torch.fmax(self._logits, logits.flatten(1).amax(dim=1).float())

    @torch.no_grad()
    def see_backward(self) -> None:
        """After each micro-batch's backward pass, which added its share of the mean gradient to the rows."""
        gradients = self._state.gradients
        part = gradients if self._seen is None else gradients - self._seen
        self._squares += part.square().sum(dim=1)
        self._seen = gradients.clone()
        self.parts += 1

    @torch.no_grad()
    def read(self) -> Tensor:
        """MEASURES of every member, [len(MEASURES), K]; after the update.

        The cosine is that with the gradients that were seen: an update may write over those in the rows.
        """
        assert self._seen is not None, "read after the backward passes"
        change, gradients = self._state.weights - self._before, self._seen
        update_norm = torch.linalg.vector_norm(change, dim=1)
        product = (change * gradients).sum(dim=1)
        cosine = -product / (update_norm * torch.linalg.vector_norm(gradients, dim=1))
        small_square = self.parts * self._squares  # each part of the mean gradient is 1 / parts of its own
        saturated, near_eps = self._measure_moments()
        return torch.stack((update_norm, cosine, saturated, near_eps, small_square, self._logits, self._attention))

    def _measure_moments(self) -> tuple[Tensor, Tensor]:
        """The shares of saturated weights and of hidden weights near eps, where the optimizer has both moments."""
        optimizer = self._optimizer
        if not isinstance(optimizer, Adam):
            return self._unknown(), self._unknown()
        first, second = (optimizer.buffers[name] for name in optimizer.buffer_names)
        steps = optimizer.steps[:, None].clamp(min=1)
        first_left, second_left = (1 - optimizer.settings[name] ** steps for name in ("beta1", "beta2"))
        least = (SATURATED * first_left / second_left.sqrt()).float()
        eps = (optimizer.settings["eps"] * second_left.sqrt()).float()
        multipliers, slots = optimizer.eps_multipliers, optimizer.slots()
        hidden = [slot for slot in slots if optimizer.rules[slot.group].kind == "hidden"]
        saturated = self._share(slots, lambda part: first[:, part].abs() > least * second[:, part].sqrt())
        near_eps = self._share(hidden, lambda part: second[:, part].sqrt() < eps * multipliers[part])
        return saturated, near_eps

    def _share(self, slots: Sequence[Slot], find: Callable[[slice], Tensor]) -> Tensor:
        """The share of the weights in `slots` that are found, [K]; unknown when there are none."""
        parts = join_slots(slots)
        if not parts:
            return self._unknown()
        found = torch.stack([find(part).sum(dim=1) for part in parts]).sum(dim=0)
        return torch.div(found, sum(part.stop - part.start for part in parts))

    def _see_attention(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> None:
        largest = measure_attention(query, key, mask, scale)
        self._attention = torch.fmax(self._attention, largest.view(self._state.members, -1).amax(dim=1))

    def _unknown(self) -> Tensor:
        weights = self._state.weights
        return torch.full((len(weights),), torch.nan, device=weights.device)


@torch.no_grad()
def measure_attention(query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """The largest score of each sequence that the softmax sees: queries and keys N H T h to N.

    Without a mask attention is causal; heads of queries may share one of keys. A boolean mask allows where it is true.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads, positions = query.shape[1:3]
    if mask is None:
        mask = torch.ones(positions, key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=query.device).masked_fill_(~mask, -torch.inf)
    key = key[:, :, None].expand(-1, -1, heads // key.shape[1], -1, -1).flatten(1, 2).mT
    mask = mask.expand(len(query), *mask.shape[-3:]) if mask.dim() == 4 else mask
    sequences = max(1, SCORE_ELEMENTS // (heads * positions * key.shape[-1]))
    largest = []
    for first in range(0, len(query), sequences):
        rows = slice(first, first + sequences)
        scores = (query[rows] @ key[rows]).float() * scale
        largest.append(scores.add_(mask[rows] if mask.dim() == 4 else mask).amax(dim=(1, 2, 3)))
    return torch.cat(largest)


class _AttentionProbe(TorchFunctionMode):
    """Sees the arguments of every scaled dot-product attention, whoever calls it: this package or `transformers`."""

    def __init__(self, see: Callable[[Tensor, Tensor, Tensor | None, float | None], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = args[:2] if args else (kwargs["query"], kwargs["key"])
            self._see(query, key, kwargs.get("attn_mask"), kwargs.get("scale"))
        return func(*args, **kwargs)
