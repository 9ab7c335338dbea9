"""`[search.autolrs]`: a learning rate that is searched while the model trains, stage by stage."""

from __future__ import annotations

from pydantic import Field

from foretune.quantities import Count, Quantity
from foretune.sections.base import Section


class AutoLRSSection(Section):
    """AutoLRS (Jin et al. 2021, arXiv 2105.10762): before every stage some rates are tried for a share of it, the loss
    at its end is forecast from each, and the stage is trained at the best one."""

    first_stage: Quantity = Field(default=0.1, gt=0)
    """Length of the first stage: below 1 a share of the run, else tokens (the paper takes 1,000 steps). Each stage is
    twice as long as the one before, and the last one ends with the run."""
    longest_stage: Quantity = Field(default=0.4, gt=0)
    """Length at which stages stop growing: below 1 a share of the run, else tokens (the paper takes 8,000 steps)."""
    trial: Quantity = Field(default=0.1, gt=0, le=0.5)
    """Share of a stage for which each rate is tried (the paper takes a tenth)."""
    candidates: Count = Field(default=10, ge=3, le=100)
    """Rates tried before each stage (the paper takes 10). Their number times `trial` is what the search costs over the
    training itself."""
    exploration: Quantity = Field(default=1000.0, ge=0)
    """Standard deviations that are taken off the expected loss of a rate to choose what is tried next: at 1,000, as in
    the paper, the rates are spread out; at 2 they gather where losses are low."""
