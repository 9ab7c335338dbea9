from dataclasses import replace

import numpy as np
import pytest

import scalelaws
from scalelaws import FitError, Observations, PowerLaw, Status
from scalelaws.engines import powerfits
from scalelaws.engines.repeats import average_repeats
from scalelaws.laws.loss import keep_tuned
from scalelaws.optima import RUN_NOISE_DOF, RUN_NOISE_LOG


def ladder(sizes=4, noise=0.0, seed=0, exponent=0.3, step=4.0):
    n = 1e6 * step ** np.arange(sizes)
    loss = 1.8 + 1.6 * (n / 1e6) ** -exponent
    return Observations(n, np.full(sizes, 1e9), loss * np.exp(noise * np.random.default_rng(seed).normal(size=sizes)))


def test_chinchilla_recovers_a_planted_truth(plant_loss):
    fit = scalelaws.fit("chinchilla", plant_loss(), objective="huber", bootstrap=50)
    found = {name: item.value for name, item in fit.parameters.items()}
    assert found == pytest.approx({"E": 1.7, "A": 400, "B": 1100, "alpha": 0.34, "beta": 0.3}, rel=1e-5)


def test_least_absolute_deviations_give_the_published_row(published_runs):
    """Besiroglu et al. 2024, table 1: A, B within .5 %, E and the exponents within 3e-4."""
    runs = published_runs("chinchilla_epoch").query("kept_240")
    observations = Observations(runs["N"], runs["D"], runs["loss"])
    fit = scalelaws.fit("chinchilla", observations, objective="lad", bootstrap=50)
    found = {name: item.value for name, item in fit.parameters.items()}
    assert {name: found[name] for name in "AB"} == pytest.approx({"A": 482.0, "B": 2085.39}, rel=0.005)
    rest = {"E": 1.81686, "alpha": 0.34781, "beta": 0.36585}
    assert {name: found[name] for name in rest} == pytest.approx(rest, abs=3e-4)


def cover(repetitions, plant, objective="auto"):
    """How many of the intervals at 90 % hold the planted E, A, B, alpha, beta."""
    truth, hits = np.array([1.7, 400, 1100, 0.34, 0.3]), np.zeros(5)
    for seed in range(repetitions):
        fit = scalelaws.fit("chinchilla", plant(seed), objective=objective, bootstrap=60, seed=seed)
        low, high = np.array([(item.low, item.high) for item in fit.parameters.values()]).T
        hits += (low <= truth) & (truth <= high)
    return hits


def test_intervals_of_a_true_law_cover_it(plant_loss, fewest_hits):
    hits = cover(24, lambda seed: plant_loss(7, 7, 0.005, seed))
    assert (hits >= fewest_hits(24)).all(), hits


def repeat_cells(cells, seed, repeats=3, noise=0.0005):
    """Runs of one cell share its offset from the law and differ by their own noise."""
    runs = cells.rows(np.repeat(np.arange(len(cells)), repeats))
    own = np.random.default_rng([seed, 1]).standard_normal(len(runs))
    return replace(runs, loss=runs.loss * np.exp(noise * own))


@pytest.mark.parametrize(("objective", "repetitions"), [("huber", 30), ("map", 20)])
def test_repeats_of_a_cell_do_not_narrow_what_they_share(plant_loss, fewest_hits, objective, repetitions):
    hits = cover(repetitions, lambda seed: repeat_cells(plant_loss(7, 7, 0.004, seed), seed), objective)
    assert (hits >= fewest_hits(repetitions)).all(), hits


def test_repeats_are_averaged_and_every_run_is_counted():
    runs = Observations([1e6, 1e6, 2e6], [1e9] * 3, [3.0, 3.0 * np.exp(0.02), 2.9])
    cells, hidden = average_repeats(runs)
    variance = (0.02**2 / 2 + RUN_NOISE_DOF * RUN_NOISE_LOG**2) / (1 + RUN_NOISE_DOF)
    assert cells.loss == pytest.approx([3.0 * np.exp(0.01), 2.9])
    assert cells.loss_se_log == pytest.approx(np.sqrt([variance / 2, variance]))
    assert hidden == pytest.approx([variance / 2, 0])
    many = ladder(5).rows(np.repeat(np.arange(5), 3))
    evidence = scalelaws.fit("power_law", many, bootstrap=50).evidence
    assert (evidence.runs, evidence.cells) == (15, 5)


