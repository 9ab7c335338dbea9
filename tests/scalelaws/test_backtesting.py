import json
from dataclasses import replace

import numpy as np
import pytest

import scalelaws
from scalelaws import Estimate, Observations, Target
from scalelaws.averaging import average_laws, stack_weights
from scalelaws.backtesting import Backtest, HeldOutCell, backtest
from scalelaws.crossover import compare_laws
from scalelaws.sweeps.regrets import measure_regret

OPTIONS = {"bootstrap": 60}


@pytest.fixture(scope="module")
def planted():
    n, d = np.meshgrid(np.geomspace(1e7, 3e9, 7), np.geomspace(1e9, 1e11, 7))
    n, d = n.ravel(), d.ravel()
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(n)))
    return Observations(n, d, (1.7 + 400 * n**-0.34 + 1100 * d**-0.3) * noise)


@pytest.fixture(scope="module")
def tested(planted):
    return backtest(planted, ("chinchilla", "power_law_compute", "power_law"), fractions=(4, 10), **OPTIONS)


def test_every_larger_cell_is_forecast_once_for_each_origin(planted, tested):
    for fraction in (4, 10):
        held_out = planted.compute > planted.compute.max() / fraction
        cells = [cell for cell in tested.cells if cell.law == "chinchilla" and cell.fraction == fraction]
        assert len(cells) == held_out.sum()
        largest = planted.compute[~held_out].max()
        for cell in cells:
            row = np.flatnonzero((planted.params_non_embedding == cell.params) & (planted.tokens == cell.tokens))[0]
            assert cell.actual == planted.loss[row]
            assert cell.error == pytest.approx(cell.predicted / cell.actual - 1)
            assert cell.extrapolation == pytest.approx(planted.compute[row] / largest)


def test_the_true_law_ranks_first_and_covers(tested):
    assert [item.law for item in tested.ranking] == ["chinchilla", "power_law_compute"]
    best = tested.summarise("chinchilla")
    assert best.mean < 0.01 < tested.summarise("power_law_compute").mean
    assert best.coverage >= 6 / 9, "of nine cells at a stated 90 % six are left with a chance of 1 %"
    assert best.mean <= best.percentile_90


def test_laws_that_cannot_be_fitted_are_listed_with_the_reason(tested):
    listed = {(item.law, item.fraction): item.reason for item in tested.unfitted}
    assert set(listed) == {("power_law_params", 4), ("power_law_params", 10)}
    assert all("fit chinchilla" in reason for reason in listed.values())


def test_the_record_is_plain_json_and_text(tested):
    record = json.loads(json.dumps(tested.to_dict(), allow_nan=False))
    assert {"law", "predicted", "actual", "error", "inside", "extrapolation"} <= set(record["cells"][0])
    assert {"law", "mean", "percentile_90", "coverage", "score"} <= set(record["summary"][0])
    assert record["ranking"] == ["chinchilla", "power_law_compute"]
    assert "not fitted: power_law_params below 1/4" in tested.summary()


def test_the_interval_score_is_that_of_its_definition(planted):
    narrow = backtest(planted, ("power_law_compute",), fractions=(4, 10), level=0.3, **OPTIONS)
    assert {cell.inside for cell in narrow.cells} == {True, False}
    for cell in narrow.cells:
        miss = max(cell.low - cell.actual, 0) + max(cell.actual - cell.high, 0)
        assert cell.inside == (miss == 0)
        assert cell.score == pytest.approx((cell.high - cell.low + 2 / 0.7 * miss) / cell.actual)


def test_a_cut_that_leaves_nothing_on_one_side_is_refused(planted):
    with pytest.raises(ValueError, match=r"no fraction of 1e\+30 leaves runs on both sides"):
        backtest(planted, fractions=(1e30,))


def test_settings_are_scored_by_their_regret_on_the_sweep(plant_settings):
    runs = plant_settings(batches=3)
    found = backtest(runs, ("lr_batch", "chinchilla"), fractions=(4,), held_out="settings", **OPTIONS)
    assert [item.law for item in found.unfitted] == ["chinchilla"]
    assert len(found.cells) > 0
    for cell in found.cells:
        planted_rate = 2 * cell.params**-0.35 * cell.tokens**0.1
        assert cell.actual == pytest.approx(planted_rate, rel=0.1)
        assert -0.001 < cell.error < 0.01
        assert cell.score == cell.error


def test_regret_is_interpolated_on_the_sweep():
    rates = np.array([1e-3, 2e-3, 4e-3])
    sweep = Observations([1e7] * 4, [1e9] * 4, [3.1, 3.0, 3.2, np.inf], peak_lr=[*rates, 8e-3])
    assert measure_regret(sweep, 2e-3, None) == pytest.approx(0)
    assert measure_regret(sweep, np.sqrt(8e-6), None) == pytest.approx(3.1 / 3.0 - 1)
    assert np.isnan(measure_regret(sweep, 8e-3, None))
    lr, batch = (grid.ravel() for grid in np.meshgrid([1e-3, 2e-3, 4e-3], [1e5, 2e5, 4e5]))
    loss = 3 + 0.1 * np.log2(lr / 2e-3) + 0.05 * np.log2(batch / 2e5)
    plane = Observations([1e7] * 9, [1e9] * 9, loss, peak_lr=lr, batch_tokens=batch)
    assert measure_regret(plane, np.sqrt(2) * 1e-3, 2e5 * np.sqrt(2)) == pytest.approx((3 - 0.05 + 0.025) / 2.85 - 1)


