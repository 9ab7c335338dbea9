from __future__ import annotations

import numpy as np
import pytest

from foretune.search.autolrs.line_process import fit_line


def test_the_posterior_equals_that_of_scikit_learn() -> None:
    """The same kernel, noise and measurements."""
    gaussian_process = pytest.importorskip("sklearn.gaussian_process")
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    rng = np.random.default_rng(0)
    places, asked = np.sort(rng.random(9)), np.linspace(0, 1, 31)
    values, deviations = np.sin(5 * places), rng.uniform(0.05, 0.2, 9)
    process = fit_line(places, values, deviations)
    kernel = ConstantKernel(process.variance, "fixed") * Matern(process.length, "fixed", nu=2.5)
    noise = deviations**2 + 1e-9 * values.var()
    peer = gaussian_process.GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    peer.fit(places[:, None], values - values.mean())
    mean, sd = peer.predict(asked[:, None], return_std=True)
    np.testing.assert_allclose(process.predict(asked)[0], mean + values.mean(), atol=1e-6)
    np.testing.assert_allclose(process.predict(asked)[1], sd, atol=1e-5)


def test_the_valley_of_a_noisy_basin_is_found() -> None:
    """The mean of the process, not the lowest reading: its error is below that of the lowest reading's place."""
    rng = np.random.default_rng(1)
    places, valley = np.linspace(0.02, 0.98, 15), 0.6
    by_process, by_reading = [], []
    for _ in range(100):
        values = (places - valley) ** 2 + 0.02 * rng.standard_normal(15)
        mean, _ = fit_line(places, values, np.full(15, 0.02)).predict(places)
        by_process.append(places[mean.argmin()] - valley)
        by_reading.append(places[values.argmin()] - valley)
    assert np.mean(np.square(by_process)) < 0.5 * np.mean(np.square(by_reading))


def test_what_was_measured_is_known_and_what_was_not_is_not() -> None:
    places = np.array([0.0, 0.1, 0.2])
    process = fit_line(places, np.array([1.0, 0.5, 0.3]), np.zeros(3))
    mean, sd = process.predict(np.array([0.0, 0.1, 0.2, 1.0]))
    np.testing.assert_allclose(mean[:3], [1.0, 0.5, 0.3], atol=1e-4)
    assert sd[3] > 100 * sd[:3].max()


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0, 2.0]])
def test_measurements_that_do_not_differ_are_no_obstacle(values: list[float]) -> None:
    places = np.linspace(0.1, 0.5, len(values))
    mean, sd = fit_line(places, np.array(values), np.zeros(len(values))).predict(np.array([0.9]))
    assert mean[0] == pytest.approx(2.0)
    assert np.isfinite(sd).all()
