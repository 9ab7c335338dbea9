import numpy as np
import pytest

from scalelaws import Observations, compare_drifts, measure_drift
from scalelaws.transfer import AXES, EXPECTED, measure_observed_drift

WIDTHS = np.array([64, 128, 256, 512])
RATES = 2.0 ** np.arange(-12, -3)


def ladder(basin, slope, noise=5e-4, seed=0, rates=RATES):
    rng = np.random.default_rng(seed)
    width, lr = (part.ravel() for part in np.meshgrid(WIDTHS, rates))
    best = 8e-3 * (width / 64.0) ** slope
    loss = (1.7 + 1.8 * (width / 64.0) ** -0.6) * np.exp(basin(np.log(lr / best), 1.5, 0.03))
    return width, lr, loss * np.exp(noise * rng.standard_normal(len(lr)))


@pytest.mark.parametrize(("slope", "verdict"), [(0.0, "holds"), (-1.0, "drifts"), (-0.6, "drifts")])
def test_the_verdict_follows_the_planted_slope(basin, slope, verdict):
    drift = measure_drift(*ladder(basin, slope))
    assert drift.verdict == verdict
    assert drift.message.startswith(verdict)
    assert drift.slope.low <= slope <= drift.slope.high
    assert drift.grid_step == pytest.approx(1.0)
    assert drift.steps_moved == pytest.approx(3 * slope, abs=0.4)


def test_the_interval_of_the_slope_covers_it(basin, fewest_hits):
    hits = 0
    for seed in range(100):
        slope = measure_drift(*ladder(basin, -0.5, 2e-3, seed), seed=seed).slope
        hits += slope.low <= -0.5 <= slope.high
    assert hits >= fewest_hits(100)


def test_a_grid_that_ends_too_early_is_undecided(basin):
    drift = measure_drift(*ladder(basin, -1.0, rates=2.0 ** np.arange(-8, -3)))
    statuses = [item.status.name for item in drift.optima]
    assert statuses[-1] == "EDGE_LOW"
    assert drift.verdict in ("undecided", "drifts")


def test_optima_that_left_the_grid_do_not_hold(basin):
    """Four widths agree and the fifth lies below the grid: the first four alone would hold."""
    widths = (64, 128, 256, 512, 1024)
    rates, best = 2.0 ** np.arange(-11, -3), (8e-3, 8e-3, 8e-3, 8e-3, 3e-4)
    rows = np.array([
        (w, lr, 3 * np.exp(basin(np.log(lr / b), 1.0, 0.03))) for w, b in zip(widths, best, strict=True) for lr in rates
    ])  # fmt: skip
    assert measure_drift(*rows[rows[:, 0] < 1024].T).verdict == "holds"
    drift = measure_drift(*rows.T)
    assert drift.verdict == "undecided"
    assert "from width 64 to 512" in drift.message
    assert "left out: width 1024: the optimum lies at the low edge of the grid" in drift.message


def test_much_noise_is_undecided_or_wide(basin):
    drift = measure_drift(*ladder(basin, -0.1, noise=0.01))
    assert drift.verdict == "undecided"


@pytest.mark.parametrize(
    ("widths", "best", "verdict", "expected", "agrees"),
    [
        ((128, 2048), (9.77e-4, 6.10e-5), "drifts", "standard", True),
        ((128, 2048), (9.77e-4, 9.77e-4), "holds", "mup", True),
        ((128, 2048), (9.77e-4, 6.10e-5), "drifts", "mup", False),
        ((128, 256, 512, 1024, 2048), (9.77e-4, 9.77e-4, 9.77e-4, 9.77e-4, 1.95e-3), "undecided", "mup", False),
    ],
)
def test_the_published_ladder_of_megatron(basin, widths, best, verdict, expected, agrees):
    """Optima of Megatron-LM pull request 3058: standard 9.77e-4 to 6.10e-5 from width 128 to 2048; muP flat, with one
    step of the grid up at 2048."""
    rates = 2.0 ** np.arange(-16, -5)
    rows = [
        (w, lr, 3 * np.exp(basin(np.log(lr / b), 1.0, 0.03))) for w, b in zip(widths, best, strict=True) for lr in rates
    ]
    drift = measure_drift(*np.array(rows).T, expected=expected)
    assert drift.verdict == verdict
    assert drift.as_expected is agrees
    assert EXPECTED["width"][expected].source in drift.message
    assert ("which the interval holds" in drift.message) is agrees


