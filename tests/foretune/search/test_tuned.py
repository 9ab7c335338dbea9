"""Runs that tune themselves say what they came to, in the ledger, in the findings and in what a fit leaves out."""

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
from foretune.query import answer_study
from foretune.records import Result, RunSpec, RunStatus, SelfTuningSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search import STRATEGIES, Asked, History, ask_search, conclude_search, expect_search
from foretune.search.interface import Findings
from foretune.search.tuned import tell_tuned
from foretune.study import Study, read_study
from foretune_factories import make_spec
from scalelaws import Exclusion

TUNING = SelfTuningSpec(
    objective={"code": 1.0},
    reference_share=1.0,
    reference_sequences=8,
    start={"dropout": 0.1},
    train_steps=2,
    tune_steps=1,
    warmup_steps=0,
    lr=0.003,
    width=0.5,
    entropy=1e-3,
)


CORPUS = CorpusFacts("digest", 257, {"code": 0.75, "docs": 0.25}, {"code": 10**9, "docs": 10**9})


def make_study(**changes: Any) -> Study:
    search: dict[str, Any] = {"space": {"seed": [0, 1, 2]}, "check_tuned": True}
    return read_study(
        {
            "study": {"name": "tuned"},
            "proxy": {"base_width": 32, "head_size": 16, "depth": 2},
            "scales": [
                {"name": "w32", "width": 32, "tokens": 102_400},
                {"name": "w64", "width": 64, "tokens": 102_400},
            ],
            "data": {"seq_len": 64},
            "training": {"batch_tokens": 1024, "peak_lr": 0.01, "self_tuning": {"dropout": 0.1}},
        }
        | {"search": search | changes.pop("search", {})}
        | changes
    )


def finish(spec: RunSpec, best: float = 0.3, status: RunStatus = RunStatus.COMPLETED) -> Result:
    """What came of a run whose loss is least at one dropout and one learning rate; a tuned one comes near .3."""
    training = spec.training
    learned = 0.3 + 0.05 * (spec.seed - 1)
    dropout = learned if training.self_tuning else training.dropout
    loss = 3.0 + (dropout - best) ** 2 + (training.peak_lr - 0.01) + 0.0005 * spec.seed
    done = status is RunStatus.COMPLETED
    return Result(
        run_id=spec.run_id,
        status=status,
        loss=loss if done else None,
        loss_by_domain={"code": loss, "docs": loss} if done else {},
        tokens=spec.tokens,
        spent_flops=1.0,
        curve=(),
        learned={"dropout": learned} if done and training.self_tuning else {},
    )


def go_on(asked: Asked, results: dict[str, Result], **how: Any) -> dict[str, Result]:
    """The results when all that is asked for has ended."""
    return results | {spec.run_id: finish(spec, **how) for spec in asked.specs if spec.run_id not in results}


def drive(study: Study, **how: Any) -> tuple[Asked, History]:
    first = ask_search(study, CORPUS)
    results = go_on(first, {}, **how)
    second = ask_search(study, CORPUS, History(results, first.decisions))
    return second, History(go_on(second, results, **how), second.decisions)


def list_plain(asked: Asked) -> list[RunSpec]:
    return [spec for spec in asked.specs if not spec.training.self_tuning]


def test_plain_runs_follow_at_the_mean_of_the_seeds_and_at_the_beginning() -> None:
    """They are the very runs of a study that never tuned anything and has that dropout."""
    study = make_study()
    first = ask_search(study, CORPUS)
    assert not first.finished
    assert not list_plain(first)
    asked, history = drive(study)
    assert asked.finished
    assert [item.details["tuned"]["dropout"] for item in asked.decisions] == pytest.approx([0.3, 0.3])
    plain = list_plain(asked)
    assert len(plain) == 2 * 2 * 3
    for item in asked.decisions:
        for value in (item.details["tuned"]["dropout"], 0.1):
            training = {"batch_tokens": 1024, "peak_lr": 0.01, "dropout": value}
            usual = ask_search(make_study(training=training, search={"check_tuned": False}), CORPUS)
            assert {spec.run_id for spec in usual.specs if spec.scale == item.details["scale"]} <= {
                spec.run_id for spec in plain
            }
    assert ask_search(study, CORPUS, history).specs == asked.specs


