"""Which dimensions grow is found by comparison; what has no row in the table is refused with its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from foretune.errors import InputError
from foretune.parametrization.growth import TensorShape, find_places
from foretune.parametrization.rules import Place

Shapes = dict[str, tuple[int, ...]]


def build(width: int, depth: int, heads: int = 4, inner: int = 0) -> Shapes:
    """A small model with a router, experts and a norm whose size is the head's."""
    inner = inner or 3 * width
    layer: Shapes = {
        "attn.q_proj.weight": (width, width),
        "attn.q_norm.weight": (width // heads,),
        "mlp.gate.weight": (6, width),
        "mlp.experts.up_proj": (6, inner, width),
        "mlp.experts.down_proj": (6, width, inner),
    }
    layers = {f"layers.{number}.{name}": sizes for number in range(depth) for name, sizes in layer.items()}
    return {"embed.weight": (width, 50), **layers, "norm.weight": (width,), "head.weight": (50, width)}


def list_tensors(shapes: Shapes) -> list[TensorShape]:
    roles = {"embed.weight": "embedding", "head.weight": "head"}
    return [TensorShape(name, sizes, roles.get(name, "inner")) for name, sizes in shapes.items()]  # type: ignore[arg-type]


def places_of(own: Shapes, base: Shapes | None = None, double: Shapes | None = None) -> dict[str, Place]:
    models = [list_tensors(shapes) for shapes in (base or build(16, 2), double or build(32, 4), own)]
    return {place.name: place for place in find_places(*models, growths=(3.0, 3.0))}


def test_kinds_fans_and_blocks_of_a_model_three_times_as_wide() -> None:
    places = places_of(build(48, 5))
    assert places["embed"] == Place("embed", "embedding", 2400, 1, 48, 1, 16, in_block=False)
    assert places["layers.attn.q_proj"] == Place("layers.attn.q_proj", "hidden", 5 * 48 * 48, 48, 48, 16, 16)
    assert places["layers.attn.q_norm"] == Place("layers.attn.q_norm", "vector", 5 * 12, 1, 12, 1, 4)
    assert places["layers.mlp.gate"] == Place("layers.mlp.gate", "head", 5 * 288, 48, 6, 16, 6)
    down = Place("layers.mlp.experts.down_proj", "hidden", 5 * 6 * 48 * 144, 144, 48, 48, 16, writes=True)
    assert places["layers.mlp.experts.down_proj"] == down
    assert places["norm"] == Place("norm", "vector", 48, 1, 48, 1, 16, in_block=False)
    assert places["head"] == Place("head", "head", 2400, 48, 50, 16, 50, in_block=False)


def test_at_the_base_the_kinds_are_the_same() -> None:
    base, wide = places_at_base(), places_of(build(48, 5))
    assert [place.kind for place in base.values()] == [place.kind for place in wide.values()]
    assert all(place.fan_in == place.base_fan_in for place in base.values())


def places_at_base() -> dict[str, Place]:
    models = [list_tensors(build(width, depth)) for width, depth in ((16, 2), (32, 4), (16, 2))]
    return {place.name: place for place in find_places(*models, growths=(1.0, 1.0))}


def test_a_layer_that_only_some_blocks_have_is_in_a_block() -> None:
    first = {"layers.0.first.weight": (48,)}
    base, double = (build(width, depth) | {"layers.0.first.weight": (width,)} for width, depth in ((16, 2), (32, 4)))
    assert places_of(build(48, 5) | first, base, double)["layers.first"].in_block


def test_heads_of_a_fixed_size_have_norms_that_do_not_grow() -> None:
    norm = places_of(build(48, 2, heads=12), build(16, 2, heads=4), build(32, 2, heads=8))["layers.attn.q_norm"]
    assert (norm.fan_out, norm.base_fan_out) == (4, 4)


def change(name: str, sizes: Callable[[int], tuple[int, ...]]) -> tuple[Shapes, Shapes, Shapes]:
    """The three models with other sizes for one tensor, as a function of the width."""
    models = build(48, 2), build(16, 2), build(32, 2)
    for shapes, width in zip(models, (48, 16, 32), strict=True):
        shapes.update({key: sizes(width) for key in shapes if key.endswith(name)})
    return models


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("attn.q_proj.weight", lambda width: (8, width)),  # a fixed number of heads
        ("mlp.experts.up_proj", lambda width: (6, 64, width)),  # experts of a fixed size
        ("mlp.experts.down_proj", lambda width: (6, width, 64)),
        ("mlp.experts.up_proj", lambda width: (width, 3 * width, width)),  # as many experts as the width
        ("attn.q_proj.weight", lambda width: (width + 16, width)),  # grows by another factor
        ("attn.q_proj.weight", lambda width: (width * width, width)),
        ("mlp.gate.weight", lambda width: (7, width)),  # as wide as nothing else
        ("attn.q_proj.weight", lambda width: (8, 8)),
        ("head.weight", lambda width: (50, 50)),
        ("embed.weight", lambda width: (50, width)),
    ],
)
def test_a_shape_that_does_not_scale_is_refused_with_its_name(
    name: str, sizes: Callable[[int], tuple[int, ...]]
) -> None:
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        places_of(*change(name, sizes))


def test_a_size_that_changes_at_one_rung_alone_is_refused() -> None:
    own = build(48, 2) | {"norm.weight": (96,)}
    with pytest.raises(InputError, match=r"'norm\.weight'.*16 is 32 at twice the width, 96 at this rung"):
        places_of(own, build(16, 2), build(32, 2))


def test_a_tensor_of_some_sizes_only_is_refused() -> None:
    own = build(48, 2) | {"layers.0.extra.weight": (48,)}
    with pytest.raises(InputError, match=r"'layers\.extra' is there at some sizes"):
        places_of(own)


def test_layers_that_differ_are_refused() -> None:
    own = build(48, 2) | {"layers.1.attn.q_norm.weight": (24,)}
    with pytest.raises(InputError, match=r"'layers\.attn\.q_norm' differs between layers"):
        places_of(own)


def test_a_model_in_which_nothing_is_known_to_write_is_refused() -> None:
    tensors = [
        [replace(item, name=item.name.replace("down_proj", "unknown")) for item in list_tensors(build(*size))]
        for size in ((16, 2), (32, 4), (48, 2))
    ]
    with pytest.raises(InputError, match=r"no matrix that writes into the residual stream.*o_proj"):
        list(find_places(*tensors, growths=(3.0, 3.0)))
