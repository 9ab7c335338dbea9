"""The search over mixtures on a planted surface, whose best mixture is known in closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.records import Decision, Result, RunSpec, RunStatus, record_outcome, result_of
from foretune.resolution import resolve_corpus
from foretune.runners.surface import Surface
from foretune.search import Asked, ask_search, conclude_search, expect_search
from foretune.search.interface import Findings, History
from foretune.search.mixing.course import Course, read_advice, read_trials
from foretune.search.mixing.strategy import Mixtures
from foretune.study import Study, read_study

DOMAINS = ("code", "docs", "web")
PULL = 1.5
"""How fast the log loss of a domain falls with its own share."""
WEIGHTS = {"code": 0.5, "docs": 0.3, "web": 0.2}
NATURAL = {"code": 0.1, "docs": 0.2, "web": 0.7}
SCALES = {"small": (64, "1M"), "medium": (128, "4M"), "check1": (192, "8M"), "check2": (256, "16M")}
RULES = {"initial": 6, "check_scales": ["check1", "check2"]}

Finish = Callable[[RunSpec], Result]


def make_raw(**search: Any) -> dict[str, Any]:
    """A study of three domains and four scales; `search` replaces keys of `[search]`."""
    mixing = {name: {name: -PULL} for name in DOMAINS}
    return {
        "study": {"name": "mix"},
        "proxy": {"base_width": 64, "head_size": 16},
        "scales": [{"name": name, "width": width, "tokens": tokens} for name, (width, tokens) in SCALES.items()],
        "data": {"mixture": NATURAL, "seq_len": 64},
        "training": {"batch_tokens": 4096, "peak_lr": 0.01},
        "search": {
            "strategy": "mixture",
            "runs": 16,
            "batch": 3,
            "objective": WEIGHTS,
            "space": {"mixture": {}, "seed": [0, 1]},
            "mixture": RULES,
            **search,
        },
        "runner": {"kind": "replay", "surface": {"noise": 0.001, "mixing": mixing}},
    }


def make_study(**search: Any) -> Study:
    return read_study(make_raw(**search))


def best_shares(weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
    """The minimum of sum_d w_d exp(-a r_d) on the simplex, where it is inside: all w_d exp(-a r_d) are equal."""
    logs = {name: math.log(weight) for name, weight in weights.items()}
    middle = math.fsum(logs.values()) / len(logs)
    return {name: 1 / len(logs) + (log - middle) / PULL for name, log in logs.items()}


def expect_objective(shares: Mapping[str, float]) -> float:
    return sum(weight * math.exp(-PULL * shares[name]) for name, weight in WEIGHTS.items())


def finish_by(study: Study) -> Finish:
    surface = Surface(study.runner.surface)  # type: ignore[arg-type]
    return lambda spec: result_of(record_outcome(spec, surface.evaluate(spec)))


class Play:
    """A study played through on the surface; each turn finishes the first `at_once` runs that are asked for."""

    def __init__(self, study: Study, finish: Finish | None = None, decisions: tuple[Decision, ...] = ()) -> None:
        self.study, self.corpus = study, resolve_corpus(study)
        self.finish = finish or finish_by(study)
        self.results: dict[str, Result] = {}
        self.decisions = decisions
        self.most_pending = 0

    @property
    def history(self) -> History:
        return History(dict(self.results), self.decisions)

    def ask(self) -> Asked:
        asked = ask_search(self.study, self.corpus, self.history)
        assert asked.decisions[: len(self.decisions)] == self.decisions
        self.decisions = asked.decisions
        return asked

    def to_end(self, at_once: int = 100, turns: int = 500) -> Findings | None:
        for _ in range(turns):
            asked = self.ask()
            todo = [spec for spec in asked.specs if spec.run_id not in self.results]
            if not todo:
                assert asked.finished
                break
            self.most_pending = max(self.most_pending, len(todo))
            self.results |= {spec.run_id: self.finish(spec) for spec in todo[:at_once]}
        return conclude_search(self.study, self.corpus, self.history)


@pytest.fixture(scope="module")
def played() -> Play:
    play = Play(make_study())
    play.to_end()
    return play


def test_the_planted_optimum_is_recommended(played: Play) -> None:
    others = [Play(read_study({**make_raw(), "study": {"name": "mix", "seed": seed}})) for seed in (1, 2)]
    for play in others:
        play.to_end()
    best = best_shares()
    advices = [read_advice(play.decisions)[-1] for play in (played, *others)]
    excess = [expect_objective(advice.shares) / expect_objective(best) - 1 for advice in advices]
    assert expect_objective(NATURAL) / expect_objective(best) - 1 > 0.15
    assert sorted(excess)[1] < 0.001  # the noise of a run
    assert max(excess) < 0.006
    held = [advice.low[name] <= best[name] <= advice.high[name] for advice in advices for name in DOMAINS]
    assert sum(held) >= 6  # shares of a study are missed together: at 90 % more than one study of three misses in 3 %
    assert all(advice.probability > 0.99 for advice in advices)


def test_the_gain_over_the_natural_mixture_is_the_true_one(played: Play) -> None:
    advice, course = read_advice(played.decisions)[-1], Course(played.study, played.corpus)
    spec = course.resolve(course.target)
    level = Surface(played.study.runner.surface).loss(  # type: ignore[arg-type]
        spec.model.shape.params_non_embedding, spec.tokens, spec.training.peak_lr, spec.training.batch_tokens
    )
    true = level * (expect_objective(NATURAL) - expect_objective(advice.shares))
    assert abs(advice.gain - true) < 4 * advice.gain_sd
    assert advice.gain_sd < 0.1 * true


def test_the_check_is_run_at_both_larger_scales_and_lets_it_be_used(played: Play) -> None:
    asked, findings = played.ask(), conclude_search(played.study, played.corpus, played.history)
    roles = {spec.scale: spec.role for spec in asked.specs}
    assert roles == {"small": "search", "medium": "search", "check1": "verification", "check2": "verification"}
    assert findings is not None
    assert findings.sentence.startswith("Use the recommended mixture (its objective")
    assert findings.settings["mixture"] == read_advice(played.decisions)[-1].shares
    rows = [row for row in findings.tables["check at larger scales"] if row["mixture"] == "recommended"]
    assert [row["verdict"] for row in rows] == ["better", "better"]
    assert sum(row["share of the cost"] for row in findings.tables["cost by scale"]) == pytest.approx(1, abs=1e-3)


def test_few_replicates_leave_open_how_sure_a_gain_is() -> None:
    """Two seeds of the natural mixture at two sizes: two degrees of freedom."""
    play = Play(make_study())
    play.results = {spec.run_id: play.finish(spec) for spec in play.ask().specs}
    findings = conclude_search(play.study, play.corpus, play.history)
    assert findings is not None
    assert "unknown: too few replicates (2 degrees of freedom, at least 3 are needed)" in findings.sentence
    assert "probability" not in findings.sentence


def test_one_seed_is_too_few_to_use_what_is_recommended() -> None:
    rules = {"initial": 6, "fidelities": ["small"], "check_scales": ["check1"], "confirmations": 1}
    findings = Play(make_study(mixture=rules, runs=8, space={"mixture": {}, "seed": [0]})).to_end()
    assert findings is not None
    assert "9 runs ended, all at small." in findings.sentence
    assert "too few replicates at check1" in findings.sentence or "check1: too few replicates" in findings.sentence
    assert findings.sentence.startswith("Keep the natural mixture until more is known")
    assert findings.settings["mixture"] == NATURAL


def test_a_natural_mixture_that_is_best_is_kept() -> None:
    raw = make_raw()
    raw["data"]["mixture"] = {name: round(share, 6) for name, share in best_shares().items()}
    findings = Play(read_study(raw)).to_end()
    assert findings is not None
    assert findings.sentence.startswith(("Keep the natural mixture:", "The natural mixture itself is recommended"))
    assert findings.settings["mixture"] == raw["data"]["mixture"]


@pytest.mark.parametrize("at_once", [1, 5])
def test_whenever_results_arrive_the_same_is_decided(played: Play, at_once: int) -> None:
    other = Play(make_study())
    other.to_end(at_once)
    assert other.decisions == played.decisions


def test_asking_twice_changes_nothing(played: Play) -> None:
    first, second = played.ask(), played.ask()
    assert [spec.run_id for spec in first.specs] == [spec.run_id for spec in second.specs]
    assert first.decisions == second.decisions


def test_runs_that_fail_or_diverge_hold_nothing_up() -> None:
    study = make_study()
    sound = finish_by(study)
    lost = {"code": RunStatus.FAILED, "web": RunStatus.DIVERGED}

    def finish(spec: RunSpec) -> Result:
        result = sound(spec)
        status = next((status for name, status in lost.items() if spec.data.mixture[name] > 0.75), None)
        gone = {"status": status, "loss": None, "loss_by_domain": {}}
        return result.model_copy(update=gone) if status and spec.role == "search" else result

    play = Play(study, finish)
    findings = play.to_end()
    assert findings is not None
    assert any(result.status is RunStatus.FAILED for result in play.results.values())
    assert expect_objective(read_advice(play.decisions)[-1].shares) < expect_objective(NATURAL)


def test_when_every_run_is_lost_the_search_ends_and_says_nothing() -> None:
    study = make_study()
    sound = finish_by(study)
    gone = {"status": RunStatus.DIVERGED, "loss": None, "loss_by_domain": {}}
    play = Play(study, lambda spec: sound(spec).model_copy(update=gone))
    assert play.to_end() is None
    assert len(read_trials(play.decisions)) == 16


def test_a_run_that_failed_in_an_earlier_launch_is_gone_past_by_what_was_decided_after_it(played: Play) -> None:
    again = Play(played.study, decisions=played.decisions)
    lost = next(trial for trial in read_trials(played.decisions) if trial.kind == "design").run_id
    again.results = {key: result for key, result in played.results.items() if key != lost}
    asked = again.ask()
    assert lost not in {spec.run_id for spec in asked.specs}
    assert asked.decisions == played.decisions


def test_without_waiting_no_more_than_a_batch_is_under_way() -> None:
    play = Play(make_study(synchronous=False))
    findings = play.to_end(1)
    assert findings is not None
    begun = 10  # the natural mixture and the design
    assert play.most_pending <= max(begun, 3 * 2 * 2)
    proposed = [trial for trial in read_trials(play.decisions) if trial.kind == "propose"]
    assert len(proposed) == 6
    assert any(not trial.waited for trial in proposed)


def extend(played: Play) -> Play:
    more = Play(make_study(runs=19), decisions=played.decisions)
    more.results = dict(played.results)
    return more


@pytest.fixture(scope="module")
def extended(played: Play) -> Play:
    more = extend(played)
    more.to_end()
    return more


def test_more_runs_go_on_from_what_there_is(played: Play, extended: Play) -> None:
    known = set(played.results)
    fresh = [trial.kind for trial in read_trials(extended.decisions) if trial.run_id not in known]
    assert fresh.count("propose") == 3
    assert {spec.run_id for spec in extended.ask().specs} >= known
    assert len(read_advice(extended.decisions)) == 2


def test_all_that_an_extended_search_decides_is_run(extended: Play) -> None:
    assert {trial.run_id for trial in read_trials(extended.decisions)} == set(extended.results)
    asked = [spec.run_id for spec in extended.ask().specs]
    assert sorted(set(asked)) == sorted(extended.results)


def test_a_recommendation_that_has_changed_is_confirmed_and_checked_anew(extended: Play) -> None:
    first, second = read_advice(extended.decisions)
    assert first.shares != second.shares
    place = [item.kind for item in extended.decisions].index("recommend")
    fresh = read_trials(extended.decisions[place:])
    assert sum(trial.kind == "confirm" for trial in fresh) == 2
    checked = [trial.shares for trial in fresh if trial.mixture == "recommended"]
    assert checked == [first.shares] * 4 + [second.shares] * 4
    findings = conclude_search(extended.study, extended.corpus, extended.history)
    assert findings is not None
    rows = {(row["scale"], row["mixture"]): row["runs"] for row in findings.tables["check at larger scales"]}
    assert set(rows.values()) == {2}


def test_runs_are_counted_where_they_are_there_and_once(extended: Play) -> None:
    """The natural mixture is checked twice, by the same runs; a run that failed before is not there."""
    lost = next(trial for trial in read_trials(extended.decisions) if trial.kind == "design").run_id
    results = {key: result for key, result in extended.results.items() if key != lost}
    findings = conclude_search(extended.study, extended.corpus, History(results, extended.decisions))
    assert findings is not None
    assert sum(row["runs"] for row in findings.tables["cost by scale"]) == len(results)
    told = [row["runs"] for row in findings.tables["objective at medium"] if row["mixture"].startswith("confirmation")]
    assert told == [1, 1]


def test_a_check_that_is_decided_on_anew_is_not_lost(extended: Play) -> None:
    again = next(trial for trial in read_trials(extended.decisions) if trial.mixture == "natural").run_id
    other = Play(extended.study, decisions=extended.decisions)
    other.results = {key: result for key, result in extended.results.items() if key != again}
    assert again in {spec.run_id for spec in other.ask().specs}


def test_an_extended_search_costs_no_more_than_was_said(played: Play, extended: Play) -> None:
    more = extend(played)
    asked = more.ask()
    rest = Mixtures().expect_rest(more.study, more.corpus, asked, expect_search(more.study, more.corpus))
    before = {spec.run_id for spec in asked.specs}
    made = [spec for spec in extended.ask().specs if spec.run_id not in before]
    assert len(made) <= len(rest) <= len(made) + 4  # the best observed may be what is recommended
    assert sum(spec.own_flops for spec in made) <= sum(spec.own_flops for spec in rest)


def test_an_extended_search_says_that_it_is_under_way(played: Play) -> None:
    more = extend(played)
    more.ask()
    findings = conclude_search(more.study, more.corpus, more.history)
    assert findings is not None
    assert findings.sentence.endswith("The search is under way, and this may change.")


def test_what_is_expected_is_no_less_than_what_is_asked(played: Play) -> None:
    expected = expect_search(played.study, played.corpus)
    asked = played.ask().specs
    assert len(expected) >= len(asked)
    assert sum(spec.own_flops for spec in expected) >= sum(spec.own_flops for spec in asked)
    assert [spec.run_id for spec in expected[:10]] == [spec.run_id for spec in asked[:10]]


def test_the_search_ends_with_its_budget() -> None:
    course = Course(make_study(), resolve_corpus(make_study()))
    small, medium = (course.resolve(rung).compute_flops for rung in course.fidelities)
    rules = {**RULES, "flops": 8 * small + 2 * medium + 1.5 * medium}
    play = Play(make_study(mixture=rules, runs=60))
    play.to_end()
    searched = [trial for trial in read_trials(play.decisions) if trial.is_searched]
    spent = sum(course.make_spec(trial).compute_flops for trial in searched)
    assert 8 * small + 2 * medium < spent <= rules["flops"]
    assert len(read_advice(play.decisions)) == 1
    expected, asked = expect_search(play.study, play.corpus), play.ask().specs
    assert len(asked) <= len(expected) < 60
    assert sum(spec.own_flops for spec in asked) <= sum(spec.own_flops for spec in expected)


def test_the_target_share_is_kept() -> None:
    play = Play(make_study(mixture={**RULES, "target_share": 0.5}))
    play.to_end()
    proposed = [trial.scale for trial in read_trials(play.decisions) if trial.kind == "propose"]
    searched = [trial.scale for trial in read_trials(play.decisions) if trial.is_searched]
    assert proposed.count("medium") >= 5
    assert searched.count("medium") >= 0.5 * len(searched)


@pytest.mark.parametrize(("surrogate", "runs", "limit"), [("log_linear", 24, 0.005), ("lightgbm", 200, 0.03)])
def test_a_regression_at_one_size_finds_it_too(surrogate: str, runs: int, limit: float) -> None:
    if surrogate == "lightgbm":
        pytest.importorskip("lightgbm")
    rules = {"surrogate": surrogate, "fidelities": ["small"], "check_scales": ["check1"], "confirmations": 0}
    play = Play(make_study(mixture=rules, runs=runs))
    findings = play.to_end()
    assert findings is not None
    found = read_advice(play.decisions)[-1].shares
    assert expect_objective(found) / expect_objective(best_shares()) - 1 < limit
    assert {spec.scale for spec in play.ask().specs} == {"small", "check1"}


def test_without_weights_every_domain_counts_alike() -> None:
    play = Play(make_study(objective={}))
    play.to_end()
    assert Course(play.study, play.corpus).objective == dict.fromkeys(DOMAINS, 1 / 3)
    found = read_advice(play.decisions)[-1].shares
    assert max(abs(share - 1 / 3) for share in found.values()) < 0.05


def with_target(raw: dict[str, Any], tokens: str, held: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "target": {"params": "1M", "tokens": tokens, "domain_tokens": held}}


def test_no_mixture_repeats_a_domain_more_often_than_allowed() -> None:
    """R U / T: 4 x 1M / 20M of code, where the best mixture would have far more of it."""
    raw = with_target(make_raw(), "20M", {"code": "1M", "docs": "3M", "web": "10M"})
    play = Play(read_study(raw))
    findings = play.to_end()
    assert findings is not None
    tried = [trial for trial in read_trials(play.decisions) if trial.kind != "natural"]
    assert max(trial.shares["code"] for trial in tried) <= 0.2
    assert read_advice(play.decisions)[-1].shares["code"] == pytest.approx(0.2, abs=1e-4)
    row = findings.tables["mixture"][0]
    assert row["at most"] == 0.2
    assert row["epochs of the target"] == pytest.approx(4, abs=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"mixture": {}, "peak_lr": [0.01, 0.02]}}, "search.space.peak_lr: a search over mixtures varies"),
        ({"space": {"seed": [0, 1]}}, "search.space.mixture: needs a table of bounds"),
        ({"space": {"mixture": {"minimum": {"law": 0.1}}}}, "no domain 'law' in the corpus; it has code, docs, web"),
        ({"objective": {"law": 1.0}}, "search.objective.law: no such domain; domains of this corpus: code, docs, web"),
        ({"objective": {"web": 0.0}}, "search.objective: all weights are 0"),
        ({"runs": 9}, "search.runs: must be at least 10, got 9: 4 of the natural mixture (2 seeds)"),
        ({"mixture": {"check_scales": ["huge"]}}, "search.mixture.check_scales: no such scale 'huge'"),
        ({"mixture": {"check_scales": ["small"]}}, "'small' is no larger than 'check2', the dearest that is searched"),
        (
            {"mixture": {"fidelities": ["small", "check1"], "check_scales": ["check1"]}},
            "'check1' is searched too; a check needs a scale that is not",
        ),
        ({"mixture": {"surrogate": "log_linear"}}, "'log_linear' is fitted at one size, got small, medium, check1, ch"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_to_try(change: dict[str, Any], said: str) -> None:
    study = make_study(**change)
    with pytest.raises(InputError) as error:
        ask_search(study, resolve_corpus(study))
    assert said in str(error.value)


def test_caps_without_a_mixture_are_refused_by_name() -> None:
    study = read_study(with_target(make_raw(), "1B", {"code": "1M", "docs": "3M", "web": "10M"}))
    with pytest.raises(InputError, match=r"data.max_epochs: within 4 epochs .*code at most 0.004.*\(the target\)"):
        ask_search(study, resolve_corpus(study))


def test_one_domain_is_nothing_to_search() -> None:
    raw = make_raw()
    raw["data"]["mixture"] = {"code": 1.0}
    study = read_study(raw)
    with pytest.raises(InputError, match="nothing to search in a mixture of one domain"):
        ask_search(study, resolve_corpus(study))


def test_a_trainer_without_losses_by_domain_is_told_so() -> None:
    study = make_study()
    sound = finish_by(study)
    play = Play(study, lambda spec: sound(spec).model_copy(update={"loss_by_domain": {}}))
    with pytest.raises(InputError, match="a trainer must return `loss_by_domain`"):
        play.to_end()


def test_the_surface_mixes_as_the_law_says() -> None:
    study = make_study()
    spec = Course(study, CorpusFacts("replay", 257, NATURAL, {})).resolve(study.scales[0])
    plain = copy.deepcopy(make_raw())
    plain["runner"]["surface"]["mixing"] = {}
    base = Surface(read_study(plain).runner.surface).evaluate(spec)  # type: ignore[arg-type]
    mixed = Surface(study.runner.surface).evaluate(spec)  # type: ignore[arg-type]
    assert base.loss is not None
    assert base.loss_by_domain == {}
    for name, share in NATURAL.items():
        assert mixed.loss_by_domain[name] == pytest.approx(base.loss * math.exp(-PULL * share))
    own = sum(share * mixed.loss_by_domain[name] for name, share in NATURAL.items())
    assert mixed.loss == pytest.approx(own)
