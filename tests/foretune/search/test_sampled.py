"""Random, QMC, TPE and GP: they find planted optima, wait or do not wait, and lose nothing when a study is extended."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.samplers import PROBLEMS, find_least, make_study, search_planted

from foretune.errors import InputError
from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.progress import ProgressBar
from foretune.records import RunStatus, record_outcome, result_of
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.runners.surface import Surface
from foretune.search import Asked, History, ask_search, conclude_search
from foretune.search.tried import Setting, list_settings
from foretune.searching import Searching
from foretune.sections import SurfaceSection
from foretune.study import Study, read_study

RATES = {"peak_lr": {"low": 1e-4, "high": 0.3}}
SCALES = [{"name": "w32", "width": 32, "tokens": 102_400}, {"name": "w64", "width": 64, "tokens": 204_800}]


def read(rungs: int = 2, **search: Any) -> Study:
    return read_study(
        {
            "study": {"name": "sampled"},
            "proxy": {"base_width": 32, "head_size": 16},
            "scales": SCALES[:rungs],
            "training": {"batch_tokens": 1024},
            "search": {"strategy": "tpe", "space": RATES, "runs": 8, "batch": 2, **search},
            "runner": {"kind": "replay", "surface": {}},
        }
    )


def advance(study: Study, history: History, count: int, status: RunStatus = RunStatus.COMPLETED) -> History:
    """So many of the missing runs have ended."""
    asked = ask_search(study, resolve_corpus(study), history)
    results = dict(history.results)
    for spec in [spec for spec in asked.specs if spec.run_id not in results][:count]:
        outcome = Surface(SurfaceSection()).evaluate(spec)
        if status is not RunStatus.COMPLETED:
            outcome = outcome.model_copy(update={"status": status, "loss": None})
        results[spec.run_id] = result_of(record_outcome(spec, outcome))
    return History(results, asked.decisions)


def settings_of(study: Study, history: History) -> list[Setting]:
    return list_settings(study, resolve_corpus(study), history)


@pytest.mark.parametrize(("name", "runs", "seeds", "regret"), [("tpe", 16, range(5), 0.004), ("gp", 12, [0], 0.001)])
def test_models_find_the_planted_optimum(name: str, runs: int, seeds: list[int], regret: float) -> None:
    """Random search has a median regret above 0.5 % here after 16 runs; see benchmarks/samplers.py."""
    problem, found = PROBLEMS[0], []
    for seed in seeds:
        study = make_study(problem, name, seed)
        study = study.model_copy(update={"search": study.search.model_copy(update={"runs": runs})})
        specs, losses = search_planted(study, problem, np.random.default_rng(seed))
        found.append(problem.loss(specs[int(np.argmin(losses))]) / find_least(problem, specs[0]) - 1)
    assert len(losses) == runs
    assert 0 <= np.median(found) < regret


def test_tpe_goes_down_the_better_branch() -> None:
    """AdamW is 1 % better than SGD on this surface, and nothing says so but the runs."""
    late = []
    for seed in range(5):
        specs, _ = search_planted(make_study(PROBLEMS[3], "tpe", seed), PROBLEMS[3], np.random.default_rng(seed))
        late += [spec.training.optimizer for spec in specs[16:]]
    assert late.count("adamw") > 0.6 * len(late)


@pytest.mark.parametrize(("synchronous", "decided"), [(True, [2, 2, 4, 4, 6]), (False, [2, 3, 4, 5, 6])])
def test_a_synchronous_search_waits_for_its_batch_and_a_loose_one_does_not(
    synchronous: bool, decided: list[int]
) -> None:
    study, history, seen = read(rungs=1, synchronous=synchronous), History(), []
    for _ in decided:
        history = advance(study, history, 1)
        seen.append(len(history.decisions))
    assert seen == decided


def test_pending_settings_are_not_proposed_again() -> None:
    study, history = read(rungs=1, synchronous=False, batch=3), History()
    for _ in range(12):
        history = advance(study, history, 1)
    points = [tuple(item.point.items()) for item in settings_of(study, history)]
    assert len(set(points)) == len(points)


def test_a_setting_is_judged_by_the_mean_of_its_seeds() -> None:
    study = read(space={**RATES, "seed": [0, 1, 2]}, runs=2, strategy="random")
    history = advance(study, History(), 5)
    first, second, *_ = settings_of(study, history)
    assert [spec.seed for spec in first.specs] == [0, 1, 2]
    assert first.has_ended
    assert first.mean == pytest.approx(np.mean([result.loss for result in first.results]))
    assert not second.has_ended


def test_a_diverged_seed_condemns_its_setting_and_a_failed_one_does_not() -> None:
    study = read(space={**RATES, "seed": [0, 1]}, runs=1, strategy="random")
    diverged = advance(study, advance(study, History(), 1), 1, RunStatus.DIVERGED)
    assert settings_of(study, diverged)[0].mean == math.inf
    failed = advance(study, advance(study, History(), 1), 1, RunStatus.FAILED)
    assert math.isfinite(settings_of(study, failed)[0].mean)


def test_models_stay_away_from_where_runs_diverged() -> None:
    """Rates above 12 times the best diverge on this surface: a third of the axis in logarithms."""
    study, history = read(runs=24, batch=4), History()
    for _ in range(40):
        history = advance(study, history, 4)
    late = [item for item in settings_of(study, history) if item.scale == "w32"][12:]
    assert len(late) == 12
    assert sum(item.has_diverged for item in late) <= 1


def test_more_runs_than_settings_are_refused() -> None:
    study = read(space={"peak_lr": [0.001, 0.01]}, runs=3)
    with pytest.raises(InputError, match=r"search.runs: the space has 2 settings, fewer than 3 runs"):
        ask_search(study, resolve_corpus(study))
    tree = read(strategy="gp", branches=[{"name": "a"}, {"name": "b"}])
    with pytest.raises(InputError, match=r"search.branches: a Gaussian process needs one flat space"):
        ask_search(tree, resolve_corpus(tree))


def test_useless_points_are_skipped_with_the_reason_and_do_not_hold_it_up() -> None:
    space = {"peak_lr": [0.001, 0.01], "warmup": [0.1, 200_000]}
    study, history = read(space=space, runs=4), History()
    for _ in range(10):
        history = advance(study, history, 2)
    asked = ask_search(study, resolve_corpus(study), history)
    assert len(asked.specs) + len(asked.skipped) == 8
    assert asked.finished
    assert asked.skipped
    assert all(item.reason.startswith("training.warmup") for item in asked.skipped)
    assert {item.point["warmup"] for item in asked.skipped if item.scale == "w32"} == {200_000}


def test_the_best_setting_is_told_with_those_within_noise() -> None:
    study, history = read(space={**RATES, "seed": [0, 1, 2]}, runs=6, strategy="qmc"), History()
    history = advance(study, history, 100)
    findings = conclude_search(study, resolve_corpus(study), history)
    assert findings is not None
    assert findings.sentence.startswith("At w64 (")
    assert "of the loss between seeds (" in findings.sentence
    rows = findings.tables["settings at w64"]
    assert rows[0]["beside the best"] == "best"
    assert rows[0]["loss"] == min(row["loss"] for row in rows)
    assert findings.settings["peak_lr"] == rows[0]["peak_lr"]
    alone = read(runs=6, strategy="qmc")
    told = conclude_search(alone, resolve_corpus(alone), advance(alone, History(), 100))
    assert told is not None
    assert "without replicates nothing says how much of it is noise" in told.sentence


def test_a_best_setting_at_an_end_of_the_space_is_told_as_a_bound() -> None:
    """The planted optimum is above the bounds of the first space, and well within the second."""
    for space, told in (
        ({"peak_lr": {"low": 1e-5, "high": 1e-3}}, True),
        ({"peak_lr": {"low": 1e-4, "high": 0.3}}, False),
    ):
        study = read(rungs=1, space=space, runs=16, strategy="qmc")
        findings = conclude_search(study, resolve_corpus(study), advance(study, History(), 100))
        assert findings is not None
        assert ("upper end of search.space.peak_lr: a bound, not an optimum" in findings.sentence) == told


class Watcher(ProgressBar):
    """Notes what was executed."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.executed: set[str] = set()

    def finish_run(self, spec: Any, outcome: Any) -> None:
        self.executed.add(spec.run_id)
        super().finish_run(spec, outcome)


