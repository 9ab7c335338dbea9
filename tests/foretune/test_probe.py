"""How long a plan will take, by a clock that is made up: a step takes half a second, however many runs it trains."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.probe import PROBE_FLOPS, estimate_hours
from foretune.sections import RunnerSection
from foretune_factories import make_spec

STEP_SECONDS = 0.5


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretune.proxies.train.measure_throughput", lambda runs, steps, compiled: STEP_SECONDS)


def runner(**options: Any) -> RunnerSection:
    return RunnerSection(concurrency=1, **options)


def test_a_pack_takes_as_long_as_one_run() -> None:
    specs = [make_spec(seed=seed, schedule="cosine", decay_steps=0) for seed in range(4)]
    alone, packed = estimate_hours(specs, runner(pack=1)), estimate_hours(specs, runner(pack=4))
    assert alone.hours * 3600 == pytest.approx(4 * 40 * STEP_SECONDS)
    assert packed.hours * 3600 == pytest.approx(40 * STEP_SECONDS)
    assert packed.basis.endswith("in packs of up to 4 runs")
    assert (alone.slots, packed.slots) == (1, 1)


def test_a_shared_trunk_is_counted_once() -> None:
    specs = [make_spec(steps=steps, decay_steps=10) for steps in (100, 200, 400)]
    shared, apart = estimate_hours(specs, runner(pack=1)), estimate_hours(specs, runner(pack=1, share_trunks=False))
    assert apart.hours * 3600 == pytest.approx(700 * STEP_SECONDS)
    assert shared.hours * 3600 == pytest.approx((400 + 2 * 10) * STEP_SECONDS)


def test_shapes_too_large_to_try_are_scaled_by_flops() -> None:
    small, large = make_spec(), make_spec(width=2048, batch_tokens=2**16)
    assert large.compute_flops / large.training.steps > PROBE_FLOPS
    both = estimate_hours([small, large], runner(pack=1))
    expected = (1 + large.compute_flops / small.compute_flops) * 40 * STEP_SECONDS
    assert both.hours * 3600 == pytest.approx(expected)
    assert both.basis.endswith(", 1 scaled by FLOPs")
    assert estimate_hours([large], runner()).hours == 0


def test_what_others_train_is_not_measured() -> None:
    assert estimate_hours([make_spec(trainer="toy_trainers:train_toy")], runner()).hours == 0


def test_this_process_runs_one_pack_at_a_time() -> None:
    specs = [make_spec(seed=seed, schedule="cosine", decay_steps=0) for seed in range(4)]
    estimate = estimate_hours(specs, RunnerSection(kind="inline", pack=1, cpus_per_run=0.01))
    assert estimate.slots == 1
    assert estimate.hours * 3600 == pytest.approx(4 * 40 * STEP_SECONDS)
