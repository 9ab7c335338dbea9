"""Settings against compute, the Power scheduler's law, weight decay by timescale, and the critical batch."""

from dataclasses import replace

import numpy as np
import pytest

import scalelaws
from planting.settings import PLANTED, plant_critical, plant_decay, plant_schedule
from scalelaws import FitError, ObservationError, Observations, Target, batch_rules, get_published
from scalelaws.critical_batch import fit_tradeoff
from scalelaws.laws.compute_settings import ComputeOptimumLaw
from scalelaws.laws.critical_batch_law import CriticalBatchLaw, find_critical_batches
from scalelaws.laws.power_schedule import PowerScheduleLaw
from scalelaws.laws.weight_decay import TimescaleLaw

COMPUTE, SCHEDULE, DECAY, CRITICAL = ComputeOptimumLaw(), PowerScheduleLaw(), TimescaleLaw(), CriticalBatchLaw()
SCHEDULE_ROOT = PowerScheduleLaw(name="power_schedule_sqrt", batch_exponent=0.5)
LAWS = {law.name: law for law in (COMPUTE, SCHEDULE, SCHEDULE_ROOT, DECAY, CRITICAL)}


@pytest.fixture(scope="module")
def fits():
    """One fit of each law to its planted runs."""
    return {
        name: scalelaws.fit(law, PLANTED[name].runs(PLANTED[name].noise, 3), bootstrap=200)
        for name, law in LAWS.items()
    }


@pytest.mark.parametrize("name", list(LAWS))
def test_planted_parameters_lie_in_their_intervals(name, fits):
    for parameter, truth in PLANTED[name].truth.items():
        found = fits[name].parameters[parameter]
        assert found.low <= truth <= found.high, parameter


@pytest.fixture
def listed(monkeypatch):
    """The laws of this file in the list, so that `forecast` finds them by name."""
    monkeypatch.setattr(scalelaws.laws, "LAWS", (*scalelaws.laws.LAWS, *LAWS.values()))


def test_a_forecast_of_weight_decay_keeps_the_given_rate_and_batch(fits, listed):
    target = PLANTED["weight_decay"].target
    found = scalelaws.forecast(fits["weight_decay"], target)
    assert found.weight_decay.low <= 2.0**18 / (1e-2 * 1.084 * 40**-0.527 * 4e9) <= found.weight_decay.high
    assert found.peak_lr.value == pytest.approx(1e-2)
    assert found.batch_tokens.value == pytest.approx(2.0**18)
    assert 0 < found.regret.value < 1e-3
    assert found.loss.value == pytest.approx(PLANTED["weight_decay"].response, rel=0.01)
    assert found.to_dict()["weight_decay"]["value"] == found.weight_decay.value


def test_a_forecast_of_the_critical_batch(fits, listed):
    found = scalelaws.forecast(fits["critical_batch"], Target(1e9, 1e10))
    assert found.critical_batch_tokens.low <= 50 * 1e10**0.45 <= found.critical_batch_tokens.high
    assert found.peak_lr is None
    assert set(found.to_dict()) >= {"critical_batch_tokens", "batch_tokens"}


def predict(law, fit, target):
    drawn = law.predict_settings(fit, target, np.random.default_rng(0))
    return {key: np.quantile(np.exp(getattr(drawn, key)), [0.05, 0.5, 0.95]) for key in drawn.__dataclass_fields__
            if key.startswith("ln_") and getattr(drawn, key) is not None}  # fmt: skip


