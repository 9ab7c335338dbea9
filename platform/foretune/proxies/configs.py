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
from foretune.proxies.library import import_transformers, silence

SCALED = re.compile(r"(?P<ratio>\d+(?:\.\d+)?)\s*x\s*(?P<of>width|depth)")
"""A multiple of a rung's width or depth, such as `0.5xwidth`."""
FAULTY_FIELD = re.compile(r"Validation error for field '(?P<name>\w+)'")
"""How the library names the one field that it refuses."""
FOLLOWING = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size")
"""Fields that the rung and the tokenizer give, by the library's common names."""
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""Fields without which a model cannot follow the rung; one of several parts has them in the parts."""
DROPOUTS = ("dropout", "dropout_prob", "layerdrop", "pdrop")
"""How the names of dropout rates end. They are 0 unless given: proxies see their data about once."""
EXAMPLES = ("llama", "qwen3", "gpt2", "olmo2", "mixtral")
"""Model types to try where no name is near."""
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
    _check_needed(plain, model_type)
    given = {names.get(key, key): value for key, value in section.items() if key != "model_type"}
    _check_fields(given, known, [names.get(name, name) for name in FOLLOWING], model_type)
    fields: dict[str, Any] = {name: 0.0 for name in known if name.endswith(DROPOUTS)}
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
    if model_type not in _list_model_types():
        raise InputError(
            f"proxy.config.model_type: no causal language model of that name in transformers, got {model_type!r}; "
            f"try {_suggest_types(model_type)}"
        )
    try:
        with silence():
            return transformers.AutoConfig.for_model(model_type, **settings)
    except Exception as error:  # each configuration class has checks of its own, and errors of its own
        field = FAULTY_FIELD.search(str(error))
        key = f"proxy.config.{field['name']}" if field else "proxy.config"
        raise refuse(key, f"{model_type} does not take what is given", error.__cause__ or error) from error


def check_positions(config: Mapping[str, Any], seq_len: int) -> None:
    """Refuse a configuration that has fewer positions than the sequences of the study."""
    settings = build_config(config)
    positions = getattr(settings, "max_position_embeddings", None)
    if positions is not None and positions < seq_len:
        name = dict(settings.attribute_map).get("max_position_embeddings", "max_position_embeddings")
        raise InputError(
            f"proxy.config.{name}: must be at least [data] seq_len = {seq_len}, got {positions}; leave it out, and it "
            "is the seq_len"
        )


def refuse(key: str, problem: str, error: BaseException) -> InputError:
    """An error of the library as one of ours: the key, what is wrong in our words, and the library's as the reason."""
    words = str(error).split()
    reason = f"{type(error).__name__}: {' '.join(words)}" if words else type(error).__name__
    return InputError(f"{key}: {problem}; change it, or leave it out. The library's reason: {reason}")


def _suggest_types(model_type: Any) -> str:
    """Names of causal language models near to a name; some well-known ones where none is."""
    close = difflib.get_close_matches(str(model_type).lower(), _list_model_types(), n=5, cutoff=0.5)
    return ", ".join(close or EXAMPLES)


def _list_model_types() -> list[str]:
    return list(import_transformers().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _check_needed(plain: Any, model_type: str) -> None:
    known, names = plain.to_dict(), dict(plain.attribute_map)
    missing = [name for name in NEEDED if names.get(name, name) not in known]
    if missing:
        others = [name for name in (f"{model_type}_text",) if name in _list_model_types()]
        raise InputError(
            f"proxy.config.model_type: {model_type} has no {', '.join(missing)} that could follow the rung; take a "
            f"plain language model: {', '.join(others or EXAMPLES)}"
        )


def _check_fields(given: Mapping[str, Any], known: Mapping[str, Any], following: list[str], model_type: str) -> None:
    problems = []
    for name in given:
        if name in following:
            problems.append(f"proxy.config.{name}: follows the rung or the tokenizer; leave it out")
        elif name not in known:
            problems.append(f"proxy.config.{name}: no such field of {model_type}; {_suggest_field(name, known)}")
    if problems:
        raise InputError("\n".join(problems))


def _suggest_field(name: str, known: Mapping[str, Any]) -> str:
    """What to write instead of an unknown field; some are in a table of the configuration, as `rope_theta` is."""
    tables = {inner: outer for outer, table in known.items() if isinstance(table, dict) for inner in map(str, table)}
    close = difflib.get_close_matches(name, [*known, *tables], n=1)
    if not close:
        return "leave it out"
    if close[0] in tables and close[0] not in known:
        return f"did you mean {close[0]!r} in [proxy.config.{tables[close[0]]}]?"
    return f"did you mean {close[0]!r}?"


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
