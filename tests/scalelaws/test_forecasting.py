import json

import numpy as np
import pytest

import scalelaws
from scalelaws import Estimate, FitError, Observations, Target, forecast, get_published

PREDICT_KEYS = {
    "target", "peak_lr", "batch_tokens", "batch_sequences", "loss", "regret", "level", "extrapolation", "law",
    "status", "evidence", "scope", "warnings",
}  # fmt: skip


def test_step_law_at_seven_billion():
    """Rounded constants of Li et al. 2025: 9.166e-4 and 4.999e6 tokens, 2441 sequences of 2048."""
    found = forecast(get_published("step_law"), Target(7e9, 1.4e12, 2048))
    assert found.peak_lr.value == pytest.approx(9.166e-4, rel=1e-3)
    assert found.batch_tokens.value == pytest.approx(4.999e6, rel=1e-3)
    assert found.batch_sequences.value == pytest.approx(4.999e6 / 2048, rel=1e-3)
    assert found.peak_lr.low is None
    assert any("outside of the fitted range" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("name", "target", "peak_lr", "batch_tokens"),
    [
        (
            "deepseek",
            Target(1e9, 1e10, compute_flops=1e20, compute_convention="M D"),
            0.3118 * 10**-2.5,
            0.2920 * 10**6.542,
        ),
        (
            "greater_leverage",
            Target(1e9, 1e10, compute_flops=1e20, compute_convention="M D"),
            1.1576 * 10**-3.058,
            0.0694 * 10**7.288,
        ),
        ("moonlight", Target(1e9, 1e10, compute_flops=1e20), 0.0127 * 10**-1.14, 0.0065 * 10**8.276),
        ("porian", Target(108e6, 2e9), 0.0047, 160 * 2048),
        ("porian", Target(864e6, 2e10), 0.00235, 4 * 160 * 2048),
    ],
)
def test_published_constants(name, target, peak_lr, batch_tokens):
    found = forecast(get_published(name), target)
    assert found.peak_lr.value == pytest.approx(peak_lr, rel=1e-9)
    assert found.batch_tokens.value == pytest.approx(batch_tokens, rel=1e-9)


def test_predict_prints_the_contract_and_pure_json(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 3), bootstrap=100)
    for law in (fit, get_published("step_law"), get_published("hoffmann")):
        record = forecast(law, Target(7e9, 1.4e12, 2048)).to_dict()
        assert set(record) == PREDICT_KEYS
        assert set(record["target"]) == {"params_non_embedding", "tokens", "seq_len", "compute_flops"}
        assert set(record["extrapolation"]) == {"params", "tokens", "compute"}
        json.dumps(record, allow_nan=False)


def test_extrapolation_is_measured_against_the_largest_run(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 3), bootstrap=100)
    found = forecast(fit, Target(1.6e8 * 30, 6.4e9 * 2))
    assert found.extrapolation == pytest.approx({"params": 30, "tokens": 2, "compute": 60})
    assert any("30 times the params" in text for text in found.warnings)
    assert not any("times the tokens" in text for text in found.warnings)


def test_the_loss_interval_grows_with_the_reach(plant_loss):
    fit = scalelaws.fit("chinchilla", plant_loss(8, 8, noise=0.002), bootstrap=200)
    width = []
    for scale in (1, 10, 100):
        loss = forecast(fit, Target(3e9 * scale, 1e11 * scale)).loss
        width.append(np.log(loss.high / loss.low))
    assert width[0] < width[1] < width[2]
    assert width[2] > 2 * 1.645 * 0.0045 * np.log(1e4) * 0.8


def test_a_loss_off_the_path_of_the_runs_is_not_predicted():
    n = np.geomspace(1e6, 1e9, 6)
    fit = scalelaws.fit("power_law", Observations(n, 20 * n, 1.8 + 30 * n**-0.2), bootstrap=50)
    assert forecast(fit, Target(1e10, 2e11)).loss is not None
    off = forecast(fit, Target(1e10, 2e12))
    assert off.loss is None
    assert any("vary the horizon and fit chinchilla" in text for text in off.warnings)


def test_shading_lowers_the_rate_and_says_so(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 3, noise=2e-3, scatter=0.2), bootstrap=400)
    plain, shaded = (forecast(fit, Target(7e9, 1e11), shade=shade) for shade in (False, True))
    assert shaded.peak_lr.value < plain.peak_lr.value
    assert shaded.regret.value <= plain.regret.value
    assert any("shaded" in text for text in shaded.warnings)


def test_a_level_of_its_own_changes_the_interval(plant_settings):
    fit = scalelaws.fit("lr_batch", plant_settings(3, 3), bootstrap=400)
    half, most = (forecast(fit, Target(7e9, 1e11), level=level).peak_lr for level in (0.5, 0.95))
    assert most.low < half.low < half.high < most.high


def test_a_failed_fit_is_not_forecast_from():
    fit = scalelaws.fit("power_law", Observations([1e6], [1e9], [3.0]), throw=False)
    with pytest.raises(FitError, match="must not be used to forecast"):
        forecast(fit, Target(1e9, 1e9))


def test_targets_must_be_positive():
    with pytest.raises(ValueError, match="target tokens must be positive"):
        Target(1e9, 0)


def test_an_estimate_without_bounds_prints_null():
    assert Estimate(1.0).to_dict() == {"value": 1.0, "low": None, "high": None}
    assert Estimate(float("nan")).to_dict()["value"] is None