class TestCompute:
    def test_the_optimum_of_a_larger_budget(self, fits):
        target = Target(2e10, 4e11)
        found = predict(COMPUTE, fits["lr_batch_compute"], target)
        assert found["ln_peak_lr"][1] == pytest.approx(0.3 * target.compute**-0.125, rel=0.15)
        assert found["ln_batch_tokens"][1] == pytest.approx(0.3 * target.compute**0.33, rel=0.15)

    def test_step_law_runs_do_not_lie_on_one_line_in_compute(self, published_runs):
        """Size and horizon pull the rate apart at cells of varying D / N, so compute alone leaves more scatter."""
        runs = Observations.from_frame(published_runs("steplaw_dense"))
        both, alone = (scalelaws.fit(law, runs, bootstrap=100).scatter_log for law in ("lr_batch", COMPUTE))
        assert alone > 2 * both

    def test_compute_counted_otherwise_is_said(self):
        """A target without FLOPs of its own is counted as 6ND, which these runs are not."""
        runs = PLANTED["lr_batch_compute"].runs(3e-4, 0)
        counted = replace(runs, compute_flops=1.3 * runs.compute)
        plain, other = (scalelaws.fit(COMPUTE, item, bootstrap=50).warnings for item in (runs, counted))
        assert not any("times 6ND" in text for text in plain)
        assert any("1.3 to 1.3 times 6ND: give the target's compute_flops" in text for text in other)

    def test_one_budget_leaves_its_exponent_unknown(self, plant_settings):
        runs = plant_settings(3, tie=True)
        flat = Observations(
            runs.params_non_embedding,
            runs.tokens,
            runs.loss,
            peak_lr=runs.peak_lr,
            compute_flops=np.full(len(runs), 1e18),
        )
        fit = scalelaws.fit(COMPUTE, flat, bootstrap=50)
        assert fit.parameters["lr_exponent_compute"].value == 0
        assert "budgets were not varied: the dependence of the learning rate on compute is unknown" in fit.warnings


class TestPowerSchedule:
    def test_the_schedule_of_a_fit(self, fits):
        """Planted: lr = .002 B D^-.5 in tokens, so 1024 sequences of 2048 tokens at 1e10 tokens train at .042."""
        schedule = SCHEDULE.make_schedule(fits["power_schedule"], seq_len=2048, max_lr=0.03)
        assert schedule.rate_at(1e12, 1024) == pytest.approx(0.002 * 1024 * 2048 * 1e-6, rel=0.15)
        assert schedule.rate_at(1e9, 1024) == 0.03

    def test_a_rate_at_a_batch_that_no_run_had(self, fits):
        for law, power in ((SCHEDULE, 1.0), (SCHEDULE_ROOT, 0.5)):
            target = Target(5e9, 1e11, covariates={"batch_tokens": 2.0**22})
            low, _, high = predict(law, fits[law.name], target)["ln_peak_lr"]
            assert low <= 0.002 * 2.0 ** (22 * power) * 1e11**-0.5 * 1e5 ** (1 - power) <= high

    def test_the_wrong_exponent_of_the_batch_shows_as_scatter(self):
        right, wrong = (
            scalelaws.fit(law, plant_schedule(3e-4, 0, 0.5), bootstrap=50) for law in (SCHEDULE_ROOT, SCHEDULE)
        )
        assert wrong.scatter_log > 5 * right.scatter_log

    @pytest.mark.parametrize("power", [0.5, 0.75])
    def test_another_exponent_of_the_batch_is_another_law(self, power):
        """A forecast finds the law by name: with p = 1 instead of the fitted p it would be off by B^(1-p)."""
        law, target = PowerScheduleLaw(batch_exponent=power), PLANTED["power_schedule"].target
        fit = scalelaws.fit(law, plant_schedule(3e-4, 0, power), bootstrap=50)
        assert f"batch_tokens^{power:g}" in fit.formula
        truth = 0.002 * 2.0 ** (18 * power) * target.tokens**-0.5 * 1e5 ** (1 - power)
        assert predict(law, fit, target)["ln_peak_lr"][1] == pytest.approx(truth, rel=0.1)
        if power == 0.5:
            assert scalelaws.forecast(fit, target).peak_lr.value == pytest.approx(truth, rel=0.1)
        else:
            with pytest.raises(ValueError, match=r"no law 'power_schedule_0\.75'"):
                scalelaws.forecast(fit, target)
        with pytest.raises(ValueError, match="power_schedule cannot read a fit of power_schedule_"):
            SCHEDULE.make_schedule(fit, seq_len=2048, max_lr=0.03)

    def test_the_batch_is_needed(self, fits, plant_settings):
        with pytest.raises(ValueError, match="needs the batch of the target"):
            SCHEDULE.predict_settings(fits["power_schedule"], Target(1e9, 1e10), np.random.default_rng(0))
        runs = plant_settings(3, 3)
        without = Observations(runs.params_non_embedding, runs.tokens, runs.loss, peak_lr=runs.peak_lr)
        with pytest.raises(ValueError, match="needs peak_lr and batch_tokens"):
            scalelaws.fit(SCHEDULE, without)


