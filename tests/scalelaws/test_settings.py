import numpy as np
import pytest

import scalelaws
from scalelaws import FitError, Observations, Status, Target


def test_planted_exponents_are_recovered(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(4, 4, batches=5), bootstrap=200)
    value = {name: item.value for name, item in fit.parameters.items()}
    assert value["lr_exponent_params"] == pytest.approx(-0.35, abs=0.04)
    assert value["lr_exponent_tokens"] == pytest.approx(0.1, abs=0.04)
    assert value["batch_exponent_tokens"] == pytest.approx(0.4, abs=0.05)
    assert value["batch_curvature"] == pytest.approx(0.014, rel=0.3)


def test_the_forecast_finds_the_planted_optimum(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(4, 4, batches=5), bootstrap=200)
    target = Target(5e9, 1e11, 2048)
    found = scalelaws.forecast(fit, target)
    assert found.peak_lr.value == pytest.approx(2 * 5e9**-0.35 * 1e11**0.1, rel=0.15)
    assert found.batch_tokens.value == pytest.approx(30 * 1e11**0.4, rel=0.2)
    assert found.batch_sequences.value == pytest.approx(found.batch_tokens.value / 2048)
    assert found.loss.low <= 1.7 + 400 * 5e9**-0.34 + 1100 * 1e11**-0.3 <= found.loss.high
    assert 0 <= found.regret.low <= found.regret.high < 0.01


@pytest.mark.parametrize(("sizes", "horizons"), [(4, 1), (3, 2)])
def test_intervals_for_a_new_cell_cover_it(plant_settings, sizes, horizons):
    """40 studies with scatter of 8 % between cells; at 90 %, fewer than 29 hits has a chance below 0.1 %."""
    rng, hits = np.random.default_rng(11), 0
    target = Target(4e9, 4e8 * 4.0 ** (horizons - 1))
    for seed in range(40):
        runs = plant_settings(sizes, horizons, noise=1e-3, scatter=0.08, seed=seed)
        found = scalelaws.forecast(scalelaws.fit("lr_batch", runs, bootstrap=200, seed=seed), target).peak_lr
        truth = 2 * 4e9**-0.35 * target.tokens**0.1 * np.exp(0.08 * rng.standard_normal())
        hits += found.low <= truth <= found.high
    assert hits >= 29


def test_what_was_not_varied_is_not_fitted_and_said(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 1), bootstrap=100)
    assert fit.parameters["lr_exponent_tokens"].value == 0.0
    assert np.isnan(fit.parameters["batch_coefficient"].value)
    said = " ".join(fit.warnings)
    assert "tokens were not varied: the dependence of the learning rate on the horizon is unknown" in said
    assert "the batch was not" in said
    found = scalelaws.forecast(fit, Target(1e9, 4e10))
    assert found.batch_tokens is None
    assert found.loss is None
    assert any("the effect of that is unknown" in text for text in found.warnings)


def test_a_horizon_tied_to_the_size_is_said(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(4, tie=True), bootstrap=100)
    assert fit.parameters["lr_exponent_tokens"].value == 0.0
    assert fit.parameters["lr_exponent_params"].value == pytest.approx(-0.25, abs=0.05)
    assert "tokens moved in step with parameters: the law holds along that path only" in fit.warnings


def test_refused_cells_are_listed_and_too_few_are_an_error(plant_settings):
    runs = plant_settings(3, 1)
    cut = runs.select(
        (runs.params_non_embedding > 1.5e7) | (runs.peak_lr < np.quantile(runs.peak_lr, 0.6)), "a cut by hand"
    )
    low = runs.rows(np.concatenate([cell[:3] if i == 0 else cell for i, cell in enumerate(runs.cells())]))
    with pytest.raises(FitError, match=r"needs >= 3 cells .*have 2") as caught:
        scalelaws.fit("lr_batch", low)
    assert caught.value.status is Status.TOO_FEW_SCALES
    assert any(item.runs == 3 for item in caught.value.partial.evidence.excluded)
    assert ("a cut by hand", len(runs) - len(cut)) in [(item.reason, item.runs) for item in cut.excluded]


def test_runs_and_exclusions_add_up(plant_settings):
    runs = plant_settings(3, 2)
    evidence = scalelaws.fit("lr_batch", runs, bootstrap=50).evidence
    assert evidence.runs + sum(item.runs for item in evidence.excluded) == len(runs)


def test_a_tight_prior_pulls_the_exponent_to_zero(plant_settings):
    runs = plant_settings(3, 1, noise=2e-3)
    free, pulled = (
        scalelaws.fit("lr_batch", runs, bootstrap=200, prior_slope_sd=sd).parameters["lr_exponent_params"].value
        for sd in (0.5, 0.02)
    )
    assert abs(pulled) < 0.5 * abs(free)


def test_runs_without_learning_rates_are_refused():
    with pytest.raises(ValueError, match="needs peak_lr"):
        scalelaws.fit("lr_batch", Observations([1e6], [1e8], [3.0]))
