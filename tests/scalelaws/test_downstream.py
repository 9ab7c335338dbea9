"""Laws of scores, the two-step forecast, items by difficulty."""

import dataclasses
import json

import numpy as np
import pytest

import scalelaws
from planting.downstream import PLANTED, SIGMOID, give, grid, plant_sigmoid, sigmoid_score, squash, task_loss
from scalelaws import FitError, ObservationError, Observations, Status, Target
from scalelaws.downstream.difficulty import ItemScores, cluster_items, fit_score_map, forecast_by_difficulty
from scalelaws.downstream.scores import predict_score
from scalelaws.laws.base import FitOptions
from scalelaws.laws.downstream import ScoreFit, ScoreSigmoid, score_compute, score_single_step

LAWS = {law.name: law for law in (ScoreSigmoid(), score_single_step(), score_compute())}


def runs_at(loss, score, compute=None):
    n = np.geomspace(1e7, 1e10, len(loss)) if compute is None else np.asarray(compute)
    return Observations(n, 20 * n, loss, covariates={"score": score})


def emerging(count=24, noise=0.004, seed=0, lowest=0.6):
    loss = np.linspace(2.2, lowest, count)
    score = sigmoid_score(loss) + noise * np.random.default_rng(seed).standard_normal(count)
    return runs_at(loss, score)


@pytest.mark.parametrize("name", LAWS)
def test_recovers_what_was_planted(name):
    planted = PLANTED[name]
    fit = scalelaws.fit(LAWS[name], planted.runs(0.0, 0), bootstrap=50)
    assert {key: item.value for key, item in fit.parameters.items()} == pytest.approx(planted.truth, rel=2e-3)
    if planted.target is not None:
        found = LAWS[name].predict_score(fit.draws, planted.target)
        assert np.median(found) == pytest.approx(planted.response, rel=1e-3)


@pytest.mark.parametrize("name", LAWS)
def test_derivatives_are_exact(name):
    law, planted = LAWS[name], PLANTED[name]
    columns = {column: planted.runs(0.0, 0).column(column)[::17] for column in law.needs}
    values = np.array([list(planted.truth.values())])
    _, slopes = law.evaluate(values, columns)
    for j in range(values.shape[1]):
        step = np.zeros_like(values)
        step[0, j] = 1e-6 * values[0, j]
        up, down = (law.evaluate(values + sign * step, columns)[0] for sign in (1, -1))
        assert slopes[..., j] == pytest.approx((up - down) / (2 * step[0, j]), rel=1e-5, abs=1e-9)


def test_intervals_of_a_new_run_hold_at_a_known_loss(fewest_hits):
    law, hits, count = ScoreSigmoid(), 0, 50
    for seed in range(count):
        fit = law.estimate(emerging(seed=seed, noise=0.01), FitOptions(bootstrap=100, seed=seed))
        rng = np.random.default_rng(1000 + seed)
        drawn = law.predict_score(fit.draws, loss=np.full(100, 0.9)) + fit.scatter_log * rng.standard_normal(100)
        truth = sigmoid_score(0.9) + 0.01 * rng.standard_normal()
        hits += np.quantile(drawn, 0.05) <= truth <= np.quantile(drawn, 0.95)
    assert hits >= fewest_hits(count)


def test_agrees_with_least_squares_of_scipy():
    from scipy.optimize import curve_fit

    runs = plant_sigmoid(0.005, 3)
    start = list(SIGMOID.values())
    peer, _ = curve_fit(
        lambda x, b, a, k, m: b + a * squash(k * (m - x)), runs.loss, runs.covariates["score"], p0=start
    )
    fit = scalelaws.fit(ScoreSigmoid(), runs, bootstrap=50)
    assert fit.values == pytest.approx(peer, rel=0.01)


def test_a_given_chance_is_held_and_not_warned_about():
    runs = emerging()
    fit = scalelaws.fit(ScoreSigmoid(chance=0.25), runs, bootstrap=50)
    assert fit.parameters["floor"].value == pytest.approx(0.25, abs=5e-4)
    assert not any("floor" in text for text in fit.warnings)
    fixed = scalelaws.fit(ScoreSigmoid(chance=0.0), runs_at(runs.loss, runs.covariates["score"] - 0.22), bootstrap=50)
    assert fixed.parameters["floor"].value == pytest.approx(0.0, abs=1e-5)


def test_many_items_are_trusted_more_near_the_ends():
    law, runs = ScoreSigmoid(items=400), emerging(noise=0.0)
    weights, score = law.weigh(runs), runs.covariates["score"]
    assert weights == pytest.approx(0.25 / (score * (1 - score)), rel=0.02)
    assert law.expect_noise(FitOptions()).expected == pytest.approx(0.025)
    assert (ScoreSigmoid().weigh(runs) == 1).all()


