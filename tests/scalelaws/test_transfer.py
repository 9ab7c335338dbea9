import numpy as np
import pytest

from scalelaws import compare_drifts, measure_drift

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


def test_much_noise_is_undecided_or_wide(basin):
    drift = measure_drift(*ladder(basin, -0.1, noise=0.01))
    assert drift.verdict == "undecided"


def test_the_published_ladder_of_megatron_drifts_in_one_parametrization_only(basin):
    """Optima of Megatron-LM pull request 3058: standard 9.77e-4 to 6.10e-5 from width 128 to 2048, muP flat."""
    width = np.array([128, 2048])
    rates = 2.0 ** np.arange(-16, -6)
    for best, verdict in (((9.77e-4, 6.10e-5), "drifts"), ((9.77e-4, 9.77e-4), "holds")):
        rows = [
            (w, lr, 3 * np.exp(basin(np.log(lr / b), 1.0, 0.03)))
            for w, b in zip(width, best, strict=True)
            for lr in rates
        ]
        assert measure_drift(*np.array(rows).T).verdict == verdict


def test_plain_data_and_comparison(basin):
    drift = measure_drift(*ladder(basin, 0.0))
    assert set(drift.to_dict()) == {"verdict", "message", "slope", "steps_moved", "level", "optima"}
    assert compare_drifts({"muP": drift}).startswith("muP: holds")


def test_unusable_input_is_refused():
    with pytest.raises(ValueError, match="one entry per run"):
        measure_drift([1, 2], [1e-3], [3.0])
