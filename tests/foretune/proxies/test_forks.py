"""One trunk, several horizons: each run as if it had been trained by itself, for the compute of its decay alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.proxies.members import Member
from foretune.proxies.train import train_run, train_runs
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus

MakeRun = Callable[..., RunSpec]
HORIZONS = (16, 24, 36, 54, 80)
DIE_AT = 33


class Killed(BaseException):
    """Stands for the end of a process in the middle of a run."""


def make_horizons(make_run: MakeRun, **overrides: object) -> list[RunSpec]:
    settings = {"warmup_steps": 3, "batch_tokens": 64, "depth": 1, "validation_sequences": 2, **overrides}
    return [make_run(steps=steps, decay_steps=steps // 4, **settings) for steps in HORIZONS]


def train(
    specs: list[RunSpec], workspace: Path, report: Callable[[RunSpec, CurvePoint], None] = lambda spec, point: None
) -> dict[int, RunOutcome]:
    """Outcomes by horizon."""
    folders = [workspace / spec.run_id for spec in specs]
    return {spec.training.steps: outcome for spec, outcome in train_runs(specs, folders, report)}


@pytest.fixture
def separate(make_run: MakeRun, tmp_path: Path) -> dict[int, RunOutcome]:
    specs = make_horizons(make_run)
    return {s.training.steps: train_run(s, tmp_path / "alone" / s.run_id, lambda point: None) for s in specs}


def assert_same(found: dict[int, RunOutcome], expected: dict[int, RunOutcome]) -> None:
    assert set(found) == set(expected)
    for steps, outcome in found.items():
        alone = expected[steps]
        assert outcome.status is RunStatus.COMPLETED
        assert [(point.step, point.lr) for point in outcome.curve] == [(point.step, point.lr) for point in alone.curve]
        for point, other in zip(outcome.curve, alone.curve, strict=True):
            assert point.loss == pytest.approx(other.loss, abs=1e-6)
            assert point.held_out == pytest.approx(other.held_out, abs=1e-6)


def test_forks_equal_separate_runs_and_cost_their_decay(
    make_run: MakeRun, tmp_path: Path, separate: dict[int, RunOutcome]
) -> None:
    specs = make_horizons(make_run)
    forked = train(specs, tmp_path / "forked")
    assert_same(forked, separate)
    for spec in specs[:-1]:
        share = spec.training.decay_steps / spec.training.steps
        assert forked[spec.training.steps].spent_flops == pytest.approx(share * spec.compute_flops)
    assert forked[HORIZONS[-1]].spent_flops == specs[-1].compute_flops
    spent = sum(outcome.spent_flops or 0.0 for outcome in forked.values())
    decays = sum(spec.training.decay_steps for spec in specs[:-1])
    assert spent == pytest.approx(specs[-1].compute_flops * (HORIZONS[-1] + decays) / HORIZONS[-1])


def test_a_killed_trunk_is_taken_up_again(make_run: MakeRun, tmp_path: Path, separate: dict[int, RunOutcome]) -> None:
    specs = make_horizons(make_run, checkpoint_steps=10)

    def die(spec: RunSpec, point: CurvePoint) -> None:
        if point.step == DIE_AT:
            raise Killed

    with pytest.raises(Killed):
        train(specs, tmp_path / "killed", die)
    left = [spec for spec in specs if spec.training.steps > DIE_AT]  # two are decaying or have ended, two share a row
    resumed = train(left, tmp_path / "killed")
    assert_same(resumed, {steps: outcome for steps, outcome in separate.items() if steps > DIE_AT})
    assert resumed[54].spent_flops == pytest.approx(specs[3].compute_flops * 13 / 54)


def test_the_next_one_leads_when_the_leader_ends_early(
    make_run: MakeRun, tmp_path: Path, separate: dict[int, RunOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest run is stopped by an evaluation that only it has; the others go on in its row."""
    record = Member.record_held_out

    def spoil(member: Member, by_domain: dict[str, float]) -> None:
        lost = member.spec.training.steps == HORIZONS[-1] and member.step == 20
        record(member, dict.fromkeys(by_domain, math.nan) if lost else by_domain)

    monkeypatch.setattr(Member, "record_held_out", spoil)
    specs = make_horizons(make_run)
    forked = train(specs, tmp_path / "forked")
    leader = forked.pop(HORIZONS[-1])
    assert leader.reason.startswith("held-out loss is nan at step 20")
    assert leader.spent_flops == pytest.approx(specs[-1].compute_flops * 20 / HORIZONS[-1])
    del separate[HORIZONS[-1]]
    assert_same(forked, separate)
    assert forked[54].spent_flops == pytest.approx(specs[3].compute_flops * (54 - 20) / 54)
    assert forked[36].spent_flops == pytest.approx(specs[2].compute_flops * 9 / 36)


def test_a_trunk_that_diverges_takes_all_with_it(make_run: MakeRun, tmp_path: Path) -> None:
    specs = make_horizons(make_run, peak_lr=1e30, clip_norm=1e9, weight_decay=0.0)
    outcomes = train(specs, tmp_path)
    assert {outcome.status for outcome in outcomes.values()} == {RunStatus.DIVERGED}
    assert len({outcome.tokens for outcome in outcomes.values()}) == 1
    assert [outcomes[steps].spent_flops for steps in HORIZONS[:-1]] == [0.0] * 4


def test_trunks_are_not_shared_when_it_is_forbidden(make_run: MakeRun, tmp_path: Path) -> None:
    specs = make_horizons(make_run)[:2]
    outcomes = train_runs(specs, [tmp_path / "a", tmp_path / "b"], lambda spec, point: None, share_trunks=False)
    for spec, outcome in outcomes:
        assert outcome.spent_flops == spec.compute_flops
