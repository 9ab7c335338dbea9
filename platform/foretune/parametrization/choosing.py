"""The groups of a model's parameters, their rules, and the constants of its forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from foretune.parametrization.rules import EMBEDDING_STD, ForwardMultipliers, GroupRule, Growth, Place, derive_rule
from foretune.records import CausalLMSpec, DecoderSpec, ModelSpec
from foretune.sections import Optimizer


def choose_rules(model: ModelSpec, optimizer: Optimizer = "adamw") -> list[GroupRule]:
    """The rule of every group of parameters, in the order of the forward pass."""
    growth = Growth.of(model)
    return [derive_rule(place, growth, optimizer) for place in list_places(model)]


def describe_groups(model: ModelSpec, optimizer: Optimizer = "adamw") -> list[dict[str, Any]]:
    """The same rules as rows of plain data, for `check` to print."""
    return [asdict(rule) for rule in choose_rules(model, optimizer)]


def choose_multipliers(model: ModelSpec) -> ForwardMultipliers:
    """The forward constants; at the base width and depth they are the same floats in every parametrization."""
    growth = Growth.of(model)
    heads = _read_heads(model)
    attention, head_size = (heads.base_scale, heads.base_size) if growth.follows_width else (heads.scale, heads.size)
    fan_in = model.base_width if growth.follows_width else model.width
    return ForwardMultipliers(
        attention=attention * (head_size / heads.size),
        logits=(1 / math.sqrt(fan_in) / EMBEDDING_STD if heads.tied_head else 1.0) * (fan_in / model.width),
        residual=growth.residual,
        router=fan_in / model.width,
    )


@dataclass(frozen=True)
class Heads:
    """What the forward constants need to know of a model's attention and output heads."""

    size: int
    """Size of an attention head."""
    base_size: int
    """The same at the base width."""
    scale: float
    """What standard attention multiplies query-key products by."""
    base_scale: float
    """The same at the base width."""
    tied_head: bool
    """The embedding is the output head."""


def _read_heads(model: ModelSpec) -> Heads:
    if isinstance(model, DecoderSpec):
        size, base_size = model.head_size, model.base_head_size
        return Heads(size, base_size, 1 / math.sqrt(size), 1 / math.sqrt(base_size), model.tied_head)
    assert isinstance(model, CausalLMSpec), model
    from foretune.proxies.shapes import describe  # it builds the model, which is torch's business

    own, base = describe(model.config), describe(model.base_config)
    return Heads(own.head_size, base.head_size, own.attention_scale, base.attention_scale, own.tied_head)


def list_places(model: ModelSpec) -> Iterable[Place]:
    """The groups of a model, in the order of its forward pass."""
    if isinstance(model, DecoderSpec):
        return _list_decoder(model)
    assert isinstance(model, CausalLMSpec), model
    from foretune.proxies import shapes  # it builds the model, which is torch's business

    return shapes.list_places(model)


def _list_decoder(model: DecoderSpec) -> Iterator[Place]:
    width, base, depth, vocab_size = model.width, model.base_width, model.depth, model.vocab_size
    yield Place("embedding", "embedding", vocab_size * width, 1, width, 1, base, in_block=False)
    projected = [size + 2 * (size // model.queries_per_key) for size in (width, base)]
    yield Place("query_key_value", "hidden", depth * width * projected[0], width, projected[0], base, projected[1])
    yield Place("attention_output", "hidden", depth * width * width, width, width, base, base, writes=True)
    yield from _list_feed_forward(model)
    yield from _list_norms(model)
    if not model.tied_head:
        yield Place("head", "head", vocab_size * width, width, vocab_size, base, vocab_size, in_block=False)


def _list_feed_forward(model: DecoderSpec) -> Iterator[Place]:
    experts, width, base = model.experts, model.width, model.base_width
    if experts is None:
        yield from _list_matrices(model, "", 1, model.ffn_width, model.base_ffn_width)
        return
    yield Place("router", "head", model.depth * experts.count * width, width, experts.count, base, experts.count)
    yield from _list_matrices(model, "experts_", experts.count, experts.width, experts.base_width)
    if experts.shared:  # they all see every token: one feed-forward of their joint size
        yield from _list_matrices(
            model, "shared_", 1, experts.shared * experts.width, experts.shared * experts.base_width
        )


def _list_matrices(model: DecoderSpec, prefix: str, copies: int, inner: int, base_inner: int) -> Iterator[Place]:
    """Both matrices of a feed-forward; `gate_up` is two of them side by side."""
    width, base = model.width, model.base_width
    name, parts = ("gate_up", 2) if model.activation == "swiglu" else ("up", 1)
    params = model.depth * copies * width * inner
    yield Place(f"{prefix}{name}", "hidden", parts * params, width, parts * inner, base, parts * base_inner)
    yield Place(f"{prefix}down", "hidden", params, inner, width, base_inner, base, writes=True)


def _list_norms(model: DecoderSpec) -> Iterator[Place]:
    width, base, size = model.width, model.base_width, model.head_size
    yield Place("norms", "vector", model.depth * 2 * width, 1, width, 1, base)
    if model.qk_norm:
        yield Place("head_norms", "vector", model.depth * 2 * size, 1, size, 1, model.base_head_size)
    yield Place("final_norm", "vector", width, 1, width, 1, base, in_block=False)