def scored(law, fraction, log_density, params=1.0):
    return HeldOutCell(law, fraction, params, 1.0, 1.0, 2.0, 3.0, 2.9, 3.1, 3.0, 0.0, True, 0.1, log_density)


def test_weights_follow_the_densities_and_origins_count_once():
    """One origin of many cells against two of one cell: two witnesses beat one; equal densities leave equal weights."""
    many = [scored("a", 4, 1.0, p) for p in range(50)] + [scored("b", 4, 0.0, p) for p in range(50)]
    few = [scored(law, k, density) for k in (10, 30) for law, density in (("a", 0.0), ("b", 1.0))]
    weights = stack_weights(Backtest("loss", 0.9, tuple(many + few), ()), ("a", "b"))
    assert weights["b"] > 0.5 > weights["a"]
    even = stack_weights(Backtest("loss", 0.9, (scored("a", 4, 0.3), scored("b", 4, 0.3)), ()), ("a", "b"))
    assert even == pytest.approx({"a": 0.5, "b": 0.5})


def test_the_average_is_no_coarser_than_its_draws(planted, tested):
    """New runs scatter and drift on their own: few draws of a law still give smooth quantiles of the mixture."""
    fits = [scalelaws.fit("chinchilla", planted, **OPTIONS)]
    found = [average_laws(fits, tested, Target(2e10, 4e11), seed=seed).loss for seed in range(6)]
    width = np.mean([item.high - item.low for item in found])
    assert np.std([item.value for item in found]) < 0.01 * width
    assert np.std([item.low for item in found]) < 0.025 * width


def test_the_average_leans_on_the_better_law_and_spans_both(planted, tested):
    fits = [scalelaws.fit(law, planted, **OPTIONS) for law in ("chinchilla", "power_law_compute")]
    target = Target(2e10, 4e11)
    found = average_laws(fits, tested, target)
    assert found.weights["chinchilla"] > 0.8
    assert sum(found.weights.values()) == pytest.approx(1)
    low, high = sorted(item.value for item in found.members.values())
    assert low <= found.loss.value <= high
    assert found.loss.low < found.members["chinchilla"].low
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="needs a backtest of losses"):
        average_laws(fits, replace(tested, held_out="settings"), target)
    with pytest.raises(ValueError, match="not scored in the backtest"):
        average_laws(fits, replace(tested, cells=()), target)


def ladder(exponent, coefficient, floor=1.8, noise=0.001):
    n = np.geomspace(1e6, 1e9, 25)
    loss = floor + coefficient * (n / 1e6) ** -exponent
    loss = loss * np.exp(noise * np.random.default_rng(0).standard_normal(25))
    return scalelaws.fit("power_law", Observations(n, np.full(25, 1e10), loss), **OPTIONS)


def test_curves_that_cross_beyond_the_runs_name_no_winner():
    """4.9 x^-.5 and .5 x^-.2 (x = N / 1e6) are equal at x = 9.8^(1 / .3) = 2013, and the runs end at 1000."""
    steep, flat = ladder(0.5, 4.9), ladder(0.2, 0.5)
    found = compare_laws(steep, flat, Target(1e12, 1e10), names=("steep", "flat"))
    assert len(found.crossings) == 1
    assert found.crossings[0] / 6e10 == pytest.approx(2.013e9, rel=0.15)
    assert found.winner is None
    assert "no winner is named" in found.message
    assert "cross at" in found.message


def test_a_recipe_that_is_better_everywhere_wins():
    better, worse = ladder(0.3, 1.0, floor=1.2), ladder(0.3, 1.6, floor=2.4)
    found = compare_laws(better, worse, Target(4e9, 1e10), names=("better", "worse"))
    assert (found.winner, found.crossings, found.overlap) == ("better", (), False)
    assert found.difference.low > 0
    assert found.message.startswith("better is better: the loss of worse is +")
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_recipes_overlap():
    one = ladder(0.3, 1.6)
    found = compare_laws(one, one, Target(4e9, 1e10))
    assert found.overlap
    assert found.winner is None
    assert isinstance(found.difference, Estimate)


def test_fractions_that_part_the_runs_alike_count_once(planted):
    """The compute of these cells steps by factors of 2.15 and more: 1/4.0 and 1/4.01 leave the same runs."""
    found = backtest(planted, ("chinchilla",), fractions=(4.01, 4.0), **OPTIONS)
    assert {cell.fraction for cell in found.cells} == {4.0}
