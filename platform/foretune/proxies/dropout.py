"""Dropout of stacked members, by masks that are a pure function of run, step and place.

No random state is kept: what is left out follows from the run's seed, the updates that it has done, the block, the
number of the sequence in the step's batch, the position and the channel. A run therefore has the same masks alone and
in a pack, with any number of micro-batches, on every device, and after it went on from a checkpoint.

Shapes
    K  members    B  sequences    T  positions    D  width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foretune.proxies.process import send

MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)
"""Of the mixing function `lowbias32` (Wellons 2018, "Prospecting for hash functions"), as signed numbers."""
STRIDE = 0x9E3779B9 - 2**32
"""2^32 over the golden ratio, signed: keeps numbers that are neighbours far apart before they are mixed."""
RANGE = 2**31
"""Values that a mixed number takes once its sign is dropped."""


class Dropout(nn.Module):
    """Leaves numbers out at the rate of each member, and scales the others up by 1 / (1 - rate).

    Srivastava et al. 2014; on the output of a branch before it is added to the stream as in Vaswani et al. 2017,
    section 5.4. Passes without a gradient, and those while it is not `active`, are left alone.
    """

    rates: Tensor
    """Share that is left out of each member, [K] float32."""
    seeds: Tensor
    """Seed of each member, [K] int32."""
    keys: Tensor
    """What the masks of the step follow from, [K] int32."""
    first: Tensor
    """Number of the first sequence of the micro-batch in the batch, int32."""

    def __init__(self, members: int) -> None:
        """Inactive until it is configured."""
        super().__init__()
        self.active = False
        self.register_buffer("rates", torch.zeros(members), persistent=False)
        for name in ("seeds", "keys"):
            self.register_buffer(name, torch.zeros(members, dtype=torch.int32), persistent=False)
        self.register_buffer("first", torch.zeros((), dtype=torch.int32), persistent=False)

    def configure(self, rates: Sequence[float], seeds: Sequence[int], device: torch.device) -> None:
        """Members of these rates and seeds; inactive where all rates are 0."""
        self.active = any(rates)
        self.rates = send(list(rates), device)
        self.seeds = send([(seed & 0xFFFFFFFF) - RANGE for seed in seeds], device).to(torch.int32)
        self.keys = torch.zeros_like(self.seeds)

    def draw(self, steps: Tensor, first: int) -> None:
        """Masks of a micro-batch that begins with sequence `first`; `steps` are the updates of each member, [K]."""
        self.keys.copy_(mix(mix(self.seeds) + steps.to(torch.int32) * STRIDE))
        self.first.fill_(first)

    def forward(self, x: Tensor, place: int) -> Tensor:
        """K B T D to the same; `place` is the number of the block."""
        if not (self.active and torch.is_grad_enabled()):
            return x
        _, sequences, positions, width = x.shape
        places = torch.arange(sequences * positions, dtype=torch.int32, device=x.device) + self.first * positions
        rows = mix(mix(self.keys + place)[:, None] + places * STRIDE)  # K BT
        channels = torch.arange(width, dtype=torch.int32, device=x.device) * STRIDE
        numbers = mix(rows[..., None] + channels).bitwise_and(RANGE - 1).view(x.shape)
        rates = self.rates.view(-1, 1, 1, 1)
        return torch.where(numbers < rates * RANGE, 0.0, x / (1 - rates))


def mix(x: Tensor) -> Tensor:
    """32 bits to 32 bits, one to one, every bit depending on all: `lowbias32`. Products wrap, as they should."""
    x = (x ^ _shift(x, 16)) * MULTIPLIERS[0]
    x = (x ^ _shift(x, 15)) * MULTIPLIERS[1]
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros from the left."""
    shifted: Tensor = (x >> bits) & (2 ** (32 - bits) - 1)
    return shifted
