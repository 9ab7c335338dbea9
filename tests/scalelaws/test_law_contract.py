"""One suite for every law in the list."""

import json

import numpy as np
import pytest

import scalelaws
from scalelaws import LAWS, PUBLISHED, Observations, Target, get_law, list_laws

NAMES = [law.name for law in LAWS]
FIT_KEYS = {"law", "formula", "parameters", "objective", "status", "residuals", "evidence", "seconds"}


@pytest.mark.parametrize("name", NAMES)
def test_fits_runs_that_hold_it(name, evidence_for):
    fit = scalelaws.fit(name, evidence_for(name), bootstrap=100)
    assert fit.status.ok
    assert fit.law == name
    assert tuple(fit.parameters) == get_law(name).parameter_names
    assert fit.draws.shape == (100, len(fit.parameters))
    for estimate in fit.parameters.values():
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize("name", NAMES)
def test_prints_the_contract_as_pure_json(name, evidence_for):
    record = scalelaws.fit(name, evidence_for(name), bootstrap=50).to_dict()
    assert set(record) >= FIT_KEYS
    assert all(set(item) == {"value", "low", "high", "unit"} for item in record["parameters"].values())
    assert set(record["residuals"]) == {"rmse_log"}
    assert set(record["evidence"]) == {"runs", "cells", "excluded"}
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_is_deterministic_for_a_seed(name, evidence_for):
    runs = evidence_for(name)
    first, again, other = (scalelaws.fit(name, runs, bootstrap=50, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.draws, again.draws, equal_nan=True)
    assert not np.array_equal(first.draws, other.draws, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_single_run_with_a_status(name):
    runs = Observations([1e7], [1e9], [3.0], peak_lr=[1e-3])
    fit = scalelaws.fit(name, runs, throw=False)
    assert not fit.status.ok
    json.dumps(fit.to_dict(), allow_nan=False)
    with pytest.raises(scalelaws.FitError, match=name):
        scalelaws.fit(name, runs)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_runs_that_all_diverged(name):
    runs = Observations([1e7] * 3, [1e9] * 3, [np.inf] * 3, peak_lr=[1e-3, 2e-3, 4e-3])
    assert not scalelaws.fit(name, runs, throw=False).status.ok


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_inside_its_own_range(name, evidence_for):
    runs = evidence_for(name)
    fit = scalelaws.fit(name, runs, bootstrap=100)
    target = Target(runs.params_non_embedding.max(), runs.tokens.max(), compute_flops=runs.compute.max())
    found = scalelaws.forecast(fit, target)
    best = runs.loss[(runs.params_non_embedding == target.params_non_embedding) & (runs.tokens == target.tokens)].min()
    assert found.loss.value == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_summary_names_every_parameter(name, evidence_for):
    text = scalelaws.fit(name, evidence_for(name), bootstrap=50).summary()
    assert all(parameter in text for parameter in get_law(name).parameter_names)


def test_the_list_names_every_law_once():
    entries = list_laws()
    names = [entry.name for entry in entries]
    assert len(set(names)) == len(names)
    assert set(NAMES) | set(PUBLISHED) == set(names)
    for entry in entries:
        assert all(entry.to_dict()[key] for key in ("name", "formula", "scope", "source", "kind"))


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match="known are lr_batch, chinchilla"):
        get_law("kaplan")
    with pytest.raises(ValueError, match="predict with it instead"):
        get_law("step_law")
    with pytest.raises(ValueError, match="known are step_law"):
        scalelaws.get_published("nothing")


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
