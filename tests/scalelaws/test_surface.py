"""The joint response surface against planted surfaces, finite differences and published runs."""

import numpy as np
import pytest
from scipy.optimize import minimize

import scalelaws
from scalelaws import FitError, Observations, Status, Target
from scalelaws.laws.base import SettingsDraws
from scalelaws.laws.surface import ResponseSurface
from scalelaws.sweeps.basins import bend
from scalelaws.sweeps.recommendation import find_middle, measure_excess, recommend, shade_settings
from scalelaws.sweeps.surface_fits import fit_surface, refit
from scalelaws.sweeps.surfaces import Layout, SurfaceRuns, bend_by_skew, respond, vary

LAW = ResponseSurface()


def locate(exponents, params, tokens):
    """Planted ln lr* and ln B*: 3e-3 and 3e5 at N = 2e8, D = 1e10."""
    n, d = np.log(params / 2e8), np.log(tokens / 1e10)
    lr_n, lr_d, batch_n, batch_d = exponents
    return np.array([np.log(3e-3) + lr_n * n + lr_d * d, np.log(3e5) + batch_n * n + batch_d * d])


def lift(u, v, skews=(1.5, -0.5), shears=(-0.3, 0.5)):
    """Planted excess ln loss: a basin like that of the published runs, its minimum at u = v = 0."""
    return 0.012 * bend(u - shears[0] * v, skews[0]) + 0.014 * bend(v - shears[1] * u, skews[1])


def plant(seed, exponents=(-0.6, 0.2, 0.0, 0.55), *, noise=5e-4, scatter=0.06, skews=(1.5, -0.5), runs_per_cell=None,
          batched=True, sizes=4, horizons=3):  # fmt: skip
    """Grids of rates and batches around every cell's optimum, or some runs of each at random."""
    rng, rows = np.random.default_rng(seed), []
    for n in np.geomspace(5e7, 8e8, sizes):
        for d in np.geomspace(2e9, 4e10, horizons) if horizons > 1 else (1e10,):
            best = locate(exponents, n, d) + scatter * rng.standard_normal(2) * (1, batched)
            x = np.log(2) * (np.round(best[0] / np.log(2)) + np.arange(-3, 3.01, 0.5 if batched else 1.0))
            z = np.log(2) * (np.round(best[1] / np.log(2)) + np.arange(-2, 2.01)) if batched else best[1:]
            grid = np.stack(np.meshgrid(x, z), axis=-1).reshape(-1, 2)
            if runs_per_cell is not None:
                grid = grid[rng.choice(len(grid), runs_per_cell, replace=False)]
            u, v = (grid - best).T
            excess = lift(u, v, skews) if batched else 0.02 * bend(u, skews[0])
            wobble = noise * (1 + 20 * excess) * rng.standard_normal(len(grid))
            floor = 1.7 + 400 * n**-0.34 + 1100 * d**-0.3
            rows += [(n, d, floor * np.exp(e + w), *np.exp(g)) for e, w, g in zip(excess, wobble, grid, strict=True)]
    n, d, loss, lr, batch = np.array(rows).T
    return Observations(n, d, loss, peak_lr=lr, batch_tokens=batch)


@pytest.fixture(scope="module")
def exact():
    return scalelaws.fit(LAW, plant(0, noise=1e-5, scatter=0.0), bootstrap=100)


def test_planted_exponents_and_shape_are_recovered(exact):
    value = {name: item.value for name, item in exact.parameters.items()}
    planted = {"lr_exponent_params": -0.6, "lr_exponent_tokens": 0.2, "batch_exponent_params": 0.0,
               "batch_exponent_tokens": 0.55, "lr_skew": 1.5, "batch_skew": -0.5, "lr_shear": -0.3,
               "batch_shear": 0.5}  # fmt: skip
    assert {name: value[name] for name in planted} == pytest.approx(planted, abs=0.05)
    assert value["lr_curvature"] == pytest.approx(0.012, rel=0.05)
    assert value["batch_curvature"] == pytest.approx(0.014, rel=0.05)


