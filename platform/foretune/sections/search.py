"""`[search]` and `[verification]`: which runs are tried, and which larger ones check the forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, TypeAdapter, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue

from foretune.quantities import Count, Quantity, parse_count, parse_quantity
from foretune.sections.base import PARAMETRIZATIONS, Name, Parametrization, Section, as_tuple
from foretune.sections.training import Optimizer, Schedule
from foretune.space import Choice, LogRange

VARIABLE: dict[str, Callable[[Any], Any]] = {
    "peak_lr": parse_quantity,
    "batch_tokens": parse_count,
    "weight_decay": parse_quantity,
    "timescale": parse_quantity,
    "beta1": parse_quantity,
    "beta2": parse_quantity,
    "momentum": parse_quantity,
    "eps": parse_quantity,
    "clip_norm": parse_quantity,
    "final_lr_fraction": parse_quantity,
    "optimizer": str,
    "schedule": str,
    "parametrization": str,
    "seed": parse_count,
}
"""What a space may vary, and how its values are read."""
TEXTS: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "parametrization": PARAMETRIZATIONS,
}
"""The values that a dimension of texts may take."""


class PointSection(Section):
    """`[[search.points]]`: one run beside those of the strategy; `foretune next` proposes such runs."""

    scale: Name
    """The rung at which it is run; not the one that is held out for verification."""
    peak_lr: Quantity = Field(ge=1e-7, le=0.5)
    """Peak learning rate."""
    batch_tokens: Count = Field(default=0, ge=0)
    """Tokens per optimizer step, a divisor of the rung's horizon; 0 takes that of `[training]`."""
    parametrization: Parametrization | None = None
    """Branch of the study; that of `[proxy]` unless given."""
    seed: Annotated[Count, Field(ge=0, lt=2**32)] | None = None
    """Seed of data order and initial weights; that of `[study]` unless given."""


class _SpaceAsWritten:
    """Says in the JSON Schema how a space is written, which is not how it is kept."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A list of values for every dimension, or for numbers a table of bounds."""
        _choice, bounds = handler(core)["additionalProperties"]["anyOf"]
        return {
            "type": "object",
            "properties": {key: _describe_dimension(key, bounds) for key in VARIABLE},
            "additionalProperties": False,
            "minProperties": 1,
        }


class SearchSection(Section):
    """`[search]`: which runs are tried."""

    strategy: Literal["grid", "points"] = "grid"
    """`grid`: every combination of the space's values at every scale; `points`: only the runs named one by one."""
    metric: Literal["loss"] = "loss"
    """What is minimised: the held-out loss at the end of a run."""
    space: Annotated[dict[str, Choice | LogRange], _SpaceAsWritten()] = Field(min_length=1)
    """What is varied: `peak_lr = { low = "2^-10", high = "2^-4", factor = 2 }` or a list of values."""
    points: Annotated[tuple[PointSection, ...], BeforeValidator(as_tuple)] = ()
    """Single runs: those of strategy `points`, or further ones beside a grid."""

    @model_validator(mode="after")
    def _check_points(self) -> SearchSection:
        if self.strategy == "points" and not self.points:
            raise ValueError('strategy = "points" needs [[search.points]]; `foretune next` proposes some')
        return self

    @model_validator(mode="before")
    @classmethod
    def _read_space(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("space"), dict):
            return raw
        space, problems = {}, []
        for key, value in raw["space"].items():
            try:
                space[key] = _read_dimension(key, value)
            except ValidationError as error:
                problems += [f"space.{_locate(key, item)}" for item in error.errors()]
            except ValueError as error:
                problems.append(f"space.{key}: {error}")
        if problems:
            raise ValueError("\n".join(problems))
        return {**raw, "space": space}

    def axis(self, name: str) -> tuple[Any, ...]:
        """The grid values of one dimension, whole numbers where they count things; empty when it is not searched."""
        return tuple(VARIABLE[name](value) for value in self.space[name].grid()) if name in self.space else ()


def _locate(key: str, item: Any) -> str:
    inner = ".".join(str(part) for part in item["loc"])
    return f"{key}{'.' if inner else ''}{inner}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}"


def _read_dimension(key: str, value: Any) -> Choice | LogRange:
    """A dimension of the space from a list of values or a table of bounds."""
    if isinstance(value, Choice | LogRange):
        return value
    if key not in VARIABLE:
        raise ValueError(f"unknown dimension; a space may vary {', '.join(sorted(VARIABLE))}")
    if isinstance(value, dict) and VARIABLE[key] is not str:
        return LogRange(**value)
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of at least one value, or for numbers a table with low, high and factor")
    if VARIABLE[key] is str:
        unknown = [item for item in value if item not in TEXTS[key]]
        if unknown:
            raise ValueError(f"must be one of {', '.join(TEXTS[key])}, got {unknown[0]!r}")
        return Choice(values=tuple(value))
    return Choice(values=tuple(VARIABLE[key](item) for item in value))


def _describe_dimension(key: str, bounds: JsonSchemaValue) -> JsonSchemaValue:
    values: JsonSchemaValue = {"type": "array", "minItems": 1, "uniqueItems": True}
    if key in TEXTS:
        return {**values, "items": {"enum": list(TEXTS[key])}}
    number = TypeAdapter(Count if VARIABLE[key] is parse_count else Quantity)
    return {"anyOf": [{**values, "items": number.json_schema()}, bounds]}


class VerificationSection(Section):
    """`[verification]`: larger runs that the fit does not see, at the predicted settings and around them."""

    scale: Name
    """The rung that is held out of the search and trained after the forecast has been written down."""
    lr_steps: int = Field(default=1, ge=0, le=4)
    """Neighbours of the predicted learning rate on each side."""
    lr_factor: Quantity = Field(default=2.0, gt=1)
    """Ratio between those neighbours."""
