"""`[study]`, `[budget]` and `[target]`: what is asked, what it may cost, and the large run that it is all for."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from foretune.quantities import Count, Horizon, Limit, TokensPerParam
from foretune.sections.base import RUN_LIMIT, Name, Section


class StudySection(Section):
    """`[study]`: what is asked."""

    name: Name
    """Name of the study and of its results folder: lower-case letters, digits, `.`, `_`, `-`; at most 64."""
    question: str = ""
    """The question in one sentence; it opens the report."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the study: data order and initial weights of every run that the space gives no other, and of the fits."""


def _be_unlimited() -> float:
    """A default that is no number of JSON, so a schema must not state it."""
    return math.inf


class BudgetSection(Section):
    """`[budget]`: what the study may cost; a plan above it is refused."""

    runs: Count = Field(default=RUN_LIMIT, ge=1)
    """Most runs."""
    tokens: Limit = Field(default_factory=_be_unlimited, gt=0)
    """Most training tokens, all runs together."""
    flops: Limit = Field(default_factory=_be_unlimited, gt=0)
    """Most training FLOPs, all runs together."""
    hours: Limit = Field(default_factory=_be_unlimited, gt=0)
    """Most hours of wall time, by the measured probe."""

    @property
    def limits_hours(self) -> bool:
        """Whether a launch has to measure how fast this machine is."""
        return math.isfinite(self.hours)


class TargetSection(Section):
    """`[target]`: the large run that it is all for."""

    params: Count = Field(ge=1)
    """Non-embedding parameters."""
    tokens: Horizon
    """Training tokens, or `20xN`."""
    seq_len: Count = Field(default=0, ge=0)
    """Tokens per sequence of the target; 0 takes that of `[data]`."""
    domain_tokens: dict[str, Annotated[Count, Field(ge=1)]] = Field(default_factory=dict)
    """Distinct training tokens that a domain will hold for the target; where it is not named, what `[data]` holds."""

    @property
    def tokens_resolved(self) -> int:
        """The horizon in tokens."""
        if isinstance(self.tokens, TokensPerParam):
            return round(self.tokens.ratio * self.params)
        return self.tokens
