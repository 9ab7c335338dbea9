from __future__ import annotations

import json
import math

import numpy as np
import pytest

from foretune.records import RampPhase
from foretune.training.spikes import LEAST_SEEN, PERSISTENT, WINDOW, Action, BatchOrder, SpikeWatch
from foretune_factories import make_spec

SCATTER = 0.05


def watch_run(losses: list[float], norms: list[float] | None = None, **training: object) -> SpikeWatch:
    watch = SpikeWatch(make_spec(steps=10_000, **training).training)
    for step, (loss, norm) in enumerate(zip(losses, norms or [1.0] * len(losses), strict=True), start=1):
        watch.judge(step, loss, norm)
    return watch


def noisy(count: int, seed: int = 0) -> list[float]:
    """Losses about 3 nats that scatter by 5 %."""
    return list(3.0 * np.exp(np.random.default_rng(seed).normal(0, SCATTER, count)))


def test_a_normal_series_has_next_to_no_spikes() -> None:
    """Six standard deviations: less than one in 10^8 for a known level; the level of 32 values is a rougher one."""
    assert sum(len(watch_run(noisy(400, seed)).spikes) for seed in range(20)) <= 2


@pytest.mark.parametrize(("sigmas", "seen"), [(5.0, False), (7.5, True)])
def test_what_lies_far_above_the_level_is_a_spike(sigmas: float, seen: bool) -> None:
    losses = noisy(WINDOW)
    logs = np.log(losses)
    level, scatter = np.median(logs), 1.4826 * np.median(np.abs(np.diff(logs))) / math.sqrt(2)
    watch = watch_run([*losses, math.exp(level + sigmas * scatter)], warmup_steps=0)
    assert [spike.step for spike in watch.spikes] == ([WINDOW + 1] if seen else [])
    if seen:
        (spike,) = watch.spikes
        assert (spike.quantity, spike.action) == ("loss", Action.APPLY)
        assert spike.level == pytest.approx(math.exp(level), rel=1e-9)


def test_a_gradient_norm_can_be_the_spike() -> None:
    watch = watch_run(noisy(102), [*noisy(100, seed=1), 10.0, 60.0])  # over three times the level is nothing yet
    assert [(spike.step, spike.quantity, spike.value) for spike in watch.spikes] == [(102, "gradient norm", 60.0)]


def test_a_trend_does_not_hide_a_spike() -> None:
    """A loss that falls by a third over the window has a plain standard deviation of .1, which 6 times 1.5 is below."""
    losses = [loss * math.exp(-step / 100) for step, loss in enumerate(noisy(46))]
    assert [spike.step for spike in watch_run([*losses, 1.5 * losses[23]], warmup_steps=0).spikes] == [47]


def test_nothing_is_a_spike_in_the_warm_up_or_before_a_level_is_known() -> None:
    watch = watch_run([3.0, 50.0] * 20 + [3.0] * LEAST_SEEN, warmup_steps=40)
    assert watch.spikes == []
    assert watch.judge(41 + LEAST_SEEN, 50.0, 1.0) is Action.APPLY
    assert len(watch.spikes) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_what_cannot_be_trained_on_is_left_to_the_recorder(value: float) -> None:
    watch = watch_run([3.0] * 100, spikes="skip")
    assert watch.judge(101, value, value) is Action.APPLY
    assert watch.judge(102, 50.0, 1.0) is Action.SKIP


def test_a_fall_is_no_spike_and_a_new_plateau_becomes_the_level() -> None:
    assert watch_run([*noisy(100), *(loss / 2 for loss in noisy(100))]).spikes == []
    steps = [spike.step for spike in watch_run([*noisy(200), *(2 * loss for loss in noisy(200))]).spikes]
    assert steps[0] == 201
    assert steps[-1] < 201 + WINDOW  # most of the window is the new level by then


