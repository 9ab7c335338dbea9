"""Models of `transformers` under our rules: against `mup` on the same modules, and against our own decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foretune.accounting import ModelShape
from foretune.errors import InputError
from foretune.parametrization import choose_multipliers, choose_rules
from foretune.proxies.causal_lm import CausalLM, find_branches
from foretune.proxies.configs import build_config
from foretune.proxies.decoder import Decoder
from foretune.proxies.shapes import build_model
from foretune.proxies.train import train_run
from foretune.records import CausalLMSpec, DecoderSpec, ExpertsSpec, RunSpec, RunStatus
from foretune.sections import PARAMETRIZATIONS
from foretune_causal_lms import SECTIONS, SEQ_LEN, VOCAB_SIZE, make_causal_lm

IDS = torch.randint(0, VOCAB_SIZE, (1, 3, SEQ_LEN), generator=torch.Generator().manual_seed(0))


def build(spec: CausalLMSpec, seed: int = 0) -> CausalLM:
    model = CausalLM(spec, SEQ_LEN)
    model.initialise(0, seed)
    return model


@torch.no_grad()
def logits_of(spec: CausalLMSpec) -> Tensor:
    logits: Tensor = build(spec)(IDS)
    return logits


@pytest.mark.parametrize("model_type", SECTIONS)
def test_all_parametrizations_are_the_same_model_at_the_base(model_type: str) -> None:
    models = [make_causal_lm(model_type, parametrization=name) for name in PARAMETRIZATIONS]
    for optimizer in ("adamw", "sgd", "muon"):
        rules = [choose_rules(model, optimizer) for model in models]  # type: ignore[arg-type]
        assert rules == [rules[0]] * 4
        assert all(rule.lr_multiplier == rule.eps_multiplier == 1 for rule in rules[0])
    first, *others = (logits_of(model) for model in models)
    assert all(torch.equal(first, logits) for logits in others)
    wide = [logits_of(make_causal_lm(model_type, width=64, depth=4, parametrization=name)) for name in PARAMETRIZATIONS]
    assert not any(torch.equal(wide[0], logits) for logits in wide[1:])


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("model_type", SECTIONS)
def test_groups_are_those_of_mup_on_the_librarys_own_modules(model_type: str, width: int) -> None:
    mup = pytest.importorskip("mup", reason="the mup package of Yang et al. is not installed")
    spec = make_causal_lm(model_type, width=width)
    sizes = (spec.config, spec.base_config, make_causal_lm(model_type, width=64).config)
    model, base, delta = (build_model(build_config(config)) for config in sizes)
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False, do_assert=False)
    optimizer = mup.MuAdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    theirs = {id(tensor): group for group in optimizer.param_groups for tensor in group["params"]}
    groups = CausalLM(spec, SEQ_LEN).groups()
    rules = {rule.name: rule for rule in choose_rules(spec)}
    seen = set()
    for name, tensor in model.named_parameters():
        rule, group = rules[groups[f"model.{name}"]], theirs[id(tensor)]
        seen.add(rule.name)
        assert group["lr"] == pytest.approx(0.01 * rule.lr_multiplier), name
        assert (rule.kind == "hidden") == (tensor.infshape.ninf() == 2), name
        if rule.kind == "vector":  # the package leaves it to the user to exempt them
            assert rule.weight_decay_multiplier == 0
        else:
            assert group["weight_decay"] == pytest.approx(0.1 * rule.weight_decay_multiplier), name
    assert seen == set(rules)
    assert sum(rule.params for rule in rules.values()) == sum(tensor.numel() for tensor in model.parameters())


@pytest.mark.parametrize("model_type", SECTIONS)
def test_initial_weights_follow_the_table_and_the_seed_alone(model_type: str) -> None:
    spec = make_causal_lm(model_type, width=64)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    models = [build(spec, seed) for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = (dict(model.named_parameters()) for model in models)
    rules, groups = {rule.name: rule for rule in choose_rules(spec)}, models[0].groups()
    for name, tensor in first.items():
        rule = rules[groups[name]]
        assert torch.equal(tensor, again[name])
        if rule.kind == "vector":
            assert (tensor == (0.0 if name.endswith("bias") else 1.0)).all(), name
        else:
            assert not torch.equal(tensor, other[name])
            tolerance = 5 / math.sqrt(2 * tensor.numel())  # five standard errors of a standard deviation
            assert tensor.std().item() == pytest.approx(rule.init_std, rel=tolerance), name


def test_matrices_that_are_stored_fan_in_first_are_read_so() -> None:
    rules = {rule.name.removeprefix("transformer.h."): rule for rule in choose_rules(make_causal_lm("gpt2", width=64))}
    assert rules["attn.c_attn"].init_std == rules["mlp.c_fc"].init_std == 1 / math.sqrt(64)
    assert rules["attn.c_proj"].init_std == pytest.approx(1 / math.sqrt(4 * 64))
    assert rules["mlp.c_proj"].init_std == pytest.approx(1 / math.sqrt(4 * 4 * 64))


def decoder_like(spec: CausalLMSpec, head_size: int, queries_per_key: int, experts: ExpertsSpec | None) -> DecoderSpec:
    return DecoderSpec(
        **{key: getattr(spec, key) for key in ("parametrization", "width", "depth", "vocab_size")},
        base_width=32,
        base_depth=2,
        head_size=head_size,
        base_head_size=8,
        ffn_width=spec.config["intermediate_size"],
        base_ffn_width=spec.base_config["intermediate_size"],
        qk_norm=False,
        tied_head=spec.config["tie_word_embeddings"],
        rope_base=spec.config["rope_parameters"]["rope_theta"],
        queries_per_key=queries_per_key,
        experts=experts,
    )


def copy_weights(source: CausalLM, target: Decoder) -> None:
    """From the names of Llama and Mixtral to ours, into the one member."""
    theirs = {name.removeprefix("model."): tensor for name, tensor in source.named_parameters()}
    names = {
        "attention_norm.gain": ["input_layernorm.weight"],
        "attention.query_key_value.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"],
        "attention.attention_output.weight": ["self_attn.o_proj.weight"],
        "feed_forward_norm.gain": ["post_attention_layernorm.weight"],
        "feed_forward.gate_up.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "feed_forward.down.weight": ["mlp.down_proj.weight"],
        "feed_forward.router.weight": ["mlp.gate.weight"],
        "feed_forward.experts_gate_up": ["mlp.experts.gate_up_proj"],
        "feed_forward.experts_down": ["mlp.experts.down_proj"],
    }
    outside = {"embedding.weight": "model.embed_tokens.weight", "norm.gain": "model.norm.weight"}
    outside["head.weight"] = "lm_head.weight"
    with torch.no_grad():
        for name, tensor in target.named_parameters():
            if name in outside:
                tensor[0].copy_(theirs[outside[name]])
                continue
            _, number, place = name.split(".", 2)
            parts = [theirs[f"model.layers.{number}.{part}"] for part in names[place]]
            tensor[0].copy_(torch.cat(parts))


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("mixtral", {"intermediate_size": "0.75xwidth"})],
)
def test_logits_of_our_decoder_and_the_librarys_model_agree(
    model_type: str, fields: dict[str, Any], parametrization: str
) -> None:
    """Wider, deeper, with larger heads: every constant of the forward pass is at work."""
    size = {"width": 64, "depth": 3, "head_size": 16, "parametrization": parametrization}
    spec = make_causal_lm(model_type, **size, rms_norm_eps=1e-6, **fields)
    experts = None
    if model_type == "mixtral":
        inner, base_inner = spec.config["intermediate_size"], spec.base_config["intermediate_size"]
        experts = ExpertsSpec(count=4, active=2, shared=0, width=inner, base_width=base_inner, balance="none",
                              balance_weight=0.0, router_z_weight=0.0)  # fmt: skip
    decoder = Decoder(decoder_like(spec, 16, 2, experts), members=1, seq_len=SEQ_LEN)
    assert vars(choose_multipliers(decoder.spec)) == pytest.approx(vars(choose_multipliers(spec)))
    model = build(spec)
    copy_weights(model, decoder)
    with torch.no_grad():
        ours, theirs = decoder(IDS), model(IDS)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("tied_head", [False, True])
def test_a_llama_is_counted_as_our_decoder_of_its_shape(tied_head: bool) -> None:
    spec = make_causal_lm("llama", width=64, depth=3, tie_word_embeddings=tied_head)
    shape = ModelShape(
        width=64, depth=3, head_size=8, ffn_width=160, vocab_size=97, tied_head=tied_head, queries_per_key=2
    )
    for name in ("params_total", "params_non_embedding", "params_active", "activation_ratio"):
        assert getattr(spec.shape, name) == getattr(shape, name), name
    assert spec.shape.flops_per_token(SEQ_LEN) == shape.flops_per_token(SEQ_LEN)


@pytest.mark.parametrize(("model_type", "shared"), [("mixtral", 0), ("qwen2_moe", 2)])
def test_a_mixture_is_counted_as_our_experts_of_its_shape(model_type: str, shared: int) -> None:
    fields = {"intermediate_size": "1xwidth"} if model_type == "mixtral" else {"qkv_bias": False}
    measured = make_causal_lm(model_type, width=64, **fields).shape
    shape = ModelShape(
        width=64, depth=2, head_size=8, ffn_width=0, vocab_size=97, queries_per_key=2,
        experts=4, active_experts=2, shared_experts=shared, expert_width=64,
    )  # fmt: skip
    gates = 2 * 64 if shared else 0  # Qwen's gate of the shared expert, which ours has not
    assert measured.params_total == shape.params_total + gates
    assert measured.params_active == shape.params_active + gates
    assert measured.activation_ratio == pytest.approx(shape.activation_ratio)
    assert measured.flops_per_token(SEQ_LEN) == shape.flops_per_token(SEQ_LEN) + 6 * gates


@pytest.mark.parametrize(
    ("model_type", "branches"),
    [
        ("llama", {"self_attn", "mlp"}),
        ("gpt2", {"attn", "mlp"}),
        ("phi", {"self_attn", "mlp"}),  # both read the same stream
        ("olmo2", {"post_attention_layernorm", "post_feedforward_layernorm"}),  # what is added is normed first
    ],
)
def test_branches_are_what_a_block_adds_to_the_stream(model_type: str, branches: set[str]) -> None:
    spec = make_causal_lm(model_type, depth=3)
    model = build_model(build_config(spec.config))
    names = {module: name for name, module in model.named_modules()}
    found = [names[module].split(".")[-2:] for module in find_branches(model, spec)]
    assert sorted(found) == sorted([str(number), name] for number in range(3) for name in branches)


def test_a_block_that_adds_inside_of_its_parts_is_refused_under_depth_rules() -> None:
    spec = make_causal_lm("llama", depth=4, parametrization="completep")
    model = build_model(build_config(spec.config))
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output + 1.0)
    with pytest.raises(InputError, match=r"LlamaDecoderLayer no modules were found.*use mup"):
        find_branches(model, spec)


def test_an_even_load_costs_what_its_formula_says() -> None:
    """Fedus et al. 2021, equation 4 over k choices: E sum f P is k for chances of 1 / E, whoever is chosen."""
    model = build(make_causal_lm("mixtral", router_aux_loss_coef=0.01))
    with torch.no_grad():
        for router in (module for name, module in model.named_modules() if name.endswith("mlp.gate")):
            router.weight.zero_()
    model.begin_step()
    model(IDS)
    losses = model.auxiliary_losses()
    assert losses is not None
    assert losses.tolist() == pytest.approx([0.01 * 2])
    dense = build(make_causal_lm("llama"))
    dense(IDS)
    assert dense.auxiliary_losses() is None


def test_a_sequence_longer_than_its_positions_is_refused() -> None:
    spec = make_causal_lm("gpt2")
    with pytest.raises(InputError, match=r"config\.n_positions: must be at least \[data\] seq_len = 17, got 16"):
        CausalLM(spec, SEQ_LEN + 1)


@pytest.mark.parametrize(("model_type", "optimizer"), [("llama", "adamw"), ("qwen2_moe", "muon")])
def test_a_run_learns(model_type: str, optimizer: str, make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = make_run(optimizer=optimizer, peak_lr=2**-6, steps=20)
    model = make_causal_lm(model_type, width=64, vocab_size=257, seq_len=run.data.seq_len)
    outcome = train_run(run.model_copy(update={"model": model}), tmp_path, lambda point: None)
    assert outcome.status is RunStatus.COMPLETED
    assert outcome.loss is not None
    assert outcome.loss < 0.7 * math.log(257)
