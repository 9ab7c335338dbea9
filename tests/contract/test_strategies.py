"""What every search strategy promises, asked of each on a planted surface. A new strategy is a line in `CASES`."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.records import CHANGEABLE, Decision, Result, RunOutcome, RunSpec, RunStatus, record_outcome
from foretune.records.history import result_of
from foretune.runners.surface import Surface
from foretune.search import STRATEGIES, Asked, History, ask_search, conclude_search, expect_search
from foretune.search.interface import DecisionChanged, fingerprint_search, score
from foretune.sections import SurfaceSection
from foretune.space import LinearRange, LogRange
from foretune.study import Study, read_study

CORPUS = CorpusFacts("digest", 257, {"code": 0.7, "docs": 0.3}, {"code": 10_000_000, "docs": 10_000_000})
RATES = {"peak_lr": {"low": 1e-3, "high": 0.3}}
BOTH = {**RATES, "weight_decay": {"low": 0.01, "high": 1}}
SIZES = [{"name": f"w{width}", "width": width, "tokens": 102_400} for width in (32, 48)]
MOST_ASKS = 2000
"""A search that is asked more often than this without an end hangs."""


@dataclass(frozen=True)
class Case:
    """A study of a strategy."""

    search: dict[str, Any]
    tables: dict[str, Any] = field(default_factory=dict)

    def read(self, strategy: str, **search: Any) -> Study:
        tables = {
            "study": {"name": "contract", "seed": 7},
            "proxy": {"base_width": 32, "head_size": 16, "depth": 2},
            "scales": SIZES[:1],
            "training": {"batch_tokens": 1024},
            **self.tables,
        }
        return read_study(tables | {"search": {"strategy": strategy, **self.search, **search}})


TREE = [
    {"name": "dense", "space": {"ffn_ratio": [2, 4]}},
    {"name": "moe", "set": {"experts.active": 2}, "space": {"experts.count": [4, 8]}},
]
OPTIMIZERS = [
    {"name": "adamw", "space": {"beta2": {"low": 0.9, "high": 0.99, "scale": "linear"}}},
    {"name": "sgd", "set": {"optimizer": "sgd"}, "space": {"momentum": [0.8, 0.9, 0.95]}},
]
CASES = {
    "grid": Case({"space": {"peak_lr": [1e-3, 0.01, 0.1], "seed": [0, 1]}, "branches": TREE}),
    "points": Case({"space": RATES, "points": [{"scale": "w32", "peak_lr": 0.01}]}),
    "random": Case({"space": {**BOTH, "seed": [0, 1]}, "runs": 5}, {"scales": SIZES}),
    "qmc": Case({"space": BOTH, "branches": TREE, "runs": 6}),
    "tpe": Case({"space": {**RATES, "seed": [0, 1]}, "branches": OPTIMIZERS, "runs": 8, "batch": 2}),
    "gp": Case({"space": RATES, "runs": 6, "batch": 2}, {"scales": SIZES}),
    "halving": Case({"space": BOTH, "runs": 6, "halving": {"min_tokens": 25_600, "reduction": 2}}),
    "pbt": Case({"space": BOTH, "population": {"size": 4, "ready_tokens": 20_480}}),
    "mixture": Case(
        {
            "space": {"mixture": {"minimum": {"code": 0.2}}},
            "objective": {"code": 0.5, "docs": 0.5},
            "runs": 7,
            "batch": 2,
            "mixture": {"initial": 4},
        },
        {"scales": SIZES, "training": {"batch_tokens": 1024, "peak_lr": 0.01}},
    ),
    "autolrs": Case(
        {"space": RATES, "autolrs": {"first_stage": 0.4, "candidates": 3}},
        {"scales": [{**SIZES[0], "tokens": 409_600}], "training": {"batch_tokens": 1024, "schedule": "constant"}},
    ),
    "bilevel": Case(
        {"space": {"seed": [0, 1]}}, {"training": {"batch_tokens": 1024, "peak_lr": 0.01, "mixture_learning": {}}}
    ),
}
Train = Callable[[RunSpec], RunOutcome]


def train(spec: RunSpec) -> RunOutcome:
    """The surface of the replay runner, and a best share of docs in each domain's loss."""
    outcome = Surface(SurfaceSection()).evaluate(spec)
    if outcome.loss is None:
        return outcome
    docs = spec.mixture_at(spec.last_step).get("docs", 0.3)
    learned = {"code": 0.6, "docs": 0.4} if spec.training.mixture_learning else {}
    losses = {"code": outcome.loss * (1 + 0.1 * docs**2), "docs": outcome.loss * (1 + 0.2 * (1 - docs) ** 2)}
    return outcome.model_copy(update={"loss_by_domain": losses, "learned": learned})


def fail(spec: RunSpec) -> RunOutcome:
    return RunOutcome(status=RunStatus.FAILED, reason="out of memory")


def diverge(spec: RunSpec) -> RunOutcome:
    return RunOutcome(status=RunStatus.DIVERGED, reason="loss not finite at step 1")


