"""The forecast of a loss at a constant rate against the exponentials that made it."""

from __future__ import annotations

import numpy as np
import pytest

from scalelaws.curves.exponentials import forecast_loss
from scalelaws.observations import ObservationError

STEPS = np.arange(100.0)


def draw(rng: np.random.Generator, noise: float, outliers: float = 0.0) -> tuple[np.ndarray, float]:
    """A made-up series of 100 steps, and the truth at step 1,000."""
    drop, time, floor = rng.uniform(0.2, 2), np.exp(rng.uniform(np.log(20), np.log(500))), rng.uniform(1, 4)
    losses = drop * np.exp(-STEPS / time) + floor + noise * rng.standard_normal(100)
    losses += (rng.random(100) < outliers) * rng.exponential(1.0, 100)
    return losses, float(drop * np.exp(-1000 / time) + floor)


@pytest.mark.parametrize("time", [5.0, 40.0, 300.0, 3000.0])
@pytest.mark.parametrize("drop", [1.5, -0.4])
def test_an_exact_exponential_is_continued_exactly(time: float, drop: float) -> None:
    losses = drop * np.exp(-STEPS / time) + 2
    found = forecast_loss(STEPS, losses, 1000)
    assert found.loss == pytest.approx(drop * np.exp(-1000 / time) + 2, abs=1e-5)
    assert found.rate == pytest.approx(1 / time, rel=1e-4)


def test_wild_points_of_an_exact_series_are_left_out() -> None:
    losses = np.exp(-STEPS / 60) + 2
    losses[[7, 23, 71]] += [3.0, -0.5, 0.2]
    found = forecast_loss(STEPS, losses, 1000)
    assert found.left_out >= 3
    assert found.loss == pytest.approx(2 + np.exp(-1000 / 60), abs=1e-6)


def test_steps_need_not_begin_at_zero_nor_be_neighbours() -> None:
    losses = np.exp(-STEPS / 60) + 2
    expected = forecast_loss(STEPS, losses, 1000).loss
    assert forecast_loss(STEPS + 4000, losses, 5000).loss == pytest.approx(expected, abs=1e-9)
    assert forecast_loss(STEPS[::7], losses[::7], 1000).loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("noise", "most"), [(0.01, 0.12), (0.05, 0.4), (0.2, 0.5)])
def test_noise_costs_less_than_standing_still(noise: float, most: float) -> None:
    """Root mean square errors over 60 series; to expect no change at all costs .5 to .6."""
    rng = np.random.default_rng(3)
    series = [draw(rng, noise, 0.03) for _ in range(60)]
    errors = [forecast_loss(STEPS, losses, 1000).loss - truth for losses, truth in series]
    still = [losses[-10:].mean() - truth for losses, truth in series]
    assert np.sqrt(np.mean(np.square(errors))) < most
    assert np.sqrt(np.mean(np.square(errors))) < np.sqrt(np.mean(np.square(still)))


def test_the_deviation_covers_the_errors() -> None:
    """Series whose time constant is drawn from the prior: z-scores have about unit spread."""
    rng = np.random.default_rng(4)
    scores = []
    for _ in range(150):
        time = 100 / np.exp(0.5 * rng.standard_normal())
        losses = np.exp(-STEPS / time) + 2 + 0.05 * rng.standard_normal(100)
        found = forecast_loss(STEPS, losses, 1000)
        scores.append((found.loss - 2 - np.exp(-1000 / time)) / found.sd)
    assert 0.7 < np.std(scores) < 1.4
    assert abs(np.mean(scores)) < 0.35


@pytest.mark.parametrize(
    ("steps", "losses", "at", "said"),
    [
        ([0, 1, 2], [3, 2, 1], 10, ">= 4 losses"),
        ([0, 1, 2, 3], [3, 2, np.nan, 1], 10, "finite losses"),
        ([0, 2, 1, 3], [3, 2, 2, 1], 10, "rising steps"),
        ([0, 1, 2, 3], [3, 2, 2, 1], 2, "before the last one"),
    ],
)
def test_what_cannot_be_forecast_is_refused(steps: list[float], losses: list[float], at: float, said: str) -> None:
    with pytest.raises(ObservationError, match=said):
        forecast_loss(steps, losses, at)
