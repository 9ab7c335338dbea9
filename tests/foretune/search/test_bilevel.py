"""Learned mixtures become runs: decided once, trained beside the given mixture, and told with their noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.evidence import gather_observations
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import Result, RunSpec, RunStatus
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search import NOTHING_YET, STRATEGIES, Asked, ask_search, conclude_search, expect_search
from foretune.search.interface import History
from foretune.study import Study, read_study
from scalelaws import Exclusion

CORPUS = CorpusFacts("digest", 257, {"code": 0.75, "docs": 0.25}, {"code": 10**9, "docs": 10**9})
SEEDS = [0, 1]


def make_study(**tables: Any) -> Study:
    study: dict[str, Any] = {
        "study": {"name": "learned"},
        "proxy": {"base_width": 16, "head_size": 8, "depth": 1},
        "scales": [{"name": "w16", "width": 16, "tokens": 16_384}],
        "data": {"seq_len": 32, "validation_sequences": 4},
        "training": {
            "batch_tokens": 512,
            "peak_lr": 2**-5,
            "mixture_learning": {"objective": {"docs": 1.0}, "logit_reach": 4.0, "penalty": 1.0},
        },
        "search": {"strategy": "bilevel", "space": {"seed": SEEDS}},
        "runner": {"kind": "inline"},
    }
    return read_study(study | tables)


def end(spec: RunSpec, status: RunStatus = RunStatus.COMPLETED, **fields: Any) -> Result:
    """A result of a run whose loss on docs falls with their share."""
    docs = 3.0 - spec.data.mixture["docs"] + 0.001 * spec.seed
    by_domain = {"code": 3.0, "docs": docs}
    done = status is RunStatus.COMPLETED
    learned = {"code": 0.5 - 0.1 * spec.seed, "docs": 0.5 + 0.1 * spec.seed}
    return Result(
        run_id=spec.run_id,
        status=status,
        loss=docs if done else None,
        loss_by_domain=by_domain if done else {},
        tokens=spec.tokens,
        spent_flops=1.0,
        curve=(),
        learned=learned if done and spec.training.mixture_learning else {},
        **fields,
    )


def ask(study: Study, history: History = NOTHING_YET) -> Asked:
    return ask_search(study, CORPUS, history)


def go_on(asked: Asked, history: History, **statuses: RunStatus) -> History:
    """The history when all of them have ended."""
    ended = {spec.run_id: end(spec, **statuses) for spec in asked.specs if spec.run_id not in history.results}
    return History({**history.results, **ended}, asked.decisions)


def test_the_mean_of_what_the_seeds_learned_is_decided_and_trained() -> None:
    study = make_study()
    first = ask(study)
    assert [spec.training.mixture_learning is not None for spec in first.specs] == [True, True]
    assert not first.finished
    half = History({first.specs[0].run_id: end(first.specs[0])})
    assert ask(study, half).specs == first.specs
    second = ask(study, go_on(first, History()))
    (decision,) = second.decisions
    assert decision.details["mixture"] == pytest.approx({"code": 0.45, "docs": 0.55})
    plain = second.specs[2:]
    assert [spec.seed for spec in plain] == [0, 1, 0, 1]
    assert [spec.data.mixture["docs"] for spec in plain] == pytest.approx([0.55, 0.55, 0.25, 0.25])
    assert all(spec.training.mixture_learning is None for spec in plain)
    assert second.finished
    assert ask(study, go_on(second, go_on(first, History()))) == second


def test_a_decision_stands_whatever_comes_after() -> None:
    study = make_study()
    learned = go_on(first := ask(study), History())
    decided = ask(study, learned)
    lost = {spec.run_id: end(spec, RunStatus.DIVERGED) for spec in first.specs}
    assert ask(study, History(lost, decided.decisions)).specs == decided.specs


def test_learners_are_asked_for_again_before_their_results_are_known_but_for_one_that_failed() -> None:
    study = make_study()
    first, second = ask(study).specs
    ended = {first.run_id: end(first, RunStatus.FAILED), second.run_id: end(second)}
    decided = ask(study, History(ended))
    assert decided.decisions[0].details["mixture"] == {"code": 0.4, "docs": 0.6}
    assert ask(study, History({}, decided.decisions)).specs == decided.specs
    assert [spec.seed for spec in decided.specs if spec.training.mixture_learning] == [1]
    old = decided.decisions[0].model_copy(update={"details": {"scale": "w16", "mixture": {}, "learned": {}}})
    assert ask(study, History({}, (old,))).specs == (first, second)


def test_a_scale_whose_runs_were_all_lost_ends_the_search() -> None:
    study = make_study()
    first = ask(study)
    asked = ask(study, go_on(first, History(), status=RunStatus.DIVERGED))
    assert (asked.specs, asked.finished, [item.kind for item in asked.decisions]) == (first.specs, True, ["lost"])
    findings = conclude_search(study, CORPUS, History({}, asked.decisions))
    assert findings is not None
    assert "lost" in findings.sentence


def test_a_scale_whose_runs_all_failed_is_tried_again_by_the_next_launch() -> None:
    study = make_study()
    first = ask(study)
    failed = ask(study, go_on(first, History(), status=RunStatus.FAILED))
    assert (failed.specs, failed.finished, failed.decisions) == (first.specs, True, ())
    again = ask(study, go_on(first, History({}, failed.decisions)))
    assert [item.kind for item in again.decisions] == ["mixture"]


def test_what_is_expected_costs_what_is_asked() -> None:
    study = make_study()
    asked = ask(study, go_on(ask(study), History()))
    assert sum(spec.compute_flops for spec in expect_search(study, CORPUS)) == sum(
        spec.compute_flops for spec in asked.specs
    )


def test_what_is_left_is_foreseen_whichever_scale_comes_first() -> None:
    """No run that is asked for is counted again, and none is forgotten."""
    scales = [{"name": f"w{width}", "width": width, "tokens": 16_384} for width in (16, 24)]
    study = make_study(scales=scales)
    expected, first = expect_search(study, CORPUS), ask(study)
    later = [spec.run_id for spec in first.specs if spec.scale == "w24"]
    ended = {spec.run_id: end(spec) for spec in first.specs if spec.run_id in later}
    for asked in (first, ask(study, History(ended))):
        rest = STRATEGIES["bilevel"].expect_rest(study, CORPUS, asked, expected)
        ids = [spec.run_id for spec in (*asked.specs, *rest)]
        assert len(ids) == len(set(ids)) == len(expected) == 2 * 3 * len(SEEDS)
    assert [spec.scale for spec in STRATEGIES["bilevel"].expect_rest(study, CORPUS, first, expected)] == [
        *["w16"] * 4,
        *["w24"] * 4,
    ]


def test_the_findings_compare_both_mixtures_on_the_objective() -> None:
    study = make_study()
    history = go_on(ask(study), History())
    history = go_on(ask(study, history), history)
    findings = conclude_search(study, CORPUS, history)
    assert findings is not None
    (row,) = findings.tables["Trained from scratch"]
    assert (row["learned"], row["given"]) == pytest.approx((2.4505, 2.7505))
    assert (row["verdict"], row["seeds"]) == ("better", 2)
    assert findings.settings["mixture"] == pytest.approx({"code": 0.45, "docs": 0.55})
    assert "Use it." in findings.sentence


@pytest.mark.parametrize(
    ("tables", "key"),
    [
        ({"training": {"batch_tokens": 512, "peak_lr": 2**-5}}, "training.mixture_learning"),
        ({"search": {"strategy": "bilevel", "space": {"seed": [0], "beta2": [0.9, 0.95]}}}, "search.space.beta2"),
        ({"search": {"strategy": "bilevel", "space": {"seed": [0]}, "objective": {"docs": 1.0}}}, "search.objective"),
    ],
    ids=str,
)
def test_studies_that_it_cannot_search_are_refused_by_key(tables: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError, match=rf"(?m)^{key}: "):
        ask(make_study(**tables))


def test_a_real_study_learns_trains_and_keeps_its_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name, pieces in (("code", list("0123456789")), ("docs", ["alpha ", "beta ", "gamma "])):
        (tmp_path / name).mkdir()
        for number in range(60):
            (tmp_path / name / f"{number}.txt").write_text("".join(generator.choice(pieces, 100)))
    domains = {name: {"path": str(tmp_path / name)} for name in ("code", "docs")}
    data = {"corpus": "files", "domains": domains, "seq_len": 32, "validation_sequences": 4, "max_epochs": 50}
    study = make_study(data=data | {"validation_fraction": 0.2, "mixture": {"code": 0.5, "docs": 0.5}})
    facts = resolve_corpus(study)
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        execute_study(study, ledger, make_runner(study.runner, workspace=tmp_path), facts, ProgressBar(quiet=True))
        decisions, frame = ledger.decisions("learned"), ledger.runs("learned")
        results = {result.run_id: result for result in ledger.results(frame["run_id"])}
    (decision,) = decisions
    mixture = decision.details["mixture"]
    learners = [result for result in results.values() if result.learned]
    assert len(learners) == 2
    assert mixture["docs"] == pytest.approx(np.mean([one.learned["docs"] for one in learners]))
    assert mixture["docs"] > 0.55
    assert all(one.learned_path[-1].step == 32 for one in learners)
    assert frame["learned/docs"].notna().sum() == 2
    assert sorted(frame["mix/docs"].round(9)) == pytest.approx(sorted([0.5] * 4 + [mixture["docs"]] * 2))
    assert (
        Exclusion("that learned settings or their mixture along the run", 2)
        in gather_observations(frame, pool=("mixture",)).excluded
    )
    findings = conclude_search(study, facts, History(results, tuple(decisions)))
    assert findings is not None
    assert findings.tables["Trained from scratch"][0]["difference"] < 0
