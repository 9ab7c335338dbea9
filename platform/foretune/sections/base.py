"""What every table of a study file is made of: the frozen base model, and the types that numbers are read as."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from foretune.quantities import TokensPerParam, parse_count, parse_horizon, parse_quantity

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
RUN_LIMIT = 10_000
"""Runs that one study may plan; above it a typing error is likelier than a wish."""

Parametrization = Literal["standard", "mup", "depth-mup", "completep"]
PARAMETRIZATIONS: tuple[str, ...] = get_args(Parametrization)

Quantity = Annotated[float, BeforeValidator(parse_quantity)]
Count = Annotated[int, BeforeValidator(parse_count)]
Horizon = Annotated[
    int | TokensPerParam,
    BeforeValidator(parse_horizon),
    PlainSerializer(lambda value: str(value) if isinstance(value, TokensPerParam) else value),
]
Limit = Annotated[
    float,
    BeforeValidator(lambda value: value if value == math.inf else parse_quantity(value)),
    PlainSerializer(lambda value: None if math.isinf(value) else value),
]
"""A quantity that may be unlimited, which JSON can only say by leaving it out."""
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def as_tuple(value: object) -> object:
    """TOML has arrays only; strict models take no list for a tuple."""
    return tuple(value) if isinstance(value, list) else value


class Section(BaseModel):
    """A table of the study file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, defer_build=True)
