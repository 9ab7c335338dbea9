"""How long a plan will take, from a few measured steps of each shape on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretune.records import PROXY_TRAINER, RunSpec
from foretune.sections import RunnerSection

PROBE_FLOPS = 4e11
"""Largest optimizer step that is tried, FLOPs: some seconds on one CPU core. Larger shapes are scaled from it."""


@dataclass(frozen=True)
class Estimate:
    """Wall time of a plan, with how it was measured."""

    hours: float
    """Wall time with `slots` runs at once; 0 when nothing is trained."""
    slots: int
    """Runs at once on this machine."""
    basis: str
    """How it was measured, in words."""


def estimate_hours(specs: Sequence[RunSpec], runner: RunnerSection) -> Estimate:
    """Measure each distinct shape for a few steps and add up; shapes too large to try are scaled by FLOPs."""
    slots = count_slots(runner)
    trained = [spec for spec in specs if spec.trainer == PROXY_TRAINER]
    if not trained:
        return Estimate(0.0, slots, "nothing of this package's own is trained, so nothing was measured")
    shapes = {_shape_key(spec): spec for spec in sorted(trained, key=_step_flops)}
    small = {key: spec for key, spec in shapes.items() if _step_flops(spec) <= PROBE_FLOPS}
    if not small:
        return Estimate(0.0, slots, "every shape is too large to try on this machine; measure on the cluster")
    seconds = _measure(small)
    largest = max(small.values(), key=_step_flops)
    per_flop = seconds[_shape_key(largest)] / _step_flops(largest)
    total = sum(spec.training.steps * seconds.get(_shape_key(spec), per_flop * _step_flops(spec)) for spec in trained)
    scaled = len(shapes) - len(small)
    basis = f"measured on this machine: 3 steps of {len(small)} shapes" + (f", {scaled} scaled by FLOPs" * bool(scaled))
    return Estimate(total / slots / 3600, slots, basis)


def count_slots(runner: RunnerSection) -> int:
    """Runs that this machine executes at once; without the GPUs that they ask for, those that its CPU cores hold."""
    from foretune.runners.memory import count_cpus
    from foretune.runners.nodes import count_slots as count_node_slots

    node = {"CPU": float(count_cpus()), "GPU": float(_count_gpus())} if runner.gpus_per_run else {"CPU": count_cpus()}
    if not node.get("GPU"):
        runner = runner.model_copy(update={"gpus_per_run": 0.0})
    return max(1, count_node_slots(runner, [node]))


def _count_gpus() -> int:
    from foretune.proxies.devices import count_gpus

    return count_gpus()


def _measure(shapes: dict[tuple[object, ...], RunSpec]) -> dict[tuple[object, ...], float]:
    from foretune.proxies.train import measure_throughput  # torch is imported only where something is trained

    return {key: measure_throughput(spec) for key, spec in shapes.items()}


def _step_flops(spec: RunSpec) -> float:
    return float(spec.model.shape.flops_per_token(spec.data.seq_len)) * spec.training.batch_tokens


def _shape_key(spec: RunSpec) -> tuple[object, ...]:
    training = spec.training
    return (spec.model.shape, spec.data.seq_len, training.batch_tokens, training.accumulation_steps, training.precision)
