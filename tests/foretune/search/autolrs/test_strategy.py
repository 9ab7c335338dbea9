"""AutoLRS on a problem whose best rate is known to decay, and everything that can go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretune.deriving import CorpusFacts
from foretune.records import Result, RunOutcome, RunSpec, RunStatus, record_outcome, result_of
from foretune.search.autolrs.stages import plan_stages
from foretune.search.autolrs.strategy import AutoLRS
from foretune.search.interface import Asked, History
from foretune.search.replaying.schedule import Schedule
from foretune.sections.autolrs import AutoLRSSection
from foretune.study import Study, read_study
from foretune_factories import make_spec
from foretune_quadratic import train, train_at

CORPUS = CorpusFacts("0" * 64, 257, {"code": 1.0}, {"code": 10**9})
BATCH = 1024
STEPS = 600
SEARCH: dict[str, Any] = {
    "space": {"peak_lr": {"low": 0.003, "high": 0.45}},
    "autolrs": {"first_stage": 0.2, "longest_stage": 0.4, "candidates": 7},
}


def make_study(**changes: dict[str, Any]) -> Study:
    """A run of 600 steps, of which 20 warm up; `changes` update tables."""
    tables: dict[str, dict[str, Any]] = {
        "study": {"name": "toy"},
        "proxy": {"base_width": 32, "head_size": 16, "depth": 2},
        "data": {"seq_len": 64},
        "training": {"batch_tokens": BATCH, "schedule": "constant", "warmup": 20 * BATCH, "diagnoses": 0},
        "search": {"strategy": "autolrs", **SEARCH},
    }
    for name, change in changes.items():
        tables[name] = {**tables[name], **change}
    scales = [{"name": "small", "width": 32, "tokens": STEPS * BATCH}]
    return read_study({**tables, "scales": scales, "trainable": "foretune_quadratic:train"})


Trainer = Callable[[RunSpec], RunOutcome]


def train_quietly(spec: RunSpec) -> RunOutcome:
    return train(spec, Path("unused"), lambda point: None)


def finish(spec: RunSpec, outcome: RunOutcome) -> Result:
    return result_of(record_outcome(spec, outcome))


def drive(
    study: Study, trainer: Trainer = train_quietly, history: History | None = None, stop_after: int = 10**6
) -> tuple[Asked, History]:
    """Ask and run one run at a time, as execution does, until nothing more is asked for."""
    history = history or History()
    for _ in range(stop_after):
        asked = AutoLRS().ask(study, CORPUS, history)
        todo = [spec for spec in asked.specs if spec.run_id not in history.results]
        if not todo:
            assert asked.finished
            return asked, history
        results = {**history.results, todo[0].run_id: finish(todo[0], trainer(todo[0]))}
        history = History(results, asked.decisions)
    return AutoLRS().ask(study, CORPUS, history), history


def test_the_schedule_found_decays_and_beats_every_constant_rate() -> None:
    study = make_study()
    _, history = drive(study)
    findings = AutoLRS().conclude(study, CORPUS, history)
    assert findings is not None
    (found,) = findings.data["schedules"]
    rates = [item["peak_lr"] for item in found["rates"][1:]]
    assert len(rates) == 3
    assert all(later < earlier for earlier, later in pairwise(rates))
    constant = min(train_at(lr, STEPS) for lr in np.geomspace(0.003, 0.45, 200))
    assert found["loss"] < constant
    assert findings.settings["schedule"] == found["rates"]


def test_what_the_search_cost_is_counted() -> None:
    """Seven trials of a tenth each, one of which is gone on with: .6 of the training after the warm-up."""
    study = make_study()
    asked, history = drive(study)
    findings = AutoLRS().conclude(study, CORPUS, history)
    assert findings is not None
    (found,) = findings.data["schedules"]
    assert found["search_flops"] == pytest.approx(0.6 * found["training_flops"] * (STEPS - 20) / STEPS, rel=0.02)
    spent = sum(result.spent_flops for result in history.results.values())
    assert spent == pytest.approx(found["search_flops"] + found["training_flops"])
    assert spent == sum(spec.own_flops for spec in asked.specs)
    assert sum(spec.own_flops for spec in AutoLRS().expect(study, CORPUS)) == spent
    assert len({spec.run_id for spec in AutoLRS().expect(study, CORPUS)}) == len(asked.specs)


def test_every_run_goes_on_from_a_run_that_is_the_same_so_far() -> None:
    asked, _ = drive(make_study())
    specs = {spec.run_id: spec for spec in asked.specs}
    for spec in asked.specs:
        if spec.parent_run_id:
            parent = specs[spec.parent_run_id]
            assert parent.last_step == spec.parent_step < spec.last_step
            assert parent.keep_state
            steps = range(parent.last_step)
            assert [parent.training_at(step) for step in steps] == [spec.training_at(step) for step in steps]
    assert [spec.training.steps for spec in asked.specs if not spec.is_partial] == [STEPS]


@cache
def drive_whole(batch: int) -> Asked:
    return drive(make_study(search={"strategy": "autolrs", **SEARCH, "batch": batch}))[0]


@pytest.mark.parametrize("stop_after", [0, 1, 5, 9, 23])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_killed_search_ends_as_one_that_was_not(stop_after: int, batch: int) -> None:
    """Decisions are kept before anything runs, and runs in flight are lost."""
    study = make_study(search={"strategy": "autolrs", **SEARCH, "batch": batch})
    whole = drive_whole(batch)
    asked, history = drive(study, stop_after=stop_after)
    again, _ = drive(study, history=History(history.results, asked.decisions))
    assert [spec.run_id for spec in again.specs] == [spec.run_id for spec in whole.specs]
    assert again.decisions == whole.decisions


def test_rates_that_diverge_are_passed_over() -> None:
    """Beyond 2 / curvature the descent explodes: most of this range does."""
    study = make_study(search={"space": {"peak_lr": {"low": 0.05, "high": 0.5}}, "autolrs": SEARCH["autolrs"]})

    def explode(spec: RunSpec) -> RunOutcome:
        lost = any(phase.settings["peak_lr"] > 0.2 for phase in spec.phases)
        return RunOutcome(status=RunStatus.DIVERGED, reason="too high") if lost else train_quietly(spec)

    asked, history = drive(study, explode)
    (whole,) = [spec for spec in asked.specs if not spec.is_partial]
    assert history.results[whole.run_id].status is RunStatus.COMPLETED
    assert all(phase.settings["peak_lr"] <= 0.2 for phase in whole.phases)
    findings = AutoLRS().conclude(study, CORPUS, history)
    assert findings is not None
    assert findings.tables["Schedules found"][0]["lost"] >= 2


def test_a_stage_that_diverges_is_trained_again_at_the_next_best_rate() -> None:
    lost: list[str] = []

    def lose_first_stage(spec: RunSpec) -> RunOutcome:
        if spec.stop_step > 100 and len(spec.phases) == 1 and not lost:
            lost.append(spec.run_id)
        return RunOutcome(status=RunStatus.DIVERGED, reason="spike") if spec.run_id in lost else train_quietly(spec)

    asked, _ = drive(make_study(), lose_first_stage)
    settled = [item for item in asked.decisions if item.kind == "settle" and item.details["stage"] == 1]
    assert settled[0].run_id == lost[0]
    assert len(settled) == 2
    assert settled[0].details["lr"] != settled[1].details["lr"]
    assert [spec for spec in asked.specs if not spec.is_partial]


def test_failed_runs_hold_nothing_up_and_are_not_tried_again() -> None:
    def fail_some(spec: RunSpec) -> RunOutcome:
        failed = int(spec.run_id, 16) % 3 == 0 and spec.phases
        return RunOutcome(status=RunStatus.FAILED, reason="worker died") if failed else train_quietly(spec)

    study = make_study()
    asked, history = drive(study, fail_some)
    failed = {key for key, result in history.results.items() if result.status is RunStatus.FAILED}
    assert failed
    assert not failed & {spec.run_id for spec in asked.specs}
    launched_again = {key: result for key, result in history.results.items() if result.status is not RunStatus.FAILED}
    again = AutoLRS().ask(study, CORPUS, History(launched_again, asked.decisions))
    assert again.finished
    assert all(spec.run_id in launched_again for spec in again.specs)


def test_a_model_that_is_lost_altogether_ends_the_search() -> None:
    def fail_all(spec: RunSpec) -> RunOutcome:
        return RunOutcome(status=RunStatus.DIVERGED, reason="everything does")

    study = make_study()
    asked, history = drive(study, fail_all)
    assert asked.finished
    assert AutoLRS().conclude(study, CORPUS, history) is None


def test_runs_that_may_be_gone_on_from_are_retained() -> None:
    study = make_study()
    for count in (3, 9, 12):
        asked, history = drive(study, stop_after=count)
        parents = {spec.parent_run_id for spec in asked.specs if spec.run_id not in history.results}
        assert parents <= asked.retained
    assert not drive(study)[0].retained


def test_seeds_are_searched_apart() -> None:
    search = {**SEARCH, "strategy": "autolrs", "space": {**SEARCH["space"], "seed": [0, 1, 2]}}
    study = make_study(search=search)
    asked, history = drive(study)
    assert sorted(spec.seed for spec in asked.specs if not spec.is_partial) == [0, 1, 2]
    findings = AutoLRS().conclude(study, CORPUS, history)
    assert findings is not None
    losses = {row["seed"]: row["loss"] for row in findings.data["schedules"]}
    best = min(losses, key=losses.__getitem__)
    assert f"and seed {best}, the best of 3," in findings.sentence
    assert (
        f"came to {losses[best]:.4f}; the mean of 3 seeds is {np.mean(list(losses.values())):.4f}" in findings.sentence
    )


@pytest.mark.parametrize(("bounds", "end"), [((0.0005, 0.004), "upper"), ((0.003, 0.45), "")])
def test_a_rate_at_an_end_of_the_range_is_told_as_a_bound(bounds: tuple[float, float], end: str) -> None:
    """The best first rate lies within the second range, and above the first."""
    low, high = bounds
    study = make_study(search={"strategy": "autolrs", **SEARCH, "space": {"peak_lr": {"low": low, "high": high}}})
    findings = AutoLRS().conclude(study, CORPUS, drive(study)[1])
    assert findings is not None
    assert (f"is at the {end} end of search.space.peak_lr: a bound, not an optimum" in findings.sentence) == bool(end)
    assert findings.sentence.count("a bound") <= len(findings.settings["schedule"])


def test_trials_are_spread_over_the_range_unless_little_exploration_gathers_them() -> None:
    def try_first_stage(exploration: float) -> tuple[float, float]:
        """How far the logs of the rates scatter, and how far from the best they are in the middle."""
        search = {**SEARCH, "autolrs": {**SEARCH["autolrs"], "candidates": 10, "exploration": exploration}, "batch": 1}
        asked, _ = drive(make_study(search={"strategy": "autolrs", **search}), stop_after=12)
        (best,) = [item.details["lr"] for item in asked.decisions if item.kind == "settle"]
        tried = [item.details["lr"] for item in asked.decisions if item.kind == "try" and item.details["stage"] == 1]
        return float(np.std(np.log(tried))), float(np.median(np.abs(np.log(np.array(tried) / best))))

    spread, distance = try_first_stage(1000.0)
    assert spread > 0.8 * np.log(0.45 / 0.003) / np.sqrt(12)
    assert try_first_stage(0.5)[1] < 0.5 * distance


@cache
def drive_replayed() -> tuple[Asked, History]:
    return drive(make_study(search={"strategy": "autolrs", **SEARCH, "replay": {"seeds": [0, 1]}}))


def test_the_schedule_found_gives_its_loss_again_when_it_is_trained_from_scratch() -> None:
    """The expected loss of the quadratic knows no seed, and the replay with the run's own seed is that run."""
    asked, history = drive_replayed()
    findings = AutoLRS().conclude(make_study(), CORPUS, History(history.results, asked.decisions))
    assert findings is not None
    own, other = findings.tables["schedule trained from scratch"]
    schedule = Schedule.model_validate(findings.data["schedule"])
    (whole,) = findings.data["schedules"]
    assert own["run_id"] == schedule.run_id != other["run_id"]
    assert [own["score"], other["score"]] == [whole["loss"]] * 2 == [schedule.score] * 2
    assert f"{schedule.score:.4f} +- 0.0000 (standard deviation) at small over 2 seeds" in findings.sentence
    assert [phase.settings["peak_lr"] for phase in schedule.phases] == [row["peak_lr"] for row in whole["rates"]]
    assert schedule.phases[1].start_share == 20 / STEPS


