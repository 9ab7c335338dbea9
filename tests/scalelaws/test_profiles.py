"""Profile likelihood and Laplace intervals against closed forms, the bootstrap, and simulated truths."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binom
from scipy.stats import t as student

import scalelaws
from scalelaws import FitError, Observations, Target
from scalelaws.engines.likelihood import Quantity, differentiate, trace_profile
from scalelaws.engines.nonlinear import Noise, Parameter, Task
from scalelaws.laws import FitOptions
from scalelaws.laws.kaplan import Kaplan
from scalelaws.profiles import optimal_size, profile


@dataclass(frozen=True)
class Line:
    """y = p0 + p1 x with priors that say nothing."""

    parameters = (Parameter("p0", 0.0, 1e6, kind="real"), Parameter("p1", 0.0, 1e6, kind="real"))

    def evaluate(self, values, columns):
        x = columns["x"]
        slopes = np.broadcast_to(np.stack([np.ones_like(x), x], axis=1), (len(values), len(x), 2))
        return values[:, :1] + values[:, 1:] * x, slopes


@dataclass(frozen=True)
class Decay:
    """y = exp(-p x): one positive parameter, a skewed likelihood."""

    parameters = (Parameter("p", 1.0, 1e6),)

    def evaluate(self, values, columns):
        y = np.exp(-values * columns["x"])
        return y, (-columns["x"] * y)[..., None]


def pose(model, x, y, sd):
    return Task(model, {"x": x}, y, np.ones(len(x)), Noise(sd, 1e3))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_a_linear_model_has_students_interval(level):
    """Slope and prediction of ordinary least squares: estimate -+ t s sqrt(v), in every textbook."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 12)
    y = 1 + 2 * x + 0.1 * rng.standard_normal(12)
    design = np.stack([np.ones(12), x], axis=1)
    shape = np.linalg.inv(design.T @ design)
    best = shape @ design.T @ y
    sd = np.sqrt(((design @ best - y) ** 2).sum() / 10)
    at = np.array([1.0, 3.0])
    for row in (np.array([0.0, 1.0]), at):
        quantity = Quantity("linear", lambda values, row=row: values @ row, positive=False)
        found = trace_profile(pose(Line(), x, y, sd), best, sd, 10, quantity, level=level)
        width = student.ppf((1 + level) / 2, 10) * sd * np.sqrt(row @ shape @ row)
        for interval in (found.interval, found.laplace):
            assert interval.value == pytest.approx(best @ row, rel=1e-6)
            assert interval.low == pytest.approx(best @ row - width, abs=1e-3 * width)
            assert interval.high == pytest.approx(best @ row + width, abs=1e-3 * width)
        assert found.ratio == pytest.approx(((found.grid - best @ row) / width) ** 2 * found.threshold, abs=1e-4)


def test_a_skewed_likelihood_gives_the_exact_profile():
    """One parameter: the profile is the likelihood itself, whose crossings a root finder gives."""
    from scipy.optimize import brentq

    x, y, sd = np.array([0.5, 1.0, 2.0]), np.array([0.6, 0.4, 0.1]), 0.1
    best = np.array([0.9])
    found = trace_profile(pose(Decay(), x, y, sd), np.log(best), sd, np.inf, Quantity("p", lambda v: v[:, 0]))

    def ratio(p):
        return ((np.exp(-p * x) - y) ** 2).sum() / sd**2 - ((np.exp(-found.interval.value * x) - y) ** 2).sum() / sd**2

    crossings = [brentq(lambda p: ratio(p) - 1.6448536**2, *ends) for ends in ((0.2, found.interval.value), (1, 5))]
    assert [found.interval.low, found.interval.high] == pytest.approx(crossings, rel=1e-3)
    assert found.interval.high - found.interval.value > found.interval.value - found.interval.low


def test_differences_are_derivatives():
    quantity = Quantity("product", lambda v: v[:, 0] ** 2 * v[:, 1])
    parameters = (Parameter("a", 1.0, 1.0), Parameter("b", 1.0, 1.0))
    values = np.array([[2.0, 3.0], [1e-4, 5e3]])
    assert differentiate(quantity, values, parameters) == pytest.approx(np.stack([2, 1] / values), rel=1e-6)


def test_a_side_without_evidence_has_no_bound():
    """What is left of a decay lies within the noise: any faster one fits as well."""
    x, y = np.array([2.0, 3.0]), np.array([0.02, 0.0])
    found = trace_profile(pose(Decay(), x, y, 0.1), np.array([0.5]), 0.1, np.inf, Quantity("p", lambda v: v[:, 0]))
    assert found.interval.high is None
    assert found.interval.low is not None
    assert "open above" in found.message


def test_a_floor_that_may_be_nothing_is_open_below():
    n = np.geomspace(1e7, 1e9, 8)
    loss = (40 * n**-0.15) * np.exp(0.003 * np.random.default_rng(3).standard_normal(8))
    runs = Observations(n, np.full(8, 1e10), loss)
    found = profile("power_law", runs, "E")
    assert found.interval.low is None
    assert found.interval.high > 0


