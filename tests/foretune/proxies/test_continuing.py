"""A run that goes on from another one's final state is the run that it would be from the beginning."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from foretune.proxies.residents import RESIDENTS
from foretune.proxies.train import train_runs
from foretune.records import CurvePoint, Phase, RunOutcome, RunSpec
from foretune.training.lineages import cut_run
from foretune.training.spikes import RunningLevel

MakeRun = Callable[..., RunSpec]
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_tokens": 64, "validation_sequences": 2, "steps": 15}
PHASES = (
    Phase(start_step=5, settings={"peak_lr": 2**-5, "weight_decay": 0.5, "clip_norm": 0.3}),
    Phase(start_step=10, settings={"beta2": 0.9}, mixture={"digits": 0.7, "words": 0.3}),
)


def train(
    specs: Sequence[RunSpec],
    workspace: Path,
    report: Callable[[RunSpec, CurvePoint], None] = lambda spec, point: None,
    *,
    resident: bool = False,
) -> list[RunOutcome]:
    """Outcomes in the order of the specs; as in another process unless `resident`."""
    if not resident:
        RESIDENTS.release()
    folders = [workspace / spec.run_id for spec in specs]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, report)}
    return [outcomes[spec.run_id] for spec in specs]


def cut_lineage(whole: RunSpec, steps: Sequence[int]) -> list[RunSpec]:
    """The segments of a run that end at these steps, each going on from the one before; the last is the whole."""
    segments: list[RunSpec] = []
    for before, step in zip((0, *steps), (*steps, 0), strict=True):
        link = {"parent_run_id": segments[-1].run_id, "parent_step": before} if segments else {}
        segments.append((cut_run(whole, step) if step else whole).model_copy(update=link))
    return segments


def assert_same(found: RunOutcome, expected: RunOutcome) -> None:
    assert found.curve == expected.curve
    assert found.loss == expected.loss
    assert found.loss_by_domain == expected.loss_by_domain
    assert found.instability == expected.instability


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon", "schedule": "cosine", "decay_steps": 0},
        {"optimizer": "nadamw", "ramp": [{"steps": 7, "batch_tokens": 32}]},
        {
            "optimizer": "prodigy",
            "peak_lr": 1.0,
            "schedule": "constant",
            "decay_steps": 0,
            "parametrization": "standard",
        },
        {"optimizer": "schedulefree", "schedule": "constant", "decay_steps": 0},
    ],
    ids=str,
)
def test_three_segments_are_one_run(make_run: MakeRun, tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = make_run(**{**SMALL, **settings}).model_copy(update={"phases": PHASES})
    segments = cut_lineage(whole, (5, 10))
    assert segments[-1].run_id == whole.run_id
    outcomes = [train([segment], tmp_path / "chain")[0] for segment in segments]
    (scratch,) = train([whole], tmp_path / "scratch")
    assert_same(outcomes[-1], scratch)
    assert [outcome.tokens for outcome in outcomes] == [segment.tokens for segment in segments]
    assert [outcome.spent_flops for outcome in outcomes] == [segment.own_flops for segment in segments]
    assert sum(segment.own_flops for segment in segments) == scratch.spent_flops == whole.compute_flops


def test_a_run_goes_on_through_an_early_end_without_a_trace(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings stay the same, and the parent ended between evaluations, in a phase that it looked at closely."""
    monkeypatch.setattr("foretune.proxies.recording.CURVE_POINTS", 10)
    whole = make_run(**{**SMALL, "steps": 60}).model_copy(update={"phases": PHASES[:1]})
    segments = cut_lineage(whole, (7, 27, 55))
    chain = [train([segment], tmp_path / "chain")[0] for segment in segments]
    for segment, outcome in zip(segments[1:], chain[1:], strict=True):
        assert_same(outcome, train([segment], tmp_path / "scratch" / str(segment.last_step))[0])
    looked_at = [[point.step for point in outcome.curve if 5 < point.step < 15] for outcome in chain[1:]]
    assert looked_at == [[6, 8, 12], [6, 8, 12], [6, 12]]  # every 4th and 8th step, beside every 6th