@dataclass
class Bench:
    """A search under way, and what a ledger would hold of it."""

    study: Study
    results: dict[str, Result] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    specs: dict[str, RunSpec] = field(default_factory=dict)
    executed: list[str] = field(default_factory=list)
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def ask(self) -> Asked:
        """Ask, as the main loop does, and write down what was decided."""
        asked = ask_search(self.study, CORPUS, self.history())
        assert asked.decisions[: len(self.decisions)] == self.decisions, "decisions are appended and never changed"
        assert [item.number for item in asked.decisions] == list(range(len(asked.decisions)))
        stored = [Decision.model_validate_json(item.model_dump_json()) for item in asked.decisions]
        self.decisions = tuple(stored)
        self.specs |= {spec.run_id: spec for spec in asked.specs}
        return asked

    def history(self) -> History:
        return History(dict(self.results), self.decisions, self.kept)

    def missing(self, asked: Asked) -> list[RunSpec]:
        unique = {spec.run_id: spec for spec in asked.specs}
        return [spec for run_id, spec in unique.items() if run_id not in self.results]

    def end(self, spec: RunSpec, how: Train) -> None:
        self.executed.append(spec.run_id)
        self.results[spec.run_id] = result_of(record_outcome(spec, how(spec)))

    def search(self, how: Train = train, *, last_first: bool = False, most: int = MOST_ASKS) -> Bench:
        """Go on until nothing is missing, or so many runs have ended."""
        for _ in range(most):
            asked = self.ask()
            missing = self.missing(asked)
            if not missing:
                assert asked.finished, "nothing runs, and more is to come"
                return self
            self.end(missing[-1 if last_first else 0], how)
        assert most < MOST_ASKS, "no end"
        return self


@pytest.fixture(params=CASES)
def study(request: pytest.FixtureRequest) -> Study:
    return CASES[request.param].read(request.param)


@pytest.fixture
def whole(study: Study) -> Bench:
    """The search, never interrupted; a copy, since a search costs more than a test."""
    found = search_whole(study.search.strategy)
    return Bench(study, dict(found.results), found.decisions, dict(found.specs), list(found.executed))


@cache
def search_whole(name: str) -> Bench:
    return Bench(CASES[name].read(name)).search()


def test_every_strategy_is_here() -> None:
    assert set(CASES) == set(STRATEGIES)


def test_a_sound_study_has_no_problems(study: Study) -> None:
    assert STRATEGIES[study.search.strategy].find_problems(study, CORPUS) == []
    assert read_study(study.snapshot()) == study


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"doc": 1.0}, r"search\.objective\.doc: no such domain; did you mean 'docs'\? .*: code, docs"),
        ({"code": 0.0, "docs": 0.0}, r"search\.objective: all weights are 0"),
    ],
)
def test_an_objective_that_weighs_nothing_is_refused(study: Study, objective: dict[str, float], said: str) -> None:
    name = study.search.strategy
    with pytest.raises(InputError, match=said):
        ask_search(CASES[name].read(name, objective=objective), CORPUS)


def test_an_objective_needs_the_loss_of_its_domains() -> None:
    result = next(item for item in search_whole("grid").results.values() if item.loss is not None)
    with pytest.raises(InputError, match=r"no held-out loss of domain 'wiki'"):
        score(result, {"docs": 0.5, "wiki": 0.5})


def test_asking_is_a_pure_function_of_the_history(study: Study) -> None:
    bench = Bench(study)
    for _ in range(5):
        history = History(dict(bench.results), bench.decisions)
        first, again = (ask_search(read_study(study.snapshot()), CORPUS, history) for _ in range(2))
        assert first == again
        assert first == ask_search(study, CORPUS, bench.history()), "what was kept changes nothing"
        missing = bench.missing(bench.ask())
        if missing:
            bench.end(missing[0], train)


def test_a_decision_that_means_another_run_by_now_is_refused(whole: Bench) -> None:
    """As under a later version that derives something differently; its results would be missed without a word."""
    named = [item for item in whole.decisions if item.run_id]
    if not named:
        pytest.skip("it decides on no runs, or on what all of them have in common")
    for changed in (named[0], named[-1]):
        decisions = list(whole.decisions)
        decisions[changed.number] = changed.model_copy(update={"run_id": "0" * 16})
        said = f"decision {changed.number} of its search .* was for run 0{{16}}, and now means [0-9a-f]{{16}}"
        with pytest.raises(DecisionChanged, match=said):
            ask_search(whole.study, CORPUS, History(whole.results, tuple(decisions)))


