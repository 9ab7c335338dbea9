"""The learning rate of proxies under a parametrization that transfers: a law of the horizon alone.

Legend: D tokens, lr* optimal peak learning rate, B* optimal batch in tokens
    ln lr* = a + b ln D          ln B* = d + e ln D
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelaws.laws.settings import OptimumLaw
from scalelaws.laws.two_stages import CellOptimum, Setting
from scalelaws.observations import Observations


@dataclass(frozen=True, kw_only=True)
class TransferredLaw(OptimumLaw):
    """As `lr_batch`, with the optimal learning rate the same at every size: its interval grows with no distance in N.

    What varies between sizes counts as scatter, so runs whose optimum does move make the interval wide, not the
    forecast right.
    """

    name: str = "lr_transferred"
    formula: str = (
        "peak_lr = lr_coefficient * D^lr_exponent_tokens; batch_tokens = batch_coefficient * D^batch_exponent_tokens"
    )
    scope: str = "as lr_batch, under a parametrization whose optimum was seen not to move with size (muP and alike)"
    source: str = (
        "muTransfer: Yang et al. 2022, arXiv 2203.03466; the horizon does not transfer (Bjorck et al. 2024, arXiv "
        "2409.19913); estimator: random-effects regression"
    )
    settings: tuple[Setting, ...] = (
        Setting("lr", "the learning rate", ("tokens",)),
        Setting("batch", "the batch", ("tokens",)),
    )

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """As `lr_batch`, and that the size was left out."""
        said = super().warn(observations, cells, absent)
        return ["the learning rate is taken as the same at every size, not fitted", *said]
