import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from scalelaws.engines.powers import (
    Objective,
    Problems,
    approach,
    differentiate,
    evaluate,
    minimise,
    predict_log,
    project_starts,
)
from scalelaws.engines.relaxation import Relaxation
from scalelaws.engines.valleys import follow, straighten

RNG = np.random.default_rng(3)
U = RNG.normal(size=(40, 2))
TRUTH = np.array([[0.5, -0.2, -0.6, 0.3, 0.4]])
Y = predict_log(TRUTH, U) + 0.01 * RNG.standard_normal((1, 40))


def pose(y=Y, weights=None):
    w = np.ones_like(y) if weights is None else weights
    return Problems(U, y, w, np.full((len(y), 2), np.log(0.3)))


@pytest.mark.parametrize(
    "objective", [Objective(1e-2), Objective(5.0), Objective(3e-2, 1e-2, 0.5), Objective(1e-2, 1e-2, 0.5, smooth=True)]
)
def test_gradient_and_hessian_equal_finite_differences(objective):
    at, step = TRUTH + 0.03, 1e-6
    gradient, hessian = differentiate(at, pose(), objective)
    for k in range(5):
        move = step * np.eye(5)[[k]]
        up, down = evaluate(at + move, pose(), objective), evaluate(at - move, pose(), objective)
        assert gradient[0, k] == pytest.approx((up - down)[0] / (2 * step), rel=1e-5, abs=1e-8)
        slope = (differentiate(at + move, pose(), objective)[0] - differentiate(at - move, pose(), objective)[0])[0]
        assert hessian[0, k] == pytest.approx(slope / (2 * step), rel=1e-4, abs=1e-5 * np.abs(hessian).max())


def test_the_minimum_is_that_of_scipy():
    objective = Objective(1e-3)
    starts = project_starts(U, Y[0], np.ones(40), np.geomspace(0.1, 1, 5))
    ours = minimise(starts, pose(np.repeat(Y, len(starts), axis=0)), objective)
    peers = [
        scipy_minimize(lambda t: 1e3 * evaluate(t[None], pose(), objective)[0], start, method="Nelder-Mead",
                       options={"maxiter": 20000, "maxfev": 20000, "xatol": 1e-9, "fatol": 1e-12, "adaptive": True})
        for start in starts[::8]
    ]  # fmt: skip
    assert ours.converged.all()
    assert ours.value == pytest.approx(ours.value.min(), rel=1e-9)
    assert ours.value.min() <= min(peer.fun for peer in peers) / 1e3 * (1 + 1e-9)


def test_every_bootstrap_row_is_at_its_own_minimum():
    objective = Objective(1e-3)
    weights = RNG.multinomial(40, np.full(40, 1 / 40), size=12).astype(float)
    starts = project_starts(U, Y[0], np.ones(40), np.geomspace(0.1, 1, 5))
    best = minimise(starts, pose(np.repeat(Y, len(starts), axis=0)), objective)
    centre = best.t[[best.value.argmin()]]
    warm = minimise(np.repeat(centre, 12, axis=0), pose(np.repeat(Y, 12, axis=0), weights), objective)
    assert warm.converged.all()
    for row in range(12):
        shape = (len(starts), 40)
        cold = minimise(starts, pose(np.broadcast_to(Y[0], shape), np.broadcast_to(weights[row], shape)), objective)
        assert warm.value[row] == pytest.approx(cold.value.min(), rel=1e-9)


def test_a_problem_without_noise_is_solved_exactly():
    exact = predict_log(TRUTH, U)
    found = minimise(TRUTH + 0.1, pose(exact), Objective(1e-3))
    assert found.t[0] == pytest.approx(TRUTH[0], abs=1e-6)


PLACES = np.array([
    [0.5, -0.2, -0.6, 0.3, 0.4], [0.5, -0.2, -0.6, 0.3, -0.1], [-9.0, -0.2, -0.6, 0.3, 0.4],
])  # fmt: skip
"""In the valley; with an exponent below zero; almost without a floor: the last two step in t itself."""


@pytest.mark.parametrize("place", PLACES)
def test_derivatives_along_straight_coordinates_equal_differences_along_the_path(place):
    objective, step = Objective(5.0), 1e-4

    def value(move):
        return evaluate(follow(place[None], move[None]), pose(), objective)[0]

    gradient, hessian = straighten(place[None], *differentiate(place[None], pose(), objective))
    units = step * np.eye(5)
    for k in range(5):
        assert gradient[0, k] == pytest.approx((value(units[k]) - value(-units[k])) / (2 * step), rel=1e-5, abs=1e-7)
        for m in range(5):
            corners = [value(a * units[k] + b * units[m]) * a * b for a in (1, -1) for b in (1, -1)]
            assert hessian[0, k, m] == pytest.approx(sum(corners) / (4 * step**2), rel=1e-3, abs=1e-4)


def test_moving_an_exponent_alone_keeps_loss_and_slopes_in_the_middle():
    there = follow(TRUTH, np.array([[0.0, 0.0, 0.0, 0.02, -0.03]]))
    loss = lambda t: np.exp(t[0, :3]).sum()  # noqa: E731
    assert there[0, 3:] == pytest.approx([0.32, 0.37])
    assert loss(there) == pytest.approx(loss(TRUTH), rel=1e-12)
    assert there[0, 1:3] + np.log(there[0, 3:]) == pytest.approx(TRUTH[0, 1:3] + np.log(TRUTH[0, 3:]))


def test_a_law_without_a_floor_and_one_that_grows_with_scale_are_found():
    without_floor = np.array([[-np.inf, -0.2, -0.6, 0.3, 0.4]])
    growing = np.array([[0.5, -0.2, -0.6, 0.3, -0.1]])
    for truth in (without_floor, growing):
        exact = predict_log(truth, U)
        starts = project_starts(U, exact[0], np.ones(40), np.geomspace(0.1, 1, 5))
        found = minimise(starts, pose(np.repeat(exact, len(starts), axis=0)), Objective(5.0))
        best = found.t[[found.value.argmin()]]
        assert predict_log(best, U) == pytest.approx(exact, abs=1e-5)


def test_an_approached_minimum_is_near_the_minimum():
    objective = Objective(3e-2, 1e-2, 0.5, smooth=True)
    near, exact = approach(TRUTH + 0.1, pose(), objective), minimise(TRUTH + 0.1, pose(), objective)
    assert exact.value[0] <= near.value[0] <= exact.value[0] * (1 + 1e-4)


@pytest.mark.parametrize("slope", [-1.5, -0.8, 0.9])
def test_relaxation_settles_where_plain_rounds_swing_or_creep(slope):
    turn = np.linalg.qr(RNG.standard_normal((3, 3)))[0]
    matrix, target = turn @ np.diag([slope, 0.5 * slope, 0.0]) @ turn.T, np.array([1.0, -2.0, 0.5])
    plain, relaxed, relaxation = np.zeros(3), np.zeros(3), Relaxation()
    for _ in range(30):
        plain = target + matrix @ (plain - target)
        relaxed = relaxation.step(relaxed, target + matrix @ (relaxed - target))
    assert np.abs(relaxed - target).max() < 1e-3
    assert np.abs(relaxed - target).max() < 0.1 * np.abs(plain - target).max()