def test_runs_stay_within_the_space(whole: Bench) -> None:
    space = whole.study.search.space
    bounds = {key: (item.low, item.high) for key, item in space.items() if isinstance(item, LogRange | LinearRange)}
    for spec in whole.specs.values():
        for phase in (0, *(phase.start_step for phase in spec.phases)):
            training = spec.training_at(phase)
            for key, (low, high) in bounds.items():
                assert key not in CHANGEABLE or low <= getattr(training, key) <= high
        mixture = spec.mixture_at(spec.last_step)
        assert math.isclose(math.fsum(mixture.values()), 1)
        assert mixture["code"] >= (0.2 if "mixture" in space else 0) - 1e-9


def test_runs_go_on_only_from_runs_that_came_to_their_end(whole: Bench) -> None:
    for run_id in whole.executed:
        spec = whole.specs[run_id]
        if spec.parent_run_id:
            parent = whole.specs[spec.parent_run_id]
            assert parent.keep_state
            assert spec.parent_step == parent.last_step < spec.last_step
            assert whole.results[parent.run_id].status is RunStatus.COMPLETED
            assert whole.executed.index(parent.run_id) < whole.executed.index(run_id)


def test_what_is_asked_for_costs_what_was_expected(whole: Bench) -> None:
    expected = expect_search(whole.study, CORPUS)
    if any(result.loss is None for result in whole.results.values()):
        pytest.skip("a member that diverges is replaced or left, at another cost")
    assert len(expected) == len(whole.executed)
    assert sum(spec.own_flops for spec in expected) == sum(spec.own_flops for spec in whole.specs.values())


@pytest.mark.parametrize("every", [1, 3])
def test_killed_and_started_again_it_ends_the_same(whole: Bench, every: int) -> None:
    """After every so many results the driver dies, and the next begins with what is missing at the other end."""
    ledger = Bench(whole.study)
    for place in range(len(whole.executed) + 1):
        ledger = Bench(read_study(whole.study.snapshot()), dict(ledger.results), ledger.decisions)
        ledger.search(last_first=place % 2 == 1, most=every)
    assert ledger.missing(ledger.ask()) == []
    assert set(ledger.results) == set(whole.results)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_what_was_decided_is_asked_for_whatever_has_come_of_it(whole: Bench, share: float) -> None:
    """A driver that starts knows all decisions before it has looked up a result."""
    rng = random.Random(f"{whole.study.search.strategy} {share}")
    for count in {len(whole.decisions), len(whole.decisions) // 2}:
        results = {key: item for key, item in whole.results.items() if rng.random() < share}
        asked = ask_search(whole.study, CORPUS, History(results, whole.decisions[:count]))
        assert asked.decisions[:count] == whole.decisions[:count]
        conclude_search(whole.study, CORPUS, History(results, asked.decisions))
    if not share:
        asked = ask_search(whole.study, CORPUS, History({}, whole.decisions))
        assert asked.decisions == whole.decisions, "nothing is decided for want of a result"
        known = {spec.run_id for spec in asked.specs} | {item.run_id for item in asked.decisions}
        first = ask_search(whole.study, CORPUS).specs
        assert {spec.run_id for spec in first} <= known, "no result can be looked up of a run that is not named"


def test_asynchronously_it_ends_too(study: Study) -> None:
    loose = CASES[study.search.strategy].read(study.search.strategy, synchronous=False)
    assert Bench(loose).search(last_first=True).executed


@pytest.mark.parametrize("how", [fail, diverge], ids=["failed", "diverged"])
def test_lost_runs_do_not_hang_it(study: Study, how: Train) -> None:
    count = 0

    def every_third(spec: RunSpec) -> RunOutcome:
        nonlocal count
        count += 1
        return how(spec) if count % 3 == 0 else train(spec)

    bench = Bench(study).search(every_third)
    assert bench.executed
    conclude_search(study, CORPUS, bench.history())


@pytest.mark.parametrize("how", [fail, diverge], ids=["failed", "diverged"])
def test_when_all_is_lost_it_ends(study: Study, how: Train) -> None:
    bench = Bench(study).search(how)
    findings = conclude_search(study, CORPUS, bench.history())
    assert findings is None or findings.sentence


def test_findings_are_plain_data_and_a_sentence(whole: Bench) -> None:
    findings = conclude_search(whole.study, CORPUS, whole.history())
    if findings is None:
        pytest.skip("the laws fitted to its runs say it all")
    assert findings.sentence.strip()
    json.dumps([dict(findings.settings), dict(findings.tables), dict(findings.data)], allow_nan=False)
    for rows in findings.tables.values():
        assert rows
        assert all(row.keys() == rows[0].keys() for row in rows), "a table has the same columns in every row"


def test_more_runs_prolong_a_search_and_repeat_nothing(study: Study) -> None:
    name = study.search.strategy
    if "runs" not in CASES[name].search:
        pytest.skip("it does not go by a number of runs")
    before = search_whole(name)
    longer = CASES[name].read(name, runs=study.search.runs + 3)
    assert fingerprint_search(longer, CORPUS) == fingerprint_search(study, CORPUS)
    after = Bench(longer, dict(before.results), before.decisions).search()
    assert set(before.results) < set(after.results)
    assert not set(after.executed) & set(before.executed)