def test_a_killed_search_replays_what_one_that_was_not_does() -> None:
    asked, history = drive_replayed()
    study = make_study(search={"strategy": "autolrs", **SEARCH, "replay": {"seeds": [0, 1]}})
    without = {key: result for key, result in history.results.items() if key != asked.specs[-1].run_id}
    again, _ = drive(study, history=History(without, asked.decisions))
    assert again.decisions == asked.decisions
    before = AutoLRS().ask(study, CORPUS, History({}, asked.decisions))
    assert [spec.run_id for spec in before.specs] == [spec.run_id for spec in again.specs]


def test_replays_of_another_winner_are_not_told_as_those_of_this_one() -> None:
    """A second seed wins when the replays of the first are done; without that seed, the first has won again."""

    def favour(spec: RunSpec) -> RunOutcome:
        outcome = train_quietly(spec)
        return outcome.model_copy(update={"loss": (outcome.loss or 0.0) - 0.1 * spec.seed})

    first, history = drive_replayed()
    search = {"strategy": "autolrs", **SEARCH, "replay": {"seeds": [0, 1]}}
    narrow, wide = (
        make_study(search=search),
        make_study(search={**search, "space": {**SEARCH["space"], "seed": [0, 1]}}),
    )
    asked, after = drive(wide, favour, History(history.results, first.decisions))
    (old, new) = ([item for item in asked.decisions if item.kind == "replay"][place:][:2] for place in (0, 2))
    assert {item.run_id for item in old} & {spec.run_id for spec in asked.specs} <= {first.specs[-2].run_id}
    undecided = tuple(item for item in asked.decisions if item not in new)
    between = AutoLRS().conclude(wide, CORPUS, History(after.results, undecided))
    assert between is not None
    assert between.data["schedule"]["run_id"] == new[0].details["schedule"]["run_id"]
    assert "schedule trained from scratch" not in between.tables
    back = AutoLRS().ask(narrow, CORPUS, History(after.results, asked.decisions))
    assert back.decisions == asked.decisions
    assert [spec.run_id for spec in back.specs[-2:]] == [item.run_id for item in old]