def test_one_scale_does_not_wait_for_the_other() -> None:
    study = make_study()
    first = ask_search(study, CORPUS)
    half = {spec.run_id: finish(spec) for spec in first.specs if spec.scale == "w32"}
    asked = ask_search(study, CORPUS, History(half, first.decisions))
    assert [item.details["scale"] for item in asked.decisions] == ["w32"]
    assert (len(list_plain(asked)), asked.finished) == (6, False)


@pytest.mark.parametrize(
    ("best", "verdict", "advice"), [(0.3, "better", "Use it."), (0.1, "worse", "Do not use it."), (0.2, "within", "")]
)
def test_the_findings_say_whether_plain_runs_were_better(best: float, verdict: str, advice: str) -> None:
    study = make_study()
    _, history = drive(study, best=best)
    findings = conclude_search(study, CORPUS, history)
    assert findings is not None
    rows = findings.tables["Trained from scratch"]
    assert [row["verdict"].split()[0] for row in rows] == [verdict] * 2
    assert [(row["from"], row["to"], row["seeds"]) for row in rows] == [(0.1, pytest.approx(0.3), 3)] * 2
    assert rows[0]["learned"] == pytest.approx(3.0 + (0.3 - best) ** 2 + 0.0005)
    assert rows[0]["given"] == pytest.approx(3.0 + (0.1 - best) ** 2 + 0.0005)
    assert findings.sentence.count(advice or "alike within the noise") == 2
    assert findings.settings == ({"dropout": pytest.approx(0.3)} if verdict == "better" else {})


def test_of_other_settings_those_that_did_best_are_checked() -> None:
    study = make_study(search={"space": {"seed": [0, 1], "peak_lr": [0.02, 0.01, 0.04]}})
    asked, _ = drive(study)
    assert {spec.training.peak_lr for spec in list_plain(asked)} == {0.01}
    assert len(list_plain(asked)) == 2 * 2 * 2


def test_what_the_check_costs_is_foreseen() -> None:
    study = make_study()
    asked, _ = drive(study)
    expected = expect_search(study, CORPUS)
    assert [spec.own_flops for spec in expected] == [spec.own_flops for spec in asked.specs]
    assert len({spec.run_id for spec in expected}) == len(expected)
    assert len(expect_search(make_study(search={"check_tuned": False}), CORPUS)) == 2 * 3


def test_a_decision_stands_until_the_study_is_extended() -> None:
    asked, history = drive(make_study())
    assert ask_search(make_study(), CORPUS, History({}, asked.decisions)) == asked
    wider = make_study(search={"space": {"seed": [0, 1, 2, 3]}})
    between = ask_search(wider, CORPUS, history)
    assert between.decisions == asked.decisions
    assert not between.finished
    expected = expect_search(wider, CORPUS)
    rest = STRATEGIES["grid"].expect_rest(wider, CORPUS, between, expected)
    after = ask_search(wider, CORPUS, History(go_on(between, dict(history.results)), between.decisions))
    assert after.finished
    assert after.decisions[:2] == asked.decisions
    assert [item.details["tuned"]["dropout"] for item in after.decisions[2:]] == pytest.approx([0.325, 0.325])
    assert len(list_plain(after)) == 2 * 2 * 4
    new = {spec.run_id for spec in after.specs} - {spec.run_id for spec in between.specs}
    assert len(rest) == len(new) == 2 * (4 + 1)


@pytest.mark.parametrize("failing", [(0, 1, 2), (2,)], ids=["all", "one"])
def test_it_is_decided_again_when_a_failed_run_comes_to_its_end(failing: tuple[int, ...]) -> None:
    """Runs that fail are tried again by the next launch; one that fails again changes nothing."""
    study = make_study()
    first = ask_search(study, CORPUS)
    results = {
        spec.run_id: finish(spec, status=RunStatus.FAILED if spec.seed in failing else RunStatus.COMPLETED)
        for spec in first.specs
    }
    decided = ask_search(study, CORPUS, History(results, first.decisions))
    assert len(decided.decisions) == 2
    assert ask_search(study, CORPUS, History(results, decided.decisions)) == decided
    known = {run_id: result for run_id, result in results.items() if result.status is RunStatus.COMPLETED}
    again = ask_search(study, CORPUS, History(known, decided.decisions))
    assert (again.decisions, again.finished) == (decided.decisions, False)
    assert {spec.training.dropout for spec in list_plain(again)} <= {0.1}, "what was learned may come out otherwise"
    after = ask_search(study, CORPUS, History(go_on(again, known), again.decisions))
    assert [item.details["tuned"]["dropout"] for item in after.decisions[2:]] == pytest.approx([0.3, 0.3])
    assert (len(list_plain(after)), after.finished) == (2 * 2 * 3, True)


