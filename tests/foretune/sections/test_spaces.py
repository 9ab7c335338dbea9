"""How a space and its branches are written: what is read, what is refused, and what the schema says of it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from foretune.errors import InputError
from foretune.study import Study, read_study

VALIDATOR = jsonschema.Draft202012Validator(Study.model_json_schema())
RATES = {"peak_lr": [0.001, 0.002]}
TREE = [
    {"name": "dense", "set": {"experts": {"count": 0}}, "space": {"ffn_ratio": [2, 4]}},
    {
        "name": "moe",
        "space": {"experts": {"count": [4, 8]}},
        "branches": [
            {"name": "narrow", "set": {"experts.granularity": 4}},
            {"name": "wide", "space": {"experts.active": {"low": 1, "high": 3, "scale": "linear"}}},
        ],
    },
]


def raw_study(space: dict[str, Any], branches: list[dict[str, Any]] | None = None, **tables: Any) -> dict[str, Any]:
    search = {"space": space} | ({"branches": branches} if branches else {})
    return {
        "study": {"name": "space"},
        "proxy": {"base_width": 64, "head_size": 16},
        "scales": [{"name": "w64", "width": 64, "tokens": 102_400}],
        "training": {"batch_tokens": 1024},
        "search": search,
    } | tables


@pytest.mark.parametrize(
    ("space", "branches"),
    [
        (RATES, TREE),
        ({"peak_lr": {"low": 1e-3, "high": 0.1, "scale": "log"}, "final_lr_fraction": [0, 0.1]}, None),
        ({**RATES, "beta2": {"low": "0.9", "high": 0.99, "step": 0.03, "scale": "linear"}}, None),
        ({**RATES, "mixture": {"minimum": {"code": 0.1}, "maximum": {"code": 0.5}, "points": 7}}, None),
        ({**RATES, "mixture": [{"code": 0.5, "docs": 0.5}, {"code": 1}]}, None),
        ({"peak_lr": {"rule": "sqrt", "of": "batch_tokens", "coefficient": 0.001}, "batch_tokens": [1024]}, None),
        ({**RATES, "experts.count": [4, 8], "activation": ["relu2", "swiglu"]}, None),
        ({**RATES, "experts": {"count": [4, 8], "granularity": {"low": 2, "high": 8}}}, None),
    ],
)
def test_spaces_read_back_and_are_valid_by_the_schema(space: Any, branches: Any) -> None:
    raw = raw_study(space, branches)
    study = read_study(raw)
    assert read_study(study.snapshot()) == study
    for plain in (raw, study.snapshot()):
        assert [error.message for error in VALIDATOR.iter_errors(plain)] == []


def test_a_tree_is_its_ways_down() -> None:
    leaves = read_study(raw_study(RATES, TREE)).search.leaves()
    assert [leaf.name for leaf in leaves] == ["dense", "moe/narrow", "moe/wide"]
    assert leaves[0].axis("experts.count") == (0,)
    assert leaves[1].axis("experts.granularity") == (4.0,)
    assert leaves[2].axis("experts.active") == (1, 2, 3)
    assert leaves[2].places["experts.active"] == "search.branches.moe.branches.wide.space.experts.active"
    assert all(leaf.axis("peak_lr") == (0.001, 0.002) for leaf in leaves)


def test_axes_are_those_of_all_branches_each_value_once() -> None:
    search = read_study(raw_study(RATES, TREE)).search
    assert search.axis("experts.count") == (0, 4, 8)
    assert search.axis("peak_lr") == (0.001, 0.002)
    assert search.axis("seed") == ()


def test_whole_numbers_are_the_values_of_their_grid() -> None:
    search = read_study(raw_study({**RATES, "batch_tokens": {"low": 1024, "high": 8192}})).search
    assert search.axis("batch_tokens") == (1024, 2048, 4096, 8192)
    assert search.leaves()[0].extremes("batch_tokens") == (1024, 2048, 4096, 8192)
    assert read_study(raw_study({"peak_lr": {"low": 1e-3, "high": 5e-3}})).search.leaves()[0].extremes("peak_lr") == (
        1e-3,
        5e-3,
    )


@pytest.mark.parametrize(
    ("space", "branches", "said"),
    [
        ({"peek_lr": [1]}, None, "search.space.peek_lr: unknown dimension; a space may vary activation, batch_tokens"),
        ({"peek_lr": [1]}, None, "did you mean 'peak_lr'?"),
        (
            {"peak_lr": {"low": 1, "high": 2, "scale": "linea"}},
            None,
            "peak_lr.scale: Input should be 'log', got 'linea'",
        ),
        (
            {"peak_lr": {"low": -1, "high": 0.1, "scale": "linear"}},
            None,
            "peak_lr: input should be greater than 0, got -1",
        ),
        ({"peak_lr": {"low": 1e-3, "high": 3}}, None, "search.space.peak_lr: must lie in [1e-7, 0.5], got 3"),
        (
            {**RATES, "batch_tokens": {"low": 1024, "high": 4096, "factor": 1.3}},
            None,
            "search.space.batch_tokens: its values are whole numbers, got 1331.2 among them; take a whole low",
        ),
        ({**RATES, "batch_tokens": {"rule": "sqrt", "of": "tokens", "coefficient": 1}}, None, "does not follow a rule"),
        ({**RATES, "mixture": [{"code": 0.5, "docs": 0.6}]}, None, "mixture: mixture shares must sum to 1, got 1.1"),
        ({**RATES, "mixture": [0.5]}, None, "search.space.mixture: a mixture is a table of shares"),
        ({**RATES, "experts.count": [2, 4], "experts.active": [1, 3]}, None, "active must not exceed count = 2, got 3"),
        ({**RATES, "experts.active": [1]}, None, "experts.active: there are no experts; give experts.count beside it"),
        (
            {**RATES, "experts.count": [0, 4], "experts.active": [1, 2]},
            None,
            "search.space.experts.active: a dense feed-forward (experts.count = 0) does without it",
        ),
        (
            {**RATES, "experts.count": [4], "experts.granularity": [100]},
            None,
            "100 asks for experts of inner size 1.28",
        ),
        ({**RATES, "queries_per_key": [1, 3]}, None, "cannot share keys in groups of queries_per_key = 3"),
        (
            {"peak_lr": {"rule": "sqrt", "of": "batch_token", "coefficient": 1}},
            None,
            "search.space.peak_lr.of: no number 'batch_token' to follow; did you mean 'batch_tokens'?",
        ),
        (
            {
                "peak_lr": {"rule": "linear", "of": "weight_decay", "coefficient": 1},
                "weight_decay": {"rule": "linear", "of": "peak_lr", "coefficient": 1},
            },
            None,
            "peak_lr.of: the rules go round in a circle, peak_lr -> weight_decay -> peak_lr",
        ),
        (
            {**RATES, "weight_decay": {"rule": "linear", "of": "timescale", "coefficient": 1}},
            None,
            "search.space.weight_decay: follows timescale, which has no value",
        ),
        (
            RATES,
            [{"name": "a", "space": {"peak_lr": [1]}}],
            "branches.a.space.peak_lr: is also given above this branch",
        ),
        (RATES, [{"name": "a", "set": {"eps": 1}, "space": {"eps": [1]}}], "branches.a.set.eps: is also searched"),
        (RATES, [{"name": "a"}, {"name": "a"}], "search.branches: name 'a' is used twice"),
        (RATES, [{"name": "a", "space": {"seed": [1]}}], "branches.a.space.seed: seeds repeat every run of a search"),
        (RATES, [{"name": "a", "set": {"optimizer": "adam"}}], "search.branches.0.set.optimizer: must be one of adamw"),
        (
            RATES,
            [{"name": "sgd", "set": {"optimizer": "sgd"}, "space": {"beta2": [0.9]}}, {"name": "adamw"}],
            "search.branches.sgd.space.beta2: the optimizer 'sgd' does without it",
        ),
        (
            RATES,
            [{"name": "sgd", "set": {"optimizer": "sgd", "momentum": 1.5}}],
            "search.branches.sgd.set.momentum: input should be less than 1, got 1.5",
        ),
    ],
)
def test_bad_spaces_are_refused_with_what_to_try(space: Any, branches: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        read_study(raw_study(space, branches))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("space", "branches"),
    [
        ({"mixture": [0.5]}, None),
        ({"peak_lr": {"low": 1, "high": 2, "scale": "linea"}}, None),
        ({"batch_tokens": {"rule": "sqrt", "of": "tokens", "coefficient": 1}}, None),
        ({"experts": {"counts": [1]}}, None),
        (RATES, [{"space": {}}]),
        (RATES, [{"name": "a", "set": {"optimizer": "adam"}}]),
    ],
)
def test_the_schema_refuses_them_too(space: Any, branches: Any) -> None:
    assert not VALIDATOR.is_valid(raw_study(space, branches))
    with pytest.raises(InputError):
        read_study(raw_study(space, branches))


def test_a_transformers_model_has_a_config_of_its_own() -> None:
    proxy = {"architecture": "transformers", "base_width": 64, "head_size": 16, "config": {"model_type": "llama"}}
    with pytest.raises(InputError, match=r"search.space.activation: describes the decoder of this package; remove it"):
        read_study(raw_study({**RATES, "activation": ["relu2"]}, proxy=proxy))
