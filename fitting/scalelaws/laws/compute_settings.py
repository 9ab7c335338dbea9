"""Learning rate and batch against compute alone: the form of DeepSeek.

Legend: C training FLOPs as the runs count them, lr* optimal peak learning rate, B* optimal batch in tokens
    ln lr* = a + b ln C          ln B* = d + e ln C
"""

from __future__ import annotations

from dataclasses import dataclass

from scalelaws.laws.settings import OptimumLaw
from scalelaws.laws.two_stages import Setting


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
