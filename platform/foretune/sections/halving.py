"""`[search.halving]`: many settings begun, the better ones gone on with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from foretune.quantities import Count
from foretune.sections.base import Section


class HalvingSection(Section):
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all settings are trained for a while, the
    best part of them goes on for `reduction` times as long, and so on up to the horizon. With `synchronous = false` a
    run goes on as soon as it is among the best part of those that came as far (ASHA, Li et al. 2020, arXiv 1810.05934),
    and `batch` runs are under way at any time.

    Losses are compared before the learning rate has decayed, which favours rates below the best one: stop late enough.
    """

    min_tokens: Count = Field(ge=1)
    """Training tokens at the first stop; more than the warm-up, less than the horizon."""
    reduction: int = Field(default=3, ge=2, le=100)
    """Of how many settings one goes on, and how many times as long (Hyperband takes 3, ASHA's paper 4)."""
    sampler: Literal["random", "qmc", "grid"] = "random"
    """Where the settings come from: `runs` of them drawn as by the strategies of these names; or all of the grid,
    whatever `runs` says."""