def test_a_spike_is_skipped_then_halved_and_a_retry_that_is_calm_is_applied() -> None:
    watch = watch_run([3.0] * 100, spikes="skip")
    assert watch.judge(101, 50.0, 1.0) is Action.SKIP
    assert watch.judge(101, 3.0, 1.0) is Action.APPLY
    assert watch.judge(102, 50.0, 1.0, again=True) is Action.HALVE
    assert watch.judge(103, 50.0, 1.0) is Action.SKIP
    assert watch.judge(104, 3.0, 1.0, again=True) is Action.APPLY
    assert [spike.action for spike in watch.spikes] == [Action.SKIP, Action.HALVE, Action.SKIP]


@pytest.mark.parametrize("policy", ["record", "skip"])
def test_persistent_spikes_end_a_run_that_skips_them(policy: str) -> None:
    watch = watch_run([3.0] * 100, spikes=policy)
    for spike in range(PERSISTENT):
        watch.judge(101 + spike, 50.0, 1.0)
    assert not watch.gives_up
    watch.judge(101 + PERSISTENT, 50.0, 1.0)
    assert watch.gives_up is (policy == "skip")
    for step in range(WINDOW):
        watch.judge(300 + step, 3.0, 1.0)
    assert not watch.gives_up


def test_the_watch_goes_on_from_plain_data() -> None:
    losses = [*noisy(90), 50.0, *noisy(10)]
    watch = watch_run(losses, spikes="skip")
    other = SpikeWatch(make_spec(steps=10_000, spikes="skip").training)
    other.restore(json.loads(json.dumps(watch.state())))
    assert other.spikes == watch.spikes
    assert len(other.spikes) == 1
    for step, loss in enumerate(noisy(200, seed=2), start=200):
        assert other.judge(step, 1.2 * loss, 1.0) is watch.judge(step, 1.2 * loss, 1.0)
    assert other.state() == watch.state()


def follow(order: BatchOrder, steps: int, spiking: set[int]) -> list[tuple[int, bool]]:
    """The tries of a run on which every batch in `spiking` spikes at its first try."""
    tries, updates = [], 0
    while updates < steps:
        batch, again = order.choose(updates)
        skipped = batch in spiking and not again
        tries.append((batch, again))
        order.settle(updates, skipped=skipped)
        updates += not skipped
    return tries


def test_a_skipped_batch_comes_back_after_the_next_one() -> None:
    order = BatchOrder(make_spec(steps=5).training)
    assert follow(order, 5, {1}) == [(0, False), (1, False), (2, False), (1, True), (3, False), (4, False)]


@pytest.mark.parametrize("spiking", [set(), {4}, {3, 4}, {0, 1, 2, 3, 4}, {0, 2, 4}])
def test_every_batch_is_trained_on_once(spiking: set[int]) -> None:
    tries = follow(BatchOrder(make_spec(steps=5).training), 5, spiking)
    applied = [batch for batch, again in tries if again or batch not in spiking]
    assert sorted(applied) == list(range(5))
    assert len(tries) == 5 + len(spiking)


def test_a_batch_of_a_ramp_is_tried_again_within_its_phase() -> None:
    ramp = (RampPhase(steps=2, batch_tokens=256), RampPhase(steps=2, batch_tokens=512))
    training = make_spec(steps=6, ramp=ramp).training
    for spiking in ({1}, {0, 1}, {3}, {5}, {1, 3, 5}):
        order, updates = BatchOrder(training), 0
        while updates < 6:
            batch, again = order.choose(updates)
            skipped = batch in spiking and not again
            if not skipped:
                assert training.batch_tokens_at(batch) == training.batch_tokens_at(updates)
            order.settle(updates, skipped=skipped)
            updates += not skipped


def test_the_order_goes_on_from_plain_data() -> None:
    order, other = (BatchOrder(make_spec(steps=9).training) for _ in range(2))
    for updates, skipped in ((0, False), (1, True), (1, False)):
        order.settle(updates, skipped=skipped)
    other.restore(json.loads(json.dumps(order.state())))
    assert other.choose(2) == order.choose(2) == (1, True)
    other.settle(2, skipped=False)
    assert other.choose(3) == (3, False)
