import json

import numpy as np
import pandas as pd
import pytest

import scalelaws
from planting.curves import ANNEALING, MULTI_POWER, PLANTED, SCHEDULES
from planting.curves import WARMUP as WARM
from scalelaws.curves.forecasts import predict_curve, predict_final
from scalelaws.curves.records import Curve, Curves
from scalelaws.curves.schedules import Schedule, find_drops
from scalelaws.curves.scheduling import Problem, optimise_schedule
from scalelaws.figures.curves import draw_advice, draw_curves
from scalelaws.laws.curve import Annealing, MultiPower
from scalelaws.laws.curve_columns import Units, read_columns
from scalelaws.laws.curve_fit import MOST_POINTS, measure_tau
from scalelaws.observations import ObservationError
from scalelaws.results import Status

LAWS = {"annealing": (Annealing(), ANNEALING), "multi_power": (MultiPower(), MULTI_POWER)}
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")
PEAK, END, WARMUP, STEPS = 3e-4, 3e-5, 2160, 24000


def cosine_rates():
    """One rate per update: linear warm-up, then half a cosine."""
    share = np.arange(1, STEPS - WARMUP + 1) / (STEPS - WARMUP)
    return np.append(np.linspace(0, PEAK, WARMUP + 1)[1:], END + (PEAK - END) * 0.5 * (1 + np.cos(np.pi * share)))


def sum_updates(name, lr, step):
    """Both laws as their papers write them: a sum over single updates after the warm-up."""
    truth, summed, peak = LAWS[name][1], np.cumsum(lr), int(np.argmax(lr)) + 1
    found = []
    for t in step.astype(int):
        k = np.arange(peak + 1, t + 1)
        fall, since = lr[k - 2] - lr[k - 1], summed[t - 1] - summed[k - 2]
        loss = truth["L0"] + truth["A"] * summed[t - 1] ** -truth["alpha"]
        if name == "multi_power":
            x = truth["C"] * lr[k - 1] ** -truth["gamma"] * since
            loss -= truth["B"] * (fall * (1 - (1 + x) ** -truth["beta"])).sum()
        else:
            kept = np.cumsum(np.exp(-1 / truth["memory_steps"]) ** np.arange(t))
            loss -= truth["C"] * (fall * kept[t - k]).sum()
        found.append(loss)
    return np.array(found)


@pytest.fixture(scope="module")
def fits():
    return {name: scalelaws.fit(LAWS[name][0], PLANTED[name].runs(1e-3, 0), bootstrap=60) for name in LAWS}


@pytest.fixture(scope="module")
def read_size(published_runs):
    """The published curves of one model size (millions of parameters)."""
    table = published_runs("mpl_curves")
    return lambda size: Curves.from_frame(table[table["model_M"] == size], warmup_steps=WARMUP)


@pytest.mark.parametrize("name", LAWS)
def test_blocks_sum_as_single_updates_do(name):
    """Blocks of a thirty-second of the fall stay within 1e-4 of the papers' sums over updates."""
    law, truth = LAWS[name]
    lr, step = cosine_rates(), np.array([2300.0, 4000.0, 9000.0, 15000.0, 24000.0])
    exact, values = sum_updates(name, lr, step), np.array([list(truth.values())])
    by_formula = Schedule.cosine(STEPS, PEAK, end_lr=END, warmup_steps=WARMUP)
    assert law.predict(values, Schedule.of_updates(lr), step)[0] == pytest.approx(exact, rel=1e-4)
    assert law.predict(values, by_formula, step)[0] == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_jumps_are_exact(name):
    law, truth = LAWS[name]
    lr = np.repeat([PEAK, 1e-4, 2e-5], [3000, 1000, 500])
    step = np.array([3000.0, 3001.0, 3010.0, 4000.0, 4001.0, 4500.0])
    found = law.predict(np.array([list(truth.values())]), Schedule.of_updates(lr), step)[0]
    assert found == pytest.approx(sum_updates(name, lr, step), rel=1e-11)


@pytest.mark.parametrize("name", LAWS)
def test_derivatives_are_exact(name):
    law, truth = LAWS[name]
    columns = read_columns([(Schedule.cosine(STEPS, PEAK, end_lr=0.0), np.array([50.0, 9000.0, 24000.0]))], Units())
    values = np.array(list(truth.values()))
    slopes = law.evaluate(values[None], columns)[1][0]
    for j, value in enumerate(values):
        shift = 1e-5 * value * np.eye(len(values))[j]
        up, down = law.evaluate(np.stack([values + shift, values - shift]), columns)[0]
        numeric = (up - down) / (2e-5 * value)
        assert slopes[:, j] == pytest.approx(numeric, rel=1e-6, abs=5e-11 / value)


