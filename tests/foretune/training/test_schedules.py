"""Schedules by hand, by their formulas, and by published values."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foretune.records import RampPhase, RunSpec, TrainingSpec
from foretune.training.schedules import choose_evaluation_steps, schedule_lr
from foretune_factories import make_spec


def rates(spec: RunSpec) -> list[float]:
    return [schedule_lr(spec.training, step) for step in range(spec.training.steps)]


def test_wsd_by_hand() -> None:
    spec = make_spec(peak_lr=1.0, steps=10, warmup_steps=4, decay_steps=4, final_lr_fraction=0.0)
    assert rates(spec) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_wsd_ends_at_the_final_fraction() -> None:
    spec = make_spec(peak_lr=0.5, steps=10, warmup_steps=0, decay_steps=5, final_lr_fraction=0.2)
    assert schedule_lr(spec.training, 10) == pytest.approx(0.1)
    assert rates(spec)[:6] == [0.5] * 6
    assert rates(spec)[6:] == pytest.approx([0.42, 0.34, 0.26, 0.18])


def test_the_square_root_decay_by_its_formula() -> None:
    """1 - sqrt((n - n_0) / length) of Haegele et al. 2024, equation 1."""
    spec = make_spec(peak_lr=1.0, steps=10, warmup_steps=0, decay_steps=4, decay_shape="sqrt")
    assert rates(spec) == pytest.approx([1.0] * 7 + [1 - math.sqrt(part / 4) for part in (1, 2, 3)])
    assert schedule_lr(spec.training, 10) == 0


def test_cosine_by_its_formula() -> None:
    spec = make_spec(peak_lr=2.0, schedule="cosine", steps=100, warmup_steps=20, decay_steps=0, final_lr_fraction=0.1)
    for step in range(20, 100):
        expected = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert schedule_lr(spec.training, step) == pytest.approx(expected)
    assert schedule_lr(spec.training, 60) == pytest.approx(1.1)
    assert schedule_lr(spec.training, 100) == pytest.approx(0.2)


def test_constant_is_a_warmup_and_the_peak() -> None:
    spec = make_spec(peak_lr=0.4, schedule="constant", steps=6, warmup_steps=2, decay_steps=0, final_lr_fraction=1.0)
    assert rates(spec) == pytest.approx([0.2, 0.4, 0.4, 0.4, 0.4, 0.4])


def power(tokens: float, **changes: Any) -> TrainingSpec:
    """The published schedule: 1024 sequences of 4096 tokens, peak .02, a = 4, b = -.51."""
    batch = 1024 * 4096
    settings = {
        "schedule": "power",
        "peak_lr": 0.02,
        "batch_tokens": batch,
        "steps": round(tokens / batch),
        "warmup_steps": 0,
        "decay_steps": 0,
        "power_coefficient": 4 / 4096,
        "power_exponent": -0.51,
    }
    return make_spec(**{**settings, **changes}).training


@pytest.mark.parametrize(("tokens", "expected"), [(2e10, 0.02), (1e11, 1.005e-2), (1e12, 3.11e-3)])
def test_power_has_the_published_values(tokens: float, expected: float) -> None:
    """min(.02, 1024 x 4 n^-.51) of Shen et al. 2024 after n tokens."""
    training = power(2e12)
    assert schedule_lr(training, round(tokens / training.batch_tokens)) == pytest.approx(expected, rel=2e-3)


def test_power_leaves_its_peak_at_26_billion_tokens() -> None:
    training = power(1e12)
    left = next(step for step in range(training.steps) if schedule_lr(training, step) < 0.02)
    assert training.tokens_at(left) == pytest.approx(2.6e10, rel=0.03)


def test_power_warms_up_to_its_rate_and_decays_from_it() -> None:
    training = power(1e12, steps=1000, warmup_steps=100, decay_steps=200, power_coefficient=1e-4, decay_shape="linear")
    level = [training.batch_tokens * 1e-4 * training.tokens_at(step + 1) ** -0.51 for step in range(1000)]
    assert level[100] < 0.02  # below the peak from the beginning, so the power law decides everywhere
    assert schedule_lr(training, 99) == pytest.approx(level[100])
    assert schedule_lr(training, 49) == pytest.approx(level[100] / 2)
    assert schedule_lr(training, 500) == pytest.approx(level[500])
    assert schedule_lr(training, 900) == pytest.approx(level[800] / 2)


def test_the_end_of_a_power_run_is_never_above_what_it_decays_from() -> None:
    training = power(1e12, steps=1000, decay_steps=200, power_coefficient=4e-5, final_lr_fraction=0.9)
    assert schedule_lr(training, 999) == schedule_lr(training, 800) < 0.9 * 0.02


RAMP = (RampPhase(steps=8, batch_tokens=256), RampPhase(steps=4, batch_tokens=512))
"""4096 tokens, as four full steps of 1024."""


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "power"])
def test_on_a_ramp_the_rate_follows_the_tokens(schedule: str) -> None:
    """After as many tokens, the rate is that of the run without a ramp; warm-up ends on the ramp's 2048th token."""
    common: dict[str, Any] = {
        "schedule": schedule,
        "batch_tokens": 1024,
        "decay_steps": 10 if schedule != "cosine" else 0,
        "power_coefficient": 1e9,  # never below the peak
        "power_exponent": -0.5,
    }
    plain = make_spec(**common, steps=40, warmup_steps=2).training
    ramped = make_spec(**common, steps=48, warmup_steps=8, ramp=RAMP).training
    assert ramped.tokens == plain.tokens
    for step in range(4, 40):
        assert schedule_lr(ramped, step + 8) == pytest.approx(schedule_lr(plain, step), rel=1e-12)
    assert schedule_lr(ramped, 3) == pytest.approx(schedule_lr(plain, 0))
    assert schedule_lr(ramped, 10) == pytest.approx(schedule_lr(plain, 3), rel=2e-3 if schedule == "cosine" else 1e-12)


def test_the_power_law_counts_the_sequences_of_the_step() -> None:
    training = power(1e12, steps=100, ramp=(RampPhase(steps=10, batch_tokens=1024 * 1024),), power_coefficient=1e-5)
    on_ramp, after = schedule_lr(training, 9), schedule_lr(training, 10)
    tokens = training.tokens_at(11) / training.tokens_at(10)
    assert after / on_ramp == pytest.approx(4 * tokens**-0.51)


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant", "power"])
@pytest.mark.parametrize("shape", ["linear", "sqrt"])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (1, 1), (0, 7), (7, 0), (3, 4)])
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: str, shape: str, warmup: int, decay: int) -> None:
    spec = make_spec(
        schedule=schedule,
        steps=7,
        warmup_steps=warmup,
        decay_steps=decay,
        decay_shape=shape,
        peak_lr=0.3,
        power_coefficient=1.0,
        power_exponent=-0.1,
    )
    assert all(0 < rate <= 0.3 for rate in rates(spec))
    assert max(rates(spec)) == 0.3


def test_evaluations_are_evenly_spaced_and_the_last_is_at_the_end() -> None:
    assert choose_evaluation_steps(make_spec(steps=40, evaluations=4).training) == [10, 20, 30, 40]
    assert choose_evaluation_steps(make_spec(steps=10, evaluations=3).training) == [3, 7, 10]
