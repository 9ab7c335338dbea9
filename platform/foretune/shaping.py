"""The model of a rung, resolved: its sizes, and those at the base width and depth that its rules start from."""

from __future__ import annotations

from typing import cast

from foretune.accounting import MeasuredShape, ModelShape, choose_ffn_width
from foretune.records import CausalLMSpec, DecoderSpec, ExpertsSpec
from foretune.sections import ExpertsSection, Parametrization, ProxySection, ScaleSection
from foretune.study import Study, choose_depth


def resolve_model(
    study: Study, scale: ScaleSection, parametrization: str, vocab_size: int
) -> DecoderSpec | CausalLMSpec:
    """The model of a rung under one of the parametrizations."""
    if study.proxy.architecture == "transformers":
        return _resolve_causal_lm(study, scale, cast(Parametrization, parametrization), vocab_size)
    proxy, shape = study.proxy, _shape_decoder(study, scale, vocab_size)
    base = _choose_shape(proxy, proxy.base_width, proxy.depth, proxy.head_size, vocab_size)
    return DecoderSpec(
        parametrization=cast(Parametrization, parametrization),
        width=shape.width,
        depth=shape.depth,
        head_size=shape.head_size,
        ffn_width=shape.ffn_width,
        vocab_size=shape.vocab_size,
        base_width=base.width,
        base_depth=base.depth,
        base_head_size=base.head_size,
        base_ffn_width=base.ffn_width,
        qk_norm=proxy.qk_norm,
        tied_head=proxy.tied_head,
        rope_base=proxy.rope_base,
        activation=proxy.activation,
        queries_per_key=proxy.queries_per_key,
        experts=_resolve_experts(proxy.experts, shape, base) if proxy.experts else None,
    )


def measure_rung(study: Study, scale: ScaleSection, vocab_size: int) -> ModelShape | MeasuredShape:
    """Parameters and FLOPs of the model of a rung, whose parametrization does not change them."""
    if study.proxy.architecture == "decoder":
        return _shape_decoder(study, scale, vocab_size)
    return resolve_model(study, scale, "standard", vocab_size).shape


def _shape_decoder(study: Study, scale: ScaleSection, vocab_size: int) -> ModelShape:
    depth, head_size = choose_depth(study.proxy, scale), scale.head_size or study.proxy.head_size
    return _choose_shape(study.proxy, scale.width, depth, head_size, vocab_size)


def _choose_shape(proxy: ProxySection, width: int, depth: int, head_size: int, vocab_size: int) -> ModelShape:
    """The shape of a decoder of these sizes, by the rules of `[proxy]`."""
    experts = proxy.experts
    return ModelShape(
        width=width,
        depth=depth,
        head_size=head_size,
        ffn_width=choose_ffn_width(width, proxy.ffn_ratio),
        vocab_size=vocab_size,
        tied_head=proxy.tied_head,
        qk_norm=proxy.qk_norm,
        activation=proxy.activation,
        queries_per_key=proxy.queries_per_key,
        experts=experts.count if experts else 0,
        active_experts=experts.active if experts else 0,
        shared_experts=experts.shared if experts else 0,
        expert_width=choose_ffn_width(width, 2 / experts.granularity) if experts else 0,
    )


def _resolve_experts(experts: ExpertsSection, shape: ModelShape, base: ModelShape) -> ExpertsSpec:
    return ExpertsSpec(
        count=experts.count,
        active=experts.active,
        shared=experts.shared,
        width=shape.expert_width,
        base_width=base.expert_width,
        balance=experts.balance,
        balance_weight=experts.balance_weight,
        router_z_weight=experts.router_z_weight,
    )


def _resolve_causal_lm(
    study: Study, scale: ScaleSection, parametrization: Parametrization, vocab_size: int
) -> CausalLMSpec:
    from foretune.proxies.configs import (
        Sizes,
        check_positions,
        resolve_config,
    )  # they import torch, which other studies wait for
    from foretune.proxies.probing import probe_model
    from foretune.proxies.shapes import measure_shape

    proxy = study.proxy
    base = Sizes(
        width=proxy.base_width,
        depth=proxy.depth,
        head_size=proxy.head_size,
        queries_per_key=proxy.queries_per_key,
        ffn_ratio=proxy.ffn_ratio,
        vocab_size=vocab_size,
        seq_len=study.data.seq_len,
    )
    own = base.at(scale.width, choose_depth(proxy, scale), scale.head_size or proxy.head_size)
    heads_grow = own.head_size != base.head_size
    double = base.at(2 * base.width, 2 * base.depth, (1 + heads_grow) * base.head_size)
    config = resolve_config(proxy.config, own)
    check_positions(config, study.data.seq_len)
    shape = measure_shape(config)
    probe_model(proxy.config, base)
    return CausalLMSpec(
        parametrization=parametrization,
        width=own.width,
        depth=own.depth,
        vocab_size=vocab_size,
        base_width=base.width,
        base_depth=base.depth,
        config=config,
        base_config=resolve_config(proxy.config, base),
        double_config=resolve_config(proxy.config, double),
        shape=shape,
    )
