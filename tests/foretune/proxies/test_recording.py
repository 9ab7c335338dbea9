from __future__ import annotations

import math
from itertools import pairwise

import pytest

from foretune.proxies.recording import CURVE_POINTS, PATIENCE_STEPS, Recorder, RunStopped
from foretune.records import CurvePoint, RunStatus
from foretune_factories import make_spec


def make_recorder(points: list[CurvePoint] | None = None, **overrides: object) -> Recorder:
    reported = points if points is not None else []
    return Recorder(make_spec(**overrides), reported.append)


def test_the_curve_is_thinned_and_keeps_every_evaluation() -> None:
    points: list[CurvePoint] = []
    recorder = make_recorder(points, steps=1000, evaluations=7)
    for step in range(1, 1001):
        recorder.record_step(step, 0.01, 3.0, 1.0)
        if step in recorder.evaluation_steps:
            recorder.record_held_out(step, 0.01, 3.1, {"code": 3.1})
    assert tuple(points) == recorder.curve
    assert len(points) <= CURVE_POINTS + 7
    assert [point.step for point in points if point.held_out] == [143, 286, 429, 571, 714, 857, 1000]
    assert all(right.step > left.step for left, right in pairwise(points))
    assert points[-1] == CurvePoint(step=1000, tokens=1000 * 1024, lr=0.01, loss=3.0, held_out=3.1)


@pytest.mark.parametrize(
    ("loss", "gradient_norm", "status", "reason"),
    [
        (
            math.nan,
            1.0,
            RunStatus.DIVERGED,
            "training loss is nan at step 3 (last finite loss 4.0000, learning rate 0.2",
        ),
        (math.inf, 1.0, RunStatus.DIVERGED, "training loss is inf at step 3"),
        (4.0, math.nan, RunStatus.DIVERGED, "gradient norm is nan at step 3"),
        (0.0, 1.0, RunStatus.FAILED, "training loss 0 at step 3 is not above 0: labels leak"),
    ],
)
def test_a_loss_that_cannot_be_ends_the_run(loss: float, gradient_norm: float, status: RunStatus, reason: str) -> None:
    recorder = make_recorder(steps=100)
    for step in (1, 2):
        recorder.record_step(step, 0.2, 4.0, 1.0)
    with pytest.raises(RunStopped) as caught:
        recorder.record_step(3, 0.2, loss, gradient_norm)
    assert caught.value.status is status
    assert caught.value.reason.startswith(reason)
    assert recorder.curve[-1].loss == (None if not math.isfinite(loss) else loss)


@pytest.mark.parametrize(("loss", "norm", "kept"), [(math.nan, 1.0, None), (math.inf, 1.0, None), (4.0, math.inf, 4.0)])
@pytest.mark.parametrize("step", [333, 1000])  # between the kept steps, and an evaluation
def test_the_step_that_ends_a_run_is_on_its_curve(step: int, loss: float, norm: float, kept: float | None) -> None:
    recorder = make_recorder(steps=1000, evaluations=1)
    with pytest.raises(RunStopped):
        recorder.record_step(step, 0.2, loss, norm)
    assert recorder.curve == (CurvePoint(step=step, tokens=step * 1024, lr=0.2, loss=kept),)


@pytest.mark.parametrize(("first", "limit"), [(5.5, math.log(257) + 1), (2.0, 4.0)])
def test_a_run_that_stays_too_high_has_diverged(first: float, limit: float) -> None:
    recorder = make_recorder(steps=10_000)
    recorder.record_step(1, 0.1, first, 1.0)
    for step in range(2, 2 * PATIENCE_STEPS):  # just below: for ever
        recorder.record_step(step, 0.1, limit - 0.001, 1.0)
    for step in range(1000, 1000 + PATIENCE_STEPS - 1):
        recorder.record_step(step, 0.1, limit + 0.001, 1.0)
    with pytest.raises(RunStopped, match=f"above {limit:.3f} for {PATIENCE_STEPS} steps up to step 2001"):
        recorder.record_step(2001, 0.1, limit + 0.001, 1.0)
    assert recorder.curve[-1].step == 2001  # not a step that is kept otherwise


def test_a_spike_that_passes_does_not_end_a_run() -> None:
    recorder = make_recorder(steps=10_000)
    for step in range(1, 500):
        recorder.record_step(step, 0.1, 90.0 if step % PATIENCE_STEPS else 3.0, 1.0)


def test_a_held_out_loss_that_is_not_finite_is_a_divergence() -> None:
    recorder = make_recorder(steps=10)
    recorder.record_step(1, 0.1, 3.0, 1.0)
    with pytest.raises(RunStopped, match="held-out loss is nan at step 1"):
        recorder.record_held_out(1, 0.1, math.nan, {"code": math.nan})
    assert recorder.curve[-1].held_out is None


def test_state_goes_through_plain_data() -> None:
    recorder = make_recorder(steps=10)
    for step in range(1, 6):
        recorder.record_step(step, 0.1, 3.0 / step, 1.0)
    other = make_recorder(steps=10)
    other.restore(recorder.state())
    assert other.curve == recorder.curve
    assert other.state() == recorder.state()
