"""How long a plan will take, from a few measured steps of each shape on this machine, packed as they will be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.records import PROXY_TRAINER, RunSpec
from foretune.runners.grouping import Group, group_runs, sum_savings
from foretune.runners.isolation import isolate
from foretune.runners.memory import count_cpus
from foretune.runners.nodes import count_slots as count_node_slots
from foretune.runners.sizing import Sizer, measure_packs
from foretune.sections import RunnerSection
from foretune.training.packing import pack_key

PROBE_FLOPS = 4e11
"""Largest optimizer step that is tried, FLOPs: some seconds on one CPU core. Larger shapes are scaled from it."""
PROBE_STEPS = 3
"""Steps that are timed where the size of packs is not chosen by a measurement."""


@dataclass(frozen=True)
class Estimate:
    """Wall time of a plan, with how it was measured."""

    hours: float
    """Wall time with `slots` packs of runs at once; 0 when nothing is trained."""
    slots: int
    """Packs (or runs alone) at once on this machine."""
    basis: str
    """How it was measured, in words."""


def estimate_hours(specs: Sequence[RunSpec], runner: RunnerSection) -> Estimate:
    """Measure each distinct shape for a few steps and add up; shapes too large to try are scaled by FLOPs."""
    slots, runner = count_slots(runner), _fit_to_machine(runner)
    trained = [spec for spec in specs if spec.trainer == PROXY_TRAINER]
    if not trained:
        return Estimate(0.0, slots, "nothing of this package's own is trained, so nothing was measured")
    small = [spec for spec in trained if _step_flops(spec) <= PROBE_FLOPS]
    if not small:
        return Estimate(0.0, slots, "every shape is too large to try on this machine; measure on the cluster")
    sizer = Sizer(runner, lambda runs, most: measure_packs(runs, most, runner))
    groups = group_runs(small, runner, slots, sizer)
    seconds = [group.steps * _measure_step(group, runner) / group.rows for group in groups]
    largest = max(range(len(groups)), key=lambda index: _step_flops(groups[index].packs[0][0]))
    per_flop = seconds[largest] / groups[largest].flops
    large = [spec for spec in trained if _step_flops(spec) > PROBE_FLOPS]
    total = sum(seconds) + per_flop * (sum(spec.own_flops for spec in large) - sum_savings(large, runner).flops)
    return Estimate(total / slots / 3600, slots, _describe(groups, large))


def count_slots(runner: RunnerSection) -> int:
    """Packs that this machine executes at once; without the GPUs that they ask for, those that its CPU cores hold."""
    if runner.kind == "inline":
        return 1
    runner = _fit_to_machine(runner)
    node = {"CPU": float(count_cpus())} | ({"GPU": float(_count_gpus())} if runner.gpus_per_run else {})
    return max(1, count_node_slots(runner, [node]))


def _fit_to_machine(runner: RunnerSection) -> RunnerSection:
    """The same runner on the CPU where runs ask for a GPU and there is none."""
    if runner.gpus_per_run and not _count_gpus():
        return runner.model_copy(update={"gpus_per_run": 0.0})
    return runner


def _count_gpus() -> int:
    from foretune.proxies.devices import count_gpus

    return count_gpus()


def _measure_step(group: Group, runner: RunnerSection) -> float:
    """Seconds of a step of the group's packs."""
    if group.size.step_seconds is not None and group.rows == group.size.rows:
        return group.size.step_seconds
    from foretune.proxies.train import measure_throughput  # torch is imported only where something is trained

    runs = [spec for pack in group.packs for spec in pack][: group.rows]
    with isolate(int(runner.cpus_per_run)):
        return measure_throughput(runs, PROBE_STEPS, compiled=runner.compile)


def _step_flops(spec: RunSpec) -> float:
    return float(spec.flops_per_token) * spec.training.batch_tokens


def _describe(groups: Sequence[Group], large: Sequence[RunSpec]) -> str:
    packed = max(group.rows for group in groups)
    scaled = len({pack_key(spec) for spec in large})
    basis = f"measured on this machine: a few steps of {len(groups)} shapes"
    basis += f", in packs of up to {packed} runs" * (packed > 1)
    return basis + f", {scaled} scaled by FLOPs" * (scaled > 0)
