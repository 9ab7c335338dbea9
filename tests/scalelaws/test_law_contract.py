"""One suite for every law in the list: each is fitted to runs that were made from it."""

import json

import numpy as np
import pytest

import scalelaws
from planting import list_planted
from scalelaws import LAWS, PUBLISHED, Observations, get_law, list_laws
from scalelaws.downstream.scores import predict_score
from scalelaws.engines.nonlinear import to_coordinates, to_values
from scalelaws.laws import LossLaw
from scalelaws.laws.downstream import ScoreLaw
from scalelaws.laws.mixture import MixtureLaw
from scalelaws.laws.smooth import Smooth

PLANTED = list_planted()
NAMES = [law.name for law in LAWS]
SMOOTH = [law.name for law in LAWS if isinstance(law, Smooth)]
SCORES = [law.name for law in LAWS if isinstance(law, ScoreLaw) and PLANTED[law.name].target is not None]
ON_RUNS = [law.name for law in LAWS if law.reads is Observations]
FIT_KEYS = {"law", "formula", "parameters", "objective", "status", "residuals", "evidence", "seconds"}


@pytest.fixture(scope="module")
def fitted():
    """Fits of the planted runs, made once."""
    made = {}

    def give(name):
        if name not in made:
            planted = PLANTED[name]
            made[name] = scalelaws.fit(name, planted.runs(planted.noise, 0), bootstrap=100)
        return made[name]

    return give


def bind(name):
    """The law as the planted runs have it: a law of mixtures has parameters for each domain."""
    law = get_law(name)
    return law.bind(PLANTED[name].runs(0.0, 0).mixture) if isinstance(law, MixtureLaw) else law


def test_every_law_has_a_planted_truth():
    assert set(NAMES) <= set(PLANTED)


@pytest.mark.parametrize("name", NAMES)
def test_fits_runs_that_hold_it(name, fitted):
    fit = fitted(name)
    assert fit.status.ok
    assert fit.law == name
    assert tuple(fit.parameters) == bind(name).parameter_names
    assert fit.draws.shape == (100, len(fit.parameters))
    for estimate in fit.parameters.values():
        assert estimate.low <= estimate.high


@pytest.mark.parametrize("name", NAMES)
def test_recovers_what_was_planted_without_noise(name):
    planted = PLANTED[name]
    fit = scalelaws.fit(name, planted.runs(0.0, 0), bootstrap=50, throw=False)
    found = {parameter: fit.parameters[parameter].value for parameter in planted.truth}
    assert found == pytest.approx(dict(planted.truth), rel=planted.recovers)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_planted_lies_within_four_deviations(name, fitted):
    fit = fitted(name)
    for index, parameter in enumerate(bind(name).parameter_names):
        if parameter not in PLANTED[name].truth:
            continue
        spread = max(np.std(fit.draws[:, index]), 0.005 * abs(PLANTED[name].truth[parameter]))
        assert abs(fit.parameters[parameter].value - PLANTED[name].truth[parameter]) < 4 * spread, parameter


@pytest.mark.parametrize("name", NAMES)
def test_prints_the_contract_as_pure_json(name, fitted):
    record = fitted(name).to_dict()
    assert set(record) >= FIT_KEYS
    assert all(set(item) == {"value", "low", "high", "unit"} for item in record["parameters"].values())
    assert set(record["residuals"]) == {"rmse_log"}
    assert set(record["evidence"]) == {"runs", "cells", "excluded"}
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic_for_a_seed(name):
    runs = PLANTED[name].runs(PLANTED[name].noise, 0)
    first, again, other = (scalelaws.fit(name, runs, bootstrap=50, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.draws, again.draws, equal_nan=True)
    assert not np.array_equal(first.draws, other.draws, equal_nan=True)


@pytest.mark.parametrize("name", ON_RUNS)
def test_refuses_a_single_run_with_a_status(name):
    runs = PLANTED[name].runs(PLANTED[name].noise, 0).rows([0])
    fit = scalelaws.fit(name, runs, throw=False)
    assert not fit.status.ok
    json.dumps(fit.to_dict(), allow_nan=False)
    with pytest.raises(scalelaws.FitError, match=name):
        scalelaws.fit(name, runs)


@pytest.mark.parametrize("name", ON_RUNS)
def test_refuses_runs_that_all_diverged(name):
    runs = PLANTED[name].runs(PLANTED[name].noise, 0)
    diverged = {"loss": np.full(len(runs), np.inf)}
    fields = {key: getattr(runs, key) for key in ("params_non_embedding", "tokens", "peak_lr", "batch_tokens", "width")}
    lost = Observations(**fields, **diverged, covariates=runs.covariates, mixture=runs.mixture)
    assert not scalelaws.fit(name, lost, throw=False).status.ok


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(get_law(name), LossLaw)])
def test_forecasts_what_was_planted_inside_its_own_range(name, fitted):
    planted = PLANTED[name]
    found = scalelaws.forecast(fitted(name), planted.target)
    assert found.loss.value == pytest.approx(planted.response, rel=0.005)
    assert found.loss.low < found.loss.value < found.loss.high