def test_the_optimum_of_a_new_cell_is_recovered(exact):
    mean, covariance = exact.surface.predict(2e9, 1e11)
    assert mean == pytest.approx(locate((-0.6, 0.2, 0.0, 0.55), 2e9, 1e11), abs=0.06)
    assert np.all(np.linalg.eigvalsh(covariance) > 0)


def test_curvature_is_that_of_the_planted_basin(exact):
    """Second derivatives of the planted excess by central differences."""
    step = 1e-3
    along = [np.array([step, 0.0]), np.array([0.0, step])]
    value = lambda p: float(lift(np.array(p[0]), np.array(p[1])))  # noqa: E731
    planted = [
        [(value(a + b) - value(a - b) - value(b - a) + value(-a - b)) / (4 * step**2) for b in along] for a in along
    ]
    assert exact.surface.curvature(2e8, 1e10) == pytest.approx(np.array(planted), rel=0.1, abs=5e-4)


@pytest.mark.parametrize("batched", [True, False])
def test_rows_are_the_derivatives_of_the_response(batched):
    rng = np.random.default_rng(1)
    layout = Layout(np.array([1.0, 1.5, 2.0]), np.array([2.0, 1.0, 3.0]), batched, (1.4, 2.1))
    theta = 0.5 * rng.standard_normal(layout.size)
    runs = SurfaceRuns(rng.standard_normal(12), rng.standard_normal(12), np.zeros(12), np.arange(12) % 3)
    rows = respond(layout, theta, runs).rows
    for place, label in enumerate(layout.labels):
        step = 1e-6 * np.eye(layout.size)[place]
        up, down = (respond(layout, theta + sign * step, runs) for sign in (1, -1))
        slope = (up.floor + up.excess - down.floor - down.excess) / 2e-6
        assert rows[:, place] == pytest.approx(slope, rel=1e-5, abs=1e-7), label


def test_the_derivative_by_the_skew_has_its_limit():
    x = np.array([-2.0, -0.1, 0.3, 2.0])
    assert bend_by_skew(x, 0.0) == pytest.approx(x**3 / 6)
    assert bend_by_skew(x, 1.2) == pytest.approx((bend(x, 1.2 + 1e-6) - bend(x, 1.2 - 1e-6)) / 2e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("exponents", "options"),
    [
        ((-0.7, 0.3, 0.0, 0.57), {"runs_per_cell": 12}),
        ((0.2, -0.3, -0.2, 0.3), {"runs_per_cell": 12, "noise": 3e-3, "skews": (2.5, 0.5)}),
        ((-0.3, 0.0, 0.0, 0.0), {"batched": False, "horizons": 1, "noise": 2e-3}),
    ],
)
def test_intervals_of_a_new_cell_cover_it(exponents, options, fewest_hits):
    """Eight studies each of cells of few runs: other exponents, skews, noises, and sweeps of the rate alone."""
    rng, hits, widths = np.random.default_rng(5), [], []
    batched = options.get("batched", True)
    target = (1.6e9, 1e10 if options.get("horizons") == 1 else 8e10)
    for seed in range(8):
        surface = scalelaws.fit(LAW, plant(seed, exponents, **options), bootstrap=100, seed=seed).surface
        truth = locate(exponents, *target) + 0.06 * rng.standard_normal(2)
        low, high = np.quantile(surface.draw_optima(*target, rng), [0.05, 0.95], axis=0)
        hits += list((low <= truth[: len(low)]) & (truth[: len(low)] <= high))
        widths.append((high - low).mean())
    assert sum(hits) >= fewest_hits(8 * (2 if batched else 1))
    assert np.mean(widths) < 1.2


def test_a_target_of_a_known_size_is_known_better(exact):
    surface = scalelaws.fit(LAW, plant(2, scatter=0.1), bootstrap=50).surface
    known, fresh = surface.locate(8e8, 1e10)[1], surface.locate(7e8, 1e10)[1]
    assert np.all(known < fresh)


