"""Which run next: the knowledge gradient in closed form, and what costs, pools, batches and pending runs change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from foretune.search.mixing.problem import Candidates, Fidelity, MixingProblem, Observed
from foretune.search.mixing.proposal import Proposal, condition, measure_worth, propose
from foretune.search.mixing.simplex import FloatArray

DOMAINS = ("a", "b", "c")
PROBLEM = MixingProblem(
    DOMAINS, (Fidelity("small", 1e6, 1e9, 0.05), Fidelity("large", 2e7, 1e9, 1.0)), maximum={"b": 0.6}
)


def plant(shares: FloatArray, level: np.ndarray) -> FloatArray:
    return (
        3.0 - 0.5 * level + 0.3 * np.exp(shares @ np.array([1.0, -1.0, 0.2])) + 0.2 * ((shares - 0.4) ** 2).sum(axis=1)
    )


def observe(small: int, large: int, seed: int = 0) -> Observed:
    shares, level = np.random.default_rng(seed).dirichlet(np.ones(3), small + large), np.repeat([0, 1], [small, large])
    return Observed(shares, level, plant(shares, level))


def build_pool() -> Candidates:
    shares = np.random.default_rng(9).dirichlet(np.ones(3), 30)
    return Candidates(np.tile(shares, (2, 1)), np.repeat([0, 1], 30))


def list_rows(found: list[Proposal]) -> list[tuple[int, tuple[float, ...]]]:
    return [(item.level, tuple(item.shares.tolist())) for item in found]


@pytest.mark.parametrize("gap", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_worth_of_one_unknown_beside_one_known_is_the_closed_form(gap: float, noise: float) -> None:
    """E max(0, s Z - gap) = s (phi(u) - u Phi(-u)), u = gap / s, s the standard deviation of the posterior mean's
    change: 1 / sqrt(1 + noise)."""
    worth = measure_worth(np.array([0.0, gap]), np.diag([0.0, 1.0]), np.array([True, True]), noise)
    s = 1 / np.sqrt(1 + noise)
    expected = s * (norm.pdf(gap / s) - gap / s * norm.cdf(-gap / s))
    assert worth == pytest.approx([0.0, expected], rel=0.08, abs=1e-12)


def test_worth_of_many_is_that_of_simulated_results() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    covariance, mean, noise, target = root @ root.T, rng.normal(size=6), 0.5, np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    draws = rng.standard_normal(200_000)
    for row, worth in enumerate(measure_worth(mean, covariance, target, noise)):
        slope = covariance[row, target] / np.sqrt(covariance[row, row] + noise)
        lowest = (mean[target] + draws[:, None] * slope).min(axis=1)
        assert worth == pytest.approx(
            mean[target].min() - lowest.mean(), abs=4 * lowest.std() / np.sqrt(len(draws)) + 2e-3
        )


def test_conditioning_is_the_joint_normal_s() -> None:
    root = np.random.default_rng(1).normal(size=(4, 4))
    covariance = root @ root.T
    noisy = covariance[:2, :2] + 0.3 * np.eye(2)
    exact = covariance - covariance[:, :2] @ np.linalg.solve(noisy, covariance[:2])
    assert condition(condition(covariance, 0, 0.3), 1, 0.3) == pytest.approx(exact)


def test_the_same_state_proposes_the_same_within_the_bounds() -> None:
    found = [propose(PROBLEM, observe(8, 2), 3, np.random.default_rng(5)) for _ in range(2)]
    assert list_rows(found[0]) == list_rows(found[1])
    assert PROBLEM.region.holds(np.array([item.shares for item in found[0]])).all()


def test_a_dear_small_run_is_not_asked_for() -> None:
    """Where all cost the same, a run at the target says more; where the small one is nearly free, it comes first."""
    dear = replace(PROBLEM, cost_floor=1.0)
    cheap = replace(PROBLEM, fidelities=(replace(PROBLEM.fidelities[0], cost=1e-4), PROBLEM.fidelities[1]))
    levels = [propose(each, observe(8, 2), 1, np.random.default_rng(0))[0].level for each in (dear, cheap)]
    assert levels == [1, 0]


def test_the_target_gets_its_share_of_the_runs() -> None:
    cheap = replace(
        PROBLEM, fidelities=(replace(PROBLEM.fidelities[0], cost=1e-6), PROBLEM.fidelities[1]), target_share=0.3
    )
    levels = [item.level for item in propose(cheap, observe(10, 2), 6, np.random.default_rng(0))]
    # 18 runs in the end, of which 5.4 are due; the first two make up for what is missing
    assert levels[:2] == [1, 1]
    assert levels.count(1) in (3, 4)


def test_a_pool_is_asked_for_once_and_to_its_end() -> None:
    pool, observed = build_pool(), observe(4, 1)
    taken = Observed(
        np.concatenate([observed.shares, pool.shares[:50]]),
        np.concatenate([observed.level, pool.level[:50]]),
        np.concatenate([observed.loss, plant(pool.shares[:50], pool.level[:50])]),
    )
    found = propose(PROBLEM, taken, 20, np.random.default_rng(0), pool)
    assert sorted(list_rows(found)) == sorted((1, tuple(shares)) for shares in pool.shares[50:].tolist())


def test_failed_and_pending_runs_of_a_pool_are_not_asked_for_again() -> None:
    pool, observed = build_pool(), observe(6, 2)
    first = propose(PROBLEM, observed, 2, np.random.default_rng(0), pool)
    more = Observed(
        np.concatenate([observed.shares, [item.shares for item in first]]),
        np.concatenate([observed.level, [item.level for item in first]]),
        np.concatenate([observed.loss, [np.inf, np.nan]]),
    )
    again = propose(PROBLEM, more, 58, np.random.default_rng(0), pool)
    assert len(again) == 58
    assert not set(list_rows(first)) & set(list_rows(again))


def test_a_batch_is_what_would_be_asked_with_the_first_still_running() -> None:
    pool, observed = build_pool(), observe(6, 2)
    together = propose(PROBLEM, observed, 2, np.random.default_rng(0), pool)
    waiting = Observed(
        np.concatenate([observed.shares, together[0].shares[None]]), np.append(observed.level, together[0].level),
        np.append(observed.loss, np.nan),
    )  # fmt: skip
    alone = propose(PROBLEM, waiting, 1, np.random.default_rng(0), pool)
    assert list_rows(alone) == list_rows(together[1:])


def test_one_fidelity_is_a_problem_of_its_own() -> None:
    alone = replace(PROBLEM, fidelities=PROBLEM.fidelities[1:])
    observed = observe(0, 6)
    found = propose(
        alone, Observed(observed.shares, np.zeros(6, dtype=int), observed.loss), 2, np.random.default_rng(0)
    )
    assert [item.level for item in found] == [0, 0]
    assert min(item.gain for item in found) > 0
