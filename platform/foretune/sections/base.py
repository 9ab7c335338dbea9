"""What every table of a study file is made of: the frozen base model and its names."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
RUN_LIMIT = 10_000
"""Runs that one study may plan; above it a typing error is likelier than a wish."""

Parametrization = Literal["standard", "mup", "depth-mup", "completep"]
PARAMETRIZATIONS: tuple[str, ...] = get_args(Parametrization)

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def as_tuple(value: object) -> object:
    """TOML has arrays only; strict models take no list for a tuple."""
    return tuple(value) if isinstance(value, list) else value


class Section(BaseModel):
    """A table of the study file: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, defer_build=True)
