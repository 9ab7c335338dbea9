"""What changes weights along a run is resolved as it is written, and refused where it cannot be trained."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.records import RunSpec
from foretune.study import Study, read_study

CORPUS = CorpusFacts("digest", 257, {"code": 0.75, "docs": 0.25}, {"code": 10**9, "docs": 10**9})


def make_study(tables: dict[str, Any] | None = None, **training: Any) -> Study:
    study: dict[str, Any] = {
        "study": {"name": "test"},
        "proxy": {"base_width": 32, "head_size": 8},
        "scales": [{"name": "w32", "width": 32, "tokens": 65_536}],
        "data": {"seq_len": 64},
        "training": {"batch_tokens": 1024, "peak_lr": 2**-6, **training},
        "search": {"space": {"seed": [0]}},
    }
    return read_study(study | (tables or {}))


def resolve(study: Study, corpus: CorpusFacts = CORPUS, **point: Any) -> RunSpec:
    return resolve_run(study, study.scales[0], point, corpus)


def test_reweighting_is_resolved_in_steps() -> None:
    training = resolve(make_study(reweighting="extremes", reweighting_temperature=0.4)).training
    assert (training.reweighting, training.reweighting_temperature) == ("extremes", 0.4)
    assert training.reweighting_burn_in_steps == 3  # a twentieth of 64


def test_reweighting_is_searched_like_other_settings() -> None:
    space = {"reweighting": ["none", "linupper"], "reweighting_temperature": [0.5, 1.0]}
    study = make_study({"search": {"space": space}})
    ids = {
        resolve(study, reweighting=kind, reweighting_temperature=temperature).run_id
        for kind in study.search.axis("reweighting")
        for temperature in study.search.axis("reweighting_temperature")
    }
    assert len(ids) == 3  # a temperature of nothing is no other run


def test_a_learned_mixture_is_resolved_with_weights_that_sum_to_one() -> None:
    learning = {"objective": {"docs": 3.0, "code": 1.0}, "reference_share": 0.3}
    run = resolve(make_study(mixture_learning=learning))
    learned = run.training.mixture_learning
    assert learned is not None
    assert learned.objective == {"code": 0.25, "docs": 0.75}
    assert learned.reference_share == 5 / 16  # of 16 sequences
    assert learned.logit_lr * run.training.steps == pytest.approx(10)
    assert run.compute_flops == pytest.approx(2 * (1 + 5 / 16) * resolve(make_study()).compute_flops)


def test_dropout_is_searched_like_other_settings() -> None:
    study = make_study({"search": {"space": {"dropout": [0.0, 0.1]}}})
    plain, dropped = (resolve(study, dropout=rate) for rate in study.search.axis("dropout"))
    assert plain.run_id == resolve(make_study()).run_id
    assert dropped.training.dropout == 0.1
    assert dropped.compute_flops == plain.compute_flops


def test_self_tuning_is_resolved_for_the_mixture_of_the_run() -> None:
    tuning = {"dropout": 0.2, "reference_share": 0.3, "warmup": 0.25, "tune_steps": 3}
    run = resolve(make_study(self_tuning=tuning))
    tuned = run.training.self_tuning
    assert tuned is not None
    assert tuned.objective == {"code": 0.75, "docs": 0.25}
    assert tuned.start == {"dropout": 0.2}
    assert tuned.reference_share == 5 / 16  # of 16 sequences
    assert tuned.warmup_steps == 16  # of 64
    assert run.compute_flops == pytest.approx((1 + 1.5 * 5 / 16) * resolve(make_study()).compute_flops)
    wanted = resolve(make_study(self_tuning={"l2": 1e-4, "objective": {"docs": 2.0}})).training.self_tuning
    assert wanted is not None
    assert wanted.objective == {"code": 0.0, "docs": 1.0}
    assert wanted.start == {"dropout": 0.1, "l2": 1e-4}


def test_a_fixed_dropout_goes_with_a_tuned_penalty() -> None:
    training = resolve(make_study(dropout=0.2, self_tuning={"dropout": 0, "l2": 1e-4})).training
    assert training.dropout == 0.2
    assert training.self_tuning is not None
    assert training.self_tuning.start == {"l2": 1e-4}


def test_an_objective_of_self_tuning_names_domains_of_the_corpus() -> None:
    with pytest.raises(InputError, match=r"self_tuning\.objective\.maths: no such domain.*code, docs"):
        resolve(make_study(self_tuning={"objective": {"maths": 1.0}}))


TRANSFORMERS = {"base_width": 32, "head_size": 8, "architecture": "transformers", "config": {"model_type": "llama"}}
EXPERTS = {"base_width": 32, "head_size": 8, "experts": {"count": 4, "active": 2}}


@pytest.mark.parametrize(
    ("training", "tables", "key"),
    [
        ({"reweighting": "linupper", "accumulation_steps": 2}, {}, "training.accumulation_steps"),
        ({"reweighting": "linupper", "mixture_learning": {}}, {}, "training.reweighting"),
        ({"reweighting": "linuper"}, {}, "training.reweighting"),
        ({"reweighting_temperature": 0.4}, {}, "training.reweighting_temperature"),
        ({}, {"search": {"space": {"reweighting_temperature": [0.4, 1.0]}}}, "search.space.reweighting_temperature"),
        ({"mixture_learning": {}, "spikes": "skip"}, {}, "training.spikes"),
        ({"mixture_learning": {}, "accumulation_steps": 2}, {}, "training.accumulation_steps"),
        ({"mixture_learning": {}, "ramp_tokens": 16_384}, {}, "training.ramp_tokens"),
        ({"mixture_learning": {}, "optimizer": "prodigy", "peak_lr": 1.0, "schedule": "constant"},
         {"proxy": {"base_width": 32, "head_size": 8, "parametrization": "standard"}}, "training.mixture_learning"),
        ({"mixture_learning": {}}, {"trainable": "package.module:train"}, "training.mixture_learning"),
        ({"mixture_learning": {}}, {"runner": {"kind": "replay", "table": "runs.csv"}}, "training.mixture_learning"),
        ({"mixture_learning": {}},
         {"proxy": {"base_width": 32, "head_size": 8, "architecture": "transformers",
                    "config": {"model_type": "llama"}}}, "training.mixture_learning"),
        ({"mixture_learning": {"objective": {"docs": 0.0}}}, {}, "training.mixture_learning.objective"),
        ({"mixture_learning": {"penalty": 0}}, {}, "training.mixture_learning.penalty"),
        ({"dropout": 1.0}, {}, "training.dropout"),
        ({}, {"search": {"space": {"dropout": [0.1, 1.5]}}}, "search.space.dropout"),
        ({"dropout": 0.1}, {"proxy": TRANSFORMERS}, "training.dropout"),
        ({}, {"proxy": TRANSFORMERS, "search": {"space": {"dropout": [0.1]}}}, "search.space.dropout"),
        ({"dropout": 0.1, "self_tuning": {}}, {}, "training.dropout"),
        ({"self_tuning": {}}, {"search": {"space": {"dropout": [0.1]}}}, "search.space.dropout"),
        ({"self_tuning": {"dropout": 0}}, {}, "training.self_tuning"),
        ({"self_tuning": {"dropout": 1}}, {}, "training.self_tuning.dropout"),
        ({"self_tuning": {"objective": {"docs": -1.0}}}, {}, "training.self_tuning.objective"),
        ({"self_tuning": {}}, {"proxy": TRANSFORMERS}, "training.self_tuning"),
        ({"self_tuning": {}}, {"proxy": EXPERTS}, "training.self_tuning"),
        ({"self_tuning": {}, "mixture_learning": {}}, {}, "training.self_tuning"),
        ({"self_tuning": {}, "spikes": "skip"}, {}, "training.spikes"),
        ({"self_tuning": {}, "accumulation_steps": 2}, {}, "training.accumulation_steps"),
        ({"self_tuning": {}}, {"trainable": "package.module:train"}, "training.self_tuning"),
        ({"self_tuning": {}}, {"runner": {"kind": "replay", "table": "runs.csv"}}, "training.self_tuning"),
        ({"self_tuning": {}}, {"search": {"strategy": "pbt", "space": {"peak_lr": [0.01, 0.02]}}},
         "training.self_tuning"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_by_its_key(
    training: dict[str, Any], tables: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_study(tables, **training)
    assert any(line.startswith(f"{key}: ") for line in str(caught.value).splitlines()), caught.value


@pytest.mark.parametrize(
    ("learning", "mixture", "message"),
    [
        ({}, {"code": 1.0, "docs": 0.0}, "domain 'docs' has none"),
        ({}, {"code": 1.0}, "at least two"),
        ({"objective": {"maths": 1.0}}, {"code": 0.5, "docs": 0.5}, r"objective\.maths: no such domain.*code, docs"),
    ],
)
def test_mixtures_that_cannot_be_learned_are_refused(
    learning: dict[str, Any], mixture: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve(make_study(mixture_learning=learning), mixture=mixture)
