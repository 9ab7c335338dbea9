"""Schedules that a search found, written, read back, and trained from scratch at any rung."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from foretune.cli import main
from foretune.errors import InputError
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.records import Phase, RunSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search import ask_search
from foretune.search.population.lineage import Stretch, make_schedule
from foretune.search.replaying.files import read_schedule, write_schedule
from foretune.search.replaying.replays import REPLAY, find_replays, list_replays
from foretune.search.replaying.schedule import Schedule, SchedulePhase
from foretune.searching import Searching
from foretune.study import Study, read_study

SCHEDULE = Schedule(
    study="found",
    run_id="0" * 16,
    tokens=102_400,
    score=3.25,
    phases=(
        SchedulePhase(start_share=0.0, settings={"peak_lr": 0.02, "weight_decay": 0.1}),
        SchedulePhase(start_share=0.4, settings={"peak_lr": 0.01, "weight_decay": 0.1}),
        SchedulePhase(start_share=0.8, settings={"peak_lr": 0.01, "weight_decay": 0.2}),
    ),
)
POPULATION = {
    "strategy": "pbt",
    "space": {"peak_lr": {"low": 1e-4, "high": 0.1}},
    "population": {"size": 4, "ready_tokens": 20_480},
}


def make_study(search: dict[str, Any]) -> Study:
    return read_study(
        {
            "study": {"name": "replayed", "seed": 5},
            "proxy": {"parametrization": "mup", "base_width": 32, "head_size": 16, "depth": 2},
            "scales": [
                {"name": "w32", "width": 32, "tokens": 102_400},
                {"name": "w64", "width": 64, "tokens": 307_200},
            ],
            "training": {"batch_tokens": 1024, "evaluations": 5},
            "data": {"seq_len": 64},
            "runner": {"kind": "replay", "surface": {"lr_coefficient": 0.1, "lr_params_exponent": {"mup": -0.2}}},
            "search": search,
        }
    )


def from_file(path: Path, **replay: Any) -> Study:
    search = {"strategy": "points", "space": {"peak_lr": [0.01]}}
    return make_study(search | {"replay": {"file": str(path), "seeds": [0], **replay}})


def ask(study: Study) -> tuple[RunSpec, ...]:
    return ask_search(study, resolve_corpus(study)).specs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_schedule(SCHEDULE, tmp_path / "found.toml")
    return tmp_path / "found.toml"


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_a_schedule_is_read_back_as_it_was_written(tmp_path: Path, suffix: str) -> None:
    write_schedule(SCHEDULE, tmp_path / f"found{suffix}")
    assert read_schedule(tmp_path / f"found{suffix}") == SCHEDULE


def test_a_schedule_of_an_unfinished_run_is_counted_to_its_horizon() -> None:
    start = Stretch(
        member=0,
        generation=1,
        donor=0,
        seed=0,
        root={"peak_lr": 0.02},
        start_tokens=0,
        stop_tokens=24_576,
        horizon_tokens=122_880,
        run_id="a",
    )
    changed = start.model_copy(
        update={
            "generation": 2,
            "start_tokens": 24_576,
            "stop_tokens": 40_960,
            "phases": (Phase(start_step=24, settings={"peak_lr": 0.01}),),
            "run_id": "b",
            "parent_run_id": "a",
        }
    )
    rows = make_schedule("s", changed, [start, changed], 3.0).rows()
    assert [(row["start_share"], row["start_tokens"]) for row in rows] == [(0.0, 0), (0.2, 24_576)]


def test_other_programs_read_it_as_a_table(tmp_path: Path) -> None:
    write_schedule(SCHEDULE, tmp_path / "found.csv")
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [float(row["peak_lr"]) for row in rows] == [0.02, 0.01, 0.01]
    assert [int(row["start_tokens"]) for row in rows] == [0, 40_960, 81_920]


def test_phases_begin_at_the_same_shares_of_a_larger_run(path: Path) -> None:
    small, large = ask(from_file(path, scales=["w32", "w64"]))
    assert [phase.start_step for phase in small.phases] == [40, 80]
    assert [phase.start_step for phase in large.phases] == [120, 240]
    for spec, steps in ((small, 100), (large, 300)):
        rates = [spec.training_at(step).peak_lr for step in (0, steps * 4 // 10 - 1, steps * 4 // 10, steps - 1)]
        assert rates == [0.02, 0.02, 0.01, 0.01]
        assert spec.training_at(steps - 1).weight_decay == 0.2
        assert not spec.is_partial


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("not = = toml", "is no TOML or JSON"),
        ('study = "x"', "run_id: Field required"),
        (None, "not found; `foretune lineage STUDY --to FILE.toml` writes it"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(InputError, match=problem):
        ask(from_file(tmp_path / "bad.toml"))


def test_a_domain_that_the_corpus_lacks_is_refused(tmp_path: Path) -> None:
    phase = SchedulePhase(start_share=0.0, settings={"peak_lr": 0.02}, mixture={"chess": 1.0})
    write_schedule(SCHEDULE.model_copy(update={"phases": (phase,)}), tmp_path / "chess.toml")
    with pytest.raises(InputError, match="'chess', which the corpus lacks"):
        ask(from_file(tmp_path / "chess.toml"))


def test_what_cannot_be_replayed_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="no such scale 'w99'; scales: w32, w64"):
        ask(from_file(path, scales=["w99"]))
    with pytest.raises(InputError, match=r"search.replay.file: needed where the study finds no schedule itself"):
        ask(make_study({"strategy": "grid", "space": {"peak_lr": [0.01]}, "replay": {"seeds": [0]}}))
    with pytest.raises(InputError, match="no such scale 'w99'"):
        ask(make_study(POPULATION | {"replay": {"scales": ["w99"], "seeds": [0]}}))


def execute(study: Study, place: Path) -> None:
    with open_ledger(place, create=True) as ledger:
        runner = make_runner(study.runner, workspace=place.parent)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))


def test_a_population_replays_its_winner_beside_its_own_loss(tmp_path: Path) -> None:
    """With the seed of the winner's root at the population's own rung, it is the winner's run: nothing is trained."""
    execute(make_study(POPULATION), tmp_path / "ledger.db")
    extended = make_study(POPULATION | {"replay": {"scales": ["w32", "w64"], "seeds": [5, 6, 7, 8, 100]}})
    execute(extended, tmp_path / "ledger.db")
    with open_ledger(tmp_path / "ledger.db") as ledger:
        searching = Searching(extended, resolve_corpus(extended), ledger)
        findings = searching.conclude()
        trained = len(ledger.runs("replayed"))
    assert findings is not None
    rows = findings.tables["schedule trained from scratch"]
    assert [(row["scale"], row["seed"]) for row in rows] == [(s, n) for s in ("w32", "w64") for n in (5, 6, 7, 8, 100)]
    own = findings.data["schedule"]["score"]
    assert [row["score"] == own for row in rows].count(True) == 1
    assert trained == 4 * 5 + 10 - 1
    assert "trained from scratch" in findings.sentence


