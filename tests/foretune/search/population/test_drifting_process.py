"""The posterior of the process that forgets, and its hyperparameters."""

from __future__ import annotations

import numpy as np
import pytest

from foretune.search.population.drifting_process import (
    JITTER,
    Floats,
    Scales,
    condition_drift,
    fit_drift,
)

SCALES = Scales((0.3, 0.7), forgotten=0.2, noise=0.1)


def draw_measurements(scales: Scales, count: int, seed: int, members: int = 8) -> tuple[Floats, Floats, Floats]:
    """Settings, generations and values of a function drawn from the process itself, with v = 1."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, len(scales.lengths)))
    t = np.floor(np.arange(count, dtype=np.float64) / members) + 1
    return x, t, np.linalg.cholesky(scales.correlate_measured(x, t)) @ rng.standard_normal(count)


def test_the_posterior_equals_that_of_scikit_learn() -> None:
    """exp(-|t - t'| k) is Matern's covariance with nu = 1/2 and length 1 / k."""
    gaussian_process = pytest.importorskip("sklearn.gaussian_process")
    from sklearn.gaussian_process.kernels import RBF, Kernel, Matern

    class Beside(Kernel):  # type: ignore[misc]
        """A product of one kernel of the settings and one of the time, the last column."""

        def __init__(self) -> None:
            self.settings, self.time = RBF(SCALES.lengths, "fixed"), Matern(-2 / np.log(0.8), "fixed", nu=0.5)

        def __call__(self, rows: Floats, others: Floats | None = None, eval_gradient: bool = False) -> Floats:
            others = rows if others is None else others
            return np.asarray(self.settings(rows[:, :2], others[:, :2]) * self.time(rows[:, 2:], others[:, 2:]))

        def diag(self, rows: Floats) -> Floats:
            return np.ones(len(rows))

        def is_stationary(self) -> bool:
            return True

    x, t, y = draw_measurements(SCALES, 30, seed=0)
    asked = np.random.default_rng(1).random((50, 2))
    process = condition_drift(x, t, y, SCALES)
    peer = gaussian_process.GaussianProcessRegressor(Beside(), alpha=0.1 + JITTER, optimizer=None)
    mean, sd = peer.fit(np.column_stack([x, t]), y).predict(np.column_stack([asked, np.full(50, 5.0)]), return_std=True)
    np.testing.assert_allclose(process.predict(asked, 5.0), mean, atol=1e-9)
    doubt = process.doubt(asked, 5.0, np.empty((0, 2)))
    np.testing.assert_allclose(doubt, np.sqrt(process.variance) * sd, atol=1e-9)


def test_what_is_pending_takes_away_doubt_as_a_measurement_would() -> None:
    """Whatever would be measured; more is known nearby, and nothing changes far away."""
    x, t, y = draw_measurements(SCALES, 24, seed=2)
    pending, asked = np.array([[0.5, 0.5]]), np.random.default_rng(3).random((20, 2))
    before = condition_drift(x, t, y, SCALES)
    after = condition_drift(np.vstack([x, pending]), np.append(t, 4.0), np.append(y, 7.0), SCALES)
    doubt = before.doubt(asked, 4.0, pending) / np.sqrt(before.variance)
    np.testing.assert_allclose(doubt, after.doubt(asked, 4.0, pending[:0]) / np.sqrt(after.variance), atol=1e-9)
    nothing = pending[:0]
    assert before.doubt(pending, 4.0, pending)[0] < 0.7 * before.doubt(pending, 4.0, nothing)[0]


def test_a_measurement_is_forgotten_at_the_planted_rate() -> None:
    """One measurement of 1 without noise is worth (1 - e)^(g / 2) of itself g generations later."""
    scales = Scales((0.4,), forgotten=0.2, noise=0.0)
    process = condition_drift(np.array([[0.5]]), np.array([1.0]), np.array([1.0]), scales)
    for later in (0, 1, 2, 6):
        assert process.predict(np.array([[0.5]]), 1.0 + later)[0] == pytest.approx(0.8 ** (later / 2), abs=1e-8)


@pytest.mark.parametrize(("length", "forgotten"), [(0.2, 0.01), (0.2, 0.5), (0.8, 0.01), (0.8, 0.5)])
def test_planted_scales_are_found(length: float, forgotten: float) -> None:
    """The median over nine draws, on the grid; of a median of nine to be wrong, five draws of nine must be."""
    fits = [fit_drift(*draw_measurements(Scales((length,), forgotten, 0.01), 48, seed)).scales for seed in range(9)]
    assert np.median([fit.lengths[0] for fit in fits]) == length
    assert np.median([fit.forgotten for fit in fits]) == forgotten


@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_noise_is_told_from_what_can_be_learnt(noise: float) -> None:
    fits = [fit_drift(*draw_measurements(Scales((0.4,), 0.05, noise), 48, seed)).scales for seed in range(9)]
    assert np.median([fit.noise for fit in fits]) == noise


@pytest.mark.parametrize("values", [[2.0], [0.0, 0.0, 0.0]])
def test_measurements_that_say_nothing_are_no_obstacle(values: list[float]) -> None:
    x = np.linspace(0.1, 0.5, len(values))[:, None]
    process = fit_drift(x, np.ones(len(values)), np.array(values))
    assert np.isfinite(process.predict(x, 2.0)).all()
    assert (process.doubt(x, 2.0, x) > 0).all()