def test_where_all_were_lost_nothing_is_checked() -> None:
    asked, history = drive(make_study(), status=RunStatus.DIVERGED)
    assert asked.finished
    assert not list_plain(asked)
    assert conclude_search(make_study(), CORPUS, history) is None


@pytest.mark.parametrize(
    ("training", "said"),
    [({}, "no run tunes itself"), ({"self_tuning": {"l2": 1e-4}}, "a plain run has no l2")],
    ids=["untuned", "l2"],
)
def test_what_cannot_be_checked_is_refused(training: dict[str, Any], said: str) -> None:
    study = make_study(training={"batch_tokens": 1024, "peak_lr": 0.01} | training)
    with pytest.raises(InputError, match=f"search.check_tuned: {said}"):
        ask_search(study, CORPUS)


def test_runs_of_a_scale_are_told_together_beside_what_was_found() -> None:
    specs = [make_spec(self_tuning=TUNING, seed=seed) for seed in range(4)] + [make_spec()]
    results = {spec.run_id: finish(spec) for spec in specs[:3]}
    results[specs[3].run_id] = finish(specs[3], status=RunStatus.DIVERGED)
    study = make_study(search={"check_tuned": False})
    findings = tell_tuned(Findings("Found.", tables={"other": []}), specs, study, History(results))
    assert findings is not None
    assert findings.sentence.startswith("Found. At w32 dropout was tuned from 0.1 to 0.3 (3 runs, sd 0.05). No plain")
    (row,) = findings.tables["Tuned along the runs"]
    assert (row["lowest"], row["highest"], row["runs"]) == pytest.approx((0.25, 0.35, 3))
    assert "other" in findings.tables
    assert set(findings.data["tuned"]) == {spec.run_id for spec in specs[:3]}


def test_nothing_is_told_where_nothing_was_tuned() -> None:
    spec, study = make_spec(), make_study()
    assert tell_tuned(None, [spec], study, History({spec.run_id: finish(spec)})) is None
    assert tell_tuned(None, [make_spec(self_tuning=TUNING)], study, History()) is None


def test_a_real_study_tunes_itself_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    (tmp_path / "docs").mkdir()
    for number in range(60):
        (tmp_path / "docs" / f"{number}.txt").write_text("".join(generator.choice(["alpha ", "beta ", "gamma "], 100)))
    data = {"corpus": "files", "domains": {"docs": {"path": str(tmp_path / "docs")}}, "seq_len": 32}
    study = read_study(
        {
            "study": {"name": "tuned"},
            "proxy": {"base_width": 16, "head_size": 8, "depth": 1},
            "scales": [{"name": "w16", "width": 16, "tokens": 24 * 256}],
            "data": {**data, "validation_sequences": 4, "validation_fraction": 0.2, "max_epochs": 50},
            "training": {"batch_tokens": 256, "peak_lr": 0.01, "diagnoses": 0, "self_tuning": {"lr": 0.03}},
            "search": {"space": {"seed": [0, 1]}, "check_tuned": True},
            "runner": {"kind": "inline", "pack": 1},
        }
    )
    assert read_study(study.snapshot()) == study
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=tmp_path)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        frame = ledger.runs("tuned")
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))  # nothing is left to do
        results, decisions = list(ledger.results(frame["run_id"])), ledger.decisions("tuned")
        answer = answer_study(study, ledger)
    tuned = frame["learned/dropout"].dropna()
    assert len(tuned) == 2
    assert tuned.between(0.01, 0.5).all()
    learners = [result for result in results if result.learned]
    assert sorted(tuned) == sorted(result.learned["dropout"] for result in learners)
    assert all(result.learned_path[-1].step == 24 for result in learners)
    assert answer.findings is not None
    assert "dropout was tuned from 0.1 to" in answer.findings.sentence
    (row,) = answer.findings.tables["Trained from scratch"]
    assert (row["to"], row["seeds"]) == (pytest.approx(tuned.mean()), 2)
    plain = frame[frame["learned/dropout"].isna()]
    assert len(plain) == 4
    assert (row["learned"] + row["given"]) / 2 == pytest.approx(plain["loss"].mean())
    assert row["learned"] != row["given"]
    assert [item.kind for item in decisions] == ["tuned"]
    assert len(frame) == 6
    assert Exclusion("that learned settings or their mixture along the run", 2) in gather_observations(frame).excluded
