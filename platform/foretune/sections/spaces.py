"""`[search.space]` and `[[search.branches]]`: how a space is written, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.json_schema import JsonSchemaValue

from foretune.quantities import Count, Quantity, parse_count, parse_quantity
from foretune.sections.base import PARAMETRIZATIONS, Name, Section, as_tuple
from foretune.sections.proxy import ProxySection
from foretune.sections.training import Optimizer, Reweighting, Schedule
from foretune.space import Choice, Derived, Dimension, LinearRange, LogRange, Simplex, check_mixture


def read_mixture(value: Any) -> dict[str, float]:
    """The shares of a mixture as numbers; raises ValueError where they are none."""
    if not isinstance(value, dict):
        raise ValueError(f"a mixture is a table of shares, {{ code = 0.7, docs = 0.3 }}, got {value!r}")
    mixture = {str(name): parse_quantity(share) for name, share in value.items()}
    check_mixture(mixture)
    return mixture


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
    "warmup": parse_quantity,
    "decay": parse_quantity,
    "final_lr_fraction": parse_quantity,
    "optimizer": str,
    "schedule": str,
    "reweighting": str,
    "reweighting_temperature": parse_quantity,
    "dropout": parse_quantity,
    "parametrization": str,
    "activation": str,
    "ffn_ratio": parse_quantity,
    "queries_per_key": parse_count,
    "experts.count": parse_count,
    "experts.active": parse_count,
    "experts.shared": parse_count,
    "experts.granularity": parse_quantity,
    "mixture": read_mixture,
    "seed": parse_count,
}
"""What a space may vary, and how its values are read. `experts.count = 0` is a dense feed-forward."""
TEXTS: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(Optimizer),
    "schedule": get_args(Schedule),
    "reweighting": get_args(Reweighting),
    "parametrization": PARAMETRIZATIONS,
    "activation": get_args(ProxySection.model_fields["activation"].annotation),
}
"""The values that a dimension of texts may take."""
RUNG = ("tokens", "width", "depth", "params_non_embedding")
"""What a derived number may follow of the rung itself."""


def is_whole(key: str) -> bool:
    """Whether the values of a dimension are whole numbers."""
    return VARIABLE[key] is parse_count


def is_number(key: str) -> bool:
    """Whether the values of a dimension are numbers."""
    return VARIABLE[key] in (parse_count, parse_quantity)


@dataclass(frozen=True)
class Leaf:
    """One way down the tree of branches, as a flat space; a space without branches is one leaf."""

    name: str
    """The branches on the way, joined by a slash; empty without branches."""
    space: Mapping[str, Dimension]
    """Everything that varies on this way, or that it sets: a choice of one."""
    places: Mapping[str, str]
    """Where each key is written, `search.space.peak_lr` for instance."""

    def axis(self, key: str) -> tuple[Any, ...]:
        """The grid values of a dimension, whole numbers where they count things; empty when it has none."""
        return _list_values(key, self.space[key]) if key in self.space else ()

    def extremes(self, key: str) -> tuple[Any, ...]:
        """All values where there are finitely many, else the two between which they lie; empty when not searched."""
        dimension = self.space.get(key)
        if isinstance(dimension, LogRange | LinearRange) and not is_whole(key):
            return (dimension.low, dimension.high)
        return self.axis(key)


def _list_values(key: str, dimension: Dimension) -> tuple[Any, ...]:
    if isinstance(dimension, LinearRange) and is_whole(key):
        return tuple(range(round(dimension.low), round(dimension.high) + 1, round(dimension.step) or 1))
    return tuple(VARIABLE[key](value) for value in dimension.grid())


def read_space(raw: Any) -> Any:
    """The dimensions of a table; raises ValueError with a line for every problem, key first."""
    if not isinstance(raw, dict):
        return raw
    space, problems = {}, []
    for key, value in _flatten(raw).items():
        try:
            space[key] = read_dimension(key, value)
        except ValidationError as error:
            problems += [_locate(key, item) for item in error.errors()]
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return space


def read_settings(raw: Any) -> Any:
    """The fixed values of a branch, read like those of a space."""
    if not isinstance(raw, dict):
        return raw
    space = read_space({key: [value] for key, value in _flatten(raw).items()})
    return {key: choice.values[0] for key, choice in space.items()}


def _flatten(raw: dict[str, Any]) -> dict[str, Any]:
    """`experts.count = ...` is a table inside a table to TOML, and one key here."""
    inner = raw.get("experts")
    if not isinstance(inner, dict):
        return raw
    return {**{k: v for k, v in raw.items() if k != "experts"}, **{f"experts.{k}": v for k, v in inner.items()}}


def read_dimension(key: str, value: Any) -> Dimension:
    """A dimension of the space from a list of values, a table of bounds or a rule."""
    if isinstance(value, Dimension):
        return value
    if key not in VARIABLE:
        close = difflib.get_close_matches(key, VARIABLE, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown dimension; a space may vary {', '.join(sorted(VARIABLE))}{hint}")
    if isinstance(value, dict) and key not in TEXTS:
        return _read_table(key, value)
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of at least one value, or for numbers a table with low, high and factor")
    if key in TEXTS:
        unknown = [item for item in value if item not in TEXTS[key]]
        if unknown:
            raise ValueError(f"must be one of {', '.join(TEXTS[key])}, got {unknown[0]!r}")
    return Choice(values=tuple(VARIABLE[key](item) for item in value))


def _read_table(key: str, table: dict[str, Any]) -> Dimension:
    if key == "mixture":
        return Simplex(**table)
    if "rule" in table or "of" in table:
        if is_whole(key):
            raise ValueError("a whole number does not follow a rule; give its values")
        return Derived(**table)
    bounds = LinearRange(**table) if table.get("scale") == "linear" else LogRange(**table)
    if is_whole(key):
        _check_whole(bounds)
    return bounds


def _check_whole(bounds: LogRange | LinearRange) -> None:
    """Refuse a range of whole numbers whose grid has others: they are its only values, in a grid and in a search."""
    numbers = [*bounds.grid(), bounds.low, bounds.high]
    odd = [number for number in numbers if abs(number - round(number)) > 1e-9 * max(1.0, abs(number))]
    if odd:
        name = "factor" if isinstance(bounds, LogRange) else "step"
        raise ValueError(f"its values are whole numbers, got {odd[0]:g} among them; take a whole low, high and {name}")


def _locate(key: str, item: Any) -> str:
    place = ".".join([key, *(str(part) for part in item["loc"])])
    if item["type"] == "value_error":
        return f"{place}: {item['msg'].removeprefix('Value error, ')}"
    return f"{place}: {item['msg']}, got {item['input']!r}"


class _AsWritten:
    """Says in the JSON Schema how a space is written, which is not how it is kept."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A list of values for every dimension, or a table of bounds or of a rule."""
        tables = dict(zip(("choice", "log", "linear", "simplex", "derived"), _list_kinds(handler(core)), strict=True))
        schema = _describe_keys(lambda key: _describe_dimension(key, tables))
        return {**schema, "minProperties": self._least} if self._least else schema


