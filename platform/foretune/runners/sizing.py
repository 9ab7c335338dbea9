"""How many runs train together: as many as fit into memory, as far as a measurement says that it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from foretune.records import RunSpec
from foretune.runners.isolation import isolate
from foretune.runners.memory import limit_memory, share_memory
from foretune.runners.trainers import describe_error
from foretune.sections import RunnerSection
from foretune.training.packing import estimate_bytes, pack_key

MEASURED_STEPS, ROUNDS = 5, 2
"""Steps over which a pack is timed, and how often: the faster time counts, since others only slow it (assumptions)."""
GAIN = 1.1
"""Twice the runs must train at least so many times as many a second, or the smaller pack is taken: an assumption."""
PATIENCE = 2
"""Doublings without gain after which no larger pack is tried."""
LONGEST_SECONDS = 20.0
"""A larger pack is not tried when timing it would take longer: an assumption."""
SHORT_FLOPS = 5e12
"""Runs of fewer FLOPs together, minutes of a CPU core, are done before a measurement would have paid: an assumption."""
USABLE_SHARE = 0.8
"""Share of the memory that a pack may be estimated to need: an assumption, for what the estimate does not know."""

Measure = Callable[[Sequence[RunSpec], int], "Timing"]
"""Times packs of 1, 2, 4, ... of these runs where they will be executed, at most so many together."""


@dataclass(frozen=True)
class Timing:
    """How long a step of packs of one shape takes."""

    seconds: dict[int, float]
    """Wall time of a step by the number of runs in the pack; empty when nothing could be timed."""
    stopped: str = ""
    """Why no larger pack was tried; empty when the largest allowed was."""


@dataclass(frozen=True)
class PackSize:
    """A choice, with its reason."""

    rows: int
    """Runs that train together."""
    reason: str
    """In words."""
    step_seconds: float | None = None
    """Wall time of a step of such a pack, where it was measured."""


class Sizer:
    """Chooses the size of packs as `[runner] pack` says, and remembers for the session what it measured."""

    def __init__(self, section: RunnerSection, measure: Measure) -> None:
        """`measure` is asked only where the section says `auto`."""
        self._section = section
        self._measure = measure
        self._timings: dict[Hashable, tuple[int, Timing]] = {}

    def choose(self, specs: Sequence[RunSpec], most: int) -> PackSize:
        """How many of these runs, which agree in `pack_key`, train together; at most `most`."""
        pack = self._section.pack
        if pack != "auto":
            return PackSize(min(pack, most), f"runner.pack = {pack}")
        if most == 1:
            return PackSize(1, "no others to pack it with")
        if not self._section.gpus_per_run and sum(spec.own_flops for spec in specs) < SHORT_FLOPS:
            return PackSize(1, "too short to measure what packing brings")
        return choose_size(self.time(specs, most), most)

    def time(self, specs: Sequence[RunSpec], most: int) -> Timing:
        """How long steps of packs of these runs take, measured once."""
        key = pack_key(specs[0])
        known, timing = self._timings.get(key, (0, Timing({})))
        if known < most and not timing.stopped:
            timing = self._measure(specs, most)
            self._timings[key] = (most, timing)
        return timing


def choose_size(timing: Timing, most: int) -> PackSize:
    """The smallest pack that trains nearly as many runs a second as the best one does."""
    rates = {rows: rows / seconds for rows, seconds in timing.seconds.items() if rows <= most}
    if not rates:
        return PackSize(1, f"packs could not be measured: {timing.stopped}")
    best = max(rates.values())
    rows = min(rows for rows, rate in rates.items() if rate >= best / GAIN)
    gain = rates[rows] / rates[min(rates)]
    tried = ", ".join(map(str, rates))
    reason = f"measured: {gain:.2g} times as many steps a second as one by one (tried {tried}"
    if rows == 1:
        reason = f"measured: no pack is {GAIN} times as fast as one by one (tried {tried}"
    return PackSize(rows, f"{reason}; {timing.stopped})" if timing.stopped else f"{reason})", timing.seconds[rows])


def measure_packs(specs: Sequence[RunSpec], most: int, section: RunnerSection) -> Timing:
    """Time packs of these runs on this machine, in doublings, until memory, patience or time is at its end.

    The step is not compiled, which would take longer than all of the measurement; where it launches many small kernels
    packing pays for compiled code, too.
    """
    from foretune.proxies.residents import RESIDENTS  # torch is imported only where something is trained
    from foretune.proxies.train import measure_throughput

    RESIDENTS.release()
    room = find_room(section)
    seconds: dict[int, float] = {}
    for rows in list_sizes(min(most, len(specs))):
        if room and estimate_bytes(specs[0], rows) > USABLE_SHARE * room:
            return Timing(seconds, f"{rows} would not fit into {room / 2**30:.3g} GiB of memory")
        try:
            with isolate(int(section.cpus_per_run)), limit_memory(0 if section.gpus_per_run else room):
                timed = [measure_throughput(specs[:rows], MEASURED_STEPS, compiled="off") for _ in range(ROUNDS)]
        except Exception as error:  # out of memory, above all, which each device says in its own words
            return Timing(seconds, f"{rows}: {describe_error(error)}")
        seconds[rows] = min(timed)
        if _has_peaked(seconds):
            return Timing(seconds, "more bring nothing")
        if 2 * sum(timed) * MEASURED_STEPS > LONGEST_SECONDS:
            return Timing(seconds, "more take too long to measure")
    return Timing(seconds)


def list_sizes(most: int) -> list[int]:
    """Sizes that are tried.

    >>> list_sizes(12)
    [1, 2, 4, 8, 12]
    """
    return sorted({*(2**power for power in range(int(math.log2(most)) + 1)), most})


def find_room(section: RunnerSection) -> int:
    """Bytes of memory that one pack may use on this machine, of its GPU if it has one; 0 where that is not known."""
    if section.gpus_per_run:
        from foretune.proxies.devices import count_free_bytes

        return count_free_bytes(section.gpus_per_run)
    return share_memory(section.cpus_per_run, section.concurrency)


def _has_peaked(seconds: dict[int, float]) -> bool:
    """Whether the last sizes were no faster, run for run, than a smaller one."""
    rates = [rows / duration for rows, duration in seconds.items()]
    earlier = rates[:-PATIENCE]
    return bool(earlier) and max(rates[-PATIENCE:]) < GAIN * max(earlier)
