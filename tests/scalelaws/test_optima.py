import numpy as np
import pytest

from scalelaws import Status, find_basin_optimum, find_surface_optimum

RATES = 1e-3 * 2.0 ** np.arange(-3, 4)


def parabola(rates, best, curvature=0.02, floor=3.0):
    return floor * np.exp(0.5 * curvature * np.log(rates / best) ** 2)


def test_a_parabola_without_noise_has_its_closed_form():
    best = 1.23e-3
    found = find_basin_optimum(RATES, parabola(RATES, best), noise_log=1e-5)
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(best, rel=0.02)
    assert found.loss.value == pytest.approx(3.0, rel=1e-4)
    assert found.curvature.value == pytest.approx(0.02, rel=0.1)


def test_a_skewed_basin_without_noise_is_found_within_a_few_percent(basin):
    loss = 3.0 * np.exp(basin(np.log(RATES / 1.1e-3), 2.0, 0.03))
    found = find_basin_optimum(RATES, loss, noise_log=1e-4)
    assert found.value == pytest.approx(1.1e-3, rel=0.05)
    assert found.skew > 0.5


@pytest.mark.parametrize("skew", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("step", [2.0, 2.0**0.5])
def test_intervals_cover_planted_optima(basin, skew, step):
    """Binomial: fewer than 165 hits of 200 has a chance below 0.1 % at 90 %; above 90 % is caution, not error."""
    rng, hits = np.random.default_rng(7), 0
    count = 6 if step == 2.0 else 9
    for seed in range(200):
        shift = rng.uniform(-0.5, 0.5) * np.log(step)
        x = (np.arange(count) - count // 2) * np.log(step)
        loss = 3.0 * np.exp(basin(x - shift, skew, 0.03) + 0.002 * rng.standard_normal(count))
        found = find_basin_optimum(1e-3 * np.exp(x), loss, seed=seed)
        assert found.status is Status.CONVERGED
        hits += found.low <= 1e-3 * np.exp(shift) <= found.high
    assert hits >= 165


def test_less_noise_gives_narrower_intervals(basin):
    noise = np.random.default_rng(0).standard_normal(len(RATES))
    width = []
    for sd in (3e-3, 3e-4):
        loss = 3.0 * np.exp(basin(np.log(RATES / 1e-3), 1.0, 0.03) + sd * noise)
        found = find_basin_optimum(RATES, loss, noise_log=sd)
        width.append(np.log(found.high / found.low))
    assert width[1] < 0.5 * width[0]


def test_an_optimum_on_the_lowest_rate_is_only_a_bound():
    found = find_basin_optimum(RATES, parabola(RATES, 2e-5))
    assert found.status is Status.EDGE_LOW
    assert found.low is None
    assert found.high == pytest.approx(RATES[1])
    assert found.suggested_extension == pytest.approx((RATES[0] / 4, RATES[0] / 2))
    assert "add runs at learning rates" in found.message


def test_an_optimum_on_the_highest_rate_is_only_a_bound():
    found = find_basin_optimum(RATES, parabola(RATES, 1.0))
    assert found.status is Status.EDGE_HIGH
    assert found.high is None
    assert found.low == pytest.approx(RATES[-2])


def test_a_diverged_run_bounds_the_basin():
    loss = parabola(RATES, 6e-3)
    loss[-1] = np.nan
    found = find_basin_optimum(RATES, loss, noise_log=1e-4)
    assert found.status is Status.CONVERGED
    assert found.high <= RATES[-1] * (1 + 1e-9)
    assert ("diverged (the loss is not finite): kept as a bound of the basin", 1) in found.left_out


def test_too_few_points_are_refused():
    found = find_basin_optimum(RATES[:4], [3.0, 2.9, np.inf, 3.0])
    assert found.status is Status.TOO_FEW_POINTS
    assert "have 3" in found.message


def test_flat_losses_are_refused():
    refused = 0
    for seed in range(40):
        loss = 3.0 * np.exp(0.002 * np.random.default_rng(seed).standard_normal(len(RATES)))
        refused += find_basin_optimum(RATES, loss, noise_log=0.002).status is not Status.CONVERGED
    assert refused >= 34


@pytest.mark.parametrize("bend", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("shift", [0.9, 1.0, 1.1])
def test_losses_that_bend_down_are_refused(bend, shift):
    """Without noise the lowest run is at an edge, and still no wider grid is advised."""
    found = find_basin_optimum(RATES, parabola(RATES, RATES[3] * shift, -bend))
    assert found.status is Status.UPSIDE_DOWN
    assert found.suggested_extension == ()
    assert "bend downwards" in found.message


def test_noisy_losses_that_bend_down_are_refused():
    for seed in range(40):
        noise = 0.002 * np.random.default_rng(seed).standard_normal(len(RATES))
        found = find_basin_optimum(RATES, parabola(RATES, 1e-3, -0.02) * np.exp(noise))
        assert found.status is Status.UPSIDE_DOWN


@pytest.mark.parametrize("height", [0.02, 0.1, 0.3])
def test_a_sweep_that_falls_to_one_edge_is_a_bound_however_it_bends(height):
    x = np.log(RATES / RATES[0])
    assert find_basin_optimum(RATES, 3 + height * np.tanh(x)).status is Status.EDGE_LOW
    assert find_basin_optimum(RATES, 3 - height * x**2 / 10).status is Status.EDGE_HIGH


def test_a_hill_below_diverged_runs_is_upside_down():
    loss = parabola(RATES, 1e-3, -0.02)
    loss[-1] = np.nan
    assert find_basin_optimum(RATES, loss).status is Status.UPSIDE_DOWN


def test_far_wings_are_left_out(basin):
    loss = parabola(RATES, 1e-3)
    loss[-1] *= 2
    found = find_basin_optimum(RATES, loss)
    assert not found.used[-1]
    assert ("more than 5 % above the lowest run of the cell", 1) in found.left_out


def test_repeats_narrow_the_interval(basin):
    rng = np.random.default_rng(0)
    rates = np.repeat(RATES, 8)
    loss = 3.0 * np.exp(basin(np.log(rates / 1e-3), 1.0, 0.03) + 0.003 * rng.standard_normal(len(rates)))
    many, one = find_basin_optimum(rates, loss), find_basin_optimum(rates[::8], loss[::8], noise_log=0.003)
    assert np.log(many.high / many.low) < 0.7 * np.log(one.high / one.low)


def test_the_same_seed_gives_the_same_numbers():
    loss = parabola(RATES, 1.1e-3) * np.exp(0.001 * np.random.default_rng(0).standard_normal(len(RATES)))
    first, again, other = (find_basin_optimum(RATES, loss, seed=seed) for seed in (1, 1, 2))
    assert (first.low, first.high) == (again.low, again.high)
    assert first.low != other.low


def test_a_tilted_surface_without_noise_has_its_closed_form():
    lr, batch = (part.ravel() for part in np.meshgrid(RATES, 2.0 ** np.arange(14, 20)))
    x, z = np.log(lr / 1.2e-3), np.log(batch / 100e3)
    loss = 3.0 * np.exp(0.5 * 0.02 * x * x + 0.5 * 0.015 * z * z - 0.006 * x * z)
    found = find_surface_optimum(lr, batch, loss, noise_log=1e-4)
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(1.2e-3, rel=0.03)
    assert found.batch_tokens.value == pytest.approx(100e3, rel=0.03)
    assert found.batch_curvature.value == pytest.approx(0.015, rel=0.1)


@pytest.mark.parametrize(("skew", "shears"), [(0.0, (0.0, 0.0)), (1.5, (-0.3, 0.5)), (1.0, (0.3, 0.4))])
def test_far_wings_do_not_move_the_optimum_of_a_grid(basin, skew, shears):
    """Basins whose wings bend along axes of their own: twelve grids each, noise that grows with the excess."""
    lr, batch = (part.ravel() for part in np.meshgrid(RATES, 2.0 ** np.arange(14, 20)))
    gaps = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shift = rng.uniform(-0.35, 0.35, 2)
        x, z = np.log(lr / 1e-3) - shift[0], np.log(batch / 9e4) - shift[1]
        excess = basin(x - shears[0] * z, skew, 0.012) + basin(z - shears[1] * x, -0.5 * skew, 0.014)
        noise = 5e-4 * (1 + 20 * excess) * rng.standard_normal(len(lr))
        found = find_surface_optimum(lr, batch, 3.0 * np.exp(excess + noise), seed=seed)
        gaps.append(np.log([found.value / 1e-3, found.batch_tokens.value / 9e4]) - shift)
    assert np.sqrt(np.mean(np.square(gaps), axis=0)) == pytest.approx(0.0, abs=0.12)


@pytest.mark.parametrize("height", [0.002, 0.01, 0.05])
def test_a_grid_that_bends_down_is_refused(height):
    lr, batch = (part.ravel() for part in np.meshgrid(RATES, 2.0 ** np.arange(14, 20)))
    x, z = np.log(lr / 1.1e-3), np.log(batch / 9e4)
    noise = 5e-4 * np.random.default_rng(0).standard_normal(len(lr))
    found = find_surface_optimum(lr, batch, 3.0 * np.exp(-0.5 * height * (x * x + z * z) + noise))
    assert found.status is Status.UPSIDE_DOWN


def test_a_batch_beyond_the_grid_is_refused():
    lr, batch = (part.ravel() for part in np.meshgrid(RATES, 2.0 ** np.arange(14, 18)))
    loss = 3.0 * np.exp(0.01 * np.log(lr / 1e-3) ** 2 + 0.01 * np.log(batch / 4e5) ** 2)
    found = find_surface_optimum(lr, batch, loss)
    assert found.status is Status.EDGE_HIGH
    assert "batch" in found.message


@pytest.mark.parametrize(
    ("rates", "losses", "options", "message"),
    [
        ([1e-3, -1], [3, 3], {}, "entry 1 is -1"),
        ([1e-3, 2e-3], [3], {}, "one entry per learning rate"),
        ([1e-3], [-3.0], {}, "loss must be positive"),
        ([1e-3], [3.0], {"level": 1.5}, "level must lie between"),
        ([1e-3], [3.0], {"noise_log": 0.0}, "noise_log must be positive"),
    ],
)
def test_unusable_input_is_refused(rates, losses, options, message):
    with pytest.raises(ValueError, match=message):
        find_basin_optimum(rates, losses, **options)


def test_a_sweep_that_diverged_everywhere_has_no_best_run():
    found = find_basin_optimum(RATES, np.full(len(RATES), np.nan))
    assert found.status is Status.TOO_FEW_POINTS
    assert "have 0" in found.message