@pytest.mark.parametrize(("axis", "slope", "expected"), [
    ("depth", 0.0, "completep"), ("batch", 0.5, "adam"), ("batch", 1.0, "sgd"), ("horizon", -0.32, "fixed_batch"),
])  # fmt: skip
def test_other_axes_use_the_same_estimator(basin, axis, slope, expected):
    rows = ladder(basin, slope)
    drift, over_width = measure_drift(*rows, axis=axis, expected=expected), measure_drift(*rows)
    assert drift.slope.value == over_width.slope.value
    assert drift.as_expected
    assert f"per doubling of {axis}" in drift.message
    assert drift.slope.unit == f"factors of two per doubling of {axis}"
    assert set(drift.to_dict()["optima"][0]) == {axis, "status", "peak_lr"}


def test_a_departure_is_measured_against_the_expectation(basin):
    drift = measure_drift(*ladder(basin, 0.1), axis="batch", expected="adam")
    assert drift.as_expected is False
    departure = drift.slope.value - 0.5
    assert "+0.50 was expected (square root rule, Malladi et al. 2022" in drift.message
    assert drift.message.endswith(f"and the optimum departs from it by {departure:+.2f}")


def test_step_law_optima_rise_with_the_batch_less_than_in_proportion(published_runs):
    """At one size and horizon: between none and Adam's square root on the way to large batches, never linear."""
    runs = Observations.from_frame(published_runs("steplaw_dense"))
    cell = runs.rows(runs.cells()[-1])
    drift = measure_observed_drift(cell, "batch", expected="sgd")
    assert drift.verdict == "drifts"
    assert 0.2 < drift.slope.value < 0.7
    assert drift.as_expected is False


@pytest.mark.parametrize("axis", list(AXES))
def test_a_ladder_in_which_something_else_varies_is_refused(basin, axis):
    scale, lr, loss = ladder(basin, 0.0)
    size, fixed = np.full_like(loss, 1e8), np.full_like(loss, 2.0**18)
    columns = {"params_non_embedding": size, "tokens": 1e9 * np.ones_like(loss), "batch_tokens": fixed, "width": fixed}
    covariates = {"depth": np.full_like(loss, 8.0)}
    along = AXES[axis]
    (covariates if along.column == "depth" else columns)[along.column] = scale
    runs = Observations(**columns, loss=loss, peak_lr=lr, covariates=covariates)
    assert measure_observed_drift(runs, axis).verdict == "holds"
    name = along.fixed[0]
    columns[name] = columns[name] * np.where(np.arange(len(loss)) % 2, 1.0, 2.0)
    with pytest.raises(ValueError, match=rf"drift over {axis} needs runs of one {name}; these have 2"):
        measure_observed_drift(Observations(**columns, loss=loss, peak_lr=lr, covariates=covariates), axis)


def test_plain_data_and_comparison(basin):
    drift = measure_drift(*ladder(basin, 0.0))
    assert set(drift.to_dict()) == {
        "axis", "verdict", "message", "slope", "expected", "steps_moved", "level", "optima",
    }  # fmt: skip
    assert compare_drifts({"muP": drift}).startswith("muP: holds")


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match="one entry per run"):
        measure_drift([1, 2], [1e-3], [3.0])
    with pytest.raises(ValueError, match="no axis 'height'; known are width, depth, batch, horizon"):
        measure_drift([1, 2], [1e-3, 1e-3], [3.0, 3.0], axis="height")
    with pytest.raises(ValueError, match="nothing is expected over depth for 'mup'"):
        measure_drift([1, 2], [1e-3, 1e-3], [3.0, 3.0], axis="depth", expected="mup")
