"""Learning rate and batch against compute alone: the form of DeepSeek.

Legend: C training FLOPs as the runs count them, lr* optimal peak learning rate, B* optimal batch in tokens
    ln lr* = a + b ln C          ln B* = d + e ln C
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.laws.settings import OptimumLaw
from scalelaws.laws.two_stages import CellOptimum, Setting
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, Observations

COUNTED_ALIKE = 0.05
"""Assumption: counts within 5 % move a setting by 2 % or less (exponents of published laws are .4 or less)."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptimumLaw(OptimumLaw):
    """As `lr_batch`, but one scale stands for size and horizon: right along one rule of tokens per parameter only."""

    name: str = "lr_batch_compute"
    formula: str = (
        "peak_lr = lr_coefficient * C^lr_exponent_compute; batch_tokens = batch_coefficient * C^batch_exponent_compute"
    )
    scope: str = "sweeps of the learning rate (and batch) at three or more budgets, size and horizon near one rule"
    source: str = "form of DeepSeek-AI 2024, arXiv 2401.02954, equation 1; estimator: random-effects regression"
    settings: tuple[Setting, ...] = (
        Setting("lr", "the learning rate", ("compute",)),
        Setting("batch", "the batch", ("compute",)),
    )

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """As `lr_batch`, and how the runs count compute where that is not 6ND: a target may count otherwise."""
        plain = FLOPS_PER_PARAM_TOKEN * observations.params_non_embedding * observations.tokens
        ratio = observations.compute / plain
        said = super().warn(observations, cells, absent)
        if np.abs(ratio - 1).max() <= COUNTED_ALIKE:
            return said
        return [
            *said,
            f"the runs count compute as {ratio.min():.3g} to {ratio.max():.3g} times 6ND: give the target's "
            "compute_flops, counted likewise; without it 6ND is taken",
        ]
