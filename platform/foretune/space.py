"""The vocabulary of search spaces: what a study may vary, and the values that a grid takes from it."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from foretune.quantities import Quantity


class LogRange(BaseModel):
    """Real bounds on a logarithmic axis, with the factor between neighbours of a grid."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    low: Quantity = Field(gt=0)
    """Smallest value, included; positive."""
    high: Quantity = Field(gt=0)
    """Largest value, included when it lies on the grid; above low."""
    factor: Quantity = Field(default=2.0, gt=1)
    """Ratio between neighbouring grid values; above 1."""

    @model_validator(mode="after")
    def _check_order(self) -> LogRange:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low={self.low:g}, high={self.high:g}; swap them")
        return self

    def grid(self) -> tuple[float, ...]:
        """The values low, low x factor, ... up to high.

        >>> LogRange(low=1e-3, high=8e-3).grid()
        (0.001, 0.002, 0.004, 0.008)
        """
        steps = math.floor(math.log(self.high / self.low) / math.log(self.factor) + 1e-9)
        return tuple(self.low * self.factor**step for step in range(steps + 1))


class Choice(BaseModel):
    """A finite list of values, tried in the order given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    values: tuple[Any, ...] = Field(min_length=1)
    """The values; at least one, none twice."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Choice:
        doubles = sorted({str(value) for value in self.values if self.values.count(value) > 1})
        if doubles:
            raise ValueError(f"values must differ, got {', '.join(doubles)} more than once; remove the repeats")
        return self

    @model_serializer
    def _as_list(self) -> list[Any]:
        """As the study file writes it."""
        return list(self.values)

    def grid(self) -> tuple[Any, ...]:
        """All values.

        >>> Choice(values=("mup", "standard")).grid()
        ('mup', 'standard')
        """
        return self.values