def _list_kinds(schema: JsonSchemaValue) -> list[JsonSchemaValue]:
    kinds: list[JsonSchemaValue] = schema["additionalProperties"]["anyOf"]
    return kinds


class _SettingsAsWritten:
    """Says in the JSON Schema how the fixed values of a branch are written."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A value for every key."""
        return _describe_keys(_describe_value)


def _describe_keys(describe: Callable[[str], JsonSchemaValue]) -> JsonSchemaValue:
    properties = {key: describe(key) for key in VARIABLE}
    inner = {key.removeprefix("experts."): value for key, value in properties.items() if key.startswith("experts.")}
    nested = {"type": "object", "properties": inner, "additionalProperties": False}
    return {"type": "object", "properties": {**properties, "experts": nested}, "additionalProperties": False}


def _describe_dimension(key: str, tables: Mapping[str, JsonSchemaValue]) -> JsonSchemaValue:
    values = {"type": "array", "minItems": 1, "uniqueItems": True, "items": _describe_value(key)}
    if key in TEXTS:
        return values
    if key == "mixture":
        return {"anyOf": [values, tables["simplex"]]}
    kinds = [tables["log"], tables["linear"]]
    return {"anyOf": [values, *kinds] if is_whole(key) else [values, *kinds, tables["derived"]]}


