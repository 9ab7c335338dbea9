"""The law of whole curves with a critical batch: its equations, its functions, its fit."""

from dataclasses import replace

import numpy as np
import pytest

import scalelaws
from planting.losses import PLANTED, TRAJECTORY, trajectory_loss, trajectory_runs
from scalelaws import FitError, Target
from scalelaws.critical_batch import fit_tradeoff
from scalelaws.laws.trajectory import (
    Trajectory,
    find_critical_batch,
    minimum_loss,
    predict_curve,
    steps_to_loss,
    tokens_to_loss,
)

ROW = np.array([[*TRAJECTORY.values()]])


def test_the_implicit_loss_agrees_with_bisection():
    n, batch, steps = np.array([[1e5, 1e2, 3.0], [1e7, 1e4, 1e3], [1e9, 1e6, 1e5], [1e12, 1e9, 1e8]]).T
    columns = {"params_non_embedding": n, "batch_tokens": batch, "steps": steps}
    ln_loss, _ = Trajectory().evaluate(ROW, columns)
    assert np.exp(ln_loss[0]) == pytest.approx(trajectory_loss(n, batch, steps), rel=1e-10)


def test_derivatives_of_the_implicit_loss_are_exact():
    columns = Trajectory()._read(trajectory_runs(0.0, 0))
    values = ROW * np.array([[1.0], [1.2], [0.9]])
    _, slopes = Trajectory().evaluate(values, columns)
    for j in range(6):
        step = np.zeros_like(values)
        step[:, j] = 1e-5 * values[:, j]
        rise = Trajectory().evaluate(values + step, columns)[0] - Trajectory().evaluate(values - step, columns)[0]
        assert slopes[..., j] == pytest.approx(rise / (2 * step[:, j : j + 1]), rel=1e-5)


def test_planted_constants_come_back_and_lie_within_their_intervals():
    planted = PLANTED["trajectory"]
    exact = scalelaws.fit(Trajectory(), planted.runs(0.0, 0), bootstrap=50)
    noisy = scalelaws.fit(Trajectory(), planted.runs(planted.noise, 1), bootstrap=100)
    for name, truth in TRAJECTORY.items():
        assert exact.parameters[name].value == pytest.approx(truth, rel=1e-3)
        assert noisy.parameters[name].low * 0.99 <= truth <= noisy.parameters[name].high * 1.01
    assert noisy.status.ok


def test_steps_and_tokens_to_a_loss_invert_the_curve():
    steps = np.array([3e3, 2e4, 1e5])
    losses = predict_curve(ROW, 1e8, 3e5, steps)[0]
    assert steps_to_loss(ROW, 1e8, 3e5, losses)[0] == pytest.approx(steps, rel=1e-8)
    assert tokens_to_loss(ROW, 1e8, 3e5, losses)[0] == pytest.approx(steps * 3e5, rel=1e-8)


def test_no_steps_reach_below_the_minimum_of_a_size():
    least = minimum_loss(ROW, 1e8)[0]
    assert least == pytest.approx((TRAJECTORY["N_c"] / 1e8) ** TRAJECTORY["alpha_N"])
    assert np.isinf(steps_to_loss(ROW, 1e8, 3e5, [0.999 * least, least])).all()
    assert predict_curve(ROW, 1e8, 1e9, [1e14])[0, 0] == pytest.approx(least, rel=1e-4)


def test_at_the_critical_batch_both_costs_are_twice_the_least():
    critical = find_critical_batch(ROW, 3.5)[0, 0]
    assert critical == pytest.approx(1.2e8 / 3.5 ** (1 / 0.23))
    at, vast, tiny = (steps_to_loss(ROW, 1e8, batch, 3.5)[0, 0] for batch in (critical, 1e15, 1e-3))
    assert at / vast == pytest.approx(2, rel=1e-6)
    assert at * critical / (tiny * 1e-3) == pytest.approx(2, rel=1e-6)


def test_its_curves_give_the_tradeoff_its_critical_batch():
    batches = np.geomspace(5e4, 5e6, 8)
    steps = np.array([steps_to_loss(ROW, 1e8, batch, 3.5)[0, 0] for batch in batches])
    found = fit_tradeoff(steps, steps * batches)
    assert found.critical_batch_tokens.value == pytest.approx(find_critical_batch(ROW, 3.5)[0, 0], rel=1e-3)


def test_points_of_one_run_are_one_group():
    runs = trajectory_runs(0.0, 0)
    groups = Trajectory().group(runs)
    assert len(np.unique(groups)) == 25
    assert len({(label, group) for label, group in zip(runs.label, groups, strict=True)}) == 25


def test_points_of_curves_at_other_rates_are_no_sweep():
    runs = replace(trajectory_runs(2e-3, 0), peak_lr=np.tile([1e-3, 2e-3, 1e-3], 50))
    assert scalelaws.fit(Trajectory(), runs.rows(np.tile(np.arange(150), 2)), bootstrap=50).evidence.runs == 300


def test_one_batch_is_refused():
    runs = trajectory_runs(0.0, 0)
    with pytest.raises(FitError, match="3 levels of batch_tokens"):
        scalelaws.fit(Trajectory(), runs.select(runs.batch_tokens == runs.batch_tokens[0], "others"))


def test_a_target_says_its_batch_and_steps():
    with pytest.raises(ValueError, match="batch_tokens"):
        Trajectory().predict_loss(ROW, Target(1e8, 1e10))
