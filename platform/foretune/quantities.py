"""Numbers as people of the field write them: `7e9`, `7B`, `1.4T`, `512k`, `2^-7`, `20xN`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, GetJsonSchemaHandler, PlainSerializer, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

_SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "": 1.0}
_DIGITS = "[0-9](?:_?[0-9])*"
_DECIMAL = re.compile(rf"([+-]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?)([kKMBGTP]?)")
_POWER = re.compile(rf"({_DIGITS}(?:\.{_DIGITS})?)\^([+-]?{_DIGITS}(?:\.{_DIGITS})?)")
_PER_PARAM = re.compile(rf"({_DIGITS}(?:\.{_DIGITS})?)xN")
_FORMS = "write a number (7e9), a suffix (7B, 1.4T, 512k) or a power (2^-7)"


@dataclass(frozen=True)
class TokensPerParam:
    """A horizon given as tokens per non-embedding parameter (`20xN`), resolved when the model's shape is known."""

    ratio: float

    def __str__(self) -> str:
        """The form that a study file accepts."""
        return f"{self.ratio:g}xN"


def parse_quantity(value: object) -> float:
    """Read a number in any accepted form; raise ValueError with the forms where there is none.

    >>> parse_quantity("7B"), parse_quantity("512k"), parse_quantity("2^-7"), parse_quantity(3)
    (7000000000.0, 512000.0, 0.0078125, 3.0)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be a number, got {type(value).__name__} {value!r}; {_FORMS}")
    return _finite(_read_number(value), value)


def _read_number(value: int | float | str) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int):
        return float(value) if abs(value) < 10**300 else math.inf
    text = value.strip()
    if match := _POWER.fullmatch(text):
        return _raise_to(float(match[1]), float(match[2]))
    if match := _DECIMAL.fullmatch(text):
        return float(match[1]) * _SUFFIXES[match[2]]
    raise ValueError(f"must be a number, got {value!r}; {_FORMS}")


def parse_count(value: object) -> int:
    """Read a whole number of things (tokens, parameters); `1.5k` is 1500, `1.2345k` is refused.

    >>> parse_count("1.4T")
    1400000000000
    """
    number = parse_quantity(value)
    if abs(number - round(number)) > 1e-9 * max(1.0, abs(number)):
        raise ValueError(f"must be a whole number, got {value!r}; round it, for example {round(number)}")
    if abs(number) >= 2**63:
        raise ValueError(f"must fit in 64 bits, got {value!r}")
    return round(number)


def parse_horizon(value: object) -> int | TokensPerParam:
    """Read a training horizon, above zero: tokens, or tokens per parameter as `20xN`.

    >>> parse_horizon("20xN"), parse_horizon("100M")
    (TokensPerParam(ratio=20.0), 100000000)
    """
    if isinstance(value, TokensPerParam):
        return value
    if isinstance(value, str) and (match := _PER_PARAM.fullmatch(value.strip())):
        return TokensPerParam(_positive(float(match[1]), value))
    return round(_positive(parse_count(value), value))


def format_count(value: float) -> str:
    """Print a count with a suffix and three digits, for people: the exact number stands beside it in JSON.

    >>> format_count(1.4e12), format_count(245760), format_count(7), format_count(3.2e17)
    ('1.4T', '246k', '7', '3.2e+17')
    """
    if not math.isfinite(value) or abs(value) >= 1e15:
        return f"{value:.3g}"
    for suffix, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def _raise_to(base: float, exponent: float) -> float:
    try:
        return math.pow(base, exponent)
    except (OverflowError, ValueError):  # too large, or zero to a negative power
        return math.inf


def _positive(number: float, value: object) -> float:
    if number <= 0:
        raise ValueError(f"must be above zero, got {value!r}")
    return number


def _finite(number: float, value: object) -> float:
    if not math.isfinite(number):
        raise ValueError(f"must be finite, got {str(value)[:40]}")
    return number


_RANGE_KEYWORDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Those of JSON Schema for those that pydantic leaves in their place where a validator stands before the range."""


@dataclass(frozen=True)
class _AlsoText:
    """Says in the JSON Schema of a number that it may be written as a text of one of these forms too."""

    forms: tuple[re.Pattern[str], ...]

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema of the number, or that of the text; a range can only be said of the number."""
        pattern = "|".join(f"(?:{form.pattern})" for form in self.forms)
        number = {_RANGE_KEYWORDS.get(key, key): value for key, value in handler(core).items()}
        return {"anyOf": [number, {"type": "string", "pattern": rf"^\s*(?:{pattern})\s*$"}]}


Quantity = Annotated[float, BeforeValidator(parse_quantity), _AlsoText((_DECIMAL, _POWER))]
"""A field that `parse_quantity` reads."""
Count = Annotated[int, BeforeValidator(parse_count), _AlsoText((_DECIMAL, _POWER))]
"""A field that `parse_count` reads."""
Horizon = Annotated[
    int | TokensPerParam,
    BeforeValidator(parse_horizon),
    PlainSerializer(lambda value: str(value) if isinstance(value, TokensPerParam) else value),
    WithJsonSchema({"type": "integer", "exclusiveMinimum": 0}),
    _AlsoText((_DECIMAL, _POWER, _PER_PARAM)),
]
"""A field that `parse_horizon` reads."""
Limit = Annotated[
    float,
    BeforeValidator(lambda value: value if value == math.inf else parse_quantity(value)),
    PlainSerializer(lambda value: None if math.isinf(value) else value),
    _AlsoText((_DECIMAL, _POWER)),
]
"""A quantity that may be unlimited, which JSON can only say by leaving it out."""
