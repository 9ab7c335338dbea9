"""The vocabulary of spaces: values stay within their bounds, mixtures on the simplex, rules give what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from foretune.space import Derived, LinearRange, LogRange, Simplex

DOMAINS = ["code", "docs", "math", "web"]


@pytest.mark.parametrize("bounds", [LogRange(low=1e-4, high=0.3), LinearRange(low=0.8, high=0.999, scale="linear")])
def test_places_run_from_low_to_high_and_never_beyond(bounds: LogRange | LinearRange) -> None:
    assert (bounds.place(0.0), bounds.place(1.0)) == (bounds.low, bounds.high)
    values = [bounds.place(float(share)) for share in np.random.default_rng(0).random(1000)]
    assert all(bounds.low <= value <= bounds.high for value in values)
    assert sorted(values) == [bounds.place(share) for share in sorted(np.random.default_rng(0).random(1000).tolist())]


def test_the_axis_is_the_one_that_is_named() -> None:
    assert LogRange(low=1e-4, high=1e-2).place(0.5) == pytest.approx(1e-3)
    assert LinearRange(low=0.0, high=1.0, scale="linear").place(0.5) == 0.5


def test_a_linear_grid_has_the_digits_that_were_written() -> None:
    assert LinearRange(low=0.1, high=0.5, step=0.1, scale="linear").grid() == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert LinearRange(low=0.1, high=0.45, step=0.1, scale="linear").grid() == (0.1, 0.2, 0.3, 0.4)


def test_uniform_cubes_become_uniform_simplices() -> None:
    """Every share of a flat Dirichlet distribution over k domains is Beta(1, k - 1)."""
    rng, simplex = np.random.default_rng(1), Simplex()
    drawn = np.array([list(simplex.place(row.tolist(), DOMAINS).values()) for row in rng.random((2000, 3))])
    assert np.allclose(drawn.sum(axis=1), 1)
    for column in drawn.T:
        assert stats.kstest(column, stats.beta(1, len(DOMAINS) - 1).cdf).pvalue > 0.01
    assert np.corrcoef(drawn.T)[0, 3] == pytest.approx(-1 / 3, abs=0.06)  # -1 / (k - 1) for a flat Dirichlet


def test_mixtures_respect_every_bound_and_reach_their_ends() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        low = rng.dirichlet(np.ones(4)) * rng.uniform(0, 0.9)
        high = np.minimum(1, low + rng.uniform(0.3, 1, 4))
        simplex = Simplex(minimum=dict(zip(DOMAINS, low, strict=True)), maximum=dict(zip(DOMAINS, high, strict=True)))
        if simplex.find_problems(DOMAINS):
            continue
        for unit in (*rng.random((20, 3)), *np.array(list(np.ndindex(2, 2, 2)), dtype=float)):
            shares = np.array(list(simplex.place(unit.tolist(), DOMAINS).values()))
            assert shares.sum() == pytest.approx(1, abs=1e-12)
            assert (shares >= low - 1e-12).all()
            assert (shares <= high + 1e-12).all()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"rule": "sqrt", "coefficient": 0.001, "reference": 1024}, 0.002),
        ({"rule": "linear", "coefficient": 0.001, "reference": 1024}, 0.004),
        ({"rule": "power", "coefficient": 0.001, "reference": 1024, "exponent": -1.5}, 0.001 / 8),
        ({"rule": "power", "coefficient": 3, "exponent": 0.5}, 192.0),
    ],
)
def test_rules(rule: dict[str, Any], expected: float) -> None:
    assert Derived(of="batch_tokens", **rule).follow(4096) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearRange(low=1, high=1, scale="linear"), "low must be below high"),
        (lambda: LinearRange(low=0, high=float("nan"), scale="linear"), "must be finite"),
        (lambda: Derived(rule="power", of="width", coefficient=1), 'is needed with rule = "power"'),
        (lambda: Derived(rule="sqrt", of="width", coefficient=1, exponent=2), 'is needed with rule = "power"'),
        (lambda: Simplex(minimum={"code": 0.6, "docs": 0.6}), "the shares sum to 1.2, above 1"),
        (lambda: Simplex(maximum={"code": 1.2}), r"maximum.code: a share must lie in \[0, 1\], got 1.2"),
        (lambda: Simplex(minimum={"code": 0.5}, maximum={"code": 0.4}), "must not be above the maximum 0.4"),
    ],
)
def test_impossible_dimensions_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        make()


@pytest.mark.parametrize(
    ("simplex", "domains", "said"),
    [
        (Simplex(minimum={"cod": 0.1}), DOMAINS, "minimum: no domain 'cod' in the corpus; it has code, docs"),
        (Simplex(), ["code"], "one domain (code) leaves nothing to search"),
        (Simplex(maximum={"code": 0.4, "docs": 0.5}), ["code", "docs"], "the shares sum to 0.9, below 1"),
    ],
)
def test_bounds_that_do_not_suit_the_corpus_are_told(simplex: Simplex, domains: list[str], said: str) -> None:
    assert said in simplex.find_problems(domains)[0]
