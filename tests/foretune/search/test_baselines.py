"""Fixed settings beside a search: what is asked for, and how a search is scored against them."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.records import Result, RunSpec, RunStatus
from foretune.search import History, ask_search, conclude_search, expect_search
from foretune.study import Study, read_study

CORPUS = CorpusFacts("0" * 64, 257, {"code": 1.0}, {"code": 10**9})
NAMES = ["calibrated_nadamw", "schedulefree", "prodigy"]


def make_study(verification: str = "", **search: Any) -> Study:
    checked = {"verification": {"scale": verification}} if verification else {}
    return read_study(
        {
            "study": {"name": "beside"},
            "proxy": {"base_width": 32, "head_size": 16, "depth": 2, "parametrization": "mup"},
            "scales": [{"name": name, "width": width, "tokens": 204_800} for name, width in (("a", 32), ("b", 64))],
            "data": {"seq_len": 64},
            "training": {"batch_tokens": 1024, "timescale": 0.2},
            "search": {"space": {"peak_lr": [0.004, 0.008], "seed": [0, 1]}, "baselines": NAMES, **search},
            **checked,
        }
    )


def list_fixed(study: Study) -> list[RunSpec]:
    return [spec for spec in ask_search(study, CORPUS).specs if spec.role == "baseline"]


def finish(spec: RunSpec, loss: float | None) -> Result:
    status = RunStatus.DIVERGED if loss is None else RunStatus.COMPLETED
    return Result(run_id=spec.run_id, status=status, loss=loss, loss_by_domain={}, tokens=1, spent_flops=10.0, curve=())


def test_the_published_settings_are_trained_at_every_rung_and_seed() -> None:
    fixed = list_fixed(make_study())
    assert len(fixed) == 3 * 2 * 2
    (spec,) = [one for one in fixed if (one.training.optimizer, one.scale, one.seed) == ("nadamw_constant", "b", 1)]
    training = spec.training
    assert training.peak_lr == 0.0017486387539278373
    assert training.beta1 == pytest.approx(0.93266073836)
    assert training.beta2 == 0.9955159689799007
    assert training.weight_decay == 0.08121616522670176, "not that of the study's timescale"
    assert (training.schedule, training.warmup_steps, training.steps) == ("cosine", 4, 200)
    assert spec.model.parametrization == "standard"
    assert {spec.tokens for spec in fixed} == {204_800}


def test_they_have_the_horizon_and_batch_of_the_search_and_their_cost_is_expected() -> None:
    study = make_study()
    asked = ask_search(study, CORPUS)
    assert {spec.training.batch_tokens for spec in asked.specs} == {1024}
    assert {spec.run_id for spec in expect_search(study, CORPUS)} == {spec.run_id for spec in asked.specs}
    assert len({spec.run_id for spec in asked.specs}) == 8 + 12


def test_without_baselines_nothing_is_added() -> None:
    study = make_study(baselines=[])
    assert not list_fixed(study)
    assert conclude_search(study, CORPUS, History()) is None


def test_a_held_out_rung_has_none() -> None:
    assert {spec.scale for spec in list_fixed(make_study(verification="b"))} == {"a"}


def test_the_search_is_scored_against_them() -> None:
    study = make_study()
    asked = ask_search(study, CORPUS)
    losses = {"adamw": 3.0, "nadamw_constant": 3.2, "schedulefree": 3.3, "prodigy": None}
    results = {}
    for spec in asked.specs:
        loss = losses[spec.training.optimizer]
        results[spec.run_id] = finish(spec, None if loss is None else loss + 0.01 * spec.seed)
    findings = conclude_search(study, CORPUS, History(results))
    assert findings is not None
    rows = findings.tables["Against fixed settings"]
    assert len(rows) == 2 * 4
    by_name = {row["settings"]: row for row in rows if row["scale"] == "b"}
    assert by_name["best run of the search"]["score"] == 3.0
    assert by_name["calibrated_nadamw"]["score"] == pytest.approx(3.205)
    assert (by_name["prodigy"]["score"], by_name["prodigy"]["lost"]) == (None, 2)
    assert by_name["best run of the search"]["training_flops"] == 40
    assert "best of 4 runs came to 3.0000; fixed settings: calibrated_nadamw 3.2050" in findings.sentence


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(InputError, match=r"search\.baselines.*calibrated_nadamw"):
        make_study(baselines=["adam"])