@pytest.mark.parametrize(
    ("score", "chance", "words"),
    [
        (lambda loss, rng: 0.25 + 0.008 * rng.standard_normal(len(loss)), 0.25, "saturated.*chance"),
        (lambda loss, rng: np.full(len(loss), 0.99) + 0.004 * rng.standard_normal(len(loss)), 0.25, "the ceiling"),
        (lambda loss, rng: 0.2 + 0.2 * loss, None, "moves by -"),
    ],
)
def test_scores_without_a_rise_are_refused(score, chance, words):
    loss = np.linspace(2.4, 1.6, 20)
    runs = runs_at(loss, score(loss, np.random.default_rng(0)))
    with pytest.raises(FitError, match=words) as caught:
        scalelaws.fit(ScoreSigmoid(chance=chance), runs)
    assert caught.value.status is Status.NOT_IDENTIFIED
    assert isinstance(caught.value.partial, ScoreFit)
    json.dumps(caught.value.partial.to_dict(), allow_nan=False)


def test_runs_that_all_diverged_are_refused_without_ranges():
    lost = Observations([1e7, 1e8, 1e9], [1e9] * 3, [np.inf] * 3, covariates={"score": [0.2, 0.3, 0.4]})
    for law in LAWS.values():
        fit = law.estimate(lost, FitOptions())
        assert not fit.status.ok
        assert fit.to_dict()["loss_seen"] is None
        json.dumps(fit.to_dict(), allow_nan=False)


def test_too_few_runs_and_percentages_are_refused():
    few = emerging(count=4)
    assert ScoreSigmoid().estimate(few, FitOptions()).status is Status.TOO_FEW_POINTS
    with pytest.raises(ObservationError, match="Divide percentages by 100"):
        ScoreSigmoid().estimate(runs_at(few.loss, 100 * few.covariates["score"]), FitOptions())
    with pytest.raises(ObservationError, match="score"):
        ScoreSigmoid().estimate(Observations([1e7, 1e8, 1e9], [1e9] * 3, [3.0, 2.5, 2.0]), FitOptions())
    with pytest.raises(ValueError, match="chance is a share"):
        ScoreSigmoid(chance=25)


def test_a_ceiling_that_no_run_shows_is_said():
    fit = scalelaws.fit(ScoreSigmoid(), emerging(lowest=1.5), bootstrap=50)
    assert any(text.startswith("set by their priors") and "gain" in text for text in fit.warnings)
    assert "rmse of the score" in fit.summary()


def two_steps(noise=1e-4, seed=0, largest=1e9):
    n, d = grid(8, 8)
    kept = (n <= largest) & (d <= 100 * largest)
    n, d = n[kept], d[kept]
    rng = np.random.default_rng(seed)
    loss = task_loss(n, d)
    score = sigmoid_score(loss) + 0.003 * rng.standard_normal(len(n))
    runs = Observations(n, d, loss * np.exp(noise * rng.standard_normal(len(n))), covariates={"score": score})
    return runs, scalelaws.fit("chinchilla", runs, bootstrap=200)


def test_two_steps_reach_the_planted_score():
    runs, loss = two_steps()
    target = Target(1e10, 2e11)
    truth = sigmoid_score(task_loss(target.params_non_embedding, target.tokens))
    found = predict_score(scalelaws.fit("score_sigmoid", runs, bootstrap=200), target, loss_fit=loss)
    assert found.score.value == pytest.approx(truth, abs=0.01)
    assert found.score.low <= truth <= found.score.high
    assert found.loss.value == pytest.approx(task_loss(1e10, 2e11), rel=0.01)
    assert found.loss_law == "chinchilla"
    json.dumps(found.to_dict(), allow_nan=False)


def test_both_steps_widen_the_interval():
    runs, loss = two_steps()
    fit, target = scalelaws.fit("score_sigmoid", runs, bootstrap=200), Target(1e13, 2e14)

    def width(score_fit, loss_fit):
        score = predict_score(score_fit, target, loss_fit=loss_fit).score
        return score.high - score.low

    sure_loss = dataclasses.replace(
        loss, draws=np.tile(loss.values, (200, 1)), scatter_log=0.0, drift_log_per_efold=0.0
    )
    sure_score = dataclasses.replace(fit, draws=np.tile(fit.values, (200, 1)), scatter_log=0.0, drift_log_per_efold=0.0)
    assert width(sure_score, sure_loss) == pytest.approx(0.0, abs=1e-9)
    assert width(fit, loss) > max(width(sure_score, loss), width(fit, sure_loss))
    assert min(width(sure_score, loss), width(fit, sure_loss)) > 0