def test_lineages_may_share_packs_and_parents(make_run: MakeRun, tmp_path: Path) -> None:
    """Two seeds; then seed 0 is copied to seed 1's place under other settings, which sees the same text as seed 0."""
    roots = [make_run(**SMALL, seed=seed, stop_step=5) for seed in range(2)]
    own, copied, other = (
        make_run(**SMALL, seed=seed).model_copy(
            update={"phases": phases, "parent_run_id": roots[seed].run_id, "parent_step": 5}
        )
        for seed, phases in ((0, ()), (0, PHASES[:1]), (1, ()))
    )
    train(roots, tmp_path / "chain")
    specs = [other, copied, own]
    found = train(specs, tmp_path / "chain")
    for spec, outcome in zip(specs, found, strict=True):
        (alone,) = train([spec], tmp_path / "alone")
        assert outcome.spent_flops == spec.own_flops < spec.compute_flops == alone.spent_flops
        assert [(point.step, point.lr) for point in outcome.curve] == [(point.step, point.lr) for point in alone.curve]
        for point, expected in zip(outcome.curve, alone.curve, strict=True):
            assert point.loss == pytest.approx(expected.loss, abs=1e-6)
            assert point.held_out == pytest.approx(expected.held_out, abs=1e-6)


@pytest.mark.parametrize("damage", ["missing", "flipped", "another step"])
def test_without_the_parents_state_all_is_trained_with_the_same_result(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    parent, child = cut_lineage(make_run(**SMALL), (5,))
    (expected,) = train([child], tmp_path / "scratch")
    if damage != "missing":
        train([parent], tmp_path)
        (state,) = (tmp_path / parent.run_id).rglob("state.pt")
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "flipped":
            state.write_bytes(bytes(content))
        else:
            manifest = state.parent / "manifest.json"
            manifest.write_text(manifest.read_text().replace('"step": 5', '"step": 4'))
    with caplog.at_level(logging.WARNING):
        (found,) = train([child], tmp_path)
    assert_same(found, expected)
    assert found.spent_flops == child.compute_flops > child.own_flops
    assert f"no state of run {parent.run_id} after step 5; trained from the beginning" in caplog.text


def test_a_killed_run_goes_on_from_its_own_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    class Killed(BaseException):
        """Stands for the end of a process in the middle of a run."""

    whole = make_run(**SMALL, checkpoint_steps=4).model_copy(update={"phases": PHASES})
    parent, child = cut_lineage(whole, (5,))
    train([parent], tmp_path)

    def die(spec: RunSpec, point: CurvePoint) -> None:
        if point.step == 13:
            raise Killed

    with pytest.raises(Killed):
        train([child], tmp_path, die)
    points: list[CurvePoint] = []
    (found,) = train([child], tmp_path, lambda spec, point: points.append(point))
    assert [point.step for point in points] == [13, 14, 15]
    assert_same(found, train([whole], tmp_path / "scratch")[0])
    assert found.spent_flops == child.own_flops


def test_skipped_spikes_do_not_tell_an_early_end(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was set aside just before the end of a parent is tried again by whoever goes on."""
    monkeypatch.setattr(RunningLevel, "exceeds", lambda level, value: len(level.state()["logs"]) in (5, 8))
    whole = make_run(**SMALL, spikes="skip").model_copy(update={"phases": PHASES})
    (scratch,) = train([whole], tmp_path / "scratch")
    skipped = [point.step for point in scratch.curve if [p.step for p in scratch.curve].count(point.step) > 1]
    assert skipped
    for step in range(6, 12):
        segments = cut_lineage(whole, (step,))
        outcomes = [train([segment], tmp_path / str(step))[0] for segment in segments]
        assert_same(outcomes[-1], scratch)


def test_a_parent_that_is_not_the_beginning_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    parent = make_run(**SMALL, stop_step=5)
    train([parent], tmp_path)
    child = make_run(**SMALL, peak_lr=0.5).model_copy(update={"parent_run_id": parent.run_id, "parent_step": 5})
    with pytest.raises(AssertionError, match="does not begin as its parent"):
        train([child], tmp_path)
