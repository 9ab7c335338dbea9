"""Runs that end before their schedule, change their settings on the way, or go on from another."""

from __future__ import annotations

import pytest

from foretune.records import Phase, RunOutcome, RunStatus, record_outcome
from foretune.records.specs import MixtureLearningSpec
from foretune_factories import make_spec

PLAIN = make_spec(steps=40, batch_tokens=1024)
PHASES = (
    Phase(start_step=10, settings={"peak_lr": 0.02, "weight_decay": 0.3}),
    Phase(start_step=20, settings={"peak_lr": 0.01}, mixture={"code": 0.5, "text": 0.5}),
)


def test_a_plain_run_keeps_the_id_that_it_had_before_runs_came_in_parts() -> None:
    assert {"stop_step", "phases"}.isdisjoint(PLAIN.content())
    assert PLAIN.run_id == "e77b6607967b3223", "measured before the fields existed"


@pytest.mark.parametrize(
    "label", [{"parent_run_id": "ab"}, {"parent_step": 10}, {"keep_state": True}, {"role": "baseline"}]
)
def test_what_only_saves_work_or_names_a_purpose_is_no_part_of_the_id(label: dict[str, object]) -> None:
    assert PLAIN.model_copy(update=label).run_id == PLAIN.run_id


def test_where_it_ends_and_what_changes_is_part_of_the_id() -> None:
    ids = {
        PLAIN.run_id,
        PLAIN.model_copy(update={"stop_step": 20}).run_id,
        PLAIN.model_copy(update={"phases": PHASES}).run_id,
        PLAIN.model_copy(update={"phases": PHASES[:1]}).run_id,
    }
    assert len(ids) == 4


def test_every_phase_replaces_what_it_names_and_keeps_the_rest() -> None:
    spec = PLAIN.model_copy(update={"phases": PHASES})
    rates = {step: spec.training_at(step).peak_lr for step in (0, 9, 10, 19, 20, 39)}
    assert rates == {0: 2**-7, 9: 2**-7, 10: 0.02, 19: 0.02, 20: 0.01, 39: 0.01}
    assert [spec.training_at(step).weight_decay for step in (9, 10, 20)] == [0.1, 0.3, 0.3]
    assert spec.training_at(20).steps == 40
    assert [spec.mixture_at(step) for step in (0, 19, 20)] == [{"code": 1.0}, {"code": 1.0}, PHASES[1].mixture]


def test_settings_change_also_where_others_are_learned() -> None:
    learning = MixtureLearningSpec(
        objective={"code": 1.0}, reference_share=1.0, reference_sequences=8, penalty=1.0, logit_lr=0.1
    )
    spec = make_spec(steps=40, mixture_learning=learning, phases=PHASES)
    assert [spec.training_at(step).peak_lr for step in (0, 10, 20)] == [2**-7, 0.02, 0.01]
    earlier = spec.model_copy(update={"phases": PHASES[:1]})
    assert earlier.training_at(20).peak_lr == 0.02, "what was looked up before is not that of the copy"


def test_the_cost_of_a_part_is_what_its_parent_has_not_done() -> None:
    part = PLAIN.model_copy(update={"stop_step": 30, "parent_step": 20})
    flops = part.model.shape.flops_per_token(64)
    assert (part.tokens, part.own_tokens) == (30 * 1024, 10 * 1024)
    assert (part.compute_flops, part.own_flops) == (flops * 30 * 1024, flops * 10 * 1024)
    assert part.is_partial
    assert not PLAIN.is_partial
    assert PLAIN.own_flops == PLAIN.compute_flops


def test_the_row_of_a_part_says_how_far_it_went_and_under_what_it_ended() -> None:
    part = PLAIN.model_copy(update={"stop_step": 30, "phases": PHASES, "parent_run_id": "0123", "parent_step": 20})
    record = record_outcome(part, RunOutcome(status=RunStatus.COMPLETED, loss=2.0, spent_flops=5.0))
    assert (record.tokens, record.steps, record.horizon_tokens) == (30 * 1024, 30, 40 * 1024)
    assert (record.peak_lr, record.weight_decay, record.mix) == (0.01, 0.3, {"code": 0.5, "text": 0.5})
    assert (record.setting_changes, record.parent_run_id) == (2, "0123")
    assert (record.compute_flops, record.spent_flops) == (float(part.compute_flops), 5.0)
