"""Successive halving on a planted surface: who goes on, what it costs, interruptions, fits, and what is refused."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.evidence import gather_observations
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import Decision, Result, RunOutcome, RunSpec, RunStatus, record_outcome, result_of
from foretune.resolution import plan_study, resolve_corpus
from foretune.runners import make_runner
from foretune.runners.surface import Surface
from foretune.search import STRATEGIES, Asked, History, ask_search
from foretune.sections import SurfaceSection
from foretune.study import Study, read_study

CORPUS = CorpusFacts("digest", 257, {"code": 0.6, "docs": 0.4}, {"code": 10_000_000, "docs": 10_000_000})
SURFACE = {"lr_coefficient": 0.1, "lr_params_exponent": {"mup": -0.2}, "lr_tokens_exponent": 0.0, "lr_curvature": 0.02}
HALVING = STRATEGIES["halving"]
STEPS = 162
"""Of the whole run; the stops are at 18 and 54."""
RUNS = 18


def make_study(halving: dict[str, Any] | None = None, **search: Any) -> Study:
    """18 settings, of which 6 go on to the second stop and 2 to the end."""
    table = {"min_tokens": 18 * 1024, "reduction": 3} | (halving or {})
    space = {"peak_lr": {"low": 1e-4, "high": 0.1}}
    return read_study(
        {
            "study": {"name": "halving", "seed": 5},
            "proxy": {"parametrization": "mup", "base_width": 32, "head_size": 16, "depth": 2},
            "scales": [{"name": "w32", "width": 32, "tokens": STEPS * 1024}],
            "training": {"batch_tokens": 1024, "evaluations": 5},
            "data": {"seq_len": 64},
            "runner": {"kind": "replay", "surface": SURFACE},
            "search": {"strategy": "halving", "space": space, "runs": RUNS, "halving": table} | search,
        }
    )


def train(spec: RunSpec) -> RunOutcome:
    return Surface(SurfaceSection(**SURFACE)).evaluate(spec)


def drive(
    study: Study,
    how: Callable[[RunSpec], RunOutcome] = train,
    *,
    turn: Callable[[int], int] = lambda count: 0,
    history: History = History(),  # noqa: B008  # immutable as used here
) -> tuple[list[Asked], History]:
    """Ask and train run by run until nothing is missing; of those missing the one at `turn(how many are missing)`."""
    results: dict[str, Result] = dict(history.results)
    asked = [HALVING.ask(study, CORPUS, history)]
    while missing := [spec for spec in asked[-1].specs if spec.run_id not in results]:
        spec = missing[turn(len(missing))]
        results[spec.run_id] = result_of(record_outcome(spec, how(spec)))
        asked.append(HALVING.ask(study, CORPUS, History(dict(results), asked[-1].decisions)))
    return asked, History(results, asked[-1].decisions)


Driven = tuple[list[Asked], History]


@pytest.fixture(scope="module")
def whole() -> Driven:
    """Levels judged whole, never interrupted."""
    return drive(make_study())


def losses_at(stop_step: int, asked: Asked, history: History) -> dict[float, float]:
    """The loss at a stop by learning rate, lowest first; 0 is the end."""
    found = {
        spec.training.peak_lr: history.results[spec.run_id].loss
        for spec in asked.specs
        if spec.stop_step == stop_step and history.results[spec.run_id].loss is not None
    }
    return dict(sorted(found.items(), key=lambda item: item[1]))  # type: ignore[arg-type, return-value]


def test_the_best_third_goes_on_at_every_stop(whole: Driven) -> None:
    (*_, asked), history = whole
    first, second, end = (losses_at(step, asked, history) for step in (18, 54, 0))
    assert set(second) == set(list(first)[:6])
    assert set(end) == set(list(second)[:2])
    assert [sum(spec.stop_step == step for spec in asked.specs) for step in (18, 54, 0)] == [18, 6, 2]
    assert asked.finished


def test_a_promotion_is_the_same_run_with_a_later_end(whole: Driven) -> None:
    (*_, asked), _ = whole
    by_id = {spec.run_id: spec for spec in asked.specs}
    promoted = [spec for spec in asked.specs if spec.parent_run_id]
    assert len(promoted) == 8
    for spec in promoted:
        parent = by_id[spec.parent_run_id]
        assert (parent.training, parent.seed, parent.last_step) == (spec.training, spec.seed, spec.parent_step)
        assert parent.keep_state
        assert spec.keep_state == spec.is_partial
    assert all(spec.last_step == STEPS for spec in asked.specs if not spec.is_partial)


def test_the_order_of_results_changes_nothing_when_levels_are_judged_whole(whole: Driven) -> None:
    chance = random.Random(0)
    (*_, plain), _ = whole
    (*_, shuffled), _ = drive(make_study(), turn=chance.randrange)
    assert plain.decisions == shuffled.decisions


@pytest.mark.parametrize("synchronous", [True, False])
def test_what_was_decided_is_never_decided_again(synchronous: bool) -> None:
    """A killed driver asks again with the decisions and with fewer results, the newest of them lost."""
    study = make_study(synchronous=synchronous)
    asked, history = drive(study)
    for cut in (5, 17, 18, 22, len(history.results)):
        kept = dict(list(history.results.items())[:cut])
        again = HALVING.ask(study, CORPUS, History(kept, asked[cut].decisions))
        assert again.decisions == asked[cut].decisions
        assert {spec.run_id for spec in again.specs} == {spec.run_id for spec in asked[cut].specs}


def test_asynchronous_promotes_from_the_top_third_of_those_that_ended() -> None:
    """The rule of Li et al. 2020, algorithm 2, replayed from the decisions."""
    study = make_study(synchronous=False, batch=4)
    asked, history = drive(study, turn=random.Random(1).randrange)
    stops = {0: 18, 1: 54}
    arrived: list[str] = []
    for before, after in itertools.pairwise(asked):
        arrived = list(history.results)[: len(arrived) + 1]
        specs = {spec.run_id: spec for spec in after.specs}
        for item in after.decisions[len(before.decisions) :]:
            if item.kind != "promote":
                continue
            rung = [run for run in arrived if specs[run].stop_step == stops[item.details["level"] - 1]]
            ranked = sorted(rung, key=lambda run: history.results[run].loss or math.inf)
            assert item.parent_run_id in ranked[: len(rung) // 3]
    assert (
        max(sum(spec.run_id not in list(history.results)[:n] for spec in item.specs) for n, item in enumerate(asked))
        == 4
    )
    assert asked[-1].finished
    assert losses_at(0, asked[-1], history)


def test_diverged_and_failed_settings_do_not_go_on() -> None:
    def lose(spec: RunSpec) -> RunOutcome:
        if spec.training.peak_lr < 0.01:
            return train(spec)
        return RunOutcome(status=RunStatus.DIVERGED if spec.training.peak_lr < 0.03 else RunStatus.FAILED, reason="-")

    (*_, asked), history = drive(make_study(), lose)
    assert any(result.loss is None for result in history.results.values())
    assert all(spec.training.peak_lr < 0.01 for spec in asked.specs if spec.parent_run_id)
    nothing = drive(make_study(), lambda spec: RunOutcome(status=RunStatus.FAILED, reason="-"))[0][-1]
    assert nothing.finished
    assert len(nothing.specs) == RUNS


def test_a_failed_run_that_was_gone_past_is_not_waited_for_in_the_next_launch() -> None:
    study = make_study()
    worst = max(HALVING.ask(study, CORPUS, History()).specs, key=lambda spec: spec.training.peak_lr).run_id

    def fail_worst(spec: RunSpec) -> RunOutcome:
        return RunOutcome(status=RunStatus.FAILED, reason="-") if spec.run_id == worst else train(spec)

    (*_, asked), history = drive(study, fail_worst)
    final = {run: result for run, result in history.results.items() if result.status.final}
    again = HALVING.ask(study, CORPUS, History(final, history.decisions))
    assert again.finished
    assert {spec.run_id for spec in asked.specs} - {spec.run_id for spec in again.specs} == {worst}


def test_more_runs_go_on_from_what_is_there(whole: Driven) -> None:
    (*_, asked), history = whole
    more, grown = drive(make_study(runs=36), history=history)
    assert more[-1].decisions[: len(asked.decisions)] == asked.decisions
    assert [sum(spec.stop_step == step for spec in more[-1].specs) for step in (18, 0)] == [36, 4]
    assert len(grown.results) - len(history.results) <= 18 + 12 + 4


def test_states_are_kept_as_long_as_they_may_be_gone_on_from(whole: Driven) -> None:
    asked, history = whole
    assert not asked[-1].retained
    for number, (before, after) in enumerate(itertools.pairwise(asked)):
        parents = {spec.parent_run_id for spec in after.specs} - {spec.parent_run_id for spec in before.specs}
        assert parents <= before.retained | {list(history.results)[number]}
    assert max(len(item.retained) for item in asked) == 6


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_settings_are_those_of_the_strategy_of_that_name(sampler: str) -> None:
    begun = HALVING.ask(make_study({"sampler": sampler}), CORPUS, History()).specs
    others = STRATEGIES[sampler].ask(make_study(strategy=sampler), CORPUS, History()).specs
    assert [spec.training.peak_lr for spec in begun] == [spec.training.peak_lr for spec in others]


def test_a_grid_is_tried_whole_with_every_seed() -> None:
    space = {"peak_lr": [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.09, 0.1], "seed": [0, 1]}
    (*_, asked), _ = drive(make_study({"sampler": "grid"}, space=space))
    assert [sum(spec.stop_step == step for spec in asked.specs) for step in (18, 54, 0)] == [18, 6, 2]
    assert {spec.seed for spec in asked.specs if not spec.is_partial} == {0, 1}
    assert len({spec.training.peak_lr for spec in asked.specs if not spec.is_partial}) == 1


def test_a_search_that_is_resumed_finds_all_results_by_its_decisions() -> None:
    """Before it has any: what it asks for and what it decided on name every run, whatever the seed."""
    space = {"peak_lr": {"low": 1e-4, "high": 0.1}, "seed": [0, 1]}
    asked, history = drive(make_study(space=space))
    again = HALVING.ask(make_study(space=space), CORPUS, History({}, history.decisions))
    known = {spec.run_id for spec in again.specs} | {item.run_id for item in again.decisions}
    assert known == set(history.results)
    assert len(known) == 2 * (18 + 6 + 2)
    assert HALVING.ask(make_study(space=space), CORPUS, history).specs == asked[-1].specs


def test_what_is_expected_is_what_it_costs(whole: Driven) -> None:
    study = make_study()
    (*_, asked), _ = whole
    expected = HALVING.expect(study, CORPUS)
    assert sum(spec.own_tokens for spec in expected) == sum(spec.own_tokens for spec in asked.specs)
    assert len(expected) == len(asked.specs)


def test_findings_tell_the_survivor_the_levels_and_what_was_saved(whole: Driven) -> None:
    study = make_study()
    (*_, asked), history = whole
    findings = HALVING.conclude(study, CORPUS, history)
    assert findings is not None
    end = losses_at(0, asked, history)
    assert findings.settings == {"peak_lr": next(iter(end))}
    assert [row["settings"] for row in findings.tables["levels at w32"]] == [18, 6, 2]
    assert [row["gone on with"] for row in findings.tables["levels at w32"]] == [6, 2, 0]
    assert [row["tokens"] for row in findings.tables["settings at w32"]].count(STEPS * 1024) == 2
    cost = 18 * 18 + 6 * 36 + 2 * 108
    assert findings.data["saved_share"]["w32"] == pytest.approx(1 - cost / (18 * STEPS))
    assert HALVING.conclude(study, CORPUS, History()) is None


def test_no_fit_takes_a_stopped_run_for_a_whole_one(tmp_path: Path) -> None:
    study = make_study()
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=tmp_path)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        frame = ledger.runs("halving")
    assert sorted(frame["tokens"].unique()) == [18 * 1024, 54 * 1024, STEPS * 1024]
    assert set(frame["horizon_tokens"]) == {STEPS * 1024}
    observations = gather_observations(frame)
    assert observations.excluded[0].reason == "stopped by a search before the end of their schedule"
    assert observations.excluded[0].runs == 24
    assert len(observations) == 2


def test_a_study_is_planned_with_all_levels(tmp_path: Path) -> None:
    study = make_study()
    plan = plan_study(study, resolve_corpus(study), None)
    assert (len(plan.todo), len(plan.later)) == (18, 8)
    assert plan.tokens == (18 * 18 + 6 * 36 + 2 * 108) * 1024


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"halving": None}, r'search.halving: strategy = "halving" needs it; give min_tokens'),
        ({"halving": {"min_tokens": 8}}, r"first stop at scale 'w32' must come after the warm-up .* got step 1"),
        ({"halving": {"min_tokens": 160_000}}, r"search.halving.min_tokens: 160000 leaves no stop .* at most 55296"),
        ({"runs": 8}, r"search.runs: of 8 settings none comes to the end .* take at least 9"),
        ({"space": {"peak_lr": [0.1, 0.2]}}, r"search.runs: the space has 2 settings, fewer than 18 runs"),
    ],
)
def test_what_cannot_work_is_refused(search: dict[str, Any], message: str) -> None:
    study = make_study(search.get("halving"), **{key: value for key, value in search.items() if key != "halving"})
    if search.get("halving", {}) is None:
        study = study.model_copy(update={"search": study.search.model_copy(update={"halving": None})})
    with pytest.raises(InputError, match=message):
        ask_search(study, CORPUS)


@pytest.mark.parametrize(("key", "value"), [("reduction", 1), ("min_tokens", 0), ("sampler", "tpe")])
def test_values_out_of_range_are_refused_by_the_study(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"search.halving.{key}"):
        make_study({key: value})


def test_decisions_say_what_they_went_by(whole: Driven) -> None:
    (*_, asked), history = whole
    promotions = [item for item in asked.decisions if item.kind == "promote"]
    assert len(promotions) == 8
    for item in promotions:
        assert isinstance(item, Decision)
        assert item.details["loss"] == history.results[item.parent_run_id].loss