def test_few_sizes_get_wide_honest_intervals_for_the_next_sizes(fewest_hits):
    """Ladders of four sizes, exponents drawn from the stated prior: the loss at 16 times the size."""
    rng, hits = np.random.default_rng(1), 0
    for seed in range(30):
        exponent = 0.3 * np.exp(0.5 * rng.standard_normal())
        truth = 1.8 + 1.6 * (4.0**5) ** -exponent
        fit = scalelaws.fit("power_law", ladder(4, 0.002, seed, exponent), bootstrap=100, seed=seed)
        loss = scalelaws.forecast(fit, scalelaws.Target(1e6 * 4.0**5, 1e9)).loss
        hits += loss.low <= truth * np.exp(0.002 * rng.standard_normal()) <= loss.high
    assert hits >= fewest_hits(30)


def test_priors_fade_when_runs_are_many():
    n = np.geomspace(1e6, 1e10, 200)
    runs = Observations(n, np.full(200, 1e9), 1.8 + 30 * n**-0.15)
    weak = scalelaws.fit("power_law", runs, objective="map", bootstrap=50)
    assert weak.parameters["alpha"].value == pytest.approx(0.15, abs=0.003)
    assert "priors" in weak.objective


def read_olmo_ladder(published_runs):
    """Runs of less than a tenth of the largest compute; plain rounds of weights make the loss swing by 2.8 % there."""
    runs = published_runs("olmo_ladder").dropna(subset=["loss_pile"])
    small = runs[runs["C_6ND"] <= runs["C_6ND"].max() / 10]
    return Observations(small["N"], small["D"], small["loss_pile"], compute_flops=small["C_6ND"])


def test_weights_are_settled(published_runs, monkeypatch):
    runs, largest = read_olmo_ladder(published_runs), scalelaws.Target(1e10, 1e12)
    fit = scalelaws.fit("chinchilla", runs, bootstrap=50)
    monkeypatch.setattr(powerfits, "SETTLED", 1e-6)
    monkeypatch.setattr(powerfits, "REWEIGHTINGS", 500)
    exact = scalelaws.fit("chinchilla", runs, bootstrap=50)
    losses = [scalelaws.forecast(item, largest).loss.value for item in (fit, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=3e-4)
    assert not fit.warnings


def test_weights_that_do_not_settle_are_told(published_runs, monkeypatch):
    monkeypatch.setattr(powerfits, "REWEIGHTINGS", 2)
    fit = scalelaws.fit("chinchilla", read_olmo_ladder(published_runs), bootstrap=50)
    assert any("did not settle" in warning for warning in fit.warnings)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("huber", "Huber penalties of ln loss, delta 0.001"),
        ("lad", "absolute residuals"),
        ("least_squares", "squared residuals"),
        ("map", "priors ln exponent"),
        ("auto", "runs weigh less by the misfit expected"),
    ],
)
def test_the_objective_says_what_was_used(plant_loss, objective, said):
    fit = scalelaws.fit("chinchilla", plant_loss(5, 5, 0.002), objective=objective, bootstrap=50, throw=False)
    assert said in fit.objective
    assert ("resampled" in fit.objective) == (objective in ("huber", "lad", "least_squares"))


def test_weights_and_trimming_are_reported_with_their_effect():
    """Two compute levels of five sizes each; the wings lie 8 % above their best."""
    n = np.tile(1e8 * 2.0 ** np.arange(-2, 3), 3)
    c = np.repeat([6e18, 6e19, 6e20], 5)
    wings = np.array([1.08, 1.01, 1.0, 1.01, 1.08])
    loss = np.tile(wings, 3) * (2 + 40 * c**-0.1)
    runs = Observations(n, c / (6 * n), loss, compute_flops=c)
    fit = scalelaws.fit("chinchilla", runs, trim_excess=0.05, compute_weight=0.6, bootstrap=50, throw=False)
    assert [(item.runs, "trim_excess" in item.reason) for item in fit.evidence.excluded] == [(6, True)]
    assert fit.evidence.runs == 9
    assert "weights C^0.6" in fit.objective
    assert "without trimming 6 runs the loss at the largest run would be" in fit.objective
    plain = scalelaws.fit("chinchilla", runs, objective="huber", bootstrap=50, throw=False)
    assert "equal weights" not in plain.objective
    assert plain.evidence.excluded == ()


def test_options_of_sums_of_powers_are_refused_elsewhere():
    runs = Observations([1e6] * 4, [1e9] * 4, [3.0, 3.2, 3.01, 2.9], peak_lr=[1e-3, 2e-3, 4e-3, 8e-3])
    with pytest.raises(ValueError, match="lr_batch knows the objectives auto, huber and map"):
        scalelaws.fit("lr_batch", runs, objective="lad")
    with pytest.raises(ValueError, match="are for sums of powers; lr_batch is none"):
        scalelaws.fit("lr_batch", runs, trim_excess=0.05)


