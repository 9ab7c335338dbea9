"""The noise floor and comparisons, held against scipy's tests and against simulated seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from foretune.search.comparing import compare, measure_noise, rank_settings


def draw(rng: np.random.Generator, middle: float, sd: float, count: int) -> list[float]:
    return [float(value) for value in middle * np.exp(sd * rng.standard_normal(count))]


def test_the_pooled_scatter_is_that_of_an_analysis_of_variance() -> None:
    rng = np.random.default_rng(0)
    groups = [draw(rng, 3.0, 0.01, count) for count in (2, 5, 3)]
    noise = measure_noise([*groups, [2.5]])
    assert noise is not None
    variances = [np.var(np.log(group), ddof=1) for group in groups]
    assert noise.sd == pytest.approx(math.sqrt(np.average(variances, weights=[1, 4, 2])))
    assert noise.dof == 7


def test_two_settings_are_compared_as_by_students_test() -> None:
    rng = np.random.default_rng(1)
    first, second = draw(rng, 3.0, 0.01, 4), draw(rng, 3.05, 0.01, 3)
    found = compare(first, second, measure_noise([first, second]))
    peer = stats.ttest_ind(np.log(first), np.log(second))
    interval = peer.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.verdict == "better") == (peer.pvalue < 0.05 and found.difference < 0)
    mirrored = compare(second, first, measure_noise([first, second]))
    assert {found.verdict, mirrored.verdict} == {"better", "worse"}


def test_the_upper_bound_and_the_interval_cover_as_they_say() -> None:
    """2,000 simulations: a share of 95 % has a standard error of 0.5 %, so 2 % is four of them."""
    rng = np.random.default_rng(2)
    above = covered = 0
    for _ in range(2000):
        groups = [draw(rng, middle, 0.01, 3) for middle in (3.0, 3.03)]
        noise = measure_noise(groups)
        assert noise is not None
        found = compare(groups[0], groups[1], noise)
        above += noise.upper >= 0.01
        covered += found.low <= math.log(3.0 / 3.03) <= found.high
    assert above / 2000 == pytest.approx(0.95, abs=0.02)
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def test_among_equals_a_false_claim_is_rare_however_many_are_compared() -> None:
    """Ten settings alike: the best is claimed to be better than another in at most 5 % of searches, plus chance."""
    rng = np.random.default_rng(3)
    claims = 0
    for _ in range(400):
        ranking = rank_settings({str(place): draw(rng, 3.0, 0.01, 3) for place in range(10)})
        claims += len(ranking.rivals) < 9
    assert claims / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_a_plain_difference_is_found_and_rivals_are_told() -> None:
    rng = np.random.default_rng(4)
    middles = {"a": 3.0, "b": 3.001, "c": 3.2, "d": 3.3}
    ranking = rank_settings({name: draw(rng, middle, 0.003, 3) for name, middle in middles.items()})
    assert set(ranking.order[:2]) == {"a", "b"}
    assert set(ranking.rivals) == {"a", "b"} - {ranking.order[0]}


def test_without_replicates_nothing_is_claimed() -> None:
    ranking = rank_settings({"a": [3.0], "b": [4.0]})
    assert ranking.noise is None
    assert ranking.rivals == ("b",)
    found = compare([3.0], [4.0], None)
    assert (found.verdict, found.low, found.high) == ("unknown", -math.inf, math.inf)
    assert rank_settings({}).order == ()


@pytest.mark.parametrize("losses", [[math.inf, 3.0], [0.0, 1.0], [-1.0, 2.0], [math.nan, 1.0], []])
def test_what_has_no_logarithm_is_refused(losses: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        compare(losses, [3.0], None)
