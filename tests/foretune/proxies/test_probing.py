"""Models that fail in their first forward pass, or that see the token they should predict, are refused before that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from foretune.errors import InputError
from foretune.parametrization import choose_rules
from foretune.proxies.causal_lm import CausalLM
from foretune.proxies.probing import LEAK, measure_leak
from foretune.shaping import measure_rung
from foretune_causal_lms import SECTIONS, SEQ_LEN, VOCAB_SIZE, make_causal_lm, make_study


@pytest.mark.parametrize("model_type", SECTIONS)
def test_causal_models_do_not_see_the_future(model_type: str) -> None:
    assert measure_leak(make_causal_lm(model_type).base_config) < LEAK / 100


@pytest.mark.parametrize("model_type", ["bert", "electra", "camembert"])
def test_an_encoder_is_refused_with_the_field_that_makes_it_a_decoder(model_type: str) -> None:
    with pytest.raises(InputError) as refused:
        make_causal_lm(model_type, pad_token_id=1, max_position_embeddings=SEQ_LEN + 2)
    message = str(refused.value)
    assert message.startswith("proxy.config.model_type: must be a model in which no position sees a later one")
    assert repr(model_type) in message
    assert "set is_decoder = true in [proxy.config]" in message


def test_the_leak_of_an_encoder_is_found_in_its_gradients_too() -> None:
    """The derivative of an early logit by a late embedding, which torch computes, is zero in a decoder alone."""
    reach = {}
    for is_decoder in (False, True):
        fields = {**make_causal_lm("bert", is_decoder=True, queries_per_key=1).base_config, "is_decoder": is_decoder}
        reach[is_decoder] = measure_reach(fields)
        assert (measure_leak(fields) > LEAK) == (reach[is_decoder] > 0)
    assert reach[False] > reach[True] == 0


def measure_reach(fields: dict[str, Any]) -> float:
    from foretune.proxies.configs import build_config
    from foretune.proxies.shapes import build_model

    model: Any = build_model(build_config(fields)).eval()
    embedded = torch.randn(1, 4, fields["hidden_size"], generator=torch.Generator().manual_seed(0)).requires_grad_()
    model(inputs_embeds=embedded, use_cache=False).logits[0, 0].square().sum().backward()
    assert embedded.grad is not None
    return float(embedded.grad[0, -1].abs().max())


def test_an_encoder_that_is_made_a_decoder_is_a_model_like_others() -> None:
    spec = make_causal_lm("bert", width=64, is_decoder=True)
    assert choose_rules(spec)
    model = CausalLM(spec, SEQ_LEN)
    model.initialise(0, 0)
    ids = torch.randint(0, VOCAB_SIZE, (1, 2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[..., -1] = (ids[..., -1] + 1) % VOCAB_SIZE
    with torch.no_grad():
        first, second = model.eval()(ids), model(other)
    torch.testing.assert_close(first[..., :-1, :], second[..., :-1, :])
    assert not torch.equal(first[..., -1, :], second[..., -1, :])
    assert spec.config["hidden_dropout_prob"] == spec.config["attention_probs_dropout_prob"] == 0


def test_what_fails_in_the_forward_pass_is_refused_when_the_model_is_described() -> None:
    message = r"proxy\.config: the forward pass fails at width 32 and depth 2, .* decoder_sparse_step = 3; .*IndexError"
    with pytest.raises(InputError, match=message):
        make_causal_lm("qwen2_moe", decoder_sparse_step=3)  # no layer has experts whose load could be balanced


def test_no_token_goes_through_more_experts_than_there_are() -> None:
    with pytest.raises(InputError, match=r"config\.num_experts_per_tok: must not exceed .*, 4, got 5; route to fewer"):
        make_causal_lm("mixtral", num_local_experts=4, num_experts_per_tok=5)
    assert make_causal_lm("mixtral", num_local_experts=4, num_experts_per_tok=4).shape.activation_ratio == 1


def test_a_question_about_sizes_is_asked_of_the_same_models() -> None:
    proxy = {"architecture": "transformers", "config": {"model_type": "bert"}}
    study = make_study(proxy, {"width": 64})
    with pytest.raises(InputError, match="sees a later one, got 'bert'"):
        measure_rung(study, study.scales[0], vocab_size=1)


def test_the_probe_leaves_the_random_numbers_of_the_caller_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    measure_leak(make_causal_lm("llama").base_config)
    assert torch.equal(before, torch.get_rng_state())
