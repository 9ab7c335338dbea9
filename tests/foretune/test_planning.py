"""Planning is pure: ids are hashes of content, the ledger decides what is left, budgets are refused before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.planning import check_budget, find_obstacle, plan_runs
from foretune.records import Phase, RunSpec, RunStatus
from foretune.search import ask_search
from foretune.search.verification import Centre, ask_verification, expect_verification
from foretune.study import Study, read_study

CORPUS = CorpusFacts("digest", 257, {"code": 0.75, "docs": 0.25}, {"code": 10_000_000, "docs": 1_000_000})


def make_study(**changes: Any) -> Study:
    raw: dict[str, Any] = {
        "study": {"name": "grid"},
        "proxy": {"base_width": 32, "head_size": 16},
        "scales": [{"name": f"w{width}", "width": width, "tokens": 100_000} for width in (32, 48, 64)],
        "training": {"batch_tokens": 2048},
        "search": {"space": {"peak_lr": [0.001, 0.002], "parametrization": ["mup", "standard"], "seed": [0, 1]}},
        "verification": {"scale": "w64"},
    }
    return read_study(raw | changes)


def ask(study: Study) -> list[RunSpec]:
    return list(ask_search(study, CORPUS).specs)


def test_grid_leaves_out_the_verification_scale() -> None:
    specs = ask(make_study())
    assert len(specs) == 2 * 2 * 2 * 2
    assert {spec.scale for spec in specs} == {"w32", "w48"}
    assert len({spec.run_id for spec in specs}) == len(specs)


def test_ids_hash_content_and_not_labels() -> None:
    specs = ask(make_study())
    renamed = make_study(study={"name": "other", "question": "?"})
    assert [spec.run_id for spec in ask(renamed)] == [spec.run_id for spec in specs]
    longer = make_study(training={"batch_tokens": 2048, "checkpoint_tokens": 4096})
    assert [spec.run_id for spec in ask(longer)] == [spec.run_id for spec in specs]


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"batch_tokens": 4096}},
        {"training": {"batch_tokens": 2048, "weight_decay": 0.2}},
        {"proxy": {"base_width": 16, "head_size": 16}},
        {"data": {"seq_len": 64}},
        {"trainable": "toy_trainers:train_toy"},
        {"runner": {"kind": "replay", "surface": {}}},
    ],
)
def test_what_decides_the_result_changes_every_id(changes: dict[str, Any]) -> None:
    before = {spec.run_id for spec in ask(make_study())}
    assert before.isdisjoint(spec.run_id for spec in ask(make_study(**changes)))


def test_another_corpus_changes_every_id() -> None:
    other = CorpusFacts("changed", CORPUS.vocab_size, CORPUS.mixture, CORPUS.train_tokens)
    before = {spec.run_id for spec in ask(make_study())}
    assert before.isdisjoint(spec.run_id for spec in ask_search(make_study(), other).specs)


def test_a_spec_survives_json() -> None:
    spec = ask(make_study())[3]
    again = RunSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.run_id == spec.run_id


def test_final_runs_are_done_and_failed_ones_are_tried_again() -> None:
    study = make_study()
    specs = ask(study)
    statuses = {
        specs[0].run_id: RunStatus.COMPLETED,
        specs[1].run_id: RunStatus.DIVERGED,
        specs[2].run_id: RunStatus.FAILED,
    }
    plan = plan_runs(study, [*specs, specs[0]], [], statuses)
    assert {spec.run_id for spec, _ in plan.done} == {specs[0].run_id, specs[1].run_id}
    assert [spec.run_id for spec in plan.todo] == [spec.run_id for spec in specs[2:]]
    assert plan.tokens == sum(spec.training.tokens for spec in specs[2:])


def test_runs_of_a_cell_see_the_same_tokens_at_every_batch() -> None:
    study = make_study(search={"space": {"peak_lr": [0.001], "batch_tokens": [1024, 2048, 4096]}})
    assert {spec.training.tokens for spec in ask(study)} == {102_400}
    odd = make_study(search={"space": {"peak_lr": [0.001], "batch_tokens": [1024, 1152, 1280]}})
    with pytest.raises(InputError, match="no common multiple below"):
        ask(odd)


def test_useless_runs_are_skipped_with_the_reason() -> None:
    scales = [{"name": "tiny", "width": 32, "tokens": 16_384}, {"name": "long", "width": 32, "tokens": 40_000_000}]
    study = make_study(scales=scales, verification={"scale": "tiny"}, search={"space": {"peak_lr": [0.001]}})
    skipped = ask_search(study, CORPUS).skipped
    assert [item.reason for item in skipped] == [
        "10.0 epochs of the 1M tokens of domain docs (data.max_epochs is 4)",
    ]
    tiny, skipped_tiny = ask_verification(study, CORPUS, [Centre("mup", 0.001, 2048)])
    assert tiny == []
    assert {item.reason for item in skipped_tiny} == {"8 steps of 2048 tokens are fewer than 10"}


def test_epochs_are_counted_under_every_mixture_of_a_run() -> None:
    """A quarter of 12M tokens are 3 epochs of the 1M; with three quarters from the middle on, it is 6 of them."""
    scales = [{"name": name, "width": 32, "tokens": 12_000_000} for name in ("w32", "w64")]
    study = make_study(scales=scales, search={"space": {"peak_lr": [0.001]}}, verification={"scale": "w64"})
    (spec,) = ask(study)
    assert find_obstacle(spec, study, CORPUS) == ""
    later = Phase(start_step=spec.training.steps // 2, mixture={"code": 0.25, "docs": 0.75})
    obstacle = find_obstacle(spec.model_copy(update={"phases": (later,)}), study, CORPUS)
    assert obstacle.startswith("6.0 epochs of the 1M tokens of domain docs")


def test_horizon_in_tokens_per_parameter_counts_non_embedding_parameters() -> None:
    scales = [{"name": name, "width": 64, "tokens": "20xN"} for name in ("a", "b")]
    spec = ask(make_study(scales=scales, verification={"scale": "b"}))[0]
    expected = 20 * spec.model.shape.params_non_embedding
    assert expected <= spec.training.tokens < expected + 2048


def test_warmup_and_decay_in_tokens_or_fractions() -> None:
    fraction = ask(make_study(training={"batch_tokens": 2048, "warmup": 0.1, "decay": 0.2}))[0].training
    tokens = ask(make_study(training={"batch_tokens": 2048, "warmup": 10_240, "decay": 20_480}))[0].training
    assert (fraction.steps, fraction.warmup_steps, fraction.decay_steps) == (49, 5, 10)
    assert (tokens.warmup_steps, tokens.decay_steps) == (5, 10)
    cosine = ask(make_study(training={"batch_tokens": 2048, "schedule": "cosine"}))[0].training
    assert cosine.decay_steps == 0


@pytest.mark.parametrize(
    ("budget", "key"), [({"runs": 15}, "runs"), ({"tokens": "1M"}, "tokens"), ({"flops": 1}, "flops")]
)
def test_a_plan_over_the_budget_is_refused(budget: dict[str, Any], key: str) -> None:
    study = make_study(budget=budget)
    with pytest.raises(InputError, match=f"budget.{key}: the plan needs"):
        check_budget(study, plan_runs(study, ask(study), [], {}))


def test_hours_are_refused_too() -> None:
    study = make_study(budget={"hours": 2})
    plan = plan_runs(study, ask(study), [], {})
    check_budget(study, plan, hours=1.9)
    with pytest.raises(InputError, match=r"budget.hours: the plan needs 2.1, the limit is 2"):
        check_budget(study, plan, hours=2.1)


def test_verification_runs_surround_the_prediction() -> None:
    study = make_study()
    specs, _ = ask_verification(study, CORPUS, [Centre("mup", 0.004, 2048)])
    assert sorted({spec.training.peak_lr for spec in specs}) == [0.002, 0.004, 0.008]
    assert {spec.seed for spec in specs} == {0, 1}
    assert {spec.role for spec in specs} == {"verification"}
    assert len(expect_verification(study, CORPUS)) == 2 * len(specs)


def test_a_grid_larger_than_anyone_means_is_refused() -> None:
    many = [{"name": f"s{i}", "width": 32, "tokens": 100_000 + 2048 * i} for i in range(200)]
    space = {"peak_lr": {"low": 1e-5, "high": 1e-2, "factor": 1.01}}
    with pytest.raises(InputError, match="more than 10000"):
        ask(make_study(scales=many, verification={"scale": "s0"}, search={"space": space}))


def test_an_edited_trainer_means_new_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretune.records import hash_module

    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "edited_trainer.py"
    ids = []
    for text in ("def train(): ...", "def train(): return 1"):
        source.write_text(text, encoding="utf-8")
        hash_module.cache_clear()
        ids.append({spec.run_id for spec in ask(make_study(trainable="edited_trainer:train"))})
    assert ids[0].isdisjoint(ids[1])
    with pytest.raises(InputError, match="cannot find module 'no_such_lab"):
        ask(make_study(trainable="no_such_lab.trainer:train"))


def test_a_mended_replay_table_means_new_runs(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    ids = []
    for text in ("loss\n3\n", "loss\n4\n"):
        table.write_text(text, encoding="utf-8")
        ids.append({spec.run_id for spec in ask(make_study(runner={"kind": "replay", "table": str(table)}))})
    assert ids[0].isdisjoint(ids[1])
    with pytest.raises(InputError, match="is no file"):
        ask(make_study(runner={"kind": "replay", "table": str(tmp_path / "none.csv")}))


def with_points(*points: dict[str, Any]) -> Study:
    return make_study(search={"space": {"peak_lr": [0.001, 0.002]}, "points": list(points)})


def test_single_points_come_beside_the_grid_and_each_run_once() -> None:
    alone = ask(make_study(search={"space": {"peak_lr": [0.001, 0.002]}}))
    specs = ask(with_points({"scale": "w32", "peak_lr": 0.001}, {"scale": "w48", "peak_lr": 0.004, "seed": 3}))
    assert {spec.run_id for spec in alone} < {spec.run_id for spec in specs}
    assert len(specs) == len(alone) + 1
    assert (specs[-1].scale, specs[-1].training.peak_lr, specs[-1].seed) == ("w48", 0.004, 3)


def test_a_point_that_would_see_other_tokens_than_its_cell_is_refused() -> None:
    with pytest.raises(InputError, match=r"points\[0\].batch_tokens: must divide the 100352 tokens.*nearest: 12544"):
        ask(with_points({"scale": "w32", "peak_lr": 0.001, "batch_tokens": 12_800}))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"scale": "w64", "peak_lr": 0.001}, "held out for verification"),
        ({"scale": "w99", "peak_lr": 0.001}, "no such scale 'w99'"),
        ({"scale": "w32", "peak_lr": 3.0}, "peak_lr"),
        ({"scale": "w32", "peak_lr": 0.001, "batch_tokens": 100}, "the batch is in tokens"),
    ],
)
def test_points_of_no_use_are_refused(point: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_points(point)


@pytest.mark.parametrize(
    ("training", "space", "said"),
    [
        (
            {"weight_decay": 1000},
            {"peak_lr": [1e-4, 0.002, 0.001]},
            "training.weight_decay: a step at a learning rate of 0.002 would take away 2 times the weights of scale "
            "'w32' (learning rate x weight decay, 1000), and turn their signs; lower it below 500",
        ),
        ({}, {"weight_decay": [0.1, 10], "peak_lr": [0.001, 0.1]}, "search.space.weight_decay: a step at a learning"),
        (
            {"timescale": 1e-9, "peak_lr": 0.001},
            {"seed": [0]},
            "training.timescale: a step at a learning rate of 0.001 would take away 2.04e+07 times the weights of "
            "scale 'w32' (learning rate x weight decay, 2.041e+10), and turn their signs; raise it above 0.0204",
        ),
        ({"peak_lr": 0.001}, {"timescale": [0.1, 0.02]}, "search.space.timescale: a step at"),
    ],
)
def test_a_decay_that_turns_the_signs_of_weights_is_refused(
    training: dict[str, Any], space: dict[str, Any], said: str
) -> None:
    study = make_study(training={"batch_tokens": 2048, **training}, search={"space": space})
    with pytest.raises(InputError) as error:
        ask(study)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changes", "peak_lr"),
    [
        ({"weight_decay": 999}, 0.001),
        ({"timescale": 0.021}, 0.001),
        (
            {"optimizer": "prodigy", "schedule": "constant", "weight_decay": 1},
            1,
        ),  # its rate is multiplied by a distance
    ],
)
def test_a_decay_that_keeps_the_signs_of_weights_is_planned(changes: dict[str, Any], peak_lr: float) -> None:
    proxy = {"base_width": 32, "head_size": 16, "parametrization": "standard"}
    training = {"batch_tokens": 2048, **changes}
    assert ask(make_study(proxy=proxy, training=training, search={"space": {"peak_lr": [peak_lr]}}))


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"warmup": 400_000},
            "training.warmup: its 196 steps are not fewer than the 49 of the run; lower it (below 1 it is a fraction "
            "of the run)",
        ),
        (
            {"warmup": 60_000, "decay": 50_000},
            "training.warmup and training.decay: their 30 and 25 steps do not fit into the 49 of the run, whose "
            "learning rate would never reach the peak; lower one",
        ),
    ],
)
def test_phases_longer_than_the_run_are_skipped_by_their_keys(training: dict[str, Any], said: str) -> None:
    asked = ask_search(make_study(training={"batch_tokens": 2048, **training}), CORPUS)
    specs, skipped = asked.specs, asked.skipped
    assert not specs
    assert {item.reason for item in skipped} == {said}
