"""Runs whose data has something wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from foretune.corpora import BatchStream
from foretune.proxies.train import train_run, train_runs
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.training.schedules import schedule_lr

MakeRun = Callable[..., RunSpec]
SEQUENCES = 8
"""Sequences per step of the runs here."""
BAD_STEP = 50
"""The step (counted from 1) whose batch is spoilt."""
SETTINGS = {"steps": 60, "warmup_steps": 2, "decay_steps": 8, "evaluations": 2, "peak_lr": 2**-8}


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], None]:
    """Fill the batches of steps (counted from 1) with tokens that the corpus does not have."""
    read = BatchStream.sequences

    def spoil_steps(steps: Sequence[int]) -> None:
        def sequences(stream: BatchStream, first: int, number: int) -> NDArray[np.int64]:
            rows = read(stream, first, number)
            return 256 - rows if first // SEQUENCES + 1 in steps else rows

        monkeypatch.setattr(BatchStream, "sequences", sequences)

    return spoil_steps


def train(spec: RunSpec, folder: Path) -> RunOutcome:
    return train_run(spec, folder, lambda point: None)


def seen(outcome: RunOutcome) -> list[tuple[int, float | None]]:
    """Steps and training losses of the curve."""
    return [(point.step, point.loss) for point in outcome.curve]


def test_a_spoilt_batch_is_recorded(make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]) -> None:
    spec = make_run(**SETTINGS)
    calm = train(spec, tmp_path / "calm")
    assert calm.instability == ""
    spoil([BAD_STEP])
    outcome = train(spec, tmp_path / "spoilt")
    assert seen(outcome)[: BAD_STEP - 1] == seen(calm)[: BAD_STEP - 1]
    spike = outcome.curve[BAD_STEP - 1]
    assert spike.step == BAD_STEP
    assert spike.loss is not None
    assert spike.loss > 4
    assert f"loss spike {spike.loss:.4g} over a level of" in outcome.instability
    assert f"at step {BAD_STEP}" in outcome.instability
    assert "skipped" not in outcome.instability
    assert outcome.spent_flops == calm.spent_flops == spec.compute_flops


def test_a_spoilt_batch_is_skipped_tried_again_and_let_through_halved(
    make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spec = make_run(**SETTINGS, spikes="skip")
    calm = train(spec, tmp_path / "calm")
    recorded_calm = train(make_run(**SETTINGS), tmp_path / "recorded")
    assert calm.curve == recorded_calm.curve  # a run without spikes is the same under both policies
    spoil([BAD_STEP])
    recorded = train(make_run(**SETTINGS), tmp_path / "bad")
    outcome = train(spec, tmp_path / "skipped")
    assert outcome.status is RunStatus.COMPLETED
    skip = outcome.curve[BAD_STEP - 1]
    assert (skip.step, skip.tokens, skip.loss) == (
        BAD_STEP - 1,
        outcome.curve[BAD_STEP - 2].tokens,
        recorded.curve[BAD_STEP - 1].loss,
    )
    following, again = outcome.curve[BAD_STEP : BAD_STEP + 2]
    assert (following.step, again.step) == (BAD_STEP, BAD_STEP + 1)
    assert following.loss is not None
    assert following.loss < 2.5  # the next batch, on weights that the spoilt one did not touch
    assert again.loss is not None
    assert again.loss > 4
    assert skip.lr == 0
    assert again.lr == pytest.approx(calm.curve[BAD_STEP].lr / 2)
    assert "2 spikes of the loss" in outcome.instability
    assert "(1 skipped, 1 applied at half the learning rate)" in outcome.instability
    assert outcome.tokens == spec.training.tokens
    assert outcome.spent_flops == pytest.approx(spec.compute_flops * 61 / 60)
    assert calm.loss is not None
    assert outcome.loss == pytest.approx(calm.loss, rel=0.2)


def test_a_batch_that_is_calm_at_its_second_try_leaves_no_trace_but_the_order(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad read, not bad data: the batch of step 50 comes after that of step 51."""
    read, tries = BatchStream.sequences, count()

    def sequences(stream: BatchStream, first: int, number: int) -> NDArray[np.int64]:
        rows = read(stream, first, number)
        bad = first // SEQUENCES + 1 == BAD_STEP and next(tries) == 0
        return 256 - rows if bad else rows

    monkeypatch.setattr(BatchStream, "sequences", sequences)
    outcome = train(make_run(**SETTINGS, spikes="skip"), tmp_path / "read")

    def swapped(stream: BatchStream, first: int, number: int) -> NDArray[np.int64]:
        step = first // SEQUENCES + 1
        return read(stream, SEQUENCES * ({BAD_STEP: BAD_STEP + 1, BAD_STEP + 1: BAD_STEP}.get(step, step) - 1), number)

    monkeypatch.setattr(BatchStream, "sequences", swapped)
    reference = train(make_run(**SETTINGS), tmp_path / "swapped")
    assert outcome.curve[: BAD_STEP - 1] + outcome.curve[BAD_STEP:] == reference.curve
    assert outcome.loss == reference.loss


