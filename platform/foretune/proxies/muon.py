"""Muon for the hidden matrices of stacked members, AdamW for the rest, at the same learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foretune.parametrization import GroupRule
from foretune.proxies.adam import AdamW
from foretune.proxies.state import Slot, StackedState
from foretune.records import TrainingSpec

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of X <- a X + b X X'X + c X X'X X'X (Jordan et al. 2024; torch.optim.Muon)."""
ITERATIONS = 5
"""How often it is applied (Jordan et al. 2024; torch.optim.Muon)."""
NORM_EPS = 1e-7
"""Least norm that a matrix is divided by (Jordan et al. 2024; torch.optim.Muon)."""
ADAMW_RMS = 0.2
"""Root mean square of an update of AdamW, which Muon's is scaled to (Liu et al. 2025, arXiv 2502.16982, section 2.2;
`match_rms_adamw` of torch.optim.Muon)."""


class Muon(AdamW):
    """Muon (Jordan et al. 2024), as torch.optim.Muon, for matrices of groups of the kind `hidden`.

    The direction is the Nesterov momentum with all its singular values brought near 1, scaled to the size of AdamW's
    updates. It is computed in the precision of the run: torch.optim.Muon always rounds to bfloat16, by which members
    trained together would differ from those trained alone.
    """

    setting_names: ClassVar[tuple[str, ...]] = (*AdamW.setting_names, "momentum")

    def __init__(self, state: StackedState, rules: Mapping[str, GroupRule], training: Sequence[TrainingSpec]) -> None:
        """See ElementwiseOptimizer."""
        super().__init__(state, rules, training)
        self._dtype = torch.bfloat16 if training[0].precision == "bfloat16" else torch.float32
        self._batches: dict[tuple[int, ...], list[Slot]] = {}
        for slot in state.slots:
            if self._is_hidden_matrix(slot):
                self._batches.setdefault(slot.shape, []).append(slot)

    def slots(self) -> list[Slot]:
        """The parameters that AdamW updates."""
        return [slot for slot in self.state.slots if not self._is_hidden_matrix(slot)]

    @torch.no_grad()
    def step(self, lr: Tensor, apply: Tensor | None = None) -> None:
        """See StackedOptimizer."""
        super().step(lr, apply)
        applied = torch.ones_like(lr) if apply is None else apply.to(lr.dtype)
        for slots in self._batches.values():
            momenta = torch.stack([self._advance_momentum(slot, applied) for slot in slots])
            directions = orthogonalise(momenta.to(self._dtype)).to(lr.dtype)
            for slot, direction in zip(slots, directions, strict=True):
                self._descend_along(slot, direction, lr * applied)

    def _is_hidden_matrix(self, slot: Slot) -> bool:
        return self.rules[slot.group].kind == "hidden" and len(slot.shape) >= 2

    def _advance_momentum(self, slot: Slot, applied: Tensor) -> Tensor:
        """Advance the momentum of one parameter; the Nesterov momentum [K, *shape]."""
        momentum = _column(self.settings["momentum"], slot)
        mask = _column(applied, slot)
        gradients = torch.where(mask > 0, self.state.view(self.state.gradients, slot), 0.0)
        kept = self.state.view(self.buffers["first_moment"], slot)
        kept.lerp_(gradients, (1 - momentum) * mask)
        return gradients.lerp(kept, momentum)

    def _descend_along(self, slot: Slot, direction: Tensor, lr: Tensor) -> None:
        rule, weights = self.rules[slot.group], self.state.view(self.state.weights, slot)
        rate = _column(lr * rule.lr_multiplier, slot)
        weights.mul_(1 - rate * rule.weight_decay_multiplier * _column(self.settings["weight_decay"], slot))
        weights.addcmul_(direction, rate, value=-ADAMW_RMS * math.sqrt(max(slot.shape[-2:])))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices [..., out, in] of the same singular vectors whose singular values are near 1 (Newton and Schulz).

    They come to lie in about .7 to 1.2, which serves an optimizer as well as 1 (Jordan et al. 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).flatten(0, -3)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=NORM_EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


def _column(values: Tensor, slot: Slot) -> Tensor:
    """A number of every member, [K] or [K, 1], over the dimensions of a parameter; float32."""
    return values.reshape(-1, *[1] * len(slot.shape)).float()
