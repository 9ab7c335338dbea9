"""The configuration of a `transformers` model at one size: what the study says, and what follows the rung."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from foretune.accounting import choose_ffn_width
from foretune.errors import InputError
from foretune.proxies.library import import_transformers

SCALED = re.compile(r"(?P<ratio>\d+(?:\.\d+)?)\s*x\s*(?P<of>width|depth)")
"""A multiple of a rung's width or depth, such as `0.5xwidth`."""
FOLLOWING = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
"""Fields that the rung and the tokenizer give, by the library's common names."""
ABSENT = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Tokens that proxies have none of: every token is predicted, and a padding token's embedding would not be trained."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one rung."""

    width: int
    """Size of the residual stream."""
    depth: int
    """Blocks."""
    head_size: int
    """Size of an attention head."""
    queries_per_key: int
    """Query heads per key and value head."""
    ffn_ratio: float
    """Inner size of the feed-forward over the width."""
    vocab_size: int
    """Rows of the embedding."""
    seq_len: int
    """Tokens per sequence."""

    def at(self, width: int, depth: int, head_size: int) -> Sizes:
        """The same at another width, depth and head size."""
        return replace(self, width=width, depth=depth, head_size=head_size)


def resolve_config(section: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Every field of the configuration at these sizes; the fields that `section` gives win where they may.

    Raises InputError for an unknown model type or field, and for one that the rung decides.
    """
    resolved: dict[str, Any] = json.loads(_resolve(json.dumps(dict(section)), sizes))
    return resolved


@cache
def _resolve(section_text: str, sizes: Sizes) -> str:
    section = json.loads(section_text)
    model_type = str(section["model_type"])
    plain = build_config({"model_type": model_type})
    known, names = plain.to_dict(), dict(plain.attribute_map)
    given = {names.get(key, key): value for key, value in section.items() if key != "model_type"}
    _check_fields(given, known, [names.get(name, name) for name in FOLLOWING], model_type)
    fields: dict[str, Any] = {name: 0.0 for name in known if name.endswith(("dropout", "pdrop"))}
    fields |= {names.get(name, name): value for name, value in _list_sizes(sizes).items()}
    fields |= dict.fromkeys(ABSENT) | {"use_cache": False}
    fields = {name: value for name, value in fields.items() if name in known}
    fields |= {name: _scale(name, value, sizes) for name, value in given.items()}
    housekeeping = import_transformers().PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    full = build_config({"model_type": model_type, **fields}).to_dict()
    return json.dumps({key: value for key, value in full.items() if key not in housekeeping or key == "model_type"})


def build_config(fields: Mapping[str, Any]) -> Any:
    """A configuration object with these fields, `model_type` among them."""
    transformers = import_transformers()
    settings = dict(fields)
    model_type = settings.pop("model_type")
    known = list(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if model_type not in known:
        close = ", ".join(difflib.get_close_matches(model_type, known)) or "llama, qwen3, gpt2, olmo2, mixtral"
        raise InputError(
            f"proxy.config.model_type: no causal language model of that name, got {model_type!r}; try {close}"
        )
    try:
        return transformers.AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # each configuration class has checks of its own, and errors of its own
        problem = " ".join(str(error).split())
        raise InputError(f"proxy.config: {model_type} refuses these fields: {problem}") from None


def _check_fields(given: Mapping[str, Any], known: Mapping[str, Any], following: list[str], model_type: str) -> None:
    problems = []
    for name in given:
        if name in following:
            problems.append(f"proxy.config.{name}: follows the rung or the tokenizer; leave it out")
        elif name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            problems.append(
                f"proxy.config.{name}: no such field of {model_type}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
    if problems:
        raise InputError("\n".join(problems))


def _list_sizes(sizes: Sizes) -> dict[str, int]:
    """By the library's common names; a model takes those that its configuration has."""
    heads = sizes.width // sizes.head_size
    return {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // sizes.queries_per_key),
        "head_dim": sizes.head_size,
        "intermediate_size": choose_ffn_width(sizes.width, sizes.ffn_ratio),
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.seq_len,
    }


def _scale(name: str, value: Any, sizes: Sizes) -> Any:
    """A text such as `0.5xwidth` as a number; any other value as it is."""
    found = SCALED.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    ratio = float(found["ratio"])
    if ratio == 0:
        raise InputError(f"proxy.config.{name}: the multiple must be above 0, got {value!r}")
    if found["of"] == "width":
        return choose_ffn_width(sizes.width, ratio)
    return max(1, round(ratio * sizes.depth))
