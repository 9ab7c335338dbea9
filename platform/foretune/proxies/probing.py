"""A forward pass of a small `transformers` model before anything is launched: it runs, and it does not see the future.

What a configuration class accepts may still fail in the first forward pass, and an encoder that the library lists among
the causal language models reads the token that it should predict: its loss would be low and mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.proxies.configs import Sizes, build_config, refuse, resolve_config
from foretune.proxies.library import silence
from foretune.proxies.shapes import build_model, list_options

LENGTH = 16
"""Tokens of the sequences (an assumption: enough for position 0 to be told from the others)."""
VOCABULARY = 64
"""Fewest rows of the embedding: questions about size alone are asked with a vocabulary of 1."""
LEAK = 1e-3
"""Change of earlier logits over that of the last that counts as seeing the future. Measured at width 32 and depth 2 on
all model types of transformers 5.23 that can be built: 0.12 to 0.21 in the encoders, 0 in the others."""


def probe_model(section: Mapping[str, Any], base: Sizes) -> None:
    """Run the model at its base size over a few tokens; InputError where it fails or sees the future."""
    sizes = replace(base, seq_len=LENGTH, vocab_size=max(VOCABULARY, base.vocab_size))
    _probe(json.dumps(dict(section)), sizes)


@cache
def _probe(section_text: str, sizes: Sizes) -> None:
    section = json.loads(section_text)
    try:
        leak = measure_leak(resolve_config(section, sizes))
    except InputError:
        raise
    except Exception as error:  # each model fails in a way of its own
        given = ", ".join(f"{name} = {value!r}" for name, value in section.items())
        problem = f"the forward pass fails at width {sizes.width} and depth {sizes.depth}, the base, with {given}"
        raise refuse("proxy.config", problem, error) from error
    if leak > LEAK:
        raise InputError(_describe_leak(section, leak))


@torch.no_grad()
def measure_leak(fields: Mapping[str, Any]) -> float:
    """How far another last token changes the logits before it, over how far it changes the last ones; 0 if causal."""
    config = build_config(fields)
    with torch.random.fork_rng(devices=[]), silence():
        torch.manual_seed(0)
        model = build_model(config).eval()
        _draw(model)
        ids = torch.randint(1, VOCABULARY, (2, LENGTH))
        ids[1] = ids[0]
        ids[1, -1] = ids[0, -1] % (VOCABULARY - 1) + 1
        first, second = _run(model, config, ids)
    change = (first - second).abs()
    return float(change[:-1].max() / change[-1].max())


def _draw(model: nn.Module) -> None:
    """Weights at which every part of the model matters to its output, whatever the library starts them at."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)


def _run(model: nn.Module, config: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False, **list_options(config)).logits
    return logits.float()


def _describe_leak(section: Mapping[str, Any], leak: float) -> str:
    model_type = section["model_type"]
    found = (
        f"must be a model in which no position sees a later one, got {model_type!r}: another last token changes the "
        f"logits before it, by {leak:.2g} of how far it changes its own"
    )
    if hasattr(build_config({"model_type": model_type}), "is_decoder") and not section.get("is_decoder"):
        return f"proxy.config.model_type: {found}; set is_decoder = true in [proxy.config], or take another model type"
    return f"proxy.config.model_type: {found}; take another model type, such as llama"
