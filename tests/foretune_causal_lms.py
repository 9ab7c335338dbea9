"""Small `transformers` models for tests, at a base of width 32 and depth 2 and at any other size."""

from __future__ import annotations

from typing import Any

from foretune.records import CausalLMSpec
from foretune.shaping import resolve_model
from foretune.study import Study, read_study

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "gpt2": {},
    "olmo": {},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": "1xwidth", "shared_expert_intermediate_size": "2xwidth"},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": "1xwidth"},
    "phi": {},
}
"""`[proxy.config]` by model type."""
VOCAB_SIZE, SEQ_LEN = 97, 16
PROXY = {"base_width": 32, "head_size": 8, "depth": 2, "queries_per_key": 2, "ffn_ratio": 2.5}


def make_study(proxy: dict[str, Any], scale: dict[str, Any], seq_len: int = SEQ_LEN) -> Study:
    """A study of one rung."""
    return read_study(
        {
            "study": {"name": "test", "question": "?"},
            "proxy": {**PROXY, **proxy},
            "scales": [{"name": "one", "width": 32, "tokens": 10_240, **scale}],
            "data": {"seq_len": seq_len},
            "training": {"batch_tokens": 512, "peak_lr": 0.01},
            "search": {"strategy": "grid", "space": {"seed": [0]}},
        }
    )


def make_causal_lm(
    model_type: str,
    *,
    width: int = 32,
    depth: int = 2,
    head_size: int = 8,
    parametrization: str = "mup",
    queries_per_key: int = 2,
    vocab_size: int = VOCAB_SIZE,
    seq_len: int = SEQ_LEN,
    **fields: Any,
) -> CausalLMSpec:
    """A model; `fields` are further ones of its configuration."""
    config = {"model_type": model_type, **SECTIONS.get(model_type, {}), **fields}
    study = make_study(
        {"architecture": "transformers", "config": config, "queries_per_key": queries_per_key},
        {"width": width, "depth": depth, "head_size": head_size},
        seq_len,
    )
    model = resolve_model(study, study.scales[0], parametrization, vocab_size)
    assert isinstance(model, CausalLMSpec)
    return model