@pytest.mark.parametrize("name", LAWS)
def test_units_do_not_change_the_law(name):
    """The parameters counted in losses and rates of the runs, and as the paper counts them, say the same."""
    law, units = LAWS[name][0], Units(3.2, PEAK, PEAK * STEPS)
    scaled = np.array([[item.centre for item in law.parameters]])
    schedule, step = Schedule.wsd(STEPS, PEAK, end_lr=END), np.array([100.0, 20000.0, 24000.0])
    inside = units.loss * np.exp(law.evaluate(scaled, read_columns([(schedule, step)], units))[0])
    assert law.predict(law.to_published(scaled, units), schedule, step) == pytest.approx(inside, rel=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_without_priors_exact_curves_give_the_planted_parameters(name):
    fit = scalelaws.fit(LAWS[name][0], PLANTED[name].runs(0.0, 0), objective="huber", bootstrap=50)
    for parameter, value in LAWS[name][1].items():
        assert fit.parameters[parameter].value == pytest.approx(value, rel=2e-3)


def test_three_schedules_foretell_six_others(read_size):
    """Mean relative error of the authors' own parameters, chosen with all nine: .00110 (25M) and .00142 (100M)."""
    for size, most in ((25, 0.0012), (100, 0.0014)):
        curves = read_size(size)
        fit = scalelaws.fit(MultiPower(), curves.select(TRAIN), bootstrap=50)
        others = [curve for curve in curves if curve.label not in TRAIN]
        misses = [MultiPower().predict(fit.values[None], curve.schedule, curve.step)[0] for curve in others]
        errors = [np.abs(found / curve.loss - 1).mean() for found, curve in zip(misses, others, strict=True)]
        assert len(errors) == 6
        assert np.mean(errors) <= most
        assert [item.runs for item in fit.evidence.excluded] == [6]


def test_the_annealing_law_does_as_well_as_its_published_refit(read_size):
    """With lambda = .999 fixed, a refit has alpha .513 and .455, and RMSE .00622 and .00666 on the other schedules."""
    for size, alpha, most in ((25, 0.513, 0.00622), (100, 0.455, 0.00666)):
        curves = read_size(size)
        fit = scalelaws.fit(Annealing(), curves.select(TRAIN), bootstrap=50)
        assert fit.parameters["alpha"].value == pytest.approx(alpha, abs=0.03)
        others = [curve for curve in curves if curve.label not in TRAIN]
        misses = [Annealing().predict(fit.values[None], curve.schedule, curve.step)[0] - curve.loss for curve in others]
        assert np.mean([np.sqrt((miss**2).mean()) for miss in misses]) <= most


def test_intervals_of_unseen_final_losses_hold(read_size, fewest_hits):
    hits = []
    for size in (25, 100):
        curves = read_size(size)
        for train in (TRAIN, ("cosine_24000", "wsd_20000_24000", "wsdcon_3"), ("wsdld_20000_24000", "wsdcon_18")):
            fit = scalelaws.fit(MultiPower(), curves.select(train), bootstrap=100)
            for curve in curves:
                if curve.label not in train:
                    found = predict_final(fit, curve.schedule)
                    hits.append(found.low <= curve.final_loss <= found.high)
    assert sum(hits) >= fewest_hits(len(hits))


@pytest.mark.parametrize("name", LAWS)
def test_gradient_of_the_final_loss_is_exact(name):
    law, truth = LAWS[name]
    problem = Problem.of(law, np.array(list(truth.values())), STEPS, PEAK, END, WARMUP)
    lr = np.sort(np.random.default_rng(0).uniform(END, PEAK, len(problem.knots)))[::-1]
    slope = problem.loss(lr)[1]
    steps = 1e-9 * np.eye(len(lr))
    numeric = [(problem.loss(lr + step)[0] - problem.loss(lr - step)[0]) / 2e-9 for step in steps]
    assert slope == pytest.approx(np.array(numeric), abs=1e-7 * np.abs(slope).max())


def test_the_search_and_the_schedule_sum_the_same_rates():
    problem = Problem.of(Annealing(), np.array(list(ANNEALING.values())), STEPS, PEAK, END, WARMUP)
    lr = np.linspace(PEAK, END, len(problem.knots)) ** 2 / PEAK
    schedule = Schedule(np.append(0, problem.knots), np.append(0, lr))
    middle = 0.5 * (problem.knots[1:] + problem.knots[:-1])
    assert problem.area_weights @ lr == pytest.approx(schedule.area([STEPS]) - schedule.area(middle), rel=1e-9)
    exact = Annealing().predict(problem.values[None], schedule, np.array([STEPS])).item()
    assert problem.loss(lr)[0] == pytest.approx(exact, rel=5e-5)


@pytest.mark.parametrize("name", LAWS)
def test_the_optimum_beats_every_wsd(name):
    law, truth = LAWS[name]
    values = np.array(list(truth.values()))
    found = Problem.of(law, values, STEPS, PEAK, END, WARMUP).minimise()
    after = found.lr[np.argmax(found.lr) :]
    assert (np.diff(after) <= 0).all()
    assert after.min() >= END * (1 - 1e-9)
    assert (found.peak_lr, found.warmup_steps) == (PEAK, WARMUP)
    end = np.array([STEPS])
    tried = [
        law.predict(values[None], Schedule.wsd(STEPS, PEAK, end_lr=END, decay_share=share, warmup_steps=WARMUP), end)
        for share in np.linspace(0.01, 0.9, 90)
    ]
    assert law.predict(values[None], found, end).item() < np.min(tried)


def test_the_annealing_law_is_optimised_by_one_jump():
    """S1 and the annealing term are linear in the falls, so the optimum over all schedules is a single jump."""
    law, truth = LAWS["annealing"]
    values, end = np.array([list(truth.values())]), np.array([STEPS])
    ages = np.geomspace(100, 15000, 4000)
    summed = PEAK * (STEPS - WARMUP / 2) - (PEAK - END) * ages
    memory = truth["memory_steps"]
    jumps = truth["L0"] + truth["A"] * summed ** -truth["alpha"]
    jumps -= truth["C"] * (PEAK - END) * np.expm1(-ages / memory) / np.expm1(-1 / memory)
    found = Problem.of(law, values[0], STEPS, PEAK, END, WARMUP).minimise()
    assert law.predict(values, found, end).item() == pytest.approx(jumps.min(), abs=2e-5)
    fallen = found.step[(found.step > WARMUP) & (found.lr < 0.5 * PEAK)]
    assert STEPS - fallen.min() == pytest.approx(ages[jumps.argmin()], abs=400)


def test_advice_says_what_it_is_worth(fits):
    advice = optimise_schedule(fits["multi_power"], 60000, 2e-3, end_lr=1e-6, warmup_steps=500)
    assert set(advice.gains) == {"cosine", "wsd 20 %", "best wsd"}
    assert all(gain.value >= 0 for gain in advice.gains.values())
    assert advice.gains["best wsd"].low < 0 < advice.gains["best wsd"].high
    assert "best wsd lies inside its 90 % interval" in advice.verdict
    said = " ".join(advice.warnings)
    assert all(text in said for text in ("60000 steps", "peak rate 0.002", "below the lowest fitted"))
    json.dumps(advice.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="0 <= end_lr < peak_lr"):
        optimise_schedule(fits["multi_power"], 1000, 1e-4, end_lr=1e-3)


def test_a_forecast_widens_beyond_the_longest_curve(fits):
    schedule = Schedule.wsd(80000, PEAK, end_lr=END, warmup_steps=500)
    found = predict_curve(fits["annealing"], schedule, [10000, 80000])
    width = np.log(found.high / found.low)
    assert (found.low < found.mean).all()
    assert (found.mean < found.high).all()
    assert width[1] > 1.2 * width[0]
    assert any("80000 steps, 4 times the longest curve" in text for text in found.warnings)
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="after the warm-up"):
        predict_curve(fits["annealing"], schedule, [100])