def test_information_of_candidates_shrinks_the_optimum_as_real_runs_do():
    """The posterior after twenty predicted runs against a refit on them: the same spread within a third."""
    runs = plant(3, runs_per_cell=6)
    surface = scalelaws.fit(LAW, runs, bootstrap=50).surface
    n, d = 8e8, 4e10
    x, z = surface.predict(n, d)[0][:, None] + np.random.default_rng(0).uniform(-0.7, 0.7, (2, 20))
    rows, noise = surface.differentiate(np.full(20, n), np.full(20, d), np.exp(x), np.exp(z))
    after = np.linalg.inv(surface.information + rows.T @ (rows / noise[:, None]))
    place = surface.locate(n, d)[0]
    before, foreseen = (np.sqrt(np.diag(place @ matrix @ place.T)) for matrix in (surface.covariance, after))
    assert np.all(foreseen < 0.9 * before)


def test_extension_adds_cells_at_their_prior():
    surface = scalelaws.fit(LAW, plant(4, batched=False, horizons=1), bootstrap=50).surface
    wider = surface.extend(np.array([8e8, 3e9]), np.array([4e10, 4e10]))
    assert wider.layout.cells == surface.layout.cells + 2
    assert not wider.layout.slopes_held[1]
    spread = np.sqrt(wider.predict(3e9, 4e10)[1][0, 0])
    assert spread > np.log(4) * 0.3
    assert wider.predict(2e8, 1e10)[0] == pytest.approx(surface.predict(2e8, 1e10)[0], abs=0.02)
    with pytest.raises(ValueError, match="extend the surface by it first"):
        surface.differentiate(np.array([3e9]), np.array([4e10]), np.array([1e-3]))


def test_a_warm_refit_is_the_cold_one():
    runs = plant(6, runs_per_cell=14)
    surface = scalelaws.fit(LAW, runs, bootstrap=50).surface
    logs = SurfaceRuns(np.log(runs.peak_lr), np.log(runs.batch_tokens), np.log(runs.loss), runs.cell_index())
    cold, warm = fit_surface(surface.layout, logs, draws=50), refit(surface, logs, draws=50)
    place, _ = surface.locate(2e9, 1e11)
    spread = np.sqrt(np.diag(place @ cold.surface.covariance @ place.T))
    assert np.all(np.abs(place @ (cold.surface.parameters - warm.surface.parameters)) < 0.3 * spread)


def test_noise_grows_with_the_excess():
    assert vary(np.array([0.0]), 1e-3) == pytest.approx(1e-6)
    assert np.all(np.diff(vary(np.linspace(0, 0.1, 50), 1e-3)) > 0)


def test_runs_and_exclusions_add_up_and_diverged_ones_are_counted():
    runs = plant(7)
    loss = np.where(np.arange(len(runs)) % 40 == 0, np.nan, runs.loss)
    broken = Observations(runs.params_non_embedding, runs.tokens, loss, peak_lr=runs.peak_lr,
                          batch_tokens=runs.batch_tokens)  # fmt: skip
    evidence = scalelaws.fit(LAW, broken, bootstrap=50).evidence
    assert evidence.runs + sum(item.runs for item in evidence.excluded) == len(runs)
    assert any("diverged" in item.reason and item.runs == np.isnan(loss).sum() for item in evidence.excluded)


def select(runs, keep):
    return runs.rows(np.flatnonzero(keep))


def keep_one_cell(runs):
    return runs.rows(runs.cells()[0])


def keep_one_side(runs):
    """Rates of each cell below its best run: no optimum inside."""
    best = {i: runs.peak_lr[rows[np.argmin(runs.loss[rows])]] for i, rows in enumerate(runs.cells())}
    return select(runs, runs.peak_lr < 0.6 * np.array([best[cell] for cell in runs.cell_index()]))