def launch(study: Study, ledger: Ledger) -> set[str]:
    """The runs that were executed."""
    watcher = Watcher()
    runner = make_runner(study.runner, workspace=Path("unused"))
    execute_study(study, ledger, runner, resolve_corpus(study), watcher)
    return watcher.executed


def list_asked(study: Study, ledger: Ledger) -> Asked:
    return Searching(study, resolve_corpus(study), ledger).ask()


GRID = {"peak_lr": [0.001, 0.01], "seed": [0]}


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ({"strategy": "grid", "space": GRID}, {"space": {**GRID, "peak_lr": [0.001, 0.01, 0.1]}}, 2),
        ({"strategy": "grid", "space": GRID}, {"space": {**GRID, "seed": [0, 1]}}, 4),
        ({"strategy": "random", "space": {**RATES, "seed": [0]}}, {"runs": 16}, 16),
        ({"strategy": "qmc", "space": {**RATES, "seed": [0]}}, {"space": {**RATES, "seed": [0, 1]}}, 16),
        ({"strategy": "tpe", "space": {**RATES, "seed": [0]}}, {"runs": 16}, 16),
        ({"strategy": "tpe", "space": {**RATES, "seed": [0]}}, {"space": {**RATES, "seed": [0, 1]}}, 16),
    ],
)
def test_an_extended_study_runs_what_is_new_and_nothing_else(
    before: dict[str, Any], after: dict[str, Any], new: int, tmp_path: Path
) -> None:
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        small, large = read(**before), read(**(before | after))
        first = launch(small, ledger)
        assert launch(small, ledger) == set()
        second = launch(large, ledger)
        assert not first & second
        assert len(second) == new
        assert first < {spec.run_id for spec in list_asked(large, ledger).specs}


def test_overlapping_grids_of_two_studies_run_the_overlap_once(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        one = read(strategy="grid", space={"peak_lr": [0.001, 0.01]})
        other = one.model_copy(
            update={
                "study": one.study.model_copy(update={"name": "other"}),
                "search": read(strategy="grid", space={"peak_lr": [0.01, 0.1]}).search,
            }
        )
        assert len(launch(one, ledger)) == 4
        assert len(launch(other, ledger)) == 2
        assert len(ledger.runs("other")) == 4


def test_a_qmc_search_begins_the_model_searches(tmp_path: Path) -> None:
    """The even sequence with which TPE begins is that of `qmc`, so that its runs are used again."""
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        even = launch(read(strategy="qmc", runs=4), ledger)
        modelled = launch(read(strategy="tpe", runs=6), ledger)
        assert len(even) == 8
        assert not even & modelled
        assert len(modelled) == 4