def test_other_fits_have_no_schedule(plant_loss):
    fit = scalelaws.fit("chinchilla", plant_loss(8, 8, noise=1e-4), bootstrap=50)
    with pytest.raises(ValueError, match="needs a law of the curve"):
        predict_final(fit, Schedule.constant(10, 1e-3))


def curve(label, schedule, loss=3.0, points=40, **more):
    step = np.linspace(schedule.warmup_steps + 1, schedule.steps, points)
    return Curve(label, schedule, step, np.full(points, loss), **more)


@pytest.mark.parametrize(
    ("made", "status"),
    [
        ([curve("a", Schedule.cosine(100, 1e-3, end_lr=0))], Status.TOO_FEW_SCALES),
        ([curve(name, Schedule.constant(100, 1e-3)) for name in "ab"], Status.NOT_IDENTIFIED),
        ([curve(name, Schedule.cosine(100, 1e-3, end_lr=0), points=5) for name in "ab"], Status.TOO_FEW_POINTS),
        ([curve(name, Schedule.cosine(100, 1e-3, end_lr=0), np.nan) for name in "ab"], Status.TOO_FEW_POINTS),
    ],
)
def test_curves_that_cannot_hold_the_law_are_refused(made, status):
    fit = scalelaws.fit(MultiPower(), Curves(tuple(made)), throw=False)
    assert fit.status is status
    assert np.isnan(fit.values).all()
    json.dumps(fit.to_dict(), allow_nan=False)


