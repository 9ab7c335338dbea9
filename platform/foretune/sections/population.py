"""`[search.population]` and `[search.replay]`: population-based training, and a schedule trained from scratch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.base import Name, Section, as_tuple


class PopulationSection(Section):
    """`[search.population]`: members that train side by side and copy each other (Jaderberg et al. 2017)."""

    size: Count = Field(default=8, ge=4, le=1000)
    """Members, each with a seed of its own; at least 4, so that a quantile has a member at both ends (the paper takes
    20 to 80)."""
    ready_tokens: Count = Field(ge=1)
    """Tokens between two occasions to copy and mutate; at most half of the rung's horizon."""
    burn_in_tokens: Count = Field(default=0, ge=0)
    """Tokens before the first occasion; at least the warm-up is sound, where losses say little of learning rates."""
    exploit: Literal["truncation", "tournament", "ttest"] = "truncation"
    """Who copies whom: `truncation`: the worst `quantile` copy one of the best `quantile`; `tournament`: each copies a
    random other member that is better; `ttest`: that only if Welch's t-test says so."""
    quantile: Quantity = Field(default=0.25, gt=0, le=0.5)
    """Share of members at each end in a truncation, in (0, 0.5] (the paper takes 0.2, Ray Tune 0.25)."""
    evaluations: Count = Field(default=10, ge=2)
    """Last held-out losses of a member that the t-test looks at (the paper takes 10)."""
    explore: Literal["perturb", "bandit"] = "perturb"
    """Where the settings of a copy go: `perturb`: near the old ones, or drawn anew; `bandit`: where the forecast of the
    next generation's gain plus its doubt is highest (PB2, Parker-Holder et al. 2020). A bandit chooses numbers between
    bounds; values of a list and mixtures are perturbed with either."""
    resample_probability: Quantity = Field(default=0.25, ge=0, le=1)
    """Chance that a setting is drawn anew from the space instead of perturbed (Ray Tune takes 0.25)."""
    factors: Annotated[tuple[Quantity, Quantity], BeforeValidator(as_tuple)] = (1.2, 0.8)
    """What a perturbed setting is multiplied by, one or the other; above and below 1 (the paper takes 1.2 and 0.8)."""
    scale: Name | Literal[""] = ""
    """Rung at which the population trains; the first unless given."""

    @model_validator(mode="after")
    def _check_factors(self) -> PopulationSection:
        up, down = self.factors
        if not up > 1 > down > 0:
            raise ValueError(
                f"factors: must be one above 1 and one in (0, 1), got {up:g} and {down:g}; try 1.2 and 0.8"
            )
        return self


class ReplaySection(Section):
    """`[search.replay]`: a schedule that a population or autolrs found, trained from scratch."""

    file: str = ""
    """Schedule as `foretune lineage` writes it (.toml or .json); empty in the study of a population or of autolrs,
    which replays the best schedule that it finds itself."""
    scales: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    """Rungs at which it is trained; unless given those of the search that finds it, or the first where it comes from a
    file. Phases begin at the same shares of the run."""
    seeds: Annotated[
        tuple[Annotated[Count, Field(ge=0, lt=2**32)], ...], BeforeValidator(as_tuple), Field(min_length=1)
    ]
    """Seeds with which it is trained, each of them at every rung; at best none that a member had."""
