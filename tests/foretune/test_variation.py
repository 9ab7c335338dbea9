"""What a point changes in a study: its model, and the numbers that follow by rules."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts, complete_point, resolve_run
from foretune.errors import InputError
from foretune.records import DecoderSpec, RunSpec
from foretune.search import ask_search
from foretune.study import Study, read_study
from foretune.variation import describe_space, list_rates, vary_proxy

CORPUS = CorpusFacts("digest", 257, {"code": 0.7, "docs": 0.3}, {"code": 10_000_000, "docs": 10_000_000})
RATES = {"peak_lr": [0.001, 0.002]}
TREE = [
    {"name": "dense", "set": {"experts.count": 0}, "space": {"ffn_ratio": [2, 4]}},
    {"name": "moe", "set": {"experts.active": 1}, "space": {"experts.count": [4, 8]}},
]


def read(space: dict[str, Any], branches: list[dict[str, Any]] | None = None, **tables: Any) -> Study:
    base: dict[str, Any] = {
        "study": {"name": "variation"},
        "proxy": {"base_width": 64, "head_size": 16},
        "scales": [{"name": f"w{width}", "width": width, "tokens": 102_400 * width // 64} for width in (64, 128)],
        "training": {"batch_tokens": 1024},
        "search": {"space": space, "branches": branches or []},
    }
    return read_study(base | tables)


def resolve(study: Study, **point: Any) -> RunSpec:
    return resolve_run(study, study.scales[0], point, CORPUS)


def test_a_point_changes_the_model_and_nothing_else_of_the_study() -> None:
    study = read(RATES, TREE)
    plain, wide = resolve(study, peak_lr=0.001), resolve(study, peak_lr=0.001, ffn_ratio=4)
    assert isinstance(plain.model, DecoderSpec)
    assert isinstance(wide.model, DecoderSpec)
    assert (wide.model.ffn_width, wide.model.base_ffn_width) == (256, 256)
    changed = {"ffn_width": plain.model.ffn_width, "base_ffn_width": plain.model.base_ffn_width}
    assert wide.model.model_copy(update=changed) == plain.model
    assert wide.training == plain.training, "runs of a rung see the same tokens whatever their model"


def test_experts_come_and_go() -> None:
    study = read(RATES, TREE)
    experts = vary_proxy(study.proxy, {"experts.count": 8, "experts.active": 1}).experts
    assert experts is not None
    assert (experts.count, experts.active, experts.shared) == (8, 1, 0)
    with_experts = read(RATES, proxy={"base_width": 64, "head_size": 16, "experts": {"count": 4, "granularity": 4}})
    varied = vary_proxy(with_experts.proxy, {"experts.active": 1}).experts
    assert varied is not None
    assert (varied.count, varied.active, varied.granularity) == (4, 1, 4)
    assert vary_proxy(with_experts.proxy, {"experts.count": 0}).experts is None
    assert vary_proxy(with_experts.proxy, {"peak_lr": 1}) is with_experts.proxy


def test_a_grid_over_architectures_has_a_run_for_every_model() -> None:
    specs = ask_search(read(RATES, TREE), CORPUS).specs
    assert len(specs) == 2 * 2 * (2 + 2)  # rungs, rates, and the values of both branches
    first = [spec.model for spec in specs if spec.scale == "w64" and spec.training.peak_lr == 0.001]
    found = [(m.ffn_width, m.experts and m.experts.count) for m in first if isinstance(m, DecoderSpec)]
    assert sorted(found, key=str) == sorted([(128, None), (256, None), (168, 4), (168, 8)], key=str)


def test_numbers_follow_by_rules_of_the_point_the_tables_and_the_rung() -> None:
    space = {
        "batch_tokens": [1024, 4096],
        "peak_lr": {"rule": "sqrt", "of": "batch_tokens", "coefficient": 0.004, "reference": 1024},
        "weight_decay": {"rule": "linear", "of": "peak_lr", "coefficient": 0.1, "reference": 0.004},
        "eps": {"rule": "power", "of": "width", "coefficient": 1e-8, "reference": 64, "exponent": -1},
    }
    study = read(space)
    small, large = study.scales
    point = complete_point(study, small, {"batch_tokens": 4096}, CORPUS)
    assert point == pytest.approx({"batch_tokens": 4096, "peak_lr": 0.008, "weight_decay": 0.2, "eps": 1e-8})
    assert complete_point(study, large, {}, CORPUS)["eps"] == pytest.approx(5e-9)
    assert complete_point(study, small, {}, CORPUS)["peak_lr"] == 0.004, "the batch is that of [training]"
    assert complete_point(study, small, {"peak_lr": 0.1}, CORPUS)["weight_decay"] == pytest.approx(2.5)
    assert {spec.training.peak_lr for spec in ask_search(study, CORPUS).specs} == {0.004, 0.008}
    assert list_rates(study) == ()


def test_a_rate_may_follow_the_horizon() -> None:
    study = read(
        {"peak_lr": {"rule": "power", "of": "tokens", "coefficient": 0.01, "reference": 102_400, "exponent": -0.5}}
    )
    assert [spec.training.peak_lr for spec in ask_search(study, CORPUS).specs] == pytest.approx([0.01, 0.01 / 2**0.5])


def test_a_rule_of_one_branch_is_none_of_another() -> None:
    tied = {"weight_decay": {"rule": "linear", "of": "peak_lr", "coefficient": 100}}
    study = read(RATES, [{"name": "tied", "space": tied}, {"name": "free", "set": {"weight_decay": 0.3}}])
    decays = {spec.training.weight_decay for spec in ask_search(study, CORPUS).specs}
    assert sorted(decays) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            {"peak_lr": {"rule": "linear", "of": "width", "coefficient": 1}},
            "search.space.peak_lr: at scale 'w64' width leads to a rate outside [1e-07, 0.5], 64",
        ),
        (
            {**RATES, "beta2": {"rule": "sqrt", "of": "width", "coefficient": 0.5, "reference": 16}},
            "search.space.beta2: at scale 'w64' width leads to input should be less than 1, got 1.0",
        ),
        (
            {**RATES, "mixture": [{"math": 1.0}]},
            "search.space.mixture: no domain 'math' in the corpus; it has code, docs",
        ),
    ],
)
def test_values_that_cannot_be_are_refused_before_a_run(space: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ask_search(read(space), CORPUS)
    assert said in str(error.value)


def test_a_mixture_of_a_point_has_a_share_for_every_domain() -> None:
    specs = ask_search(read({**RATES, "mixture": [{"code": 1.0}, {"code": 0.2, "docs": 0.8}]}), CORPUS).specs
    assert {tuple(spec.data.mixture.items()) for spec in specs} == {
        (("code", 1.0), ("docs", 0.0)),
        (("code", 0.2), ("docs", 0.8)),
    }


def test_the_space_is_described_branch_by_branch() -> None:
    tied = {"weight_decay": {"rule": "sqrt", "of": "batch_tokens", "coefficient": 0.1, "reference": 1024}}
    rows = describe_space(read({**RATES, "mixture": {"minimum": {"docs": 0.1}, "points": 4}, **tied}, TREE))
    assert [row["branch"] for row in rows] == ["dense"] * 5 + ["moe"] * 5
    told = {row["dimension"]: row["values"] for row in rows[5:]}
    assert told["peak_lr"] == "0.001, 0.002"
    assert told["mixture"] == "4 mixtures, docs >= 0.1"
    assert told["weight_decay"] == "0.1 (batch_tokens / 1024)^0.5"
    assert told["experts.count"] == "4, 8"
    ranged = read({"peak_lr": {"low": 1e-4, "high": 0.1}})
    assert describe_space(ranged)[0]["values"].startswith("0.0001, 0.0002, ")
    drawn = ranged.model_copy(update={"search": ranged.search.model_copy(update={"strategy": "random"})})
    assert describe_space(drawn) == [{"dimension": "peak_lr", "values": "0.0001 to 0.1 (log)"}]