def turn_over(runs):
    """Losses that are highest where they were lowest."""
    floor = np.array([runs.loss[rows].min() for rows in runs.cells()])[runs.cell_index()]
    flipped = np.minimum(np.log(runs.loss / floor), 0.04)
    return Observations(runs.params_non_embedding, runs.tokens, floor * np.exp(-flipped), peak_lr=runs.peak_lr)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (keep_one_cell, Status.TOO_FEW_SCALES),
        (keep_one_side, Status.EDGE_HIGH),
        (turn_over, Status.UPSIDE_DOWN),
    ],
)
def test_what_has_no_optimum_is_refused(change, status):
    runs = change(plant(8, batched=False, noise=5e-4))
    with pytest.raises(FitError) as caught:
        scalelaws.fit(LAW, runs, bootstrap=50)
    assert caught.value.status is status
    assert "response_surface" in caught.value.message


def test_a_rate_sweep_without_a_batch_says_so():
    fit = scalelaws.fit(LAW, plant(9, batched=False, horizons=1), bootstrap=50)
    assert np.isnan(fit.parameters["batch_coefficient"].value)
    assert fit.parameters["lr_exponent_tokens"].value == 0.0
    assert any("tokens were not varied" in text for text in fit.warnings)
    settings = LAW.predict_settings(fit, Target(2e9, 1e10), np.random.default_rng(0))
    assert settings.ln_batch_tokens is None


def test_shading_finds_the_least_expected_excess():
    """Against a numerical minimiser of the mean over the draws; too high a rate costs more, so it lies below."""
    rng = np.random.default_rng(0)
    draws = SettingsDraws(
        0.3 * rng.standard_normal(400), 0.3 * rng.standard_normal(400), np.full(400, 0.012), np.full(400, 2.0),
        np.full(400, 0.014), np.full(400, -0.5), np.full(400, -0.3), np.full(400, 0.5),
    )  # fmt: skip
    best = minimize(lambda p: measure_excess(draws, p[0], p[1]).mean(), find_middle(draws), method="Nelder-Mead")
    rate, batch = shade_settings(draws)
    assert measure_excess(draws, rate, batch).mean() == pytest.approx(best.fun, rel=0.01)
    assert rate < find_middle(draws)[0]
    shaded, _ = recommend(draws, 0.9, True)
    assert shaded.low < shaded.value < shaded.high


def test_excess_without_shears_is_the_sum_of_two_basins():
    ones = np.ones(3)
    draws = SettingsDraws(0 * ones, 0 * ones, 0.02 * ones, 1.5 * ones, 0.014 * ones)
    assert measure_excess(draws, 0.4, 0.5) == pytest.approx(0.02 * bend(0.4 * ones, 1.5) + 0.007 * 0.25)


def test_published_cells_from_the_others(published_runs):
    """Three cells left out in turn: the optimum that each shows when it is fitted with the others lies inside."""
    runs = Observations.from_frame(published_runs("steplaw_dense"))
    full = scalelaws.fit(LAW, runs, bootstrap=50).surface
    misses, widths = [], []
    for rows in runs.cells()[1::5]:
        left = np.setdiff1d(np.arange(len(runs)), rows)
        surface = scalelaws.fit(LAW, runs.rows(left), bootstrap=50).surface
        at = (float(runs.params_non_embedding[rows[0]]), float(runs.tokens[rows[0]]))
        mean, covariance = surface.predict(*at)
        spread = np.sqrt(np.diag(covariance))
        misses += list(np.abs(full.locate(*at)[0] @ full.parameters - mean) / spread)
        widths.append(3.29 * spread)
    assert np.mean(np.array(misses) < 1.645) >= 0.75
    assert np.all(np.mean(widths, axis=0) < 0.32)


@pytest.mark.parametrize(("exponent", "said"), [(0.0, False), (-0.4, True)])
def test_a_batch_law_that_leans_on_size_says_so(exponent, said):
    fit = scalelaws.fit(LAW, plant(0, (-0.6, 0.2, exponent, 0.55)), bootstrap=100)
    assert any("published laws know D alone" in text for text in fit.warnings) is said
