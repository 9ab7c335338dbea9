from __future__ import annotations

from foretune.records import RampPhase, TrainingSpec
from foretune_factories import make_spec


def ramped() -> TrainingSpec:
    """Steps of 2, 2, 2, 4, 4, 8, 8, ... tokens."""
    ramp = (RampPhase(steps=3, batch_tokens=2), RampPhase(steps=2, batch_tokens=4))
    return make_spec(batch_tokens=8, steps=9, ramp=ramp).training


def test_tokens_on_a_ramp_by_hand() -> None:
    training = ramped()
    assert [training.batch_tokens_at(step) for step in range(9)] == [2, 2, 2, 4, 4, 8, 8, 8, 8]
    assert [training.tokens_at(step) for step in range(10)] == [0, 2, 4, 6, 10, 14, 22, 30, 38, 46]
    assert training.tokens == 46


def test_without_a_ramp_tokens_are_steps_of_one_size() -> None:
    training = make_spec(batch_tokens=1024, steps=40).training
    assert [training.tokens_at(step) for step in (0, 1, 40)] == [0, 1024, 40_960]
    assert training.batch_tokens_at(39) == 1024
    assert training.tokens == 40_960


def test_the_cost_of_a_ramped_run_is_that_of_its_tokens() -> None:
    spec = make_spec(batch_tokens=128, steps=9, ramp=(RampPhase(steps=4, batch_tokens=64),))
    assert spec.training.tokens == 4 * 64 + 5 * 128
    assert spec.compute_flops == spec.model.shape.flops_per_token(64) * spec.training.tokens
