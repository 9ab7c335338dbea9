import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from scalelaws import Observations
from scalelaws.engines.weighting import excess_on_surface, expect_drift, find_excess, off_level, trim, weigh_compute
from scalelaws.intervals import HUBER_SDS, NOISES, PRIOR_NOISE_LOG, SCALES, find_spreads, infer_noise


def profiles():
    n = np.tile([1e7, 2e7, 4e7, 8e7], 2)
    c = np.repeat([1e18, 1e19], 4)
    loss = np.array([3.3, 3.0, 3.03, 3.6, 2.8, 2.5, 2.45, 2.5])
    return Observations(n, c / (6 * n), loss, compute_flops=c * np.exp(np.tile([0, 0.02, -0.02, 0], 2)))


def test_excess_is_over_the_best_run_of_the_same_compute():
    expected = np.log([3.3 / 3.0, 1, 3.03 / 3.0, 3.6 / 3.0, 2.8 / 2.45, 2.5 / 2.45, 1, 2.5 / 2.45])
    assert find_excess(profiles()) == pytest.approx(expected)


def test_runs_of_different_compute_are_no_level():
    n = np.geomspace(1e7, 1e9, 12)
    assert not find_excess(Observations(n, 20 * n, 2 + n**-0.1)).any()
    assert not find_excess(Observations([1e7, 2e7], [2e9, 1e9], [3.0, 2.9])).any()
    continuum = Observations(np.geomspace(1e7, 2e7, 40), np.full(40, 1e9), np.linspace(3, 2.5, 40))
    assert not find_excess(continuum).any()


def test_trimmed_runs_are_recorded():
    kept = trim(profiles(), 0.05)
    assert len(kept) == 5
    assert [(item.runs, item.reason[:24]) for item in kept.excluded] == [(3, "more than 5 % above the ")]
    assert trim(profiles(), np.inf).excluded == ()


def test_the_excess_on_a_surface_is_that_over_its_numerical_minimum():
    values = np.array([1.7, 400.0, 1100.0, 0.34, 0.28])
    n, d = np.array([1e8, 1e9, 3e9]), np.array([1e11, 2e10, 1e9])
    law = lambda n, d: 1.7 + 400 * n**-0.34 + 1100 * d**-0.28  # noqa: E731
    best = [
        minimize_scalar(lambda x, p=p: law(np.exp(x), p / np.exp(x)), bounds=(10, 28), method="bounded").fun
        for p in n * d
    ]
    assert excess_on_surface(values, n, d) == pytest.approx(np.log(law(n, d) / best), abs=1e-9)
    assert not excess_on_surface(np.array([1.7, 400.0, 1100.0, -0.1, 0.28]), n, d).any()


def test_expected_misfits_grow_below_the_largest_run_and_off_the_best_split():
    assert expect_drift(np.exp([40.0, 44.0])) == pytest.approx([0.018, 0.0])
    assert off_level(np.array([0.0, 0.05, 0.1])) == pytest.approx([0, 0.025, 0.1])
    assert weigh_compute(np.array([1e18, 1e20]), 0.5) == pytest.approx(np.array([0.1, 1.0]) / 0.55)


@pytest.mark.parametrize(("noise", "scale"), [(0.004, 0.0), (0.001, 1.0)])
def test_noise_and_scale_of_the_misfit_are_told_apart(noise, scale):
    rng = np.random.default_rng(0)
    misfit = np.linspace(0, 0.04, 400)
    residuals = np.hypot(noise, scale * misfit) * rng.standard_normal(400)
    found = find_spreads(residuals, np.zeros(400), misfit[None] ** 2, 395, 4.0, np.array([PRIOR_NOISE_LOG, 1.0]))
    assert found[0] == pytest.approx(noise, rel=0.35)
    assert found[1] == pytest.approx(max(scale, 0.05), rel=0.3, abs=0.1)
    density = infer_noise(residuals, np.zeros(400), misfit**2, 395, 4.0).log_density
    row, column = np.unravel_index(np.argmax(density), density.shape)
    assert found[0] == pytest.approx(NOISES[row], rel=0.25)
    assert found[1] == pytest.approx(SCALES[column], rel=0.25, abs=0.05)


def test_spreads_of_two_misfits_are_those_of_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.uniform(0, 0.02, 60), rng.uniform(0, 0.03, 60)
    residuals = np.sqrt(0.002**2 + (0.7 * first) ** 2 + (0.3 * second) ** 2) * rng.standard_t(4, 60)
    misfits, known = np.stack([first, second]) ** 2, np.full(60, 1e-7)

    def minus_log_density(ln_spreads):
        variance = np.exp(2 * ln_spreads) @ np.concatenate([np.ones((1, 60)), misfits]) + known
        size = np.abs(residuals) / np.sqrt(variance)
        huber = np.where(size < HUBER_SDS, size**2 / 2, HUBER_SDS * (size - HUBER_SDS / 2))
        away = (ln_spreads - np.log([PRIOR_NOISE_LOG, 1, 1])) / [1.0, 0.4, 0.4]
        # a normal residual cut at 1.345 has E[size psi(size)] = P(size < 1.345) = .8213
        return (huber + 0.5 * 0.82134 * 55 / 60 * np.log(variance)).sum() + 0.5 * away @ away

    peer = minimize(minus_log_density, np.log([PRIOR_NOISE_LOG, 1, 1]), method="Nelder-Mead",
                    options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000})  # fmt: skip
    for start in ([PRIOR_NOISE_LOG, 1, 1], [1e-4, 0.1, 3.0]):
        found = find_spreads(residuals, known, misfits, 55, 0.4, np.array(start))
        assert np.log(found) == pytest.approx(peer.x, abs=1e-3)