@pytest.mark.parametrize(("name", "call"), [("annealing", "predict_curve"), ("score_sigmoid", "predict_score")])
def test_a_law_that_needs_more_than_a_target_says_what_to_call(name, call, fitted):
    with pytest.raises(ValueError, match=f"use scalelaws.{call}"):
        scalelaws.forecast(fitted(name), scalelaws.Target(1e8, 1e9))


@pytest.mark.parametrize("name", SCORES)
def test_predicts_the_planted_score(name, fitted):
    planted = PLANTED[name]
    found = predict_score(fitted(name), planted.target).score
    assert found.value == pytest.approx(planted.response, abs=0.01)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_are_exact(name):
    """Against central differences in fitting coordinates, at three places around the planted values."""
    law, runs = bind(name), PLANTED[name].runs(0.0, 0)
    columns = law._read(runs)
    centre = to_coordinates(np.array([[item.centre for item in law.parameters]]), law.parameters)
    for name_, value in PLANTED[name].truth.items():
        at = law.parameter_names.index(name_)
        centre[0, at] = to_coordinates(np.full((1, len(law.parameters)), value), law.parameters)[0, at]
    t = centre + 0.02 * np.random.default_rng(0).standard_normal((3, centre.shape[1]))
    values = to_values(t, law.parameters)
    slopes = law.evaluate(values, columns)[1]
    for j, item in enumerate(law.parameters):
        step = 1e-6 * np.eye(len(law.parameters))[j]
        ahead, behind = (law.evaluate(to_values(t + sign * step, law.parameters), columns)[0] for sign in (1, -1))
        exact = slopes[..., j] * (values[:, j, None] if item.kind == "positive" else 1.0)
        assert np.allclose((ahead - behind) / 2e-6, exact, rtol=1e-4, atol=1e-7), item.name


@pytest.mark.parametrize("name", NAMES)
def test_summary_names_every_parameter(name, fitted):
    text = fitted(name).summary()
    assert all(parameter in text for parameter in bind(name).parameter_names)


def test_the_list_names_every_law_once():
    entries = list_laws()
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    assert set(NAMES) | set(PUBLISHED) == set(names)
    for entry in entries:
        assert all(entry.to_dict()[key] for key in ("name", "formula", "scope", "source", "kind"))


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match="known are response_surface"):
        get_law("nothing")
    with pytest.raises(ValueError, match="predict with it instead"):
        get_law("step_law")
    with pytest.raises(ValueError, match="known are step_law"):
        scalelaws.get_published("nothing")


def test_a_law_says_what_it_reads():
    with pytest.raises(TypeError, match="chinchilla is fitted to Observations; got list"):
        scalelaws.fit("chinchilla", [1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "mse"}, "objective must be"),
        ({"level": 90}, "level must lie between 0 and 1"),
        ({"bootstrap": 3}, "at least 50 draws"),
        ({"huber_delta": 0.0}, "huber_delta must be positive"),
        ({"prior_slope_sd": -1.0}, "prior_slope_sd must be positive"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        scalelaws.fit("power_law", Observations([1e7], [1e9], [3.0]), **options)
