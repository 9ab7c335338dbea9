"""How many runs train together, chosen from timings that are made up, so that the best is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from foretune.records import RunSpec
from foretune.runners import sizing
from foretune.runners.sizing import Sizer, Timing, choose_size, list_sizes, measure_packs
from foretune.sections import RunnerSection
from foretune.training.packing import estimate_bytes
from foretune_factories import make_spec

LONG = 10**9
"""Steps after which a measurement has paid."""


def time_packs(seconds: Callable[[int], float], most: int) -> Timing:
    return Timing({rows: seconds(rows) for rows in list_sizes(most)})


@pytest.mark.parametrize(
    ("seconds", "most", "best"),
    [
        (lambda rows: 1.0, 64, 64),  # a device that is never full
        (lambda rows: float(rows), 64, 1),  # a core that is full with one run
        (lambda rows: max(1.0, rows / 16), 64, 16),  # full with sixteen
        (lambda rows: max(1.0, rows / 16), 12, 12),
        (lambda rows: rows * 0.95 ** (rows > 1), 64, 1),  # five per cent are within the noise
        (lambda rows: 1.0 if rows <= 4 else 0.5 * rows, 64, 4),  # larger packs are slower
    ],
)
def test_the_smallest_pack_that_is_about_as_fast_as_the_best(
    seconds: Callable[[int], float], most: int, best: int
) -> None:
    chosen = choose_size(time_packs(seconds, most), most)
    assert chosen.rows == best
    assert chosen.step_seconds == seconds(best)
    assert "measured" in chosen.reason


def test_sizes_are_doublings_up_to_the_most() -> None:
    assert [list_sizes(most) for most in (1, 2, 3, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


def test_a_shape_is_measured_once_unless_larger_packs_are_allowed_later() -> None:
    asked: list[int] = []

    def measure(specs: Sequence[RunSpec], most: int) -> Timing:
        asked.append(most)
        return time_packs(lambda rows: 1.0, most)

    sizer = Sizer(RunnerSection(), measure)
    specs = [make_spec(steps=LONG, peak_lr=0.001 * (1 + number)) for number in range(8)]
    assert [sizer.choose(specs, most).rows for most in (4, 4, 2, 8)] == [4, 4, 2, 8]
    assert asked == [4, 8]
    sizer.choose([make_spec(steps=LONG, width=64)] * 8, 8)
    assert asked == [4, 8, 8]


@pytest.mark.parametrize(
    ("options", "steps", "most", "rows", "reason"),
    [
        ({"pack": 5}, LONG, 8, 5, "runner.pack = 5"),
        ({"pack": 5}, LONG, 3, 3, "runner.pack = 5"),
        ({}, LONG, 1, 1, "no others"),
        ({}, 10, 8, 1, "too short to measure"),
        ({}, LONG, 8, 1, "could not be measured: worker died"),
    ],
)
def test_what_is_chosen_without_a_timing(
    options: dict[str, Any], steps: int, most: int, rows: int, reason: str
) -> None:
    sizer = Sizer(RunnerSection(**options), lambda specs, most: Timing({}, "worker died"))
    chosen = sizer.choose([make_spec(steps=steps)] * 8, most)
    assert chosen.rows == rows
    assert reason in chosen.reason


def run_out(rows: int) -> float:
    if rows == 4:
        raise MemoryError("no room")
    return 1.0


@pytest.mark.parametrize(
    ("seconds", "tried", "stopped"),
    [
        (lambda rows: 0.01, [1, 2, 4, 8, 16, 32, 64], ""),
        (lambda rows: 0.01 * rows, [1, 2, 4], "more bring nothing"),
        (lambda rows: 3.0, [1], "more take too long to measure"),
        (run_out, [1, 2], "4: MemoryError: no room"),
    ],
)
def test_larger_packs_are_tried_until_they_bring_nothing(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], tried: list[int], stopped: str
) -> None:
    timing = measure(monkeypatch, seconds, room_bytes=0)
    assert list(timing.seconds) == tried
    assert timing.stopped.startswith(stopped)


def test_packs_that_would_not_fit_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    room_bytes = int(estimate_bytes(make_spec(), 8) / sizing.USABLE_SHARE) + 1000
    timing = measure(monkeypatch, lambda rows: 0.01, room_bytes)
    assert list(timing.seconds) == [1, 2, 4, 8]
    assert timing.stopped.startswith("16 would not fit into")


def measure(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], room_bytes: int) -> Timing:
    """Time packs of up to 64 runs on a machine with such a clock and such memory."""
    monkeypatch.setattr("foretune.proxies.train.measure_throughput", lambda runs, steps, compiled: seconds(len(runs)))
    monkeypatch.setattr(sizing, "find_room", lambda section: room_bytes)
    section = RunnerSection(gpus_per_run=1)  # on a CPU this process would be held to the made-up memory
    return measure_packs([make_spec(seed=seed) for seed in range(64)], 64, section)
