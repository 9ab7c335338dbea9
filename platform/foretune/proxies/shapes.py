"""What a `transformers` model consists of, read off the model built without memory (torch's meta device)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import nn

from foretune.accounting import MeasuredShape
from foretune.errors import InputError
from foretune.parametrization.growth import TensorShape, find_places
from foretune.parametrization.rules import Place
from foretune.proxies.configs import EXAMPLES, build_config, refuse
from foretune.proxies.library import import_transformers, silence
from foretune.records import CausalLMSpec


@dataclass(frozen=True)
class Anatomy:
    """A model of one size, described."""

    tensors: tuple[TensorShape, ...]
    """Its tensors, tied ones once, in the order of the model."""
    head_size: int
    """Size of an attention head."""
    attention_scale: float
    """What query-key products are multiplied by, in the first layer; 0 where the library does not say."""
    tied_head: bool
    """The embedding is used as output head."""


def list_places(model: CausalLMSpec) -> list[Place]:
    """The groups of a model for the table of the parametrization; InputError where one does not scale as expected."""
    base, double, own = (describe(config) for config in (model.base_config, model.double_config, model.config))
    growths = (model.width / model.base_width, own.head_size / base.head_size)
    return list(find_places(base.tensors, double.tensors, own.tensors, growths))


def describe(config: Mapping[str, Any]) -> Anatomy:
    """The anatomy of the model that these fields configure."""
    return _describe(json.dumps(dict(config)))


def build_model(config: Any) -> nn.Module:
    """The model of a configuration, in float32, with the library's initial weights."""
    library = import_transformers()
    _check_attention(config)
    try:
        with silence():
            model: nn.Module = library.AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", dtype=torch.float32
            )
    except KeyError as error:
        raise _refuse_choice(config, error) from error
    except Exception as error:  # each model has checks of its own, and errors of its own
        raise refuse("proxy.config", f"{config.model_type} cannot be built with what is given", error) from error
    return model


def list_options(config: Any) -> dict[str, bool]:
    """What the forward pass is asked for beside the logits: in a model with a balancing loss, that loss."""
    return {"output_router_logits": True} if getattr(config, "router_aux_loss_coef", None) else {}


def _check_attention(config: Any) -> None:
    """Refuse a model without the one attention that all models train with here."""
    model_class = import_transformers().AutoModelForCausalLM._model_mapping[type(config)]
    if not model_class._supports_sdpa:
        raise InputError(
            f"proxy.config.model_type: must be a model whose attention torch's scaled_dot_product_attention can "
            f"compute, got {config.model_type!r}; take another, such as {', '.join(EXAMPLES)}"
        )


def _refuse_choice(config: Any, error: KeyError) -> InputError:
    """A value that names something, as an activation, and that the library has no entry for."""
    value = error.args[0]
    fields = [name for name, given in config.to_dict().items() if given == value]
    if not fields:
        return refuse("proxy.config", f"{config.model_type} cannot be built with what is given", error)
    activations = list(import_transformers().activations.ACT2FN)
    close = difflib.get_close_matches(str(value), activations, cutoff=0.5) or ["silu", "gelu", "relu"]
    advice = f"try {', '.join(close)}" if "act" in fields[0] else "leave it out"
    return InputError(f"proxy.config.{fields[0]}: {config.model_type} knows no {value!r}; {advice}")


@cache
def _describe(fields: str) -> Anatomy:
    config = build_config(json.loads(fields))
    with torch.device("meta"):
        model: Any = build_model(config)
    scales = [module.scaling for module in model.modules() if isinstance(getattr(module, "scaling", None), float)]
    return Anatomy(
        tensors=tuple(_list_tensors(model)),
        head_size=_read_head_size(config),
        attention_scale=scales[0] if scales else 0.0,
        tied_head=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
    )


