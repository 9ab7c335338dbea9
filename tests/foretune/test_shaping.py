"""From `[proxy]` and a rung to the model: what each kind of model takes, and what is refused with its key."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.records import CausalLMSpec, RunSpec
from foretune.shaping import measure_rung, resolve_model
from foretune_causal_lms import make_study

LLAMA = {"architecture": "transformers", "config": {"model_type": "llama"}}


def test_a_decoder_and_a_llama_of_one_rung_have_the_same_counts() -> None:
    shapes = []
    for proxy in ({}, LLAMA):
        study = make_study(proxy, {"width": 64, "depth": 3})
        shape = measure_rung(study, study.scales[0], 97)
        assert shape == resolve_model(study, study.scales[0], "mup", 97).shape
        shapes.append((shape.params_non_embedding, shape.params_total, shape.flops_per_token(16)))
    assert shapes[0] == shapes[1]


def test_horizons_per_parameter_count_the_librarys_model() -> None:
    study = make_study(LLAMA, {"width": 64, "tokens": "2xN"})
    spec = resolve_run(study, study.scales[0], {}, CorpusFacts("0", 97, {"code": 1.0}, {}))
    tokens = 2 * measure_rung(study, study.scales[0], 97).params_non_embedding
    assert tokens <= spec.training.tokens < tokens + 512


def test_non_embedding_parameters_do_not_depend_on_the_vocabulary() -> None:
    study = make_study(LLAMA, {"width": 64})
    counts = [measure_rung(study, study.scales[0], size).params_non_embedding for size in (1, 97)]
    assert counts[0] == counts[1]


def test_a_run_of_a_librarys_model_is_the_same_run_after_a_round_trip() -> None:
    study = make_study(LLAMA, {"width": 64, "depth": 3, "head_size": 16})
    spec = resolve_run(study, study.scales[0], {}, CorpusFacts("0", 97, {"code": 1.0}, {}))
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert isinstance(again.model, CausalLMSpec)
    assert (again, again.run_id) == (spec, spec.run_id)
    assert again.model.double_config["head_dim"] == 2 * again.model.base_config["head_dim"] == 16
    assert again.model.double_config["num_hidden_layers"] == 4


@pytest.mark.parametrize("model", [("llama", "max_position_embeddings"), ("gpt2", "n_positions")])
def test_positions_must_hold_the_sequences_of_the_study(model: tuple[str, str]) -> None:
    model_type, name = model
    refused = rf"proxy\.config\.{name}: must be at least \[data\] seq_len = 16, got 8; leave it out"
    for positions in (16, 8):
        config = {"model_type": model_type, name: positions}
        study = make_study({"architecture": "transformers", "config": config}, {"width": 64})
        if positions == 16:
            assert measure_rung(study, study.scales[0], 97).params_total > 0
        else:
            with pytest.raises(InputError, match=refused):
                resolve_run(study, study.scales[0], {}, CorpusFacts("0", 97, {"code": 1.0}, {}))


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ({**LLAMA, "tied_head": True}, r"proxy\.tied_head: .*give tie_word_embeddings in \[proxy\.config\]"),
        ({**LLAMA, "qk_norm": True}, r"proxy\.qk_norm: .*choose a model_type that has it"),
        ({**LLAMA, "activation": "relu2"}, r"proxy\.activation: .*give hidden_act"),
        ({**LLAMA, "experts": {"count": 4}}, r"proxy\.experts: .*give num_local_experts"),
        ({**LLAMA, "base_width": 36}, r"proxy\.base_width: must be a multiple of head_size 8.*got 36"),
        ({"queries_per_key": 3}, r"proxy\.base_width: 4 heads of 8 cannot share keys in groups of queries_per_key = 3"),
        ({"queries_per_key": 4, "base_width": 64}, r"scales\.one\.width: 6 heads of 8 cannot.*take a multiple of 32"),
        ({"architecture": "transformers"}, r"\[proxy\.config\] is needed with"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_key(proxy: dict[str, Any], message: str) -> None:
    width = 48 if proxy.get("base_width") == 64 else 72 if proxy.get("queries_per_key") == 3 else 64
    with pytest.raises(InputError, match=message):
        make_study(proxy, {"width": width})
