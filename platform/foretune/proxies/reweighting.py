"""Dynamic loss reweighting: sequences count for more or less by their loss in the step itself.

After Sow et al., Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining (ICLR 2025). The
losses of a step, normalised to h in [-1, 1], give scores, and scores the weights softmax(score / r) over the whole
batch. As r grows the weights become equal, which is how a run begins.

Shapes
    K  members    B  sequences of a step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from foretune.proxies.process import send
from foretune.records import TrainingSpec

SCORES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linupper": lambda h: (h + 1).clamp(max=1),
    "quadratic": lambda h: 1 - h.square(),
    "extremes": lambda h: h.abs(),
}
"""Scores of normalised losses (the three strategies of the paper at delta = 1): `linupper` plays down what is learned
already, `quadratic` both ends, `extremes` the middle."""


class Reweighter:
    """Weights for the sequences of each member, whose temperatures and burn-ins may differ."""

    def __init__(self, training: Sequence[TrainingSpec], device: torch.device) -> None:
        """One specification a member; all of them have the same `reweighting`."""
        assert len({spec.reweighting for spec in training}) == 1, "members of a pack share the strategy"
        self._score = SCORES[training[0].reweighting]
        self._temperatures = send([spec.reweighting_temperature for spec in training], device)[:, None]
        self._burn_ins = send([float(spec.reweighting_burn_in_steps) for spec in training], device)

    def weigh(self, losses: Tensor, steps: Tensor) -> Tensor:
        """Weights [K, B] that sum to 1, without a gradient, from losses [K, B] and the updates done by each [K]."""
        equal = torch.full_like(losses, 1 / losses.shape[1])
        weights = torch.softmax(self._score(normalise(losses.detach())) / self._temperatures, dim=1)
        return torch.where((steps < self._burn_ins)[:, None], equal, weights)


def normalise(losses: Tensor) -> Tensor:
    """Losses [K, B] to [-1, 1], the least of each member to -1 and its largest to 1; to 0 where all are equal."""
    least, most = losses.aminmax(dim=1, keepdim=True)
    spread = most - least
    return torch.where(spread > 0, (2 * losses - most - least) / spread, 0.0)
