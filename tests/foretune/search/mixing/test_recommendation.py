"""What is recommended: planted optima, intervals that hold them, and the best noisy run as the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog, minimize

from foretune.errors import InputError
from foretune.search.mixing.problem import Candidates, Fidelity, MixingProblem, Observed
from foretune.search.mixing.recommendation import compare, recommend
from foretune.search.mixing.simplex import FloatArray

DOMAINS = ("a", "b", "c", "d")
PROBLEM = MixingProblem(
    DOMAINS, (Fidelity("small", 1e6, 1e9, 0.05), Fidelity("large", 2e7, 1e9, 1.0)),
    minimum={"d": 0.05}, maximum={"b": 0.5, "c": 0.4},
)  # fmt: skip
ALONE = replace(PROBLEM, fidelities=PROBLEM.fidelities[1:])
LINES = np.array([0.6, -0.6, -0.2, 0.4])


def plant_line(shares: FloatArray) -> FloatArray:
    """A log-linear law: its optimum is a corner, found by a linear programme."""
    return np.asarray(2 + np.exp(shares @ LINES))


def plant_bowl(shares: FloatArray) -> FloatArray:
    """A mean of losses each of which falls with a domain's own share: an optimum inside."""
    needs = np.array([0.5, 1.0, 0.7, 0.3])
    return np.asarray(2 + (needs * np.exp(-4 * shares)).sum(axis=-1))


