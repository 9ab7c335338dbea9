"""Sizes that follow the rung, and what a configuration may not say."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.errors import InputError
from foretune.parametrization import choose_rules
from foretune.proxies.configs import Sizes, build_config, resolve_config
from foretune_causal_lms import make_causal_lm

SIZES = Sizes(width=64, depth=3, head_size=16, queries_per_key=2, ffn_ratio=2.5, vocab_size=97, seq_len=24)


def test_sizes_of_a_llama_follow_the_rung() -> None:
    config = resolve_config({"model_type": "llama"}, SIZES)
    expected = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    expected |= {"head_dim": 16, "intermediate_size": 160, "vocab_size": 97, "max_position_embeddings": 24}
    assert {name: config[name] for name in expected} == expected
    assert config["use_cache"] is False


def test_a_model_with_names_of_its_own_takes_what_it_has() -> None:
    config = resolve_config({"model_type": "gpt2", "n_inner": "3xwidth"}, SIZES)
    expected = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 24, "n_inner": 192, "vocab_size": 97}
    assert {name: config[name] for name in expected} == expected
    assert config["attn_pdrop"] == config["resid_pdrop"] == config["embd_pdrop"] == 0
    assert config["bos_token_id"] is None
    assert "hidden_size" not in config


def test_what_the_study_says_wins() -> None:
    config = resolve_config({"model_type": "olmo", "attention_dropout": 0.1, "intermediate_size": "1.5xwidth"}, SIZES)
    assert (config["attention_dropout"], config["intermediate_size"]) == (0.1, 96)
    assert config["pad_token_id"] is None  # the library's 1 would leave the embedding of token 1 untrained
    deep = resolve_config({"model_type": "qwen2", "max_window_layers": "2xdepth"}, SIZES)
    assert deep["max_window_layers"] == 6


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_a_resolved_configuration_builds_itself_again(model_type: str) -> None:
    config = resolve_config({"model_type": model_type}, SIZES)
    again = build_config(config).to_dict()
    assert {name: again[name] for name in config} == config
    assert "transformers_version" not in config


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model_type": "lama"}, r"config\.model_type: .*'lama'; try .*llama"),
        ({"model_type": "Lama3"}, r"config\.model_type: .*'Lama3'; try .*llama"),
        ({"model_type": "zzz"}, r"config\.model_type: .*'zzz'; try llama, qwen3"),
        ({"model_type": ["llama"]}, r"config\.model_type: no causal language model"),
        ({"model_type": "vit"}, r"config\.model_type: no causal language model"),
        ({"model_type": "mamba"}, r"config\.model_type: mamba has no num_attention_heads that could follow the rung"),
        (
            {"model_type": "gemma3"},
            r"config\.model_type: gemma3 has no hidden_size.*plain language model: gemma3_text$",
        ),
        (
            {"model_type": "llama", "rope_theta": 5e5},
            r"did you mean 'rope_theta' in \[proxy\.config\.rope_parameters\]",
        ),
        ({"model_type": "llama", "rope_thet": 5e5}, r"did you mean 'rope_theta' in \[proxy\.config\.rope_parameters\]"),
        ({"model_type": "llama", "zzz": 1}, r"config\.zzz: no such field of llama; leave it out"),
        ({"model_type": "llama", "hidden_size": 64}, r"config\.hidden_size: follows the rung.*leave it out"),
        ({"model_type": "gpt2", "n_head": 4}, r"config\.n_head: follows the rung"),
        ({"model_type": "llama", "vocab_size": 32_000}, r"config\.vocab_size: follows the rung or the tokenizer"),
        ({"model_type": "llama", "intermediate_sise": 64}, r"no such field of llama; did you mean 'intermediate_size'"),
        ({"model_type": "llama", "intermediate_size": "0xwidth"}, r"config\.intermediate_size: the multiple must be"),
        (
            {"model_type": "llama", "rms_norm_eps": "small"},
            r"config\.rms_norm_eps: llama does not take.*TypeError: .*'small'",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_config(section, SIZES)


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("llama", {"intermediate_size": 88}, r"'model\.layers\.0\.mlp\.gate_proj\.weight' of shape \(88, 64\)"),
        ("llama", {"num_key_value_heads": 2}, r"'model\.layers\.0\.self_attn\.k_proj\.weight' of shape \(16, 64\)"),
        ("qwen2_moe", {"moe_intermediate_size": 64}, r"'model\.layers\.0\.mlp\.experts\.gate_up_proj' of shape"),
        (
            "qwen2_moe",
            {"decoder_sparse_step": 3, "router_aux_loss_coef": 0.0},
            r"'model\.layers\.mlp\..*' is there at some sizes",
        ),
        ("falcon", {}, r"'transformer\.h\.0\.self_attention\.query_key_value\.weight': a dimension of 48 is 80"),
        ("gemma2", {}, r"config\.model_type: must be a model whose attention .*'gemma2'; take another.*llama"),
        ("llama", {"hidden_act": "foo"}, r"config\.hidden_act: llama knows no 'foo'; try silu, gelu, relu$"),
        ("gpt2", {"activation_function": "gelu_neu"}, r"activation_function: gpt2 knows no 'gelu_neu'; try .*gelu_new"),
    ],
)
def test_a_tensor_that_does_not_scale_is_refused_by_name(model_type: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_rules(make_causal_lm(model_type, width=64, **fields))


def test_fields_that_need_no_width_may_be_fixed() -> None:
    free, fixed = (make_causal_lm("llama", width=64, **fields) for fields in ({}, {"rms_norm_eps": 1e-5}))
    assert choose_rules(free) == choose_rules(fixed)
    assert fixed.config["rms_norm_eps"] == 1e-5