def _read_head_size(config: Any) -> int:
    try:
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    except (AttributeError, RuntimeError) as error:  # RuntimeError: the size differs between layers
        raise InputError(
            f"proxy.config.model_type: must have one head size in all layers, got {config.model_type!r}; take another"
        ) from error


def _list_tensors(model: Any) -> Iterator[TensorShape]:
    owners = dict(model.named_modules())
    for name, tensor in model.named_parameters():
        owner_name, _, last = name.rpartition(".")
        owner, sizes = owners[owner_name], tuple(tensor.shape)
        embedding = isinstance(owner, nn.Embedding)
        if embedding or _is_transposed(owner, len(sizes)):
            sizes = (*sizes[:-2], sizes[-1], sizes[-2])
        is_head = owner is model.get_output_embeddings() and last == "weight"
        yield TensorShape(name, sizes, "embedding" if embedding else "head" if is_head else "inner")


def _is_transposed(owner: nn.Module, dimensions: int) -> bool:
    """Whether a matrix is stored fan-in first: GPT-2's Conv1D, and the experts of some models."""
    if dimensions == 3:
        return bool(getattr(owner, "is_transposed", False))
    return dimensions == 2 and type(owner).__name__ == "Conv1D"


def measure_shape(config: Mapping[str, Any]) -> MeasuredShape:
    """Counts of the model that these fields configure."""
    return _measure(json.dumps(dict(config)))


@cache
def _measure(fields: str) -> MeasuredShape:
    anatomy, settings = _describe(fields), build_config(json.loads(fields))
    tensors = anatomy.tensors
    routed = [tensor for tensor in tensors if len(tensor.sizes) == 3]
    share = _read_active_share(settings, routed)
    idle = round(sum(prod(tensor.sizes) for tensor in routed) * (1 - share))
    matrices = [tensor for tensor in tensors if len(tensor.sizes) > 1 and tensor.role != "embedding"]
    head = settings.vocab_size * settings.hidden_size
    groups: dict[str, int] = {}
    for tensor in tensors:
        groups[tensor.group] = groups.get(tensor.group, 0) + prod(tensor.sizes)
    total = sum(groups.values())
    return MeasuredShape(
        params_total=total,
        params_embedding=_count(tensors, "embedding"),
        params_head=_count(tensors, "head"),
        params_active=total - idle,
        activation_ratio=_measure_activation(tensors, routed, idle),
        groups=groups,
        matrix_params_active=sum(prod(tensor.sizes) for tensor in matrices) - idle + head * anatomy.tied_head,
        attention_width=settings.num_hidden_layers * settings.num_attention_heads * anatomy.head_size,
    )


def _count(tensors: tuple[TensorShape, ...], role: str) -> int:
    return sum(prod(tensor.sizes) for tensor in tensors if tensor.role == role)


def _read_active_share(config: Any, routed: list[TensorShape]) -> float:
    """The share of the routed experts that a token goes through; 1 without experts."""
    if not routed:
        return 1.0
    active = getattr(config, "num_experts_per_tok", None)
    if not active:
        raise InputError(
            f"proxy.config: cannot tell how many of the {routed[0].sizes[0]} experts a token goes through; there is no "
            f"field num_experts_per_tok in the configuration of {config.model_type}"
        )
    if active > routed[0].sizes[0]:
        raise InputError(
            f"proxy.config.num_experts_per_tok: must not exceed the number of experts, {routed[0].sizes[0]}, got "
            f"{active}; route to fewer, or give more of them"
        )
    return float(active) / routed[0].sizes[0]


def _measure_activation(tensors: tuple[TensorShape, ...], routed: list[TensorShape], idle: int) -> float:
    """Share of the parameters of all experts, shared ones among them, that a token goes through."""
    if not routed:
        return 1.0
    shared = [item for item in tensors if ".shared_expert" in item.name and "gate.weight" not in item.name]
    experts = sum(prod(tensor.sizes) for tensor in (*routed, *shared))
    return 1 - idle / experts