def test_what_is_left_of_several_models_holds_nothing_that_is_asked_for() -> None:
    study = make_study(search={"strategy": "autolrs", **SEARCH, "space": {**SEARCH["space"], "seed": [0, 1, 2]}})
    expected = AutoLRS().expect(study, CORPUS)
    for stop_after in (0, 3, 20):
        asked, _ = drive(study, stop_after=stop_after)
        rest = AutoLRS().expect_rest(study, CORPUS, asked, expected)
        ids = [spec.run_id for spec in (*asked.specs, *rest)]
        assert len(ids) == len(set(ids)) == len(expected)


def test_replays_are_reckoned_with() -> None:
    asked, _ = drive_replayed()
    study = make_study(search={"strategy": "autolrs", **SEARCH, "replay": {"seeds": [0, 1]}})
    assert sum(spec.own_flops for spec in AutoLRS().expect(study, CORPUS)) == sum(s.own_flops for s in asked.specs)


def test_stages_double_and_end_with_the_run() -> None:
    training = make_spec(steps=1000, warmup_steps=40, decay_steps=0, schedule="constant").training
    stages = plan_stages(AutoLRSSection(first_stage=0.1, longest_stage=0.4), training)
    assert [(stage.start, stage.stop) for stage in stages] == [(40, 140), (140, 340), (340, 740), (740, 1000)]
    assert [stage.trial_stop - stage.start for stage in stages] == [10, 20, 40, 26]
    merged = plan_stages(AutoLRSSection(first_stage=0.2, longest_stage=0.6), training)
    assert [(stage.start, stage.stop) for stage in merged] == [(40, 240), (240, 640), (640, 1000)]
    by_tokens = plan_stages(AutoLRSSection(first_stage=100 * BATCH, longest_stage=0.4), training)
    assert by_tokens == stages


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("training", {"schedule": "wsd"}, "training.schedule: autolrs makes the schedule itself, got 'wsd'; set"),
        ("search", {"space": {"peak_lr": [0.1, 0.2]}}, "search.space.peak_lr: autolrs needs bounds"),
        (
            "search",
            {"space": {**SEARCH["space"], "weight_decay": [0.1, 0.2]}},
            "search.space.weight_decay: autolrs searches the learning rate alone",
        ),
        ("search", {"objective": {"code": 1.0}}, "search.objective: autolrs forecasts"),
        ("search", {"autolrs": {"first_stage": 0.05}}, "tries rates for 3 of them, fewer than 10"),
    ],
)
def test_a_study_that_cannot_be_searched_is_refused(table: str, change: dict[str, Any], said: str) -> None:
    study = make_study(**{table: change})
    assert any(said in problem for problem in AutoLRS().find_problems(study, CORPUS))


def test_a_good_study_has_no_problems() -> None:
    assert not AutoLRS().find_problems(make_study(), CORPUS)
