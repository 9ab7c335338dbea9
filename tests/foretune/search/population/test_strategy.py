"""Population-based training on a planted surface: lineages, interruptions, losses, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import Decision, Result, RunOutcome, RunSpec, RunStatus, record_outcome, result_of
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.runners.replay import ReplayRunner
from foretune.runners.surface import Surface
from foretune.search import STRATEGIES, Asked, History
from foretune.search.population.course import plot_course
from foretune.search.population.lineage import Stretch, read_stretches, trace_lineage
from foretune.sections import SurfaceSection
from foretune.study import Study, read_study

CORPUS = CorpusFacts("digest", 257, {"code": 0.6, "docs": 0.4}, {"code": 10_000_000, "docs": 10_000_000})
SURFACE = {"lr_coefficient": 0.1, "lr_params_exponent": {"mup": -0.2}, "lr_tokens_exponent": 0.0, "lr_curvature": 0.02}
POPULATION = {"size": 8, "ready_tokens": 20_480}
SEARCH: dict[str, Any] = {
    "strategy": "pbt",
    "space": {"peak_lr": {"low": 1e-4, "high": 0.1}, "weight_decay": [0.0, 0.1, 0.2]},
    "population": POPULATION,
}
PBT = STRATEGIES["pbt"]


def make_study(search: dict[str, Any] | None = None, **tables: Any) -> Study:
    """100 steps of 1,024 tokens, an occasion every 20, warm-up over at the first."""
    raw = {
        "study": {"name": "population", "seed": 5},
        "proxy": {"parametrization": "mup", "base_width": 32, "head_size": 16, "depth": 2},
        "scales": [{"name": "w32", "width": 32, "tokens": 102_400}, {"name": "w64", "width": 64, "tokens": 204_800}],
        "training": {"batch_tokens": 1024, "evaluations": 5},
        "data": {"seq_len": 64},
        "runner": {"kind": "replay", "surface": SURFACE},
        "search": SEARCH | (search or {}),
    }
    return read_study(raw | tables)


def with_population(**changes: Any) -> dict[str, Any]:
    return {"population": POPULATION | changes}


def train(spec: RunSpec) -> RunOutcome:
    return Surface(SurfaceSection(**SURFACE)).evaluate(spec)


def drive(
    study: Study,
    how: Callable[[RunSpec], RunOutcome] = train,
    *,
    turn: Callable[[int], int] = lambda count: 0,
    corpus: CorpusFacts = CORPUS,
) -> tuple[Asked, History]:
    """Ask and train run by run until nothing is missing; of those missing the one at `turn(how many have ended)`."""
    results: dict[str, Result] = {}
    decisions: tuple[Decision, ...] = ()
    while True:
        asked = PBT.ask(study, corpus, History(dict(results), decisions))
        decisions = asked.decisions
        missing = [spec for spec in asked.specs if spec.run_id not in results]
        if not missing:
            return asked, History(results, decisions)
        spec = missing[turn(len(results)) % len(missing)]
        results[spec.run_id] = result_of(record_outcome(spec, how(spec)))


@pytest.fixture(scope="module")
def whole() -> tuple[Asked, History]:
    """A population, never interrupted."""
    return drive(make_study())


def stretches_of(history: History) -> list[Stretch]:
    return read_stretches(history.decisions)


def test_generations_follow_each_other_and_members_copy_better_ones(whole: tuple[Asked, History]) -> None:
    asked, history = whole
    stretches = stretches_of(history)
    assert len(stretches) == 8 * 5
    assert asked.finished
    assert not asked.retained
    assert [item.stop_tokens for item in stretches[::8]] == [20_480, 40_960, 61_440, 81_920, 102_400]
    copies = [item for item in stretches if item.kind == "exploit"]
    assert len(copies) == 2 * 4, "a quarter of eight on each of four occasions"
    for item in copies:
        seen = [loss for loss in item.seen.values() if loss is not None]
        assert item.seen[item.donor] in sorted(seen)[:2]
        assert item.seen[item.member] in sorted(seen)[-2:]


def test_a_copy_goes_on_from_its_donor_with_the_changed_settings(whole: tuple[Asked, History]) -> None:
    asked, history = whole
    specs = {spec.run_id: spec for spec in asked.specs}
    by_run = {item.run_id: item for item in stretches_of(history)}
    for item in by_run.values():
        spec = specs[item.run_id]
        if item.generation == 1:
            assert (spec.parent_run_id, spec.phases, spec.seed) == ("", (), 5 + item.member)
            continue
        parent, start = by_run[item.parent_run_id], spec.parent_step
        before, now = specs[parent.run_id], spec.training_at(start)
        assert (parent.member, parent.generation) == (item.donor, item.generation - 1)
        assert (before.seed, before.training, before.last_step) == (spec.seed, spec.training, start)
        assert spec.phases[: len(before.phases)] == before.phases
        assert {key: getattr(now, key) for key in ("peak_lr", "weight_decay")} == item.settings
        assert (item.settings == parent.settings) == (item.kind == "continue")


def test_the_learning_rate_after_a_copy_is_the_mutated_one(whole: tuple[Asked, History]) -> None:
    """What restores of optimizer state overwrite elsewhere: the first step of the stretch has the new rate."""
    asked, history = whole
    specs = {spec.run_id: spec for spec in asked.specs}
    changed = 0
    for item in stretches_of(history):
        if item.kind == "exploit" and item.start_tokens < 81_920:  # a wsd schedule is at its peak there
            curve = history.results[item.run_id].curve
            first = next(point for point in curve if point.tokens > item.start_tokens)
            assert (
                first.lr == item.settings["peak_lr"] == specs[item.run_id].phases[-1].settings.get("peak_lr", first.lr)
            )
            changed += 1
    assert changed >= 4


@pytest.mark.parametrize("shift", [3, 7])
def test_the_order_in_which_members_end_changes_nothing(shift: int, whole: tuple[Asked, History]) -> None:
    first, last = whole, drive(make_study(), turn=lambda count: shift * count)
    assert first[0].decisions == last[0].decisions
    assert dict(first[1].results) == dict(last[1].results)


def test_a_better_population_than_its_best_member_alone(whole: tuple[Asked, History]) -> None:
    """On a surface whose best rate lies within the space, copying brings the best and the median closer to it."""
    _, history = whole
    findings = PBT.conclude(make_study(), CORPUS, history)
    assert findings is not None
    rows = findings.tables["generations"]
    assert rows[-1]["best"] <= rows[0]["best"]
    assert rows[-1]["median"] - rows[-1]["best"] < 0.5 * (rows[0]["median"] - rows[0]["best"])
    assert findings.settings == stretches_of(history)[-8:][_best_member(history)].settings


def _best_member(history: History) -> int:
    finals = stretches_of(history)[-8:]
    return min(range(8), key=lambda member: history.results[finals[member].run_id].loss or math.inf)


@pytest.mark.parametrize("status", [RunStatus.DIVERGED, RunStatus.FAILED])
def test_a_lost_member_is_replaced_at_the_next_occasion(status: RunStatus) -> None:
    def lose(spec: RunSpec) -> RunOutcome:
        if spec.seed == 7 and spec.last_step == 20:
            return RunOutcome(status=status, reason="planted")
        return train(spec)

    asked, history = drive(make_study(), lose)
    lost, replaced = (item for item in stretches_of(history) if item.member == 2 and item.generation <= 2)
    assert (replaced.kind, replaced.seen[2]) == ("exploit", None)
    assert replaced.donor != 2
    assert replaced.parent_run_id != lost.run_id
    assert asked.finished
    findings = PBT.conclude(make_study(), CORPUS, history)
    assert findings is not None
    assert "1 stretches were lost and replaced" in findings.sentence


def test_a_failed_run_that_was_gone_past_is_not_tried_again() -> None:
    """In the next launch it has no result, so it could be: the population has replaced it."""

    def fail(spec: RunSpec) -> RunOutcome:
        failed = spec.seed == 7 and spec.last_step == 20
        return RunOutcome(status=RunStatus.FAILED, reason="planted") if failed else train(spec)

    _, history = drive(make_study(), fail)
    final = {key: item for key, item in history.results.items() if item.status.final}
    asked = PBT.ask(make_study(), CORPUS, History(final, history.decisions))
    assert {spec.run_id for spec in asked.specs} == set(final)
    assert asked.decisions == history.decisions


def test_a_population_of_which_nobody_lives_ends() -> None:
    def lose(spec: RunSpec) -> RunOutcome:
        return RunOutcome(status=RunStatus.DIVERGED, reason="planted") if spec.last_step == 40 else train(spec)

    asked, history = drive(make_study(), lose)
    assert asked.finished
    assert len(history.results) == 16
    findings = PBT.conclude(make_study(), CORPUS, history)
    assert findings is not None
    assert "All 8 members were lost (diverged or failed), the last in generation 2" in findings.sentence
    assert all(row["lost"] == 8 for row in findings.tables["generations"][1:])


def test_states_are_kept_as_long_as_a_member_may_go_on_from_them() -> None:
    """Whenever a run begins, the state of its parent is among those that were never given up."""
    study = make_study({"synchronous": False})
    results: dict[str, Result] = {}
    decisions: tuple[Decision, ...] = ()
    given_up: set[str] = set()
    while True:
        asked = PBT.ask(study, CORPUS, History(dict(results), decisions))
        decisions = asked.decisions
        assert not {spec.parent_run_id for spec in asked.specs if spec.run_id not in results} & given_up
        given_up |= set(results) - asked.retained
        missing = [spec for spec in asked.specs if spec.run_id not in results]
        if not missing:
            break
        spec = missing[len(results) * 5 % len(missing)]
        assert spec.parent_run_id in asked.retained | {""}
        results[spec.run_id] = result_of(record_outcome(spec, train(spec)))
    assert given_up, "and those of old generations are given up"


def test_asynchronously_a_member_goes_on_at_once_against_those_who_have_come_as_far() -> None:
    """Always the member that is furthest behind in the list: one runs to the end before the next begins."""
    asked, history = drive(make_study({"synchronous": False}), turn=lambda count: -1)
    stretches = stretches_of(history)
    assert len(stretches) == 40
    assert asked.finished
    for item in stretches:
        if item.generation > 1:
            mates = {other.member for other in stretches if other.generation == item.generation - 1}
            assert set(item.seen) <= mates
    assert [len(item.seen) for item in stretches if item.generation == 2] == list(range(1, 9))
    assert stretches[8].kind == "continue", "the first to arrive has nobody to copy"
    assert any(item.kind == "exploit" for item in stretches)


def test_copies_of_one_state_differ() -> None:
    """With one setting and no draws anew there are two neighbours; several copies of one donor take both."""
    search = {"space": {"peak_lr": {"low": 1e-4, "high": 0.1}}}
    _, history = drive(make_study(search | with_population(size=12, quantile=0.5, resample_probability=0.2)))
    stretches = stretches_of(history)
    assert len({item.run_id for item in stretches}) == len(stretches)


def test_lineages_lead_back_to_a_root(whole: tuple[Asked, History]) -> None:
    _, history = whole
    stretches = stretches_of(history)
    for item in stretches:
        lineage = trace_lineage(item, stretches)
        assert [step.generation for step in lineage] == list(range(1, item.generation + 1))
        assert lineage[0].seed == item.seed
        assert lineage[0].root == item.root
        assert all(later.donor == earlier.member for earlier, later in itertools.pairwise(lineage))


def test_mixtures_change_along_a_run() -> None:
    search = {
        "space": {"mixture": {"minimum": {"docs": 0.1}, "maximum": {"docs": 0.8}}},
        "objective": {"code": 1.0},
    }

    def judge(spec: RunSpec) -> RunOutcome:
        share = spec.mixture_at(spec.last_step - 1)["docs"]
        outcome = train(spec)
        return outcome.model_copy(update={"loss_by_domain": {"code": 3 + (share - 0.3) ** 2, "docs": 0.0}})

    study = make_study(search, training={"batch_tokens": 1024, "peak_lr": 0.01})
    assert PBT.find_problems(study, CORPUS) == []
    asked, history = drive(study, judge)
    shares = [spec.mixture_at(spec.last_step - 1) for spec in asked.specs]
    assert all(0.1 - 1e-9 <= item["docs"] <= 0.8 + 1e-9 and math.isclose(sum(item.values()), 1) for item in shares)
    assert any(len(spec.phases) and spec.phases[-1].mixture for spec in asked.specs)
    findings = PBT.conclude(study, CORPUS, history)
    assert findings is not None
    assert abs(findings.settings["mixture"]["docs"] - 0.3) < 0.1


def test_no_lineage_of_mixtures_goes_too_often_through_a_scarce_domain() -> None:
    """Of 102,400 tokens the best share of docs would be 81,920: more than four times the 15,000 that there are."""
    scarce = CorpusFacts("digest", 257, CORPUS.mixture, {"code": 10_000_000, "docs": 15_000})
    study = make_study(
        {"space": {"mixture": {"minimum": {"docs": 0.1}}}, "objective": {"docs": 1.0}},
        training={"batch_tokens": 1024, "peak_lr": 0.01},
    )

    def judge(spec: RunSpec) -> RunOutcome:
        share = spec.mixture_at(spec.last_step - 1)["docs"]
        return train(spec).model_copy(update={"loss_by_domain": {"code": 0.0, "docs": 3 + (share - 0.8) ** 2}})

    assert PBT.find_problems(study, scarce) == []
    asked, _ = drive(study, judge, corpus=scarce)
    whole = [spec for spec in asked.specs if not spec.is_partial]
    starts = [[0, *(phase.start_step for phase in spec.phases if phase.mixture), spec.last_step] for spec in whole]
    seen = [
        sum((end - begin) * 1024 * spec.mixture_at(begin)["docs"] for begin, end in itertools.pairwise(steps))
        for spec, steps in zip(whole, starts, strict=True)
    ]
    assert max(seen) <= 4 * 15_000
    assert max(seen) > 0.8 * 4 * 15_000, "and it goes to the limit"


class Watcher(ProgressBar):
    """Pulls the plug after so many runs."""

    def __init__(self, stop_after: int) -> None:
        super().__init__(quiet=True)
        self._left = stop_after

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        super().finish_run(spec, outcome)
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        """Print nothing."""


def execute(study: Study, place: Path, every: int) -> tuple[list[Decision], dict[str, float]]:
    """The study in a ledger, its driver interrupted after every so many runs: decisions and losses."""
    while True:
        with open_ledger(place, create=True) as ledger:
            runner = make_runner(study.runner, workspace=place.parent)
            try:
                execute_study(study, ledger, runner, resolve_corpus(study), Watcher(every))
            except KeyboardInterrupt:
                continue
            decisions = ledger.decisions(study.study.name)
            results = ledger.results([item.run_id for item in decisions])
            return decisions, {item.run_id: item.loss or math.inf for item in results}


def test_a_population_killed_again_and_again_ends_with_the_same_lineage(tmp_path: Path) -> None:
    study = make_study(with_population(size=4))
    whole = execute(study, tmp_path / "whole.db", -1)
    assert len(whole[1]) == 20
    for every in (2, 7):
        assert execute(study, tmp_path / f"{every}.db", every) == whole


def test_a_failed_run_that_was_gone_past_is_no_failure_of_the_next_launch(tmp_path: Path) -> None:
    """Else a study that has all that it asks for would end with an error for ever, and its states be kept."""

    class Failing(ReplayRunner):
        def run(self, *args: Any, **options: Any) -> Generator[tuple[RunSpec, RunOutcome]]:
            for spec, outcome in super().run(*args, **options):
                failed = RunOutcome(status=RunStatus.FAILED, reason="planted")
                yield spec, failed if spec.seed == 7 and spec.last_step == 20 else outcome

    study, left = make_study(), []
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        for kind in (Failing, ReplayRunner):
            execute_study(study, ledger, kind(study.runner), resolve_corpus(study), Watcher(-1))
            left.append(len(ledger.failures("population")))
    assert left == [1, 0]


@pytest.mark.parametrize("ready_tokens", range(1024, 2049, 64))
def test_every_generation_trains(ready_tokens: int) -> None:
    stops = plot_course(make_study(with_population(ready_tokens=ready_tokens)), CORPUS).stops
    assert stops[-1] == 100
    assert all(begin < end for begin, end in itertools.pairwise(stops))


FIXED = {"training": {"batch_tokens": 1024, "peak_lr": 0.01}}
SMALL = {"name": "w32", "width": 32, "tokens": 102_400}
VAST = {"name": "vast", "width": 32, "tokens": 102_400_000}
WIDE = {"name": "wide", "width": 32, "tokens": 51_200_000}
MIXED: dict[str, Any] = {"objective": {"code": 1}, **with_population(ready_tokens=20_480_000)}
LISTED = [{"code": 0.5, "docs": 0.5}, {"code": 0.1, "docs": 0.9}]
VAST_ONLY = {**FIXED, "scales": [{**VAST, "tokens": 4_096_000_000}]}


@pytest.mark.parametrize(
    ("search", "tables", "problem"),
    [
        (with_population(scale="w99"), {}, "no such scale 'w99'; scales: w32, w64"),
        (with_population(ready_tokens=512), {}, "ready_tokens: 512 is less than a batch of 1024"),
        (with_population(ready_tokens=102_400), {}, "ready_tokens: 102400 leaves no occasion"),
        (with_population(burn_in_tokens=95_000), {}, "95000 are burn-in and warm-up"),
        ({"space": {"batch_tokens": [1024, 2048]}}, FIXED, "batch_tokens: cannot change along a run: it decides"),
        ({"space": {"parametrization": ["mup"]}}, FIXED, "the shape of the weights"),
        ({"space": {"peak_lr": [0.01]}}, {}, "every dimension has one value"),
        ({"space": {"peak_lr": [0.1, 0.2], "weight_decay": [1, 5]}}, {}, "keep weight_decay below 5"),
        ({"space": {"mixture": {"points": 4}}}, FIXED, "search.objective: needed"),
        ({**MIXED, "space": {"mixture": {"minimum": {"docs": 0.1}}}}, VAST_ONLY, "minimum.docs: a run of 4096000000"),
        ({**MIXED, "space": {"mixture": {}}}, VAST_ONLY, "all domains together fill 0.0195 of the 4096000000 tokens"),
        (
            {**MIXED, "space": {"mixture": LISTED}},
            {**FIXED, "scales": [WIDE]},
            "epochs of the 10M tokens of domain docs",
        ),
        ({"objective": {"code": 1}, **with_population(exploit="ttest")}, {}, "'ttest' goes by the losses along a run"),
        ({}, {"training": {"batch_tokens": 1024, "final_lr": 1e-5}}, "training.final_lr: is turned into"),
        ({}, {"verification": {"scale": "w64"}}, "verification: a population gives no law"),
        ({"replay": {"scales": ["vast"], "seeds": [0]}}, {"scales": [SMALL, VAST]}, "'vast' would be of no use"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(
    search: dict[str, Any], tables: dict[str, Any], problem: str
) -> None:
    found = PBT.find_problems(make_study(search, **tables), CORPUS)
    assert any(problem in line for line in found), found


def test_a_population_without_its_table_is_refused() -> None:
    raw = {key: value for key, value in SEARCH.items() if key != "population"}
    study = make_study()
    bare = study.model_copy(update={"search": type(study.search).model_validate(raw)})
    assert PBT.find_problems(bare, CORPUS) == [
        'search.population: strategy = "pbt" needs it; give size and ready_tokens'
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", 3), ("quantile", 0.6), ("factors", [0.8, 1.2]), ("exploit", "best"), ("ready_tokens", 0)],
)
def test_impossible_rules_are_refused_when_the_file_is_read(key: str, value: object) -> None:
    with pytest.raises(Exception, match=f"search.population.{key}"):
        make_study(with_population(**{key: value}))