def test_a_diverged_curve_is_left_out_and_counted():
    planted = PLANTED["annealing"].runs(1e-3, 0)
    lost = Curve("lost", planted["wsd"].schedule, planted["wsd"].step, np.full(len(planted["wsd"]), np.inf))
    fit = scalelaws.fit(Annealing(), Curves((*planted, lost)), bootstrap=50)
    assert fit.evidence.runs == len(planted)
    assert [(item.runs, item.reason) for item in fit.evidence.excluded] == [(1, "no finite loss after the warm-up")]


def test_a_curve_that_broke_off_counts_as_far_as_it_went():
    """Steps and rates that were only planned are no evidence, and cutting the plan changes no loss before the cut."""
    planted = PLANTED["annealing"].runs(1e-3, 0)
    wsd = planted["wsd"]
    lost = Curve("lost", wsd.schedule, wsd.step, np.where(wsd.step > 17000, np.nan, wsd.loss))
    constant = curve("flat", Schedule.constant(9000, 3e-4, warmup_steps=500))
    fit = scalelaws.fit(Annealing(), Curves((constant, lost)), bootstrap=50, throw=False)
    assert fit.evidence.steps[1] <= 17000
    assert fit.evidence.lowest_lr > 2 * END
    assert any("lost diverged on the way" in text for text in fit.warnings)
    values, step = np.array([list(ANNEALING.values())]), np.array([5000.0, 16500.0, 17000.0])
    cut = Annealing().predict(values, wsd.schedule.until(17000), step)
    assert cut == pytest.approx(Annealing().predict(values, wsd.schedule, step), rel=1e-5)


def test_a_rate_of_zero_has_a_loss():
    still = Schedule([0, 100, 100, 200], [1e-3, 1e-3, 0, 0])
    for law, truth in LAWS.values():
        assert np.isfinite(law.predict(np.array([list(truth.values())]), still, np.array([100.0, 101.0, 200.0]))).all()


def test_a_rate_that_rises_again_is_named(fits):
    again = Schedule([0, 500, 9000, 12000], [0, PEAK, END, 2 * END])
    assert any("the rate rises" in text for text in predict_curve(fits["annealing"], again, [12000]).warnings)
    planted = PLANTED["annealing"].runs(1e-3, 0)
    fit = scalelaws.fit(Annealing(), Curves((*planted, curve("again", again))), bootstrap=50)
    assert any("the rate of again rises" in text for text in fit.warnings)


def test_what_the_curves_do_not_say_is_named(read_size):
    fit = scalelaws.fit(MultiPower(), read_size(25).select(("constant_24000", "wsdcon_9")), bootstrap=50)
    assert any(text.startswith("set by their priors") and "gamma" in text for text in fit.warnings)


def test_long_noisy_logs_are_averaged():
    """A loss logged at every update with a noise of 3 % is told as well as its means over neighbours allow."""
    rng, values, made = np.random.default_rng(0), np.array([list(ANNEALING.values())]), []
    for label, schedule in SCHEDULES.items():
        step = np.arange(WARM + 1, schedule.steps + 1)
        loss = Annealing().predict(values, schedule, step)[0] * np.exp(0.03 * rng.standard_normal(len(step)))
        made.append(Curve(label, schedule, step, loss))
    fit = scalelaws.fit(Annealing(), Curves(tuple(made)), bootstrap=50)
    assert fit.evidence.points <= (MOST_POINTS + 1) * len(made)
    assert fit.rmse_log == pytest.approx(0.03 / np.sqrt(17500 / MOST_POINTS), rel=0.2)
    for name in ("L0", "alpha"):
        assert fit.parameters[name].value == pytest.approx(ANNEALING[name], rel=0.02)


