"""Regions of mixtures: caps, bounds, projection, and samples whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from foretune.errors import InputError
from foretune.search.mixing.simplex import build_region, cap_shares

THREE = ("web", "code", "books")
MANY = tuple(f"d{j}" for j in range(17))


def test_caps_are_epochs_times_tokens_over_the_target() -> None:
    caps = cap_shares(1000, {"web": 900, "code": 50, "books": 10}, max_epochs=4)
    assert caps == {"web": 1.0, "code": 0.2, "books": 0.04}


def test_domains_too_small_for_the_target_are_named_with_the_epochs_it_takes() -> None:
    with pytest.raises(InputError, match=r"web at most 0\.4, code at most 0\.2.*allow 6\.67 epochs"):
        cap_shares(1000, {"web": 100, "code": 50}, max_epochs=4)


@pytest.mark.parametrize(
    ("minimum", "maximum", "told"),
    [
        ({"web": 0.7, "code": 0.5}, {}, "at most 1, got 1.2"),
        ({}, {"web": 0.3, "code": 0.3, "books": 0.3}, "at least 1, got 0.9"),
        ({"web": 0.5}, {"web": 0.4}, "web: 0.5 > 0.4"),
        ({"poems": 0.1}, {}, "no domain 'poems'"),
        ({}, {"web": 1.5}, "between 0 and 1"),
    ],
)
def test_bounds_without_a_mixture_are_refused(minimum: dict, maximum: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        build_region(THREE, minimum, maximum)


def test_limits_without_a_mixture_are_refused() -> None:
    with pytest.raises(InputError, match="limits"):
        build_region(THREE, {"web": 0.5}, limits=(({"web": 1.0}, 0.4),))


def test_samples_above_minima_have_the_moments_of_a_flat_dirichlet() -> None:
    """The simplex above minima is the whole one, shrunk: shares are low + (1 - sum of low) x Dirichlet(1, ..., 1)."""
    n, d, low = 4000, 17, 0.03
    shares = build_region(MANY, dict.fromkeys(MANY, low)).sample(n, np.random.default_rng(0))
    assert np.allclose(shares.sum(axis=1), 1)
    variance = (1 - d * low) ** 2 * (d - 1) / (d**2 * (d + 1))
    assert np.abs(shares.mean(axis=0) - 1 / d).max() < 4.5 * np.sqrt(variance / n)
    assert shares.var(axis=0).mean() == pytest.approx(variance, rel=0.04)


def test_samples_under_bounds_have_the_law_of_rejection_sampling() -> None:
    region = build_region(THREE, {"web": 0.1}, {"code": 0.3, "books": 0.7}, limits=(({"web": 1, "code": -1}, 0.5),))
    rng = np.random.default_rng(1)
    exact = rng.dirichlet(np.ones(3), 40000)
    exact = exact[region.holds(exact)]
    shares = region.sample(4000, rng)
    assert region.holds(shares).all()
    error = exact.std(axis=0) * np.sqrt(1 / 4000 + 1 / len(exact))
    assert (np.abs(shares.mean(axis=0) - exact.mean(axis=0)) < 4.5 * error).all()
    assert np.quantile(shares, 0.9, axis=0) == pytest.approx(np.quantile(exact, 0.9, axis=0), abs=0.02)


def test_tight_caps_over_seventeen_domains_leave_samples() -> None:
    region = build_region(MANY, maximum=dict.fromkeys(MANY, 0.08))
    shares = region.sample(200, np.random.default_rng(2))
    assert region.holds(shares).all()
    assert shares.std(axis=0).min() > 0.01


def test_a_single_mixture_is_sampled_where_bounds_leave_no_other() -> None:
    region = build_region(THREE, {"web": 0.5, "code": 0.3, "books": 0.2})
    assert region.sample(3, np.random.default_rng(0)) == pytest.approx(np.tile([0.5, 0.3, 0.2], (3, 1)))


def test_a_projection_is_the_nearest_mixture() -> None:
    """p is nearest to x in a convex set if and only if (x - p) . (y - p) <= 0 for all y in it."""
    region = build_region(MANY, {"d0": 0.1}, {"d1": 0.02, "d2": 0.3})
    rng = np.random.default_rng(3)
    outside = rng.normal(0.1, 0.3, (20, 17))
    nearest, others = region.project(outside), region.sample(300, rng)
    assert region.holds(nearest).all()
    angles = np.einsum("nd,nmd->nm", outside - nearest, others[None] - nearest[:, None])
    assert angles.max() < 1e-9


def test_corners_have_one_share_at_most_between_its_bounds() -> None:
    region = build_region(MANY, {"d0": 0.1}, dict.fromkeys(MANY, 0.3))
    corners = region.draw_vertices(50, np.random.default_rng(4))
    assert region.holds(corners).all()
    between = (corners > region.low + 1e-9) & (corners < region.high - 1e-9)
    assert between.sum(axis=1).max() <= 1