def test_a_loss_beyond_the_runs_is_warned_about_with_its_distance():
    runs, loss = two_steps(largest=1e8)
    found = predict_score(scalelaws.fit("score_sigmoid", runs, bootstrap=100), Target(1e10, 2e11), loss_fit=loss)
    distance = runs.loss.min() - found.loss.value
    assert any(f"lies {distance:.3g} outside" in text for text in found.warnings)
    assert any("times the compute of the largest run" in text for text in found.warnings)
    inside = predict_score(scalelaws.fit("score_sigmoid", runs, bootstrap=100), Target(3e7, 1e9), loss_fit=loss)
    assert not any("outside" in text for text in inside.warnings)


def test_steps_that_do_not_belong_together_are_refused():
    runs, loss = two_steps()
    fit = scalelaws.fit("score_sigmoid", runs, bootstrap=50)
    with pytest.raises(ValueError, match="give loss_fit="):
        predict_score(fit, Target(1e9, 1e10))
    with pytest.raises(ValueError, match="a law of a score"):
        predict_score(loss, Target(1e9, 1e10))
    with pytest.raises(ValueError, match="must be a fit of a law of the loss"):
        predict_score(fit, Target(1e9, 1e10), loss_fit=fit)
    named = dataclasses.replace(fit, scope={"loss_kind": "arc bpb"})
    with pytest.raises(ValueError, match="speak of one loss: loss_kind is arc bpb"):
        predict_score(named, Target(1e9, 1e10), loss_fit=dataclasses.replace(loss, scope={"loss_kind": "C4"}))
    failed = dataclasses.replace(loss, status=Status.NOT_CONVERGED)
    with pytest.raises(FitError, match="must not be used"):
        predict_score(fit, Target(1e9, 1e10), loss_fit=failed)


def test_published_scores_of_larger_runs(published_runs):
    """Mean scores over tasks, two corpora: the runs above a tenth of the largest compute from those below."""
    errors, straight = [], []
    for _, rows in published_runs("gadre").groupby("train_set"):
        runs = Observations(rows.N, rows.D, rows.loss_c4_val, covariates={"score": rows.icl_mean})
        below = runs.compute <= runs.compute.max() / 10
        train, test = runs.rows(np.flatnonzero(below)), runs.rows(np.flatnonzero(~below))
        loss, fit = (scalelaws.fit(law, train, bootstrap=50) for law in ("chinchilla", "score_sigmoid"))
        targets = [Target(n, d) for n, d in zip(test.params_non_embedding, test.tokens, strict=True)]
        found = np.array([predict_score(fit, target, loss_fit=loss).score.value for target in targets])
        errors += list(found - test.covariates["score"])
        line = np.polyfit(np.log(train.compute), train.covariates["score"], 1)
        straight += list(np.polyval(line, np.log(test.compute)) - test.covariates["score"])
    assert np.abs(errors).mean() < 0.012
    assert np.abs(errors).mean() < np.abs(straight).mean()


def plant_items(seed, models=8, items=300, reach=100.0):
    """Items of six difficulties, each rising over its own span of compute; a tenth without any trend."""
    rng = np.random.default_rng(seed)
    compute = np.append(np.geomspace(1e20, 1e23, models), 1e23 * reach)
    kind = rng.choice(6, size=items, p=rng.dirichlet(np.full(6, 2.0)))
    middle = np.exp(rng.uniform(np.log(3e19), np.log(3e25), 6)[kind] + 0.4 * rng.standard_normal(items))
    slope = rng.uniform(0.25, 0.7, 6)[kind]
    truth = np.exp(-np.log(2) * (compute[:, None] / middle) ** -slope)
    odd = rng.random(items) < 0.1
    truth[:, odd] = rng.uniform(0.1, 0.9, odd.sum())
    rates = rng.binomial(100, truth) / 100
    return ItemScores(rates[:-1], compute[:-1]), float(compute[-1]), float(rates[-1].mean())


def test_items_by_difficulty_beat_one_curve_on_a_large_model():
    errors, hits = {0.3: [], np.inf: []}, 0
    for seed in range(5):
        scores, compute, truth = plant_items(seed)
        for diameter, found in errors.items():
            score = forecast_by_difficulty(scores, compute, max_diameter=diameter, draws=50).score
            found.append(abs(score.value - truth))
            hits += diameter == 0.3 and score.low <= truth <= score.high
    assert np.mean(errors[0.3]) < 0.6 * np.mean(errors[np.inf])
    assert hits >= 3


