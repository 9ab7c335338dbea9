"""First designs: the law of RegMix's draws, and determinants against brute force and chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from foretune.errors import InputError
from foretune.search.mixing import designs
from foretune.search.mixing.designs import (
    GRID,
    STRENGTHS,
    choose_d_optimal,
    draw_dirichlet,
    round_shares,
)
from foretune.search.mixing.simplex import FloatArray, build_region

FOUR = ("a", "b", "c", "d")
NATURAL = np.array([0.4, 0.3, 0.2, 0.1])


def test_strengths_are_those_of_the_recipe() -> None:
    assert len(STRENGTHS) == 15
    assert (STRENGTHS[0], STRENGTHS[-1]) == pytest.approx((0.1, 5.0))


def test_dirichlet_draws_have_the_moments_of_their_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rarest natural share above 1/15 no draw uses a domain too much, and at strength 5 hardly two are equal:
    mean p, variance p (1 - p) / (5 + 1), p the square roots of the natural shares, normalised."""
    monkeypatch.setattr(designs, "STRENGTHS", np.array([5.0]))
    n = 600
    shares = draw_dirichlet(build_region(FOUR), NATURAL, n, np.random.default_rng(0))
    prior = np.sqrt(NATURAL) / np.sqrt(NATURAL).sum()
    variance = prior * (1 - prior) / 6
    assert (np.abs(shares.mean(axis=0) - prior) < 4.5 * np.sqrt(variance / n)).all()
    assert shares.var(axis=0) == pytest.approx(variance, rel=0.12)


def test_draws_are_distinct_multiples_of_the_grid_within_bounds_and_usage() -> None:
    region = build_region(FOUR, {"a": 0.1}, {"b": 0.5})
    rare = np.array([0.5, 0.3, 0.19, 0.01])
    shares = draw_dirichlet(region, rare, 60, np.random.default_rng(1))
    assert np.allclose(shares / GRID, np.round(shares / GRID))
    assert region.holds(shares).all()
    assert shares[:, 3].max() <= 15 * 0.01 + GRID
    assert len(np.unique(np.round(shares / GRID), axis=0)) == 60


def test_tight_bounds_are_filled_by_projection() -> None:
    domains = tuple(f"d{j}" for j in range(17))
    region = build_region(domains, maximum=dict.fromkeys(domains, 0.08))
    shares = draw_dirichlet(region, np.full(17, 1 / 17), 40, np.random.default_rng(2))
    assert region.holds(shares).all()
    assert len(np.unique(np.round(shares, 6), axis=0)) == 40


def test_bounds_that_leave_one_mixture_hold_no_design() -> None:
    region = build_region(FOUR, {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1})
    with pytest.raises(InputError, match="leave 1 distinct"):
        draw_dirichlet(region, NATURAL, 2, np.random.default_rng(0))


def test_rounding_keeps_the_sum_and_moves_no_share_by_more_than_the_grid() -> None:
    shares = np.random.default_rng(3).dirichlet(np.full(17, 0.3), 200)
    rounded = round_shares(shares)
    assert rounded.sum(axis=1) == pytest.approx(np.ones(200))
    assert np.abs(rounded - shares)[shares > GRID].max() < 2 * GRID


def log_determinant(shares: FloatArray) -> float:
    return float(np.linalg.slogdet(shares.T @ shares)[1])


def test_the_d_optimal_design_of_the_simplex_is_every_domain_alone_equally_often() -> None:
    """Scheffé 1958: for a linear blending model the optimal design has equal weights on the corners."""
    design = choose_d_optimal(build_region(FOUR), 12, np.random.default_rng(0))
    assert sorted(design.tolist()) == sorted(np.repeat(np.eye(4), 3, axis=0).tolist())


def test_the_d_optimal_design_under_bounds_is_that_of_brute_force() -> None:
    region = build_region(("a", "b", "c"), {"a": 0.1, "b": 0.05}, {"a": 0.6, "b": 0.7, "c": 0.5})
    corners = np.unique(np.round(region.draw_vertices(200, np.random.default_rng(0)), 9), axis=0)
    best = max(log_determinant(corners[list(rows)]) for rows in itertools.combinations_with_replacement(
        range(len(corners)), 4))  # fmt: skip
    assert log_determinant(choose_d_optimal(region, 4, np.random.default_rng(1))) == pytest.approx(best, abs=1e-6)


def test_d_optimal_runs_say_more_than_random_ones() -> None:
    domains = tuple(f"d{j}" for j in range(17))
    region = build_region(domains, maximum=dict.fromkeys(domains, 0.3))
    rng = np.random.default_rng(4)
    chance = max(log_determinant(region.sample(40, rng)) for _ in range(20))
    dirichlet = log_determinant(draw_dirichlet(region, np.full(17, 1 / 17), 40, rng))
    assert log_determinant(choose_d_optimal(region, 40, rng)) > max(chance, dirichlet) + 5


def test_fewer_runs_than_domains_are_all_different() -> None:
    design = choose_d_optimal(build_region(FOUR), 3, np.random.default_rng(0))
    assert np.linalg.matrix_rank(design) == 3
