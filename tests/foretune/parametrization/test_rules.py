"""The table against numbers written out, published recipes, the `mup` package and torch's own Muon."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from foretune.accounting import choose_ffn_width
from foretune.parametrization import GroupRule, choose_multipliers, choose_rules, describe_groups
from foretune.proxies.decoder import Decoder
from foretune.records import DecoderSpec, ExpertsSpec
from foretune.sections import PARAMETRIZATIONS, Optimizer
from foretune_factories import make_spec

OPTIMIZERS = get_args(Optimizer)
ADAM_LIKE = [name for name in OPTIMIZERS if name not in ("sgd", "muon")]


def model_of(**overrides: Any) -> DecoderSpec:
    model = make_spec(**overrides).model
    assert isinstance(model, DecoderSpec)
    return model


def rules_of(optimizer: Optimizer = "adamw", **overrides: Any) -> dict[str, GroupRule]:
    return {rule.name: rule for rule in choose_rules(model_of(**overrides), optimizer)}


def experts_of(width: int, base_width: int, shared: int = 1) -> ExpertsSpec:
    return ExpertsSpec(
        count=4,
        active=2,
        shared=shared,
        width=width,
        base_width=base_width,
        balance="global",
        balance_weight=0.01,
        router_z_weight=0.001,
    )


def test_the_table_at_four_times_the_base_width() -> None:
    rows = rules_of(width=128, ffn_width=344, base_ffn_width=88)
    assert rows["query_key_value"].lr_multiplier == 1 / 4
    assert rows["query_key_value"].weight_decay_multiplier == 4
    assert rows["query_key_value"].init_std == 1 / math.sqrt(128)
    assert rows["attention_output"].init_std == pytest.approx(1 / math.sqrt(4 * 128))
    assert rows["down"].lr_multiplier == 88 / 344
    assert (rows["embedding"].lr_multiplier, rows["embedding"].weight_decay_multiplier) == (1, 1)
    assert (rows["norms"].init_std, rows["norms"].lr_multiplier, rows["norms"].weight_decay_multiplier) == (0, 1, 0)
    assert (rows["head"].init_std, rows["head"].lr_multiplier) == (1 / math.sqrt(32), 1)
    assert choose_multipliers(model_of(width=128)).logits == 1 / 4
    assert choose_multipliers(model_of(width=128)).attention == 1 / math.sqrt(16)


def test_larger_heads_are_scaled_by_their_size_not_its_root() -> None:
    assert choose_multipliers(model_of(width=128, head_size=64)).attention == pytest.approx(math.sqrt(16) / 64)
    standard = model_of(width=128, head_size=64, parametrization="standard")
    assert choose_multipliers(standard).attention == 1 / math.sqrt(64)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"tied_head": True, "qk_norm": True, "queries_per_key": 2},
    {"activation": "relu2", "experts": experts_of(48, 48)},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_all_parametrizations_are_the_same_floats_at_the_base(overrides: dict[str, Any], optimizer: Optimizer) -> None:
    sizes = {"width": 48, "base_width": 48, "head_size": 12, "base_head_size": 12, "ffn_width": 104}
    models = [
        model_of(**sizes, base_ffn_width=104, depth=3, base_depth=3, parametrization=name, **overrides)
        for name in PARAMETRIZATIONS
    ]
    rules = [choose_rules(model, optimizer) for model in models]
    assert all(rule.lr_multiplier == rule.eps_multiplier == 1 for rule in rules[0])
    assert rules == [rules[0]] * 4
    assert [choose_multipliers(model) for model in models] == [choose_multipliers(models[0])] * 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("width", [32, 64, 256, 1024])
def test_learning_rate_times_weight_decay_does_not_depend_on_the_width(width: int, optimizer: Optimizer) -> None:
    rules = choose_rules(model_of(width=width, experts=experts_of(width, 32)), optimizer)
    products = [rule.lr_multiplier * rule.weight_decay_multiplier for rule in rules if rule.kind != "vector"]
    assert products == pytest.approx([1.0] * 9)


@pytest.mark.parametrize("optimizer", ADAM_LIKE)
def test_optimizers_with_steps_of_a_set_size_have_the_rules_of_adam(optimizer: Optimizer) -> None:
    model = model_of(width=128, depth=8, parametrization="completep")
    assert choose_rules(model, optimizer) == choose_rules(model, "adamw")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("shape", ["dense", "grouped-query, tied, relu2", "mixture of experts"])
def test_initial_weights_and_rates_are_those_of_the_mup_package(shape: str, optimizer: Any) -> None:
    pytest.importorskip("mup", reason="the mup package of Yang et al. is not installed")
    from benchmarks.parametrization import compare_with_mup

    rows = compare_with_mup(shape, optimizer)
    assert len(rows) >= 8
    for row in rows:
        for name in ("init_std", "lr", "weight_decay", "readout"):
            ours, theirs = row.get(name, (1.0, 1.0))
            if name == "weight_decay" and row["group"].endswith(("norm", "norms")):
                assert ours == 0  # the package leaves it to the user to exempt gains
            else:
                assert ours == pytest.approx(theirs, rel=1e-6), (row["group"], name)


COMPLETEP = [
    # group, learning rate, weight decay and eps at m = width / base and M = depth / base; alpha is a
    ("embedding", lambda m, M, a: (1, 1, 1 / m)),
    ("query_key_value", lambda m, M, a: (M ** (a - 1) / m, m, M**-a / m)),
    ("attention_output", lambda m, M, a: (M ** (a - 1) / m, m, M**-a / m)),
    ("gate_up", lambda m, M, a: (M ** (a - 1) / m, m, M**-a / m)),
    ("down", lambda m, M, a: (M ** (a - 1) / m, m, M**-a / m)),
    ("norms", lambda m, M, a: (M ** (a - 1), 0, M**-a / m)),
    ("head_norms", lambda m, M, a: (M ** (a - 1), 0, M**-a / m)),
    ("final_norm", lambda m, M, a: (1, 0, 1 / m)),
]
"""What `configure_optimizers` of EleutherAI/nanoGPT-mup computes with `depth_alpha_enabled` (Dey et al. 2025)."""


@pytest.mark.parametrize(("parametrization", "alpha"), [("completep", 1.0), ("depth-mup", 0.5)])
@pytest.mark.parametrize(("m", "M"), [(4, 8), (2, 1), (1, 6), (8, 0.5)])
def test_depth_rules_are_those_of_the_authors_of_completep(
    parametrization: str, alpha: float, m: float, M: float
) -> None:
    sizes = {"base_width": 32, "base_depth": 4, "ffn_width": round(96 * m), "base_ffn_width": 96, "tied_head": True}
    overrides = {"qk_norm": True, "parametrization": parametrization, **sizes}
    rules = rules_of(width=round(32 * m), depth=round(4 * M), **overrides)
    base = rules_of(**{**overrides, "width": 32, "depth": 4, "ffn_width": 96})
    assert set(rules) == {name for name, _ in COMPLETEP}
    for name, expected in COMPLETEP:
        rule = rules[name]
        found = (rule.lr_multiplier, rule.weight_decay_multiplier, rule.eps_multiplier)
        assert found == pytest.approx(expected(m, M, alpha)), name
        # there hidden weights begin at init_std / sqrt(m), those that write among them, at every depth
        growth = m if rule.kind == "hidden" else 1
        assert rule.init_std == pytest.approx(base[name].init_std / math.sqrt(growth)), name
    multipliers = choose_multipliers(model_of(width=round(32 * m), depth=round(4 * M), **overrides))
    assert multipliers.residual == pytest.approx(M**-alpha)
    assert multipliers.logits == pytest.approx(1 / math.sqrt(32) / m)


def test_without_a_depth_rule_writing_matrices_begin_smaller_in_deeper_models() -> None:
    deep, shallow = rules_of(depth=8), rules_of(depth=2)
    for name in ("attention_output", "down"):
        assert deep[name].init_std == pytest.approx(shallow[name].init_std / 2)
    assert deep["gate_up"] == GroupRule(**{**vars(shallow["gate_up"]), "params": deep["gate_up"].params})
    assert choose_multipliers(model_of(depth=8)).residual == 1


def test_sgd_keeps_its_rates_over_the_depth_at_one_half_and_raises_them_at_one() -> None:
    """Yang et al. 2023 (Tensor Programs VI), Table 1: with branches over sqrt(L), SGD's rate does not depend on L."""
    half, one = (rules_of("sgd", depth=8, parametrization=name) for name in ("depth-mup", "completep"))
    for name in ("query_key_value", "down", "norms"):
        assert half[name].lr_multiplier == pytest.approx(1)
        assert one[name].lr_multiplier == pytest.approx(4)
    assert one["embedding"].lr_multiplier == one["final_norm"].lr_multiplier == 1