def test_a_drift_of_the_largest_small_models_widens_the_interval():
    def width(scores):
        score = forecast_by_difficulty(scores, 1e24, draws=100).score
        return score.high - score.low

    compute = np.geomspace(1e20, 1e23, 8)
    rising = np.exp(-np.log(2) * (compute[:, None] / np.geomspace(3e21, 3e22, 40)) ** -0.4)
    stalled = np.minimum(rising, rising[5])
    assert width(ItemScores(stalled, compute)) > 2 * width(ItemScores(rising, compute))


def test_clusters_are_narrow_large_enough_and_leave_outliers():
    rng = np.random.default_rng(0)
    centres = np.array([[0.1, 0.2, 0.4, 0.6, 0.8], [0.5, 0.7, 0.8, 0.9, 0.95], [0.0, 0.0, 0.0, 0.1, 0.3]])
    rates = np.clip(np.repeat(centres, 30, axis=0) + 0.02 * rng.standard_normal((90, 5)), 0, 1)
    lone = np.array([[0.9, 0.1, 0.9, 0.1, 0.9]] * 5)
    labels = cluster_items(np.concatenate([rates, lone]).T)
    assert set(labels[:90]) == {0, 1, 2}
    assert all(len(set(part)) == 1 for part in np.split(labels[:90], 3))
    assert (labels[90:] == -1).all()
    smear = rng.uniform(0, 1, (400, 1)) * np.ones((1, 5))
    found = cluster_items(smear.T, max_diameter=0.2)
    assert max(np.ptp(smear[found == label, 0]) for label in range(found.max() + 1)) <= 0.2
    assert min(np.bincount(found[found >= 0])) >= 10


def test_the_map_to_the_full_set_is_monotone_and_passes_through_the_corners():
    subset = np.array([0.1, 0.2, 0.25, 0.4, 0.55, 0.7])
    full = subset**1.5 + np.array([0, 0.01, -0.01, 0, 0, 0])
    knots, miss = fit_score_map(subset, full)
    assert (knots[0] == 0).all()
    assert (knots[-1] == 1).all()
    assert (np.diff(knots, axis=0) >= 0).all()
    assert miss < 0.012
    exact, nothing = fit_score_map(subset, subset)
    assert nothing < 1e-9
    assert len(exact) == 3


def test_items_that_show_no_curve_are_refused_and_counted():
    compute = np.geomspace(1e20, 1e22, 6)
    with pytest.raises(FitError, match="no cluster of items can be extrapolated"):
        forecast_by_difficulty(ItemScores(np.full((6, 40), 0.5), compute), 1e24)
    with pytest.raises(ValueError, match="models of distinct compute"):
        ItemScores(np.full((3, 40), 0.5), compute[:3])
    with pytest.raises(ValueError, match="chance is a share"):
        forecast_by_difficulty(ItemScores(np.full((6, 40), 0.5), compute), 1e24, chance=25)
    with pytest.raises(ValueError, match="positive and finite"):
        forecast_by_difficulty(ItemScores(np.full((6, 40), 0.5), compute), -1.0)
    with pytest.raises(ValueError, match="shares"):
        ItemScores(np.full((6, 40), 50.0), compute)
    flat, (scores, target, _) = np.full((8, 60), 0.5), plant_items(1)
    mixed = ItemScores(np.concatenate([scores.pass_rates, flat], axis=1), scores.compute_flops)
    found = forecast_by_difficulty(mixed, target, draws=50)
    assert found.share_predictable <= 300 / 360
    assert any("spans less" in cluster.problem for cluster in found.clusters)
    assert sum(len(cluster.items) for cluster in found.clusters) + found.outliers == 360
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_figure_shows_runs_band_and_forecasts():
    from scalelaws.figures.downstream import draw_score

    runs, loss = two_steps(largest=1e8)
    fit = scalelaws.fit("score_sigmoid", runs, bootstrap=50)
    found = predict_score(fit, Target(1e9, 2e10), loss_fit=loss)
    n, d = np.array([1e9]), np.array([2e10])
    ax = draw_score(fit, runs, give(n, d, sigmoid_score(task_loss(n, d)), 0.0, 0), [found])
    labels = ax.get_legend_handles_labels()[1]
    assert {"fitted runs", "held-out runs", "two-step forecast", "90 % interval of a run"} <= set(labels)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    with pytest.raises(ValueError, match="got a fit of score_compute"):
        draw_score(scalelaws.fit(score_compute(), PLANTED["score_compute"].runs(0.0, 0), bootstrap=50), runs)