class TestWeightDecay:
    def test_the_best_decay_at_610_million_parameters(self, fits):
        """lambda = B / (eta tau D) with tau(20) = .2236."""
        told = {"peak_lr": 1e-2, "batch_tokens": 252 * 2048.0}
        target = Target(6.1e8, 20 * 6.1e8, covariates=told)
        low, _, high = predict(DECAY, fits["weight_decay"], target)["ln_weight_decay"]
        assert low <= told["batch_tokens"] / (1e-2 * 0.2236 * target.tokens) <= high

    def test_intervals_cover_what_was_planted(self, fewest_hits):
        hits = 0
        for seed in range(16):
            found = scalelaws.fit(DECAY, plant_decay(2e-3, seed, 1), bootstrap=200, seed=seed).parameters
            inside = found["timescale_exponent_tokens_per_param"]
            hits += inside.low <= -0.527 <= inside.high
        assert hits >= fewest_hits(16)

    def test_runs_without_decay_are_left_out_and_said(self):
        runs = plant_decay(3e-4, 0)
        decay = runs.covariates["weight_decay"].copy()
        decay[:2] = 0.0
        some = Observations(
            runs.params_non_embedding, runs.tokens, runs.loss, peak_lr=runs.peak_lr, batch_tokens=runs.batch_tokens,
            covariates={"weight_decay": decay},
        )  # fmt: skip
        excluded = scalelaws.fit(DECAY, some, bootstrap=50).evidence.excluded
        assert any(item.runs == 2 and "no weight decay" in item.reason for item in excluded)

    def test_what_is_missing_is_said(self, fits, plant_settings):
        with pytest.raises(ObservationError, match="weight_decay"):
            scalelaws.fit(DECAY, plant_settings(3, 3))
        with pytest.raises(ValueError, match="needs peak_lr and batch_tokens of the target"):
            DECAY.predict_settings(fits["weight_decay"], Target(1e9, 1e10), np.random.default_rng(0))

    def test_an_optimum_at_the_edge_is_refused_in_its_own_words(self):
        runs = plant_decay(0.0, 0)
        low = runs.rows(
            np.flatnonzero(runs.covariates["weight_decay"] < np.quantile(runs.covariates["weight_decay"], 0.3))
        )
        fit = scalelaws.fit(DECAY, low, throw=False)
        assert not fit.status.ok
        assert "weight decays" in fit.message
        assert "learning rates" not in fit.message