def _describe_value(key: str) -> JsonSchemaValue:
    if key in TEXTS:
        return {"enum": list(TEXTS[key])}
    number = TypeAdapter(Count if is_whole(key) else Quantity).json_schema()
    return {"type": "object", "minProperties": 1, "additionalProperties": number} if key == "mixture" else number


Space = Annotated[dict[str, Dimension], BeforeValidator(read_space), _AsWritten(least=1)]
InnerSpace = Annotated[dict[str, Dimension], BeforeValidator(read_space), _AsWritten(least=0)]


class BranchSection(Section):
    """`[[search.branches]]`: what is searched in one case only; a run takes one branch of each level."""

    name: Name
    """Name of the case, unique among its neighbours."""
    set: Annotated[dict[str, Any], BeforeValidator(read_settings), _SettingsAsWritten()] = Field(default_factory=dict)
    """Fixed values of this case, by the names of a space: `set = { optimizer = "sgd" }`."""
    space: InnerSpace = Field(default_factory=dict)
    """What is varied in this case, beside the space above it."""
    branches: Annotated[tuple[BranchSection, ...], BeforeValidator(as_tuple)] = ()
    """Cases inside this case."""


def list_leaves(space: Mapping[str, Dimension], branches: Sequence[BranchSection]) -> tuple[Leaf, ...]:
    """Every way down the tree, in the order of the file."""
    root = Leaf("", space, {key: f"search.space.{key}" for key in space})
    return tuple(_descend(root, branches, "search."))


def _descend(above: Leaf, branches: Sequence[BranchSection], prefix: str) -> Iterator[Leaf]:
    if not branches:
        yield above
    for branch in branches:
        place = f"{prefix}branches.{branch.name}."
        fixed = {key: Choice(values=(value,)) for key, value in branch.set.items()}
        places = {key: f"{place}{'set' if key in fixed else 'space'}.{key}" for key in (*branch.space, *fixed)}
        leaf = Leaf(
            f"{above.name}/{branch.name}".lstrip("/"),
            {**above.space, **fixed, **branch.space},
            {**above.places, **places},
        )
        yield from _descend(leaf, branch.branches, place)


def find_tree_problems(space: Mapping[str, Dimension], branches: Sequence[BranchSection]) -> list[str]:
    """What is wrong with a tree of branches and with the rules in it, keys without the leading `search.`."""
    problems = [*_clashes(set(space), branches, "")]
    for leaf in list_leaves(space, branches):
        for key, dimension in leaf.space.items():
            if isinstance(dimension, Derived):
                place = leaf.places[key].removeprefix("search.")
                problems += [f"{place}.of: {problem}" for problem in _rule_problems(key, dimension, leaf.space)]
    return list(dict.fromkeys(problems))


def _clashes(above: set[str], branches: Sequence[BranchSection], prefix: str) -> Iterator[str]:
    names = [branch.name for branch in branches]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{prefix}branches: name {name!r} is used twice; names must differ"
    for branch in branches:
        place = f"{prefix}branches.{branch.name}."
        for key in [key for key in branch.set if key in branch.space]:
            yield f"{place}set.{key}: is also searched in this branch; keep one of them"
        own = {**dict.fromkeys(branch.set, "set"), **dict.fromkeys(branch.space, "space")}
        for key, table in own.items():
            if key in above:
                yield f"{place}{table}.{key}: is also given above this branch; keep one of them"
            if key == "seed":
                yield f"{place}{table}.seed: seeds repeat every run of a search; give them in search.space"
        yield from _clashes(above | own.keys(), branch.branches, place)


def _rule_problems(key: str, rule: Derived, space: Mapping[str, Dimension]) -> Iterator[str]:
    numbers = [*(name for name in VARIABLE if is_number(name) and name != "seed"), *RUNG]
    if rule.of not in numbers:
        close = difflib.get_close_matches(rule.of, numbers, n=1)
        yield f"no number {rule.of!r} to follow; " + (f"did you mean {close[0]!r}?" if close else ", ".join(numbers))
    way = [key]
    while isinstance(following := space.get(way[-1]), Derived):
        if following.of in way:
            yield f"the rules go round in a circle, {' -> '.join([*way, following.of])}; give one of them values"
            return
        way.append(following.of)