def find_bowl() -> FloatArray:
    region = PROBLEM.region
    found = minimize(
        plant_bowl, region.centre, method="SLSQP", bounds=list(zip(region.low, region.high, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, options={"ftol": 1e-12},
    )  # fmt: skip
    return np.asarray(found.x)


def observe(count: int, seed: int, noise: float, law: Callable[[FloatArray], FloatArray] = plant_bowl) -> Observed:
    rng = np.random.default_rng(seed)
    shares = ALONE.region.sample(count, rng)
    loss = law(shares) * np.exp(noise * rng.standard_normal(count))
    return Observed(shares, np.zeros(count, dtype=int), loss)


def test_a_log_linear_optimum_under_bounds_is_the_linear_programme_s() -> None:
    region = ALONE.region
    exact = linprog(LINES, A_eq=np.ones((1, 4)), b_eq=[1], bounds=list(zip(region.low, region.high, strict=True))).x
    found = recommend(ALONE, observe(25, 0, 0.001, plant_line), np.random.default_rng(0))
    assert found.shares == pytest.approx(exact, abs=0.03)
    assert found.loss == pytest.approx(plant_line(exact), rel=0.01)
    assert "share of b is at its maximum" in found.message


def test_an_optimum_inside_is_found() -> None:
    found = recommend(ALONE, observe(30, 1, 0.001), np.random.default_rng(0))
    best = find_bowl()
    spread = np.median(plant_bowl(ALONE.region.sample(2000, np.random.default_rng(2)))) - plant_bowl(best)
    assert plant_bowl(found.shares) - plant_bowl(best) < 0.02 * spread
    assert ALONE.region.holds(found.shares[None]).all()


def test_limits_hold_for_what_is_recommended() -> None:
    limited = replace(ALONE, limits=(({"b": 1.0, "c": 1.0}, 0.5),))
    found = recommend(limited, observe(25, 0, 0.001, plant_line), np.random.default_rng(0))
    assert found.shares[1] + found.shares[2] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("law", "noise", "sets"), [(plant_line, 0.04, 16), (plant_bowl, 0.01, 24)])
def test_noisy_runs_recommend_better_than_the_best_of_them(
    law: Callable[[FloatArray], FloatArray], noise: float, sets: int
) -> None:
    """Over data sets of 30 runs; paired, two standard errors apart at least."""
    rng = np.random.default_rng(1)
    choices = np.concatenate([ALONE.region.sample(100, rng), ALONE.region.draw_vertices(20, rng)])
    pool, gains = Candidates(choices, np.zeros(len(choices), dtype=int)), []
    for seed in range(sets):
        observed = observe(30, 100 + seed, noise, law)
        lucky = observed.shares[int(np.argmin(observed.loss))]
        found = recommend(ALONE, observed, np.random.default_rng(seed), pool, draws=2)
        gains.append(float(law(lucky) - law(found.shares)))
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / np.sqrt(len(gains))


def test_intervals_of_the_shares_hold_the_optimum() -> None:
    """90 % intervals over 8 data sets and four shares; at least .75 of them, for their errors are dependent."""
    best, held = find_bowl(), []
    for seed in range(8):
        found = recommend(ALONE, observe(25, 200 + seed, 0.005), np.random.default_rng(seed))
        held.append((found.share_low <= best + 0.01) & (best - 0.01 <= found.share_high))
        assert (found.share_low <= found.shares).all()
        assert (found.shares <= found.share_high).all()
    assert np.mean(held) >= 0.75


def test_a_single_mixture_within_the_bounds_leaves_none_to_be_better() -> None:
    held = dict.fromkeys(ALONE.domains, 0.25)
    fixed = replace(ALONE, minimum=held, maximum=held)
    found = recommend(fixed, observe(12, 3, 0.005), np.random.default_rng(0))
    assert "No other mixture within the bounds is better by 0.0001 nats per token (90 %)" in found.message
    assert "may be better by up to" in recommend(ALONE, observe(12, 3, 0.005), np.random.default_rng(0)).message


def test_more_runs_narrow_the_intervals() -> None:
    widths = []
    for count in (12, 60):
        found = recommend(ALONE, observe(count, 3, 0.005), np.random.default_rng(0))
        widths.append((found.share_high - found.share_low).mean())
    assert widths[1] < 0.7 * widths[0]


def test_the_same_state_recommends_the_same() -> None:
    found = [recommend(ALONE, observe(12, 4, 0.01), np.random.default_rng(7)) for _ in range(2)]
    assert found[0].shares.tolist() == found[1].shares.tolist()
    assert found[0].share_low.tolist() == found[1].share_low.tolist()


def test_without_a_run_at_the_target_the_message_says_so() -> None:
    found = recommend(PROBLEM, observe(12, 5, 0.002), np.random.default_rng(0))
    assert "None is at large" in found.message
    assert found.loss_sd > 0.5 * found.loss


def test_a_mixture_far_from_all_runs_is_called_an_extrapolation() -> None:
    observed = observe(12, 6, 0.001, plant_line)
    middle = ALONE.region.centre
    near = Observed(middle + 0.1 * (observed.shares - middle), observed.level, observed.loss)
    assert "extrapolation" in recommend(ALONE, near, np.random.default_rng(0)).message


def test_a_pool_is_recommended_from_at_the_target_only() -> None:
    shares = PROBLEM.region.sample(20, np.random.default_rng(8))
    pool = Candidates(shares, np.repeat([0, 1], 10))
    found = recommend(PROBLEM, observe(20, 7, 0.001), np.random.default_rng(0), pool)
    assert np.abs(shares[10:] - found.shares).sum(axis=1).min() == 0
    assert plant_bowl(found.shares) == pytest.approx(plant_bowl(shares[10:]).min(), rel=0.002)


def test_a_comparison_holds_the_true_gain_and_knows_equals() -> None:
    observed, best, worse = observe(30, 9, 0.002), find_bowl(), np.array([0.9, 0.05, 0.0, 0.05])
    found = compare(ALONE, observed, best, worse)
    assert found.gain == pytest.approx(plant_bowl(worse) - plant_bowl(best), abs=4 * found.gain_sd)
    assert found.probability > 0.99
    same = compare(ALONE, observed, best, best)
    assert (same.gain, same.probability) == pytest.approx((0.0, 0.5))


def test_two_runs_are_too_few() -> None:
    with pytest.raises(InputError, match="needs >= 3"):
        recommend(ALONE, observe(2, 0, 0.0), np.random.default_rng(0))
