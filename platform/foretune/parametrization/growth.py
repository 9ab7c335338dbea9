"""Which dimensions of a model's tensors grow with the width, and which tensors with the depth: found by comparison.

A base model is set beside one of twice its width and depth (as `mup.set_base_shapes` does with a delta model), and then
beside the model that is trained. A tensor for which the table has no row is refused with its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from foretune.errors import InputError
from foretune.parametrization.rules import Kind, Place

ROUNDING = 0.125
"""How far a dimension may be from growing with the width: sizes are rounded to multiples of 8, and are 64 or more."""
FIRST_NUMBER = re.compile(r"\.(\d+)\.")
"""Where a name goes on with the number of a member of a list."""
WRITERS = ("o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "fc_out", "fc2", "wo", "w2")
"""Names that `transformers` gives to matrices whose product is added to the residual stream."""

ADVICE = "such a model has no parametrization here: change the configuration, or use another model type"


@dataclass(frozen=True)
class TensorShape:
    """One tensor of a model."""

    name: str
    """Its name in the model."""
    sizes: tuple[int, ...]
    """Of a matrix fan-out, then fan-in, with the experts before them; of an embedding width, then rows."""
    role: Literal["embedding", "head", "inner"]
    """The input embeddings, the output head, or anything else."""

    @property
    def group(self) -> str:
        """Its name without the numbers of layers, and without what all matrices are called."""
        return re.sub(r"\.\d+(?=\.)", "", self.name).removesuffix(".weight")


@dataclass(frozen=True)
class Group:
    """The tensors of one name, in all layers of four models."""

    base: TensorShape
    wide: TensorShape
    own: TensorShape
    copies: int
    """How many there are in the own model."""
    in_block: bool
    """Whether they are in a list of layers that is longer in a deeper model."""


def find_places(
    base: Sequence[TensorShape], double: Sequence[TensorShape], own: Sequence[TensorShape], growths: Sequence[float]
) -> Iterator[Place]:
    """The place of every group of tensors in the table, in the order of the model.

    `double` has twice the width and depth of `base`. `growths` are the factors by which the widths and the heads of
    `own` have grown from it. Raises InputError for a tensor that does not scale as expected.
    """
    groups = list(_match(base, double, own))
    experts = {group.own.sizes[0] for group in groups if len(group.own.sizes) == 3}
    places = [_place(group, experts, growths) for group in groups]
    if not any(place.writes for place in places):
        raise InputError(
            "proxy.config: found no matrix that writes into the residual stream; their names were looked for among "
            f"{', '.join(WRITERS)}"
        )
    yield from places


def _match(base: Sequence[TensorShape], double: Sequence[TensorShape], own: Sequence[TensorShape]) -> Iterator[Group]:
    """Tensors by group; every model must have all groups, with one shape each."""
    models = [_by_group(tensors) for tensors in (base, double, own)]
    stacks = _find_stacks(base, double)
    for name in {name: None for model in models for name in model}:
        if not all(name in model for model in models):
            raise InputError(f"proxy.config: tensor {name!r} is there at some sizes and not at others; {ADVICE}")
        first, wide, last = (model[name] for model in models)
        yield Group(first[0], wide[0], last[0], len(last), _name_list(first[0].name) in stacks)


def _find_stacks(base: Sequence[TensorShape], double: Sequence[TensorShape]) -> set[str]:
    """The lists of layers that have more members in the deeper model."""
    numbers = [_count_members(tensors) for tensors in (base, double)]
    return {name for name in numbers[0] if numbers[1].get(name, 0) > numbers[0][name]}


def _count_members(tensors: Sequence[TensorShape]) -> Mapping[str, int]:
    members = {tuple(FIRST_NUMBER.split(tensor.name, maxsplit=1)[:2]) for tensor in tensors}
    return Counter(name for name, *number in members if number)


def _name_list(name: str) -> str:
    """The list that a tensor's layer is a member of, by name; the whole name for one outside of any."""
    return FIRST_NUMBER.split(name, maxsplit=1)[0]


def _by_group(tensors: Sequence[TensorShape]) -> Mapping[str, list[TensorShape]]:
    groups: dict[str, list[TensorShape]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.group, []).append(tensor)
    for name, members in groups.items():
        if len({tensor.sizes for tensor in members}) > 1:
            sizes = sorted({tensor.sizes for tensor in members})
            raise InputError(f"proxy.config: tensor {name!r} differs between layers, {sizes}; {ADVICE}")
    return groups


def _place(group: Group, experts: set[int], growths: Sequence[float]) -> Place:
    own = group.own
    grows = [
        _check_axis(own.name, *sizes, growths)
        for sizes in zip(group.base.sizes, group.wide.sizes, own.sizes, strict=True)
    ]
    kind = _choose_kind(own, grows, experts)
    fan_in, fan_out = _read_fans(kind, own.sizes)
    base_fan_in, base_fan_out = _read_fans(kind, group.base.sizes)
    return Place(
        name=own.group,
        kind=kind,
        params=group.copies * prod(own.sizes),
        fan_in=fan_in,
        fan_out=fan_out,
        base_fan_in=base_fan_in,
        base_fan_out=base_fan_out,
        in_block=group.in_block,
        writes=kind == "hidden" and own.group.rpartition(".")[2] in WRITERS,
    )


def _check_axis(name: str, base: int, wide: int, own: int, growths: Sequence[float]) -> bool:
    """Whether a dimension grows with the width; InputError where it changes by another factor."""
    if base == wide:
        if own != base:
            raise InputError(f"proxy.config: tensor {name!r}: a dimension of {base} became {own} with a fixed width")
        return False
    if abs(wide / (2 * base) - 1) > ROUNDING or min(abs(own / (g * base) - 1) for g in growths) > ROUNDING:
        raise InputError(
            f"proxy.config: tensor {name!r}: a dimension of {base} is {wide} at twice the width, {own} at this rung; "
            'it must grow with the width: give its size as a multiple, such as "2xwidth"'
        )
    return True


def _choose_kind(tensor: TensorShape, grows: list[bool], experts: set[int]) -> Kind:
    """The row of the table, by which dimensions grow."""
    if len(tensor.sizes) == 1:
        return "vector"
    out_grows, in_grows = grows[-2:]
    if tensor.role != "inner":
        if (out_grows, in_grows) == ((True, False) if tensor.role == "embedding" else (False, True)):
            return tensor.role
    elif len(tensor.sizes) <= 3 and not any(grows[:-2]):
        if out_grows and in_grows:
            return "hidden"
        if in_grows and len(tensor.sizes) == 2 and tensor.sizes[0] in experts | {1}:
            return "head"
    raise InputError(
        f"proxy.config: tensor {tensor.name!r} of shape {tensor.sizes} (fan-out, fan-in) does not grow with the width "
        'in the dimensions that it must; give fixed sizes as multiples, such as "0.5xwidth", and a fixed number of key '
        "heads as [proxy] queries_per_key"
    )


def _read_fans(kind: Kind, sizes: tuple[int, ...]) -> tuple[int, int]:
    """Fan-in and fan-out as the table counts them."""
    if kind in ("vector", "embedding"):
        return 1, sizes[0]
    return sizes[-1], sizes[-2]