@pytest.mark.parametrize("group", ["query_key_value", "attention_output", "gate_up", "down"])
def test_updates_of_torchs_muon_keep_their_spectral_norm(group: str) -> None:
    """Yang, Simon and Bernstein 2023: it must grow as sqrt(fan-out / fan-in), which here stays as it is."""
    norms = []
    for width in (32, 64, 256):
        fans = {
            "query_key_value": (3 * width, width),
            "attention_output": (width, width),
            "gate_up": (6 * width, width),
            "down": (width, 3 * width),
        }
        rule = rules_of("muon", width=width, ffn_width=3 * width, base_ffn_width=96)[group]
        weight = torch.nn.Parameter(torch.zeros(fans[group]))
        weight.grad = torch.randn(fans[group], generator=torch.Generator().manual_seed(width))
        torch.optim.Muon([weight], lr=rule.lr_multiplier, weight_decay=0, adjust_lr_fn="match_rms_adamw").step()
        norms.append(float(torch.linalg.matrix_norm(weight.detach(), ord=2)))
    assert norms == pytest.approx([norms[0]] * 3, rel=0.15)  # Newton-Schulz leaves singular values of .7 to 1.2
    assert rule.kind == "hidden"


def test_a_router_is_an_output_layer_and_experts_have_fan_ins_of_their_own() -> None:
    rows = rules_of(width=128, experts=experts_of(48, 16))
    assert (rows["router"].kind, rows["router"].init_std) == ("head", 1 / math.sqrt(32))
    assert rows["router"].lr_multiplier == 1
    assert choose_multipliers(model_of(width=128, experts=experts_of(48, 16))).router == 1 / 4
    assert rows["experts_gate_up"].lr_multiplier == rows["shared_gate_up"].lr_multiplier == 1 / 4
    assert rows["experts_down"].lr_multiplier == rows["shared_down"].lr_multiplier == 1 / 3
    assert rows["experts_down"].init_std == pytest.approx(1 / math.sqrt(4 * 48))
    standard = model_of(width=128, experts=experts_of(48, 16), parametrization="standard")
    assert choose_multipliers(standard).router == 1


