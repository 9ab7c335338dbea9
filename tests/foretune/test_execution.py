"""The main loop on replayed runs: whatever interrupts it, the ledger ends as if nothing had."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest

from foretune.errors import InputError, RunnerInterruption
from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.planning import Plan
from foretune.progress import ProgressBar
from foretune.query import answer_study
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.resolution import resolve_corpus
from foretune.runners import Note, Observer, Runner, make_runner
from foretune.runners.interface import More, ask_nothing, ignore_note
from foretune.sections import RunnerSection, SurfaceSection
from foretune.space import Choice
from foretune.study import Study, load_study

ROOT = Path(__file__).parents[2]
SEARCH, CHECKS, FAILING = 2 * 4 * 6, 2 * 3, 2 * 4
"""Runs of the demo study: its search, its verification, and those at one learning rate."""
SURFACE = SurfaceSection(
    lr_coefficient=1.0, lr_params_exponent={"mup": -0.4, "standard": -0.5}, lr_tokens_exponent=0.0, lr_curvature=0.02
)


@pytest.fixture
def study() -> Study:
    """The demo study, replayed."""
    study = load_study(ROOT / "studies/lr_width_transfer")
    return study.model_copy(update={"runner": RunnerSection(kind="replay", surface=SURFACE)})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.db", create=True) as opened:
        yield opened


class Watcher(ProgressBar):
    """Counts what was executed, and can pull the plug."""

    def __init__(self, stop_after: int = -1) -> None:
        super().__init__(quiet=True)
        self.executed: list[str] = []
        self.plans: list[Plan] = []
        self.notes: list[str] = []
        self._stop_after = stop_after

    def start_stage(self, plan: Plan) -> None:
        self.plans.append(plan)
        super().start_stage(plan)

    def finish_run(self, spec: RunSpec, outcome: RunOutcome) -> None:
        self.executed.append(spec.run_id)
        super().finish_run(spec, outcome)
        if len(self.executed) == self._stop_after:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)


class Breaking:
    """A runner whose executor breaks down after so many outcomes, again and again."""

    def __init__(self, inner: Runner, outcomes: int) -> None:
        self._inner, self._outcomes = inner, outcomes

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        for count, pair in enumerate(self._inner.run(specs, observe, note, more)):
            if count == self._outcomes:
                raise RunnerInterruption("the executor broke down")
            yield pair

    def describe(self) -> str:
        return "breaking"

    def close(self) -> None:
        self._inner.close()


class Failing(Breaking):
    """A runner under which every run at one learning rate fails."""

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        for spec, outcome in self._inner.run(specs, observe, note, more):
            bad = spec.training.peak_lr == 2**-6 and spec.role == "search"
            yield spec, RunOutcome(status=RunStatus.FAILED, reason="out of memory") if bad else outcome


def launch(study: Study, ledger: Ledger, watcher: Watcher, runner: Runner | None = None) -> None:
    chosen = runner or make_runner(study.runner, workspace=Path("unused"))
    execute_study(study, ledger, chosen, resolve_corpus(study), watcher)


def results(ledger: Ledger, study: Study) -> pd.DataFrame:
    """What a ledger says, less what the clock decides."""
    frame = ledger.runs(study.study.name).set_index("run_id").sort_index()
    return frame[["status", "loss", "role", "scale", "peak_lr", "attempts"]]


def test_interrupted_anywhere_it_ends_as_if_never_interrupted(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    with open_ledger(tmp_path / "calm.db", create=True) as calm:
        launch(study, calm, Watcher())
        expected = results(calm, study)
    executed: list[str] = []
    for stop_after in (1, 7, 20, 5, 10):
        watcher = Watcher(stop_after)
        with pytest.raises(KeyboardInterrupt):
            launch(study, ledger, watcher)
        executed += watcher.executed
    last = Watcher()
    launch(study, ledger, last)
    executed += last.executed
    assert len(executed) == len(set(executed)) == len(expected)
    pd.testing.assert_frame_equal(results(ledger, study), expected)


def test_a_broken_executor_is_started_again_from_the_ledger(study: Study, ledger: Ledger) -> None:
    watcher = Watcher()
    launch(study, ledger, watcher, Breaking(make_runner(study.runner, workspace=Path("unused")), 5))
    assert len(watcher.executed) == len(set(watcher.executed)) == SEARCH + CHECKS
    assert sum("planning again" in note for note in watcher.notes) >= 9


def test_an_executor_that_never_works_is_given_up(study: Study, ledger: Ledger) -> None:
    with pytest.raises(RunnerInterruption, match="broke down"):
        launch(study, ledger, Watcher(), Breaking(make_runner(study.runner, workspace=Path("unused")), 0))


def test_failed_runs_are_counted_and_tried_again_by_the_next_launch(study: Study, ledger: Ledger) -> None:
    failing = Failing(make_runner(study.runner, workspace=Path("unused")), 0)
    watcher = Watcher()
    launch(study, ledger, watcher, failing)
    frame = ledger.runs(study.study.name)
    assert (frame["status"] == "failed").sum() == FAILING
    assert {str(failure).partition(": ")[2] for failure in ledger.failures(study.study.name)} == {"out of memory"}
    again = Watcher()
    launch(study, ledger, again)
    assert len(again.plans[0].todo) == FAILING
    assert ledger.failures(study.study.name) == []


def test_the_forecast_is_written_down_before_its_runs_and_stands(study: Study, ledger: Ledger) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(study, ledger, Watcher(stop_after=SEARCH + 1))
    (first,) = ledger.forecasts(study.study.name)
    launch(study, ledger, Watcher())
    (second,) = ledger.forecasts(study.study.name)
    assert first == second
    frame = ledger.runs(study.study.name)
    checked = frame[frame["role"] == "verification"]
    assert len(checked) == CHECKS
    assert first.created_at <= checked["created_at"].min()
    centre = first.payload["branches"]["mup"]["centre"]["peak_lr"]
    rates = checked.loc[checked["parametrization"] == "mup", "peak_lr"]
    assert sorted(rates) == pytest.approx([centre / 2, centre, centre * 2])


def test_the_answer_finds_the_planted_truth(study: Study, ledger: Ledger) -> None:
    launch(study, ledger, Watcher())
    answer = answer_study(study, ledger)
    assert [branch.parametrization for branch in answer.branches] == ["mup", "standard"]
    params = answer.target.params_non_embedding
    for branch, exponent in zip(answer.branches, (-0.4, -0.5), strict=True):
        assert branch.forecast is not None
        assert branch.forecast.peak_lr is not None
        interval = branch.forecast.peak_lr
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low < params**exponent < interval.high
        check = answer.verification_of(branch.parametrization)
        assert check is not None
        assert check.regret is not None
        assert 0 <= check.regret < 0.01
        assert check.loss_inside


def test_an_edited_study_does_not_pool_what_it_no_longer_asks_for(study: Study, ledger: Ledger) -> None:
    launch(study, ledger, Watcher())
    before = answer_study(study, ledger)
    edited = study.model_copy(update={"training": study.training.model_copy(update={"weight_decay": 0.3})})
    launch(edited, ledger, Watcher())
    after = answer_study(edited, ledger)
    roles = after.runs["role"].value_counts()
    assert roles.to_dict() == {"search": SEARCH, "verification": CHECKS, "retired": SEARCH + CHECKS}
    for branch, earlier in zip(after.branches, before.branches, strict=True):
        assert branch.fit is not None
        assert earlier.fit is not None
        assert branch.fit.evidence.runs <= SEARCH // 2
        reasons = {item.reason: item.runs for item in branch.fit.evidence.excluded}
        assert reasons["asked for by an earlier version of the study"] == SEARCH + CHECKS
    assert all(len(check.runs) == 3 for check in after.verification)


def test_a_scale_that_is_held_out_later_is_not_seen_by_the_forecast(study: Study, ledger: Ledger) -> None:
    launch(study.model_copy(update={"verification": None}), ledger, Watcher())
    launch(study, ledger, Watcher())
    (registered,) = ledger.forecasts(study.study.name)
    for record in registered.payload["branches"].values():
        assert record["forecast"]["extrapolation"]["params"] > 3.9
        assert record["forecast"]["evidence"]["cells"] == 4


def test_verification_of_an_extended_study_judges_the_new_forecast_alone(study: Study, ledger: Ledger) -> None:
    launch(study, ledger, Watcher())
    search = study.search.model_copy(update={"space": {**study.search.space, "seed": Choice(values=(0, 1))}})
    launch(study.model_copy(update={"search": search}), ledger, Watcher())
    answer = answer_study(study, ledger)
    assert len(ledger.forecasts(study.study.name)) == 2
    for check in answer.verification:
        assert len(check.loss_by_lr) == 3
        assert len(check.runs) == 6
    assert answer.registered_before_runs


def test_a_forecast_that_came_after_its_runs_says_so(study: Study, ledger: Ledger) -> None:
    launch(study, ledger, Watcher())
    renamed = study.model_copy(update={"study": study.study.model_copy(update={"name": "renamed"})})
    watcher = Watcher()
    launch(renamed, ledger, watcher)
    assert watcher.executed == []
    answer = answer_study(renamed, ledger)
    assert answer.registered_before_runs is False
    assert answer.to_dict()["verification"]["registered_before_runs"] is False


def test_nothing_finished_is_no_answer(study: Study, ledger: Ledger) -> None:
    ledger.save_study(study.study.name, study.snapshot())
    with pytest.raises(InputError, match="no run has finished yet"):
        answer_study(study, ledger)


def test_a_lab_can_bring_its_own_trainer(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    own = study.model_copy(update={"trainable": "toy_trainers:train_toy", "runner": RunnerSection(kind="inline")})
    runner = make_runner(own.runner, workspace=tmp_path)
    execute_study(own, ledger, runner, resolve_corpus(own), Watcher())
    frame = ledger.runs(own.study.name)
    assert len(frame) == SEARCH + CHECKS
    assert set(frame["source"]) == {"trained"}
    assert frame["status"].eq("completed").all()


PACKED = """
[study]
name = "packed"
question = "Are runs that train together rows of their own?"
[proxy]
base_width = 16
head_size = 8
depth = 1
[[scales]]
name = "short"
width = 16
tokens = 6_144
[[scales]]
name = "long"
width = 16
tokens = 12_288
[data]
seq_len = 32
validation_sequences = 4
[training]
batch_tokens = 256
warmup = 1024
decay = 1024
[search.space]
peak_lr = { low = "2^-7", high = "2^-5", factor = 2 }
[runner]
kind = "inline"
pack = 8
"""


def test_runs_that_train_together_are_rows_of_their_own(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(PACKED, encoding="utf-8")
    study = load_study(tmp_path / "study.toml")
    watcher = Watcher()
    launch(study, ledger, watcher, make_runner(study.runner, workspace=tmp_path))
    assert any("6 runs in 1 packs of at most 6; runner.pack = 8" in note for note in watcher.notes)
    frame = ledger.runs("packed")
    assert len(frame) == 2 * 3
    assert frame["status"].eq("completed").all()
    assert frame["pack_size"].eq(6).all()
    spent = frame["spent_flops"] / frame["compute_flops"]
    assert spent[frame["scale"] == "long"].to_numpy() == pytest.approx(1)
    assert spent[frame["scale"] == "short"].to_numpy() == pytest.approx(1024 / 6144), "its decay alone"
    assert set(ledger.curves("packed")["run_id"]) == set(frame["run_id"])


def test_two_drivers_of_one_study_are_one_too_many(study: Study, ledger: Ledger) -> None:
    with ledger.hold_study(study.study.name), pytest.raises(InputError, match="is held by"):
        launch(study, ledger, Watcher())


def test_watchers_see_progress(study: Study, ledger: Ledger) -> None:
    class Seeing(Watcher):
        points: list[CurvePoint] = []  # noqa: RUF012

        def observe(self, spec: RunSpec, point: CurvePoint) -> None:
            self.points.append(point)
            super().observe(spec, point)

    watcher = Seeing()
    launch(study, ledger, watcher)
    assert len(watcher.points) >= SEARCH
    assert watcher.report()["ended"] == watcher.report()["runs"] == CHECKS


def test_a_killed_driver_loses_and_repeats_nothing(tmp_path: Path) -> None:
    from benchmarks.driver_kill import torment, write_study

    lost, repeated, launches, rows = torment(write_study(tmp_path, real=False), tmp_path, 2, (1.5, 3.0), seed=1)
    assert (lost, repeated, launches, rows) == (0, 0, 3, SEARCH + CHECKS)


def test_terminated_driver_says_how_to_go_on(tmp_path: Path) -> None:
    from benchmarks.driver_kill import write_study

    study = write_study(tmp_path, real=False)
    command = [sys.executable, "-m", "foretune.cli", "run", str(study), "--ledger", str(tmp_path / "l.db"), "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / "l.db").exists() or len(_rows(tmp_path / "l.db")) < 3:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said


def _rows(path: Path) -> pd.DataFrame:
    with open_ledger(path) as ledger:
        return ledger.runs() if ledger.studies() else pd.DataFrame()
