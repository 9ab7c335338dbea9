from __future__ import annotations

import math

import pytest
import torch

from foretune.accounting import choose_ffn_width
from foretune.parametrization import choose_multipliers, choose_rules, describe_groups
from foretune.proxies.model import Proxy
from foretune.records import ModelSpec
from foretune_factories import make_spec


def model_of(**overrides: object) -> ModelSpec:
    return make_spec(**overrides).model


def test_the_table_at_four_times_the_base_width() -> None:
    model = model_of(width=128, ffn_width=344, base_ffn_width=88)
    rows = {rule.name: rule for rule in choose_rules(model)}
    assert rows["query_key_value"].lr_multiplier == 1 / 4
    assert rows["query_key_value"].weight_decay_multiplier == 4
    assert rows["query_key_value"].init_std == 1 / math.sqrt(128)
    assert rows["attention_output"].init_std == pytest.approx(1 / math.sqrt(4 * 128))
    assert rows["down"].lr_multiplier == 88 / 344
    assert (rows["embedding"].lr_multiplier, rows["embedding"].weight_decay_multiplier) == (1, 1)
    assert (rows["norms"].init_std, rows["norms"].lr_multiplier, rows["norms"].weight_decay_multiplier) == (0, 1, 0)
    assert (rows["head"].init_std, rows["head"].lr_multiplier) == (1 / math.sqrt(32), 1)
    assert choose_multipliers(model).logits == 1 / 4
    assert choose_multipliers(model).attention == 1 / math.sqrt(16)


def test_larger_heads_are_scaled_by_their_size_not_its_root() -> None:
    assert choose_multipliers(model_of(width=128, head_size=64)).attention == pytest.approx(math.sqrt(16) / 64)
    standard = model_of(width=128, head_size=64, parametrization="standard")
    assert choose_multipliers(standard).attention == 1 / math.sqrt(64)


@pytest.mark.parametrize("tied_head", [False, True])
def test_both_are_the_same_floats_at_the_base_width(tied_head: bool) -> None:
    pair = [model_of(width=48, base_width=48, head_size=12, base_head_size=12, ffn_width=104, base_ffn_width=104,
                     tied_head=tied_head, parametrization=name) for name in ("standard", "mup")]  # fmt: skip
    assert choose_rules(pair[0]) == choose_rules(pair[1])
    assert choose_multipliers(pair[0]) == choose_multipliers(pair[1])


@pytest.mark.parametrize("width", [32, 64, 256, 1024])
def test_learning_rate_times_weight_decay_does_not_depend_on_the_width(width: int) -> None:
    rules = choose_rules(model_of(width=width))
    products = [rule.lr_multiplier * rule.weight_decay_multiplier for rule in rules if rule.name != "norms"]
    assert products == pytest.approx([1.0] * 6)


SHAPES = [
    {"width": 32},
    {"width": 64, "depth": 3, "qk_norm": True},
    {"width": 48, "tied_head": True, "vocab_size": 500},
    {"width": 96, "head_size": 48, "depth": 1, "ffn_width": 200, "qk_norm": True, "tied_head": True},
]


@pytest.mark.parametrize("overrides", SHAPES, ids=str)
def test_parameters_are_counted_as_they_are_built(overrides: dict[str, object]) -> None:
    model = model_of(**overrides)
    counted = {row["name"]: row["params"] for row in describe_groups(model)}
    proxy = Proxy(model, seq_len=16, seed=0)
    built = {name: sum(p.numel() for p in group) for name, group in proxy.parameters_by_group().items()}
    assert counted == built
    shape = model.shape.count_params()
    assert shape == {
        "embedding": built["embedding"],
        "attention": built["query_key_value"] + built["attention_output"],
        "feed_forward": built["gate_up"] + built["down"],
        "norms": built["norms"],
        "head": built.get("head", 0),
    }
    assert model.shape.params_total == sum(p.numel() for p in proxy.parameters())


@pytest.mark.parametrize("parametrization", ["standard", "mup"])
def test_initial_weights_have_the_deviation_of_the_table(parametrization: str) -> None:
    model = model_of(width=256, depth=1, vocab_size=512, parametrization=parametrization)
    groups = Proxy(model, seq_len=16, seed=3).parameters_by_group()
    for rule in choose_rules(model):
        for parameter in groups[rule.name]:
            if rule.init_std:
                tolerance = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
                assert parameter.std().item() == pytest.approx(rule.init_std, rel=tolerance)
            else:
                assert (parameter == 1).all()


def test_learning_rates_and_weight_decays_are_those_of_the_mup_package() -> None:
    """Against Microsoft's MuAdamW and MuReadout on the same three shapes."""
    mup = pytest.importorskip("mup", reason="the mup package of Yang et al. is not installed")
    proxies = {
        width: Proxy(model_of(width=width, base_width=32, base_ffn_width=88), seq_len=16, seed=0)
        for width in (32, 64, 128)
    }
    model = model_of(width=128, base_width=32, base_ffn_width=choose_ffn_width(32, 8 / 3))
    mup.set_base_shapes(proxies[128], proxies[32], delta=proxies[64], rescale_params=False, do_assert=False)
    optimizer = mup.MuAdamW(proxies[128].parameters(), lr=0.01, weight_decay=0.1)
    theirs = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = proxies[128].parameters_by_group()
    for rule in choose_rules(model):
        for parameter in groups[rule.name]:
            group = theirs[id(parameter)]
            assert group["lr"] == pytest.approx(0.01 * rule.lr_multiplier), rule.name
            if rule.name != "norms":  # the package leaves it to the user to exempt gains
                assert group["weight_decay"] == pytest.approx(0.1 * rule.weight_decay_multiplier), rule.name
    readout = groups["head"][0].infshape.width_mult()
    assert choose_multipliers(model).logits == 1 / readout


def test_weights_are_a_pure_function_of_the_seed() -> None:
    first, again, other = (Proxy(model_of(), seq_len=16, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
