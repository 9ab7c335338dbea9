"""The engine of the non-linear laws against closed forms and against SciPy on the same input."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.optimize import least_squares

from scalelaws.engines.nonlinear import Noise, Parameter, Task, find_best, minimise, solve


@dataclass(frozen=True)
class Line:
    """response = intercept + slope x."""

    sd: float = 1e4
    parameters: tuple = field(init=False)

    def __post_init__(self):
        names = ("intercept", "slope")
        object.__setattr__(self, "parameters", tuple(Parameter(name, 0.0, self.sd, kind="real") for name in names))

    def evaluate(self, values, columns):
        x = columns["x"][None]
        slopes = np.stack([np.ones_like(x), x], axis=-1)
        return values[:, :1] + values[:, 1:] * x, np.broadcast_to(slopes, (len(values), *slopes.shape[1:]))


@dataclass(frozen=True)
class Decay:
    """response = height exp(-rate x), both positive."""

    parameters: tuple = (Parameter("height", 1.0, 3.0), Parameter("rate", 1.0, 3.0))

    def evaluate(self, values, columns):
        x = columns["x"][None]
        fading = np.exp(-values[:, 1:] * x)
        return values[:, :1] * fading, np.stack([fading, -values[:, :1] * x * fading], axis=-1)


X = np.linspace(-1, 2, 60)


def make_line(noise=0.1, seed=0, outliers=0):
    y = 0.5 + 2 * X + noise * np.random.default_rng(seed).standard_normal(len(X))
    y[:outliers] += 5.0
    return y


def test_a_line_against_least_squares():
    found = solve(Line(), {"x": X}, make_line(), np.zeros((1, 2)), Noise(0.1), draws=50)
    expected = np.polyfit(X, make_line(), 1)[::-1]
    assert found.values == pytest.approx(expected, abs=1e-3)
    assert found.noise == pytest.approx(0.1, rel=0.2)
    assert found.converged
    assert found.share_converged == 1


def test_a_prior_against_ridge_regression():
    """Closed form: (X'X / s^2 + I / p^2)^-1 X'y / s^2."""
    design, y, sd, prior = np.stack([np.ones_like(X), X], 1), make_line(), 0.1, 0.05
    task = Task(Line(prior), {"x": X}, y, np.ones(len(X)), Noise(sd, 1e6))
    expected = np.linalg.solve(design.T @ design / sd**2 + np.eye(2) / prior**2, design.T @ y / sd**2)
    assert minimise(task, np.zeros((1, 2)), sd).t[0] == pytest.approx(expected, rel=1e-8)


def test_the_robust_penalty_against_scipy():
    """Same Huber penalty, same turn, 12 of 60 points far off."""
    y, delta = make_line(outliers=12), 0.15
    task = Task(Line(), {"x": X}, y, np.ones(len(X)), Noise(0.1, delta))
    reference = least_squares(
        lambda p: p[0] + p[1] * X - y, [0.0, 0.0], loss="huber", f_scale=delta, ftol=1e-15, xtol=1e-15, gtol=1e-15
    )
    assert minimise(task, np.zeros((1, 2)), 0.1).t[0] == pytest.approx(reference.x, rel=1e-4)


def test_the_best_of_several_starts():
    x = np.linspace(0, 3, 40)
    y = 3.0 * np.exp(-1.7 * x)
    task = Task(Decay(), {"x": x}, y, np.ones(40), Noise(0.01))
    assert find_best(task, np.array([[1e-3, 50.0], [1.0, 1.0]])) == pytest.approx([3.0, 1.7], rel=1e-4)


@pytest.mark.parametrize("points", [10, 60])
def test_intervals_cover_the_truth(points, fewest_hits):
    """Perturbed data and priors below eight groups per parameter, resampled groups above."""
    x, hits = np.linspace(0, 3, points), 0
    for seed in range(120):
        y = 3.0 * np.exp(-1.7 * x) + 0.05 * np.random.default_rng(seed).standard_normal(points)
        found = solve(Decay(), {"x": x}, y, np.array([[1.0, 1.0]]), Noise(0.05), draws=100, seed=seed)
        low, high = np.quantile(found.draws[:, 1], [0.05, 0.95])
        hits += low <= 1.7 <= high
        assert ("resampled" in found.method) == (points == 60)
    assert hits >= fewest_hits(120)


def test_points_of_one_group_are_no_independent_witnesses():
    """Errors shared by a group of ten points: resampled together, the interval is some three times as wide."""
    groups = np.repeat(np.arange(30), 10)
    x = np.tile(np.linspace(-1, 2, 10), 30)
    y = 0.5 + 2 * x + np.random.default_rng(0).standard_normal(30)[groups]
    spreads = []
    for group in (None, groups.astype(float)):
        found = solve(Line(), {"x": x}, y, np.zeros((1, 2)), Noise(1.0), groups=group, draws=200)
        spreads.append(found.draws[:, 0].std())
    assert 2.3 < spreads[1] / spreads[0] < 4.3


def test_a_parameter_that_the_runs_do_not_touch_is_said():
    flat = solve(Line(1.0), {"x": np.zeros(30)}, np.ones(30), np.zeros((1, 2)), Noise(0.1), draws=50)
    assert [item.name for item in flat.undecided(Line().parameters)] == ["slope"]


def test_a_search_that_is_stuck_is_not_called_converged():
    """The response falls off a cliff beside the start, so no step ever helps, however short."""

    @dataclass(frozen=True)
    class Cliff(Line):
        def evaluate(self, values, columns):
            response, slopes = super().evaluate(values, columns)
            return np.where(np.abs(values[:, :1]) > 1e-12, np.nan, response), slopes

    task = Task(Cliff(), {"x": X}, make_line(), np.ones(len(X)), Noise(0.1))
    assert not minimise(task, np.zeros((1, 2)), 0.1).converged[0]


def test_a_given_parameter_is_never_undecided():
    line = Line(1.0)
    flat = solve(line, {"x": np.zeros(30)}, np.ones(30), np.zeros((1, 2)), Noise(0.1), draws=50)
    held = (line.parameters[0], Parameter("slope", 0.0, 1.0, kind="real", given=True))
    assert flat.undecided(held) == ()


def test_a_start_that_cannot_be_evaluated_is_passed_over():
    task = Task(Line(), {"x": X}, make_line(), np.ones(len(X)), Noise(0.1))
    assert np.isfinite(find_best(task, np.array([[np.inf, 0.0], [0.0, 0.0]]))).all()