def test_replays_that_the_study_no_longer_asks_for_are_not_trained(tmp_path: Path) -> None:
    seeds = POPULATION | {"replay": {"seeds": [7, 8]}}
    execute(make_study(seeds), tmp_path / "ledger.db")
    with open_ledger(tmp_path / "ledger.db") as ledger:
        decisions = ledger.decisions("replayed")
    corpus = resolve_corpus(make_study(seeds))
    for replay, left in (({"seeds": [8, 9]}, [8]), (None, [])):
        study = make_study(POPULATION | ({"replay": replay} if replay else {}))
        assert [spec.seed for spec in list_replays(study, corpus, decisions, None)] == left


def test_only_the_schedule_of_the_newest_winner_is_told(tmp_path: Path) -> None:
    """A last run that failed is tried again by the next launch, and may win then."""
    study = make_study(POPULATION | {"replay": {"seeds": [7, 8]}})
    execute(study, tmp_path / "ledger.db")
    with open_ledger(tmp_path / "ledger.db") as ledger:
        decisions = ledger.decisions("replayed")
    old = [item for item in decisions if item.kind == REPLAY]
    schedule = {**old[0].details["schedule"], "run_id": "f" * 16}
    new = [item.model_copy(update={"details": {**item.details, "schedule": schedule}}) for item in old]
    assert find_replays(decisions, None) == old
    assert find_replays([*decisions, *new], None) == new
    assert find_replays([*decisions, *new], Schedule.model_validate(old[0].details["schedule"])) == old
    assert find_replays(decisions, Schedule.model_validate(schedule)) == []


def test_the_loss_of_a_replay_stands_beside_that_of_the_population(path: Path, tmp_path: Path) -> None:
    study = from_file(path, scales=["w32", "w64"], seeds=[1, 2])
    execute(study, tmp_path / "ledger.db")
    with open_ledger(tmp_path / "ledger.db") as ledger:
        findings = Searching(study, resolve_corpus(study), ledger).conclude()
    assert findings is not None
    rows = findings.tables["schedule trained from scratch"]
    assert [row["scale"] for row in rows] == ["w32", "w32", "w64", "w64"]
    assert all(row["score"] > 0 for row in rows)
    assert "study 'found': 3.2500" in findings.sentence