def test_the_profile_agrees_with_the_bootstrap(plant_loss):
    runs = plant_loss(8, 8, noise=0.003)
    fit = scalelaws.fit("chinchilla", runs, objective="least_squares", bootstrap=400)
    options = FitOptions(objective="least_squares")
    allocation = scalelaws.allocate(fit, 1e22).params_non_embedding
    drawn_at = {"alpha": fit.parameters["alpha"], "E": fit.parameters["E"], optimal_size(1e22): allocation}
    for quantity, drawn in drawn_at.items():
        found = profile(fit, runs, quantity, options=options)
        assert found.interval.value == pytest.approx(drawn.value, rel=1e-4)
        for interval in (found.interval, found.laplace):
            width = np.log(interval.high / interval.low)
            assert width == pytest.approx(np.log(drawn.high / drawn.low), rel=0.3)


@pytest.mark.parametrize("objective", ["huber", "map", "least_squares"])
def test_profiles_of_published_runs_hold_the_published_refit(published_runs, objective):
    """Besiroglu et al. 2024 on their 240 points, under three penalties: alpha, beta and tokens per parameter."""
    table = published_runs("chinchilla_epoch").query("kept_240")
    runs = Observations(table.N, table.D, table.loss, params_convention="total")
    options = FitOptions(objective=objective)
    alpha = profile("chinchilla", runs, "alpha", options=options).interval
    size = profile("chinchilla", runs, optimal_size(5.76e23), options=options).interval
    assert alpha.low <= 0.3478 <= alpha.high
    assert size.low <= 7.22e10 <= size.high
    assert not size.low <= 3.22e10 <= size.high


def test_profiles_cover_simulated_truths(fewest_hits):
    """A skewed likelihood with known noise, 200 times: no fewer and no more hits than chance allows."""
    x, hits, total = np.geomspace(0.2, 3, 8), 0, 200
    for seed in range(total):
        y = np.exp(-0.7 * x) + 0.1 * np.random.default_rng(seed).standard_normal(8)
        found = trace_profile(
            pose(Decay(), x, y, 0.1), np.log([0.7]), 0.1, np.inf, Quantity("p", lambda values: values[:, 0])
        )
        hits += (found.interval.low or 0) <= 0.7 <= (found.interval.high or np.inf)
    assert fewest_hits(total) <= hits <= binom.ppf(0.999, total, 0.9)


def test_profiles_of_a_law_cover_its_truth(fewest_hits):
    """The exponent, and the loss four times beyond twelve runs of unknown noise."""
    n, hits, total = np.geomspace(1e7, 1e9, 12), 0, 25
    target, options = Target(4e9, 1e10), FitOptions(objective="least_squares", bootstrap=50)
    for seed in range(total):
        noise = np.exp(0.003 * np.random.default_rng(seed).standard_normal(12))
        runs = Observations(n, np.full(12, 1e10), (1.8 + 300 * n**-0.3) * noise)
        fit = scalelaws.fit("power_law", runs, objective="least_squares", bootstrap=50, throw=False)
        for quantity, truth in (("alpha", 0.3), (target, 1.8 + 300 * 4e9**-0.3)):
            found = profile(fit, runs, quantity, options=options).interval
            hits += (found.low or 0) <= truth <= (found.high or np.inf)
    assert fewest_hits(2 * total) <= hits < 2 * total


def test_a_smooth_law_is_profiled_too():
    """Kaplan's law planted with its published constants: the profile holds them, and its loss at a target."""
    n, d = (part.ravel() for part in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    constants = np.array([scalelaws.get_published("kaplan_2020").constants])
    loss = np.exp(Kaplan().evaluate(constants, {"params_non_embedding": n, "tokens": d})[0][0])
    runs = Observations(n, d, loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(36)))
    for name, truth in (("alpha_N", 0.076), ("alpha_D", 0.103)):
        found = profile(Kaplan(), runs, name)
        assert found.interval.low <= truth <= found.interval.high
        assert found.interval.high / found.interval.low < 1.2
    target = Target(1e10, 1e12)
    found = profile(Kaplan(), runs, target)
    truth = Kaplan().predict_loss(constants, target)[0]
    assert found.interval.low <= truth <= found.interval.high
    assert found.quantity == "loss at N = 1e+10, D = 1e+12"


def test_quantities_that_there_are_not_and_runs_that_hold_no_law(plant_loss, plant_settings):
    runs = plant_loss(6, 6, noise=0.002)
    with pytest.raises(ValueError, match="no parameter 'gamma'; it has E, A, B, alpha, beta"):
        profile("chinchilla", runs, "gamma")
    with pytest.raises(ValueError, match="closed form for chinchilla"):
        optimal_size(1e22, "power_law")
    with pytest.raises(FitError, match="profile of chinchilla"):
        profile("chinchilla", runs.rows([0, 1, 2]), "E")
    with pytest.raises(TypeError, match="neither a sum of powers nor a smooth law"):
        profile("lr_batch", plant_settings(3, 3), "lr_exponent_tokens")