def test_persistent_spikes_stop_the_run(make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]) -> None:
    """Each spoilt batch spikes at both its tries; the first of the fifth makes more than eight."""
    spoil(range(BAD_STEP - 5, 61, 2))
    outcome = train(make_run(**SETTINGS, spikes="skip"), tmp_path)
    assert outcome.status is RunStatus.DIVERGED
    assert outcome.reason.startswith("more than 8 spikes among the last 64 tries, up to step 53 (last finite loss ")
    assert outcome.loss is None
    assert "skipped" in outcome.instability


def test_a_member_that_skips_does_not_touch_the_others(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BatchStream.sequences

    def sequences(stream: BatchStream, first: int, number: int) -> NDArray[np.int64]:
        rows = read(stream, first, number)
        only_digits = bool((rows < 64).all())
        return 256 - rows if only_digits and first // SEQUENCES + 1 == BAD_STEP else rows

    monkeypatch.setattr(BatchStream, "sequences", sequences)
    specs = [
        make_run(**SETTINGS, spikes="skip", mixture={"digits": 1.0, "words": 0.0}),
        make_run(**SETTINGS, spikes="skip", mixture={"digits": 0.0, "words": 1.0}),
    ]
    folders = [tmp_path / str(number) for number in range(2)]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, lambda spec, point: None)}
    for number, spec in enumerate(specs):
        alone, beside = train(spec, tmp_path / f"alone-{number}"), outcomes[spec.run_id]
        assert ("skipped" in alone.instability) is ("skipped" in beside.instability) is (number == 0)
        assert [step for step, _ in seen(beside)] == [step for step, _ in seen(alone)]
        losses = [[loss for _, loss in seen(outcome)] for outcome in (beside, alone)]
        np.testing.assert_allclose(*np.array(losses, dtype=float), rtol=1e-4)
        assert beside.spent_flops == alone.spent_flops


def test_a_fork_takes_over_what_its_trunk_has_skipped(
    make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil([40])
    specs = [make_run(**{**SETTINGS, "steps": steps}, spikes="skip") for steps in (60, 50)]
    folders = [tmp_path / str(number) for number in range(2)]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, lambda spec, point: None)}
    for number, spec in enumerate(specs):
        alone, beside = train(spec, tmp_path / f"alone-{number}"), outcomes[spec.run_id]
        assert "1 skipped" in beside.instability
        assert beside.instability == alone.instability
        assert beside.loss == pytest.approx(alone.loss, abs=1e-5)
    assert sum(outcome.spent_flops or 0 for outcome in outcomes.values()) < 1.2 * specs[0].compute_flops


def test_a_fork_leaves_its_trunk_when_it_has_another_batch_to_try(
    make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    """Without a decay the shorter run shares all its steps, but its last batch cannot be set aside for later."""
    settings = {**SETTINGS, "schedule": "constant", "decay_steps": 0, "spikes": "skip"}
    spoil([45])
    specs = [make_run(**{**settings, "steps": steps}) for steps in (50, 45)]
    folders = [tmp_path / str(number) for number in range(2)]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, lambda spec, point: None)}
    for number, spec in enumerate(specs):
        alone, beside = train(spec, tmp_path / f"alone-{number}"), outcomes[spec.run_id]
        assert "1 applied at half the learning rate" in beside.instability
        assert beside.instability == alone.instability
        assert beside.loss == pytest.approx(alone.loss, abs=1e-5)


def test_the_rate_of_an_evaluated_step_is_the_one_it_took(
    make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None]
) -> None:
    spoil([45])
    spec = make_run(**{**SETTINGS, "steps": 45, "evaluations": 1}, spikes="skip")
    point = train(spec, tmp_path).curve[-1]
    assert point.held_out is not None
    assert point.lr == pytest.approx(schedule_lr(spec.training, 44) / 2)


class Killed(Exception):
    """The run is stopped from outside."""


@pytest.mark.parametrize("kill_step", [50, 55])
def test_a_killed_run_goes_on_with_its_level_and_its_set_aside_batch(
    make_run: MakeRun, tmp_path: Path, spoil: Callable[..., None], kill_step: int
) -> None:
    """The checkpoint after step 50 lies between the skip and the second try."""
    spoil([BAD_STEP])
    spec = make_run(**SETTINGS, spikes="skip", checkpoint_steps=10, diagnoses=3)

    def kill(point: CurvePoint) -> None:
        if point.step == kill_step + 2 and point.held_out is None:
            raise Killed

    with pytest.raises(Killed):
        train_run(spec, tmp_path / "killed", kill)
    resumed, whole = train(spec, tmp_path / "killed"), train(spec, tmp_path / "whole")
    assert resumed.curve == whole.curve
    assert resumed.instability == whole.instability != ""
    assert resumed.diagnoses == whole.diagnoses
    assert resumed.spent_flops == whole.spent_flops
