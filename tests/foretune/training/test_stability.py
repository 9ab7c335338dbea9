from __future__ import annotations

import pytest

from foretune.records import Diagnosis
from foretune.training.spikes import Action, Spike
from foretune.training.stability import judge_stability

CALM = {
    "gradient_norm": 1.0,
    "update_norm": 0.1,
    "update_cosine": 0.3,
    "saturated_share": 0.04,
    "noise_scale_tokens": 1e5,
    "logit_max": 12.0,
    "attention_logit_max": 8.0,
    "near_eps_share": 0.0,
}


def diagnose(*changes: dict[str, float | None]) -> list[Diagnosis]:
    """A calm run of five diagnoses, 10 steps apart, and then these."""
    return [Diagnosis(step=10 * n, **{**CALM, **change}) for n, change in enumerate(({},) * 5 + changes, start=1)]


def test_a_calm_run_gets_no_verdict() -> None:
    assert judge_stability([], diagnose({}, {}, {})) == ""
    assert judge_stability([], []) == ""


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (
            {"saturated_share": 0.3, "update_cosine": 0.01},
            "at step 60 |m / sqrt(v)| exceeded .9 in 30% of the weights, against 4.0% before, and updates lay across "
            "the gradient (cosine 0.01)",
        ),
        ({"saturated_share": 0.3}, ""),  # updates that descend are no alarm
        ({"saturated_share": 0.1, "update_cosine": 0.01}, ""),  # less than three times the median
        ({"saturated_share": 0.3, "update_cosine": None}, ""),
        ({"near_eps_share": 0.75}, "at step 60 sqrt(v) was below eps in 75% of the hidden weights"),
        ({"attention_logit_max": 2e4}, "attention logits reached 2e+04 at step 60"),
        ({"attention_logit_max": 150.0}, "attention logits reached 150 at step 60"),
        ({"attention_logit_max": 79.0}, ""),
        ({"logit_max": 300.0}, "logits reached 300 at step 60"),
    ],
)
def test_what_was_seen_is_told_with_its_step(change: dict[str, float | None], verdict: str) -> None:
    assert judge_stability([], diagnose(change)) == verdict


def test_an_alarm_needs_something_to_compare_with() -> None:
    alarm = {"saturated_share": 0.3, "update_cosine": 0.01}
    assert judge_stability([], [Diagnosis(step=n, **{**CALM, **alarm}) for n in (1, 2, 3, 4)]) == ""
    assert judge_stability([], diagnose(dict.fromkeys(CALM))) == ""


def test_spikes_are_told_by_the_highest_and_by_what_was_done() -> None:
    spikes = [
        Spike(40, "loss", 5.0, 2.5, Action.SKIP),
        Spike(41, "loss", 4.0, 2.5, Action.HALVE),
        Spike(90, "gradient norm", 30.0, 0.5, Action.SKIP),
    ]
    assert judge_stability(spikes, []) == (
        "2 spikes of the loss, the highest 5 over a level of 2.5 at step 40 (1 skipped, 1 applied at half the learning "
        "rate); gradient norm spike 30 over a level of 0.5 at step 90 (1 skipped)"
    )
    assert judge_stability([Spike(7, "loss", 5.0, 2.5, Action.APPLY)], []) == (
        "loss spike 5 over a level of 2.5 at step 7"
    )
