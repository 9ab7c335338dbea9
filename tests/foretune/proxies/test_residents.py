"""Runs that go on from what the last pack of their process left on the device."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from foretune.proxies.checkpoint import CheckpointFolder
from foretune.proxies.residents import RESIDENTS
from foretune.proxies.train import STEPS_PER_READ, train_runs
from foretune.records import CurvePoint, Phase, RunOutcome, RunSpec, RunStatus
from foretune.runners.inline import InlineRunner
from foretune.sections import RunnerSection

MakeRun = Callable[..., RunSpec]
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_tokens": 64, "validation_sequences": 2, "steps": 12}


@pytest.fixture(autouse=True)
def nothing_is_held() -> Iterator[None]:
    RESIDENTS.release()
    yield
    RESIDENTS.release()


def train(
    specs: Sequence[RunSpec],
    workspace: Path,
    report: Callable[[RunSpec, CurvePoint], None] = lambda spec, point: None,
    **options: Any,
) -> list[RunOutcome]:
    folders = [workspace / spec.run_id for spec in specs]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, report, **options)}
    return [outcomes[spec.run_id] for spec in specs]


def go_on(parent: RunSpec, *phases: Phase, stop_step: int = 0) -> RunSpec:
    link = {"parent_run_id": parent.run_id, "parent_step": parent.last_step, "stop_step": stop_step}
    return parent.model_copy(update={"phases": (*parent.phases, *phases), **link})


def evolve(make_run: MakeRun, **settings: Any) -> list[list[RunSpec]]:
    """Three generations of three members: places change, a donor is copied twice, and all but one change settings."""
    generations = [[make_run(**SMALL, **settings, seed=seed, stop_step=4) for seed in range(3)]]
    for start, stop, donors in ((4, 8, (0, 2, 0)), (8, 0, (1, 0, 2))):
        changes = [
            (Phase(start_step=start, settings={"peak_lr": 2.0 ** (-6 - place), "weight_decay": 0.1 * place}),)
            for place in range(3)
        ]
        parents = [generations[-1][donor] for donor in donors]
        generations.append(
            [
                go_on(parent, *(change if place else ()), stop_step=stop)
                for place, (parent, change) in enumerate(zip(parents, changes, strict=True))
            ]
        )
    return generations


def assert_same(found: Sequence[RunOutcome], expected: Sequence[RunOutcome], tolerance: float = 0.0) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.spent_flops == other.spent_flops
        assert [(point.step, point.lr) for point in one.curve] == [(point.step, point.lr) for point in other.curve]
        assert [point.loss for point in one.curve] == pytest.approx([p.loss for p in other.curve], abs=tolerance, rel=0)
        assert one.loss == pytest.approx(other.loss, abs=tolerance, rel=0)


def train_from_files(specs: Sequence[RunSpec], workspace: Path) -> list[RunOutcome]:
    RESIDENTS.release()
    return train(specs, workspace)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_population_reads_no_checkpoint_and_ends_the_same(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    generations = evolve(make_run, optimizer=optimizer)
    expected = [train_from_files(specs, tmp_path / "files") for specs in generations]
    found = [train_from_files(generations[0], tmp_path / "device")]
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "load", None)
        patch.setattr("foretune.proxies.train.build_stepper", None)
        found += [train(specs, tmp_path / "device") for specs in generations[1:]]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    for spec in [*generations[0], *generations[1]]:
        assert (tmp_path / "device" / spec.run_id / "checkpoints").exists()
    assert RESIDENTS.stepper is None, "nobody goes on from the last generation"


def test_a_population_that_is_compiled_keeps_rows_that_ended_earlier(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: losses are read late, and a row stays when its run has ended and others train on."""
    monkeypatch.setitem(STEPS_PER_READ, "cpu", STEPS_PER_READ["cuda"])
    monkeypatch.setattr("foretune.proxies.stepping.compile_measure", lambda measure, *_: measure)
    roots = [make_run(**SMALL, seed=seed, stop_step=stop) for seed, stop in enumerate((4, 7, 7))]
    children = [go_on(root) for root in roots]
    train(roots, tmp_path, compiled="on")
    assert len(RESIDENTS.rows) == 3
    monkeypatch.setattr(CheckpointFolder, "load", None)
    found = train(children, tmp_path, compiled="on")
    monkeypatch.undo()
    assert_same(found, [train_from_files([child], tmp_path)[0] for child in children], 1e-6)


def test_rows_that_were_given_up_are_read_from_files(make_run: MakeRun, tmp_path: Path) -> None:
    roots = [make_run(**SMALL, seed=seed, stop_step=stop) for seed, stop in enumerate((4, 7))]
    children = [go_on(root) for root in roots]
    train(roots, tmp_path)
    assert [state.run_id for state in RESIDENTS.rows] == [roots[1].run_id]
    found = train(children, tmp_path)
    assert [outcome.spent_flops for outcome in found] == [child.own_flops for child in children]
    assert_same(found, train_from_files(children, tmp_path))


def test_a_run_with_a_checkpoint_of_its_own_goes_on_from_that(make_run: MakeRun, tmp_path: Path) -> None:
    class Killed(BaseException):
        """Stands for the end of a process in the middle of a run."""

    root = make_run(**SMALL, checkpoint_steps=3, stop_step=4)
    child = go_on(root)
    train([root], tmp_path)

    def die(spec: RunSpec, point: CurvePoint) -> None:
        if point.step == 11:
            raise Killed

    with pytest.raises(Killed):
        train([child], tmp_path, report=die)
    train([root], tmp_path)  # concluded again from its own final state, which is then on the device
    assert RESIDENTS.rows
    steps: list[int] = []
    (found,) = train([child], tmp_path, report=lambda spec, point: steps.append(point.step))
    assert steps == [10, 11, 12]
    assert found.spent_flops == child.own_flops


def test_nothing_stays_of_a_run_that_nobody_goes_on_from(make_run: MakeRun, tmp_path: Path) -> None:
    """The state of a whole run is kept for a soup, which reads it from its file."""
    train([make_run(**SMALL).model_copy(update={"keep_state": True})], tmp_path)
    assert RESIDENTS.stepper is None


def test_nothing_stays_when_the_inline_runner_has_ended(make_run: MakeRun, tmp_path: Path) -> None:
    runner = InlineRunner(RunnerSection(kind="inline", retries=0), tmp_path)
    root = make_run(**SMALL, stop_step=4)
    statuses = [outcome.status for _, outcome in runner.run([root], lambda spec, point: None)]
    assert statuses == [RunStatus.COMPLETED]
    assert RESIDENTS.stepper is None


def test_memory_is_given_up_when_others_are_trained(make_run: MakeRun, tmp_path: Path) -> None:
    train([make_run(**SMALL, stop_step=4)], tmp_path)
    assert RESIDENTS.stepper is not None
    held = weakref.ref(RESIDENTS.stepper.state.weights)
    train([make_run(**{**SMALL, "width": 32})], tmp_path)
    gc.collect()
    assert held() is None
    assert RESIDENTS.stepper is None