def test_the_verb_writes_the_schedule_and_draws_the_lineage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(POPULATION)
    execute(study, tmp_path / "ledger.db")
    common = ["lineage", "replayed", "--ledger", str(tmp_path / "ledger.db"), "--results", str(tmp_path / "results")]
    assert main([*common, "--to", str(tmp_path / "winner.toml")]) == 0
    shown = capsys.readouterr().out
    assert "lineage of the best member" in shown
    assert "schedule of the best member" in shown
    assert (tmp_path / "results/replayed/lineage.png").stat().st_size > 10_000
    schedule = read_schedule(tmp_path / "winner.toml")
    assert main([*common, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert Schedule.model_validate(data["schedule"]) == schedule
    (spec,) = ask(from_file(tmp_path / "winner.toml", seeds=[_seed_of(data, schedule)]))
    assert spec.run_id == schedule.run_id, "the same run, read from a file"


def test_the_verb_writes_what_autolrs_found_for_a_replay_at_another_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = {"batch_tokens": 1024, "schedule": "constant", "peak_lr": 0.01, "warmup": 0.1}
    search = {"strategy": "autolrs", "space": POPULATION["space"], "autolrs": {"first_stage": 0.4, "candidates": 3}}
    sizes = [{"name": "w32", "width": 32, "tokens": 409_600}, {"name": "w64", "width": 64, "tokens": 1_228_800}]
    raw = make_study(search).snapshot() | {"training": constant, "scales": sizes[:1]}
    found = read_study(raw)
    execute(found, tmp_path / "ledger.db")
    common = ["lineage", "replayed", "--ledger", str(tmp_path / "ledger.db"), "--results", str(tmp_path / "results")]
    assert main([*common, "--to", str(tmp_path / "rates.toml")]) == 0
    shown = capsys.readouterr().out
    assert "Schedules found" in shown
    assert (tmp_path / "results/replayed/lineage.png").stat().st_size > 10_000
    schedule = read_schedule(tmp_path / "rates.toml")
    replay = {"file": str(tmp_path / "rates.toml"), "scales": ["w32", "w64"], "seeds": [5]}
    points = {"strategy": "points", "space": {"peak_lr": [0.01]}, "replay": replay}
    small, large = ask(read_study(raw | {"scales": sizes, "search": points}))
    with open_ledger(tmp_path / "ledger.db") as ledger:
        (row,) = ledger.runs("replayed").query(f"run_id == '{schedule.run_id}'").to_dict("records")
    assert (row["steps"], row["peak_lr"]) == (400, small.training_at(399).peak_lr)
    assert [phase.start_share * 400 for phase in schedule.phases[1:]] == [phase.start_step for phase in small.phases]
    assert [phase.start_step for phase in large.phases] == [3 * phase.start_step for phase in small.phases]
    assert [phase.settings for phase in large.phases] == [phase.settings for phase in small.phases]
    assert main([*common, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("scale,seed,stage,")


def test_the_verb_says_where_autolrs_has_found_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_study(POPULATION).snapshot()
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        search = {"strategy": "autolrs", "space": POPULATION["space"], "autolrs": {"first_stage": 0.5, "trial": 0.3}}
        study = read_study(raw | {"search": search, "training": {"batch_tokens": 1024, "schedule": "constant"}})
        ledger.save_study("replayed", study.snapshot())
    assert main(["lineage", "replayed", "--ledger", str(tmp_path / "ledger.db")]) == 2
    assert "nothing of a model of autolrs has ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"strategy": "grid", "space": {"peak_lr": [0.01]}}, "search.strategy = 'grid' finds no schedule"),
        ({"strategy": "autolrs", "space": {"peak_lr": [0.01]}}, "search.space.peak_lr: autolrs needs bounds"),
    ],
    ids=["strategy", "space"],
)
def test_the_verb_says_why_a_study_can_have_found_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], search: dict[str, Any], said: str
) -> None:
    training = {"batch_tokens": 1024, "schedule": "constant"}
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        study = read_study(make_study(POPULATION).snapshot() | {"search": search, "training": training})
        ledger.save_study("replayed", study.snapshot())
    assert main(["lineage", "replayed", "--ledger", str(tmp_path / "ledger.db")]) == 2
    assert said in capsys.readouterr().err


def _seed_of(data: dict[str, Any], schedule: Schedule) -> int:
    return next(row["root"] for row in data["lineage"] if row["run_id"] == schedule.run_id)


def test_the_verb_says_where_there_is_no_population(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        study = make_study(POPULATION)
        ledger.save_study("replayed", study.snapshot())
    assert main(["lineage", "replayed", "--ledger", str(tmp_path / "ledger.db")]) == 2
    assert "nothing of a population has ended" in capsys.readouterr().err