class TestCriticalBatch:
    def test_each_loss_gives_the_planted_batch(self):
        for item in find_critical_batches(plant_critical(0.0, 0)):
            fewest = item.tradeoff.tokens_min.value
            assert item.tradeoff.critical_batch_tokens.value == pytest.approx(50 * fewest**0.45, rel=0.03)

    def test_a_longer_horizon(self, fits):
        found = CRITICAL.predict_critical_batch(
            fits["critical_batch"], Target(1e9, 1e11), 0.9, np.random.default_rng(0)
        )
        assert found.low <= 50 * 1e11**0.45 <= found.high

    def test_step_law_runs_agree_with_power_lines(self, published_runs):
        """Other data, tokenizer and schedule: within a factor of two of Bergsma et al. 2025 at every size and loss."""
        found = find_critical_batches(Observations.from_frame(published_runs("steplaw_dense")))
        ratios = []
        for item in found:
            fewest = item.tradeoff.tokens_min.value
            published = get_published("power_lines").critical_batch_tokens(Target(item.params, fewest))
            ratios.append(item.tradeoff.critical_batch_tokens.value / published)
        assert len(ratios) == 9
        assert 0.5 < min(ratios) < max(ratios) < 2
        assert not any(item.refusal for item in found)

    def test_batches_below_the_best_are_left_out(self, published_runs):
        runs = Observations.from_frame(published_runs("steplaw_dense"))
        for item in find_critical_batches(runs):
            assert item.batch_tokens.min() > runs.batch_tokens.min()
            assert item.tokens[0] == item.tokens.min()

    def test_an_optimum_below_it_does_not_bias_it(self):
        """Batches below a fifth of the critical one are made worse, as on real runs; they are left out."""
        runs = plant_critical(3e-4, 1, smallest=14)
        short = np.log(np.maximum(0.2 * 50 * runs.tokens**0.45 / runs.batch_tokens, 1.0))
        worse = Observations(
            runs.params_non_embedding, runs.tokens, runs.loss * np.exp(0.003 * short**2), batch_tokens=runs.batch_tokens
        )
        for item in find_critical_batches(worse):
            fewest = item.tradeoff.tokens_min.value
            assert item.tradeoff.critical_batch_tokens.value == pytest.approx(50 * fewest**0.45, rel=0.06)
            assert item.batch_tokens.min() > runs.batch_tokens.min()

    def test_horizons_in_whole_steps_are_one_horizon(self):
        """Tokens are steps times batch, so one horizon differs a little from batch to batch."""
        runs = plant_critical(3e-4, 0)
        whole = replace(runs, tokens=np.round(runs.tokens / runs.batch_tokens) * runs.batch_tokens)
        assert len(np.unique(whole.tokens)) > len(np.unique(runs.tokens))
        assert len(find_critical_batches(whole)) == len(find_critical_batches(runs)) == 9

    def test_runs_of_a_size_that_says_nothing_are_counted_as_left_out(self):
        runs = plant_critical(3e-4, 0)
        keep = (runs.params_non_embedding < 4e8) | (runs.tokens < 2e9)
        fit = scalelaws.fit(CRITICAL, runs.rows(np.flatnonzero(keep)), bootstrap=50)
        assert fit.evidence.params[1] < 4e8
        assert [(item.runs, item.reason) for item in fit.evidence.excluded] == [
            (8, "of a size without a critical batch")
        ]

    def test_few_horizons_are_refused(self):
        runs = plant_critical(0.0, 0)
        short = runs.rows(np.flatnonzero(runs.tokens < 5e9))
        with pytest.raises(FitError, match="three horizons"):
            scalelaws.fit(CRITICAL, short)
        with pytest.raises(ValueError, match="needs batch_tokens"):
            scalelaws.fit(CRITICAL, Observations([1e7], [1e9], [3.0]))

    def test_small_batches_alone_do_not_determine_it(self):
        """Sixteen to 2048 tokens per step, where no batch costs more tokens than another."""
        with pytest.raises(FitError, match="lies beyond the batches"):
            scalelaws.fit(CRITICAL, plant_critical(3e-4, 0, smallest=4))

    def test_the_overhead_at_a_share_of_the_critical_batch(self):
        """D_B = D_min (1 + B / B_crit): a fifth of it costs a fifth more tokens (Zhang et al. 2024)."""
        batch = np.geomspace(1e4, 1e8, 9)
        found = fit_tradeoff(1e4 * (1 + 1e6 / batch), 1e4 * (batch + 1e6))
        fifth = 0.2 * found.critical_batch_tokens.value
        assert found.steps_at(fifth) * fifth / found.tokens_min.value == pytest.approx(1.2, rel=1e-6)


class TestBatchRules:
    def test_rules_by_hand(self):
        assert batch_rules.scale_linearly(1e-3, 1e6, 4e6) == pytest.approx(4e-3)
        assert batch_rules.scale_by_square_root(1e-3, 1e6, 4e6) == pytest.approx(2e-3)
        assert batch_rules.scale_beta(0.95, 1e6, 4e6) == pytest.approx(0.8)
        assert batch_rules.find_noise_limited_rate(1e-2, 1e6, 1e6) == pytest.approx(5e-3)

    def test_surge_peaks_at_the_noise_scale_and_starts_as_a_square_root(self):
        batch = np.geomspace(1e4, 1e8, 401)
        rate = np.array([batch_rules.find_surge_rate(1e-2, one, 1e6) for one in batch])
        assert batch[rate.argmax()] == pytest.approx(1e6)
        assert rate.max() == pytest.approx(1e-2)
        slope = np.diff(np.log(rate)) / np.diff(np.log(batch))
        assert slope[0] == pytest.approx(0.5, abs=0.02)
        assert slope[-1] == pytest.approx(-0.5, abs=0.02)

    @pytest.mark.parametrize("call", [
        lambda: batch_rules.scale_linearly(0, 1, 1), lambda: batch_rules.scale_beta(0.9, 1e6, 2e7),
        lambda: batch_rules.find_surge_rate(1e-2, float("inf"), 1e6),
    ])  # fmt: skip
    def test_senseless_input_is_refused(self, call):
        with pytest.raises(ValueError, match="must"):
            call()