def test_neighbours_that_err_together_count_once():
    """An AR(1) series with coefficient r has the autocorrelation time (1 + r) / (1 - r)."""
    rng, r, series = np.random.default_rng(0), 0.8, np.zeros((4, 5000))
    for i in range(1, 5000):
        series[:, i] = r * series[:, i - 1] + rng.standard_normal(4)
    assert measure_tau(list(series)) == pytest.approx((1 + r) / (1 - r), rel=0.15)
    assert measure_tau([rng.standard_normal(5000)]) == pytest.approx(1, abs=0.1)


def test_a_logged_schedule_keeps_its_jumps_and_its_slopes():
    step = np.arange(100.0, 1100.0, 100.0)
    jump = Schedule.of_log(step, np.where(step < 500, 1e-3, 2e-4), warmup_steps=50)
    assert jump.at([25, 499, 499.5, 1000]) == pytest.approx([5e-4, 1e-3, 2e-4, 2e-4])
    assert find_drops(jump, np.array([499.0, 500.0])).row.tolist() == [1]
    slope = Schedule.of_log(step, np.linspace(1e-3, 1e-4, 10))
    assert slope.at([150]) == pytest.approx(9.5e-4)
    assert slope.area([100, 1000]) == pytest.approx([0.1, 0.1 + 900 * 5.5e-4])


def test_a_table_is_read_by_run():
    rows = [("b", 20, 1e-3, 3.0, 5e6), ("b", 10, 1e-3, 3.2, 5e6), ("a", 10, 1e-3, 3.1, 5e6), ("a", 20, 5e-4, 2.9, 5e6)]
    table = pd.DataFrame(rows, columns=["run_id", "step", "lr", "loss", "params_non_embedding"])
    curves = Curves.from_frame(table)
    assert [item.label for item in curves] == ["b", "a"]
    assert curves["b"].loss.tolist() == [3.2, 3.0]
    assert curves["a"].params_non_embedding == 5e6
    with pytest.raises(KeyError, match="known are b, a"):
        curves["c"]
    with pytest.raises(ObservationError, match="one model size"):
        Curves.from_frame(table.assign(params_non_embedding=[1e6, 1e6, 2e6, 2e6]))
    with pytest.raises(ObservationError, match="one batch"):
        Curves.from_frame(table.assign(batch_tokens=[1e6, 1e6, 2e6, 2e6]))
    with pytest.raises(ObservationError, match="every row needs a run_id"):
        Curves.from_frame(table.assign(run_id=["b", "b", None, "a"]))
    with pytest.raises(ObservationError, match="step must be finite"):
        Curve("c", Schedule.constant(10, 1e-3), [1.0, np.nan], [3.0, 2.9])
    with pytest.raises(ValueError, match="one row at least"):
        Schedule.of_updates([])
    with pytest.raises(ObservationError, match="needs a column lr"):
        Curves.from_frame(table.drop(columns="lr"))
    with pytest.raises(ValueError, match="between 0 and the first logged step, 10"):
        Curves.from_frame(table, warmup_steps=11)
    with pytest.raises(ObservationError, match="steps must ascend"):
        Curves.from_frame(pd.concat([table, table]))


@pytest.mark.parametrize(
    ("step", "lr", "message"),
    [
        ([1, 2], [1e-3, 1e-3], "start at 0"),
        ([0, 2, 1], [1e-3, 1e-3, 1e-3], "never descend"),
        ([0, 2], [-1e-3, 1e-3], "not negative"),
        ([0, 2], [0, 0], "not all 0"),
        ([0], [1e-3], "two or more knots"),
    ],
)
def test_schedules_without_meaning_are_refused(step, lr, message):
    with pytest.raises(ValueError, match=message):
        Schedule(step, lr)


def test_figures_draw_their_records(fits):
    planted = PLANTED["annealing"].runs(1e-3, 0)
    forecasts = {label: predict_curve(fits["annealing"], planted[label].schedule) for label in ("wsd", "cosine")}
    upper, lower = draw_curves([planted["wsd"], planted["high"]], forecasts)
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["wsd", "high", "cosine"]
    assert len(upper.lines) == 4
    advice = optimise_schedule(fits["annealing"], 20000, PEAK, end_lr=END, warmup_steps=500)
    upper, _ = draw_advice(advice, {"optimised": predict_curve(fits["annealing"], advice.schedule)})
    assert upper.get_title(loc="left") == advice.verdict
    upper.figure.canvas.draw()
