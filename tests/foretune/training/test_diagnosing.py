from __future__ import annotations

import json
import math

import numpy as np
import pytest

from foretune.training.diagnosing import LEAST_STEPS, DiagnosisLog, NoiseScale, choose_diagnosed_steps
from foretune_factories import make_spec


@pytest.mark.parametrize(
    ("steps", "diagnoses", "expected"),
    [
        (1000, 4, {250, 500, 750, 1000}),
        (1000, 0, set()),
        (LEAST_STEPS - 1, 20, set()),
        (2 * LEAST_STEPS, 20, {LEAST_STEPS, 2 * LEAST_STEPS}),
        (500, 3, {167, 333, 500}),
    ],
)
def test_diagnosed_steps_are_spread_evenly_and_not_too_dense(steps: int, diagnoses: int, expected: set[int]) -> None:
    assert choose_diagnosed_steps(make_spec(steps=steps, diagnoses=diagnoses).training) == expected


def draw_squares(
    generator: np.random.Generator, gradient: np.ndarray, variances: np.ndarray, batch: int, parts: int
) -> tuple[float, float]:
    """|G_s|^2, mean over the parts of a batch, and |G_b|^2, of Gaussian gradients of that many samples."""
    small = generator.normal(gradient, np.sqrt(variances * parts / batch), (parts, len(gradient)))
    return float((small**2).sum(axis=1).mean()), float((small.mean(axis=0) ** 2).sum())


@pytest.mark.parametrize("parts", [2, 8])
def test_the_noise_scale_of_a_quadratic_is_recovered(parts: int) -> None:
    """loss = sum of curvatures (x - centre)^2 / 2 with noisy centres: tr S = sum h^2 s^2, G = h (x - c), known."""
    generator = np.random.default_rng(3)
    curvatures, spreads = generator.gamma(2.0, 1.0, 40_000), generator.gamma(2.0, 0.5, 40_000)
    gradient, variances = 0.05 * curvatures, (curvatures * spreads) ** 2
    truth = variances.sum() / (gradient**2).sum()
    noise = NoiseScale()
    for batch in (256, 256, 512, 512, 1024, 1024, 2048, 2048):  # of a ramp: the truth is the same
        small, big = draw_squares(generator, gradient, variances, batch, parts)
        noise.add(small, big, small_tokens=batch / parts, big_tokens=batch)
    assert noise.tokens == pytest.approx(truth, rel=0.05)


def test_equal_batches_are_without_noise_and_opposite_ones_without_gradient() -> None:
    noise = NoiseScale()
    noise.add(4.0, 4.0, small_tokens=8, big_tokens=16)
    assert noise.tokens is None
    noise = NoiseScale()
    noise.add(4.0, 0.0, small_tokens=8, big_tokens=16)  # two halves that cancel
    assert noise.tokens is None


def test_what_cannot_be_measured_is_missing() -> None:
    log = DiagnosisLog(make_spec(steps=100, diagnoses=5, batch_tokens=1024).training)
    measured = {"gradient_norm": 2.0, "update_norm": 0.5, "saturated_share": math.nan, "parts": 2, "small_square": 6.0}
    log.record(20, measured)
    (diagnosis,) = log.diagnoses
    assert diagnosis.step == 20
    assert (diagnosis.gradient_norm, diagnosis.update_norm) == (2.0, 0.5)
    assert diagnosis.saturated_share is diagnosis.logit_max is None
    # tr S = (6 - 4) / (1/512 - 1/1024) = 2048, |G|^2 = (1024 4 - 512 6) / 512 = 2
    assert diagnosis.noise_scale_tokens == pytest.approx(1024)


def test_a_gradient_that_is_not_a_number_does_not_spoil_what_follows() -> None:
    log = DiagnosisLog(make_spec(steps=100, diagnoses=5).training)
    for norm, square in ((2.0, 6.0), (math.inf, 6.0), (2.0, math.nan)):
        log.record(20, {"gradient_norm": norm, "parts": 2, "small_square": square})
    assert [found.noise_scale_tokens for found in log.diagnoses] == pytest.approx([1024] * 3)


def test_the_log_goes_on_from_plain_data() -> None:
    training = make_spec(steps=100, diagnoses=5).training
    log, other = DiagnosisLog(training), DiagnosisLog(training)
    log.record(20, {"gradient_norm": 2.0, "parts": 2, "small_square": 6.0})
    other.restore(json.loads(json.dumps(log.state())))
    for each in (log, other):
        each.record(40, {"gradient_norm": 3.0, "parts": 2, "small_square": 11.0})
    assert other.diagnoses == log.diagnoses
    assert len(other.diagnoses) == 2