@pytest.mark.parametrize(
    ("law", "runs", "status", "message"),
    [
        ("power_law", ladder(1), Status.TOO_FEW_SCALES, r"needs >= 3 sizes \(have 1\)"),
        ("chinchilla", ladder(6), Status.TOO_FEW_SCALES, r"needs >= 3 horizons \(have 1\)"),
        ("power_law_tokens", ladder(6), Status.TOO_FEW_SCALES, r"needs >= 3 horizons \(have 1\)"),
    ],
)
def test_too_few_scales(law, runs, status, message):
    with pytest.raises(FitError, match=message) as caught:
        scalelaws.fit(law, runs)
    assert caught.value.status is status
    assert caught.value.partial is not None
    assert scalelaws.fit(law, runs, throw=False).status is status


def test_a_horizon_tied_to_the_size_does_not_identify_chinchilla():
    n = np.geomspace(1e7, 1e10, 12)
    runs = Observations(n, 20 * n, 1.7 + 400 * n**-0.34 + 1100 * (20 * n) ** -0.3)
    with pytest.raises(FitError, match="tokens moved in step with parameters") as caught:
        scalelaws.fit("chinchilla", runs)
    assert caught.value.status is Status.NOT_IDENTIFIED


def test_a_law_in_one_scale_refuses_runs_that_vary_in_two(plant_loss):
    with pytest.raises(FitError, match="vary on their own: fit chinchilla") as caught:
        scalelaws.fit("power_law", plant_loss(4, 4))
    assert caught.value.status is Status.NOT_IDENTIFIED


def test_a_curve_that_leaves_the_law_shows_as_drift():
    """A bend of 3 % per e-fold in the last decade of the ladder; without it the drift is the expected one."""
    n = np.geomspace(1e6, 1e10, 40)
    straight = 1.8 + 30 * n**-0.2
    bent = straight * np.exp(0.03 * np.maximum(np.log(n / 1e9), 0))
    drifts = [
        scalelaws.fit("power_law", Observations(n, np.full(40, 1e9), loss), bootstrap=50).drift_log_per_efold
        for loss in (straight, bent)
    ]
    assert drifts[0] == pytest.approx(0.0045)
    assert drifts[1] > 0.01


def test_a_loss_that_grows_with_size_is_implausible():
    n = np.geomspace(1e6, 1e9, 30)
    runs = Observations(n, np.full(30, 1e9), 2.0 + 0.1 * (n / 1e6) ** 0.3)
    fit = scalelaws.fit("power_law", runs, objective="huber", bootstrap=50, throw=False)
    assert fit.status is Status.IMPLAUSIBLE
    assert "exponents -0.3" in fit.message


def test_a_term_that_vanishes_is_a_bound_and_no_law():
    """Exponents are positive under the prior, so a loss that grows leaves the coefficient at 0."""
    n = 1e6 * 4.0 ** np.arange(6)
    runs = Observations(n, np.full(6, 1e9), 2.0 + 0.1 * (n / 1e6) ** 0.3)
    fit = scalelaws.fit("power_law", runs, bootstrap=50, throw=False)
    assert fit.status is Status.BOUND_HIT
    assert "A = 0" in fit.message


def test_of_a_swept_cell_only_the_best_setting_counts():
    runs = Observations(
        [1e6] * 4 + [2e6], [1e9] * 5, [3.0, 3.2, 3.01, np.inf, 2.9], peak_lr=[1e-3, 2e-3, 1e-3, 4e-3, 1e-3]
    )
    tuned = keep_tuned(runs)
    assert tuned.loss.tolist() == [3.0, 3.01, 2.9]
    assert [(item.reason, item.runs) for item in tuned.excluded] == [
        ("diverged (the loss is not finite)", 1),
        ("not the best setting of a swept cell", 1),
    ]


def test_noisy_runs_weigh_less_when_their_error_is_known():
    n = 1e6 * 4.0 ** np.arange(5)
    loss = 1.8 + 1.6 * (n / 1e6) ** -0.3
    bent = loss * np.array([1, 1, 1.03, 1, 1])
    known = Observations(n, np.full(5, 1e9), bent, loss_se_log=[1e-4, 1e-4, 0.05, 1e-4, 1e-4])
    unknown = Observations(n, np.full(5, 1e9), bent)
    away = [scalelaws.fit("power_law", runs, bootstrap=50).rmse_log for runs in (known, unknown)]
    predicted = [
        scalelaws.forecast(scalelaws.fit("power_law", runs, bootstrap=50), scalelaws.Target(n[2], 1e9)).loss.value
        for runs in (known, unknown)
    ]
    assert abs(predicted[0] / loss[2] - 1) < 0.3 * abs(predicted[1] / loss[2] - 1)
    assert away[0] > away[1]


def test_an_unknown_variable_is_refused():
    with pytest.raises(ValueError, match="params, tokens, compute"):
        PowerLaw(variable="depth")
