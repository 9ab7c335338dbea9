"""The exchange between steps and tokens at one loss."""

import json

import numpy as np
import pytest

from scalelaws import ObservationError, Status
from scalelaws.critical_batch import TradeoffError, fit_tradeoff

STEPS_MIN, CRITICAL = 3000.0, 5e5


def reach(batch, noise=0.0, seed=0):
    batch = np.asarray(batch, dtype=float)
    steps = (
        STEPS_MIN * (1 + CRITICAL / batch) * np.exp(noise * np.random.default_rng(seed).standard_normal(batch.shape))
    )
    return steps, steps * batch


def test_exact_pairs_give_the_planted_curve():
    found = fit_tradeoff(*reach(np.geomspace(3e4, 8e6, 9)))
    assert found.steps_min.value == pytest.approx(STEPS_MIN, rel=1e-4)
    assert found.tokens_min.value == pytest.approx(STEPS_MIN * CRITICAL, rel=1e-4)
    assert found.critical_batch_tokens.value == pytest.approx(CRITICAL, rel=1e-4)


def test_the_pairs_obey_the_published_equation():
    batch = np.geomspace(3e4, 8e6, 9)
    steps, tokens = reach(batch)
    found = fit_tradeoff(steps, tokens)
    product = (steps / found.steps_min.value - 1) * (tokens / found.tokens_min.value - 1)
    assert product == pytest.approx(1.0, rel=1e-2)
    assert found.steps_at(found.critical_batch_tokens.value) == pytest.approx(2 * found.steps_min.value)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_intervals_hold_the_truth_as_often_as_they_say(fewest_hits, noise):
    hits = 0
    for seed in range(60):
        found = fit_tradeoff(*reach(np.geomspace(6e4, 4e6, 8), noise, seed), draws=100)
        hits += found.critical_batch_tokens.low <= CRITICAL <= found.critical_batch_tokens.high
    assert hits >= fewest_hits(60)


@pytest.mark.parametrize(("batches", "side"), [([1e3, 2e3, 4e3], "above"), ([4e8, 8e8, 16e8], "below")])
def test_batches_on_one_branch_are_refused_with_the_side(batches, side):
    with pytest.raises(TradeoffError, match=f"B_crit lies beyond the batches .* {side}") as caught:
        fit_tradeoff(*reach(batches, 0.01))
    partial = caught.value.partial
    assert partial.status is Status.NOT_IDENTIFIED
    json.dumps(partial.to_dict(), allow_nan=False)


@pytest.mark.parametrize("factor", [1e-3, 1e-2, 1e2])
def test_batches_far_from_it_give_a_bound_that_holds_and_no_value(factor, fewest_hits):
    """With the other limit, the one that such batches do tell, inside its interval."""
    bounds, limits = [], []
    for seed in range(15):
        batch = factor * CRITICAL * np.geomspace(0.25, 4, 6)
        found = fit_tradeoff(*reach(batch, 0.03, seed), draws=50, throw=False)
        critical = found.critical_batch_tokens
        assert found.status is Status.NOT_IDENTIFIED
        assert np.isnan(critical.value)
        assert (critical.low is None) == (factor > 1)
        assert (critical.high is None) == (factor < 1)
        bounds.append((critical.low or 0) <= CRITICAL <= (critical.high or np.inf))
        known, truth = (found.tokens_min, STEPS_MIN * CRITICAL) if factor < 1 else (found.steps_min, STEPS_MIN)
        limits.append(known.low <= truth <= known.high)
    assert min(sum(bounds), sum(limits)) >= fewest_hits(15)


def test_steps_without_any_pattern_bound_nothing():
    steps = 1e4 * np.exp(np.random.default_rng(0).standard_normal(6))
    found = fit_tradeoff(steps, steps * 1e5 * np.geomspace(0.9, 1.1, 6), throw=False)
    assert "do not tell on which side" in found.message
    assert found.critical_batch_tokens.low is None
    assert found.critical_batch_tokens.high is None


def test_two_batches_are_refused():
    with pytest.raises(TradeoffError, match="have 2"):
        fit_tradeoff(*reach([1e5, 1e6]))
    assert fit_tradeoff(*reach([1e5, 1e6]), throw=False).status is Status.TOO_FEW_SCALES


@pytest.mark.parametrize(("steps", "message"), [([1.0, np.nan, 3.0], "row 1"), ([1.0, 2.0], "pair up")])
def test_unusable_pairs_are_named(steps, message):
    with pytest.raises(ObservationError, match=message):
        fit_tradeoff(steps, [1e6, 2e6, 3e6])