SHAPES: list[dict[str, Any]] = [
    {"width": 32},
    {"width": 64, "depth": 3, "qk_norm": True},
    {"width": 48, "tied_head": True, "vocab_size": 500, "activation": "relu2"},
    {"width": 96, "head_size": 24, "depth": 1, "ffn_width": 200, "qk_norm": True, "queries_per_key": 2},
    {"width": 32, "experts": experts_of(24, 24)},
    {"width": 32, "experts": experts_of(24, 24, shared=0), "activation": "relu2"},
]


@pytest.mark.parametrize("overrides", SHAPES, ids=str)
def test_parameters_are_counted_as_they_are_built(overrides: dict[str, Any]) -> None:
    model = model_of(**overrides)
    counted = {row["name"]: row["params"] for row in describe_groups(model)}
    decoder = Decoder(model, members=1, seq_len=16)
    groups, built = decoder.groups(), dict.fromkeys(counted, 0)
    for name, parameter in decoder.named_parameters():
        built[groups[name]] += parameter.numel()
    assert counted == built
    assert model.shape.params_total == sum(built.values())


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_initial_weights_have_the_deviation_of_the_table(parametrization: str) -> None:
    model = model_of(
        width=256,
        ffn_width=choose_ffn_width(256, 8 / 3),
        depth=1,
        vocab_size=512,
        parametrization=parametrization,
        experts=experts_of(64, 32),
    )
    decoder = Decoder(model, members=1, seq_len=16)
    decoder.initialise(0, 3)
    rules, groups = {rule.name: rule for rule in choose_rules(model)}, decoder.groups()
    for name, parameter in decoder.named_parameters():
        rule = rules[groups[name]]
        if rule.init_std:
            tolerance = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
            assert parameter.std().item() == pytest.approx(rule.init_std, rel=tolerance)
        else:
            assert (parameter == 1).all()
