"""Many small models on one device: K runs as one computation, beside K processes that share it, and one after another.

Total tokens per second of all runs. The processes wait for each other before they are timed; those that end first leave
the device to the others, which favours them. One after another has the rate of a single run. On a GPU the model FLOPs
utilisation stands beside it.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import torch

from benchmarks.devices import choose_device, describe_device, find_peak_flops
from benchmarks.shapes import Workload, resolve_members
from foretune.proxies.train import measure_throughput
from foretune.records import RunSpec

ON_CPU = Workload(widths=(64, 128, 256), depth=2, seq_len=128, batch_tokens=1024, precision="float32")
ON_GPU = Workload(widths=(64, 128, 256, 512), depth=4, seq_len=256, batch_tokens=8192, precision="bfloat16")
MEMBERS = (1, 4, 16, 64)
ROUNDS = 3
START_SECONDS = 600
"""How long the processes may take to start."""


def main() -> None:
    """One line for each width and number of runs."""
    on_gpu = choose_device().type == "cuda"
    workload, steps = (ON_GPU, 30) if on_gpu else (ON_CPU, 4)
    members = MEMBERS if on_gpu else MEMBERS[:3]
    if not on_gpu:
        torch.set_num_threads(1)
        os.environ["FORETUNE_THREADS"] = "1"
    print(
        f"{describe_device(workload.precision)}; depth {workload.depth}, {workload.batch_tokens} tokens a step and run"
    )
    cores = f"; {os.cpu_count()} cores" if not on_gpu else ""
    print(f"medians of {ROUNDS} rounds in turn, {steps} steps each{cores}; a pack on a CPU computes with one thread")
    rates = f"{'packed tok/s':>13} {'processes':>10} {'in turn':>10}"
    print(f"{'width':>6} {'runs':>5} {rates} {'x in turn':>10} {'x proc.':>8} MFU")
    for width in workload.widths:
        for count in members:
            report(width, resolve_members(workload, width, count), steps)
    sys.stdout.flush()


def report(width: int, specs: list[RunSpec], steps: int) -> None:
    """Measure one width and number of runs, and print it."""
    tokens = specs[0].training.batch_tokens
    rounds = [(measure_throughput(specs, steps), measure_throughput(specs[:1], steps)) for _ in range(ROUNDS)]
    packed, single = (tokens / statistics.median(values) for values in zip(*rounds, strict=True))
    packed *= len(specs)
    shared = statistics.median(time_processes(specs, steps) for _ in range(1 if len(specs) > 16 else ROUNDS))
    peak = find_peak_flops()
    flops = specs[0].model.shape.flops_per_token(specs[0].data.seq_len)
    utilisation = f"{packed * flops / peak:.3f}" if peak else "-"
    print(
        f"{width:>6} {len(specs):>5} {packed:>13.0f} {shared:>10.0f} {single:>10.0f} {packed / single:>10.2f} "
        f"{packed / shared:>8.2f} {utilisation}",
        flush=True,
    )


def time_processes(specs: list[RunSpec], steps: int) -> float:
    """Total tokens per second of one process a run, all on this device at once."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(len(specs)), context.SimpleQueue()
    fields = [spec.model_dump() for spec in specs]
    processes = [context.Process(target=_train_beside, args=(spec, barrier, steps, seconds)) for spec in fields]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    tokens = specs[0].training.batch_tokens
    return sum(tokens / seconds.get() for _ in processes)


def _train_beside(fields: dict[str, object], barrier: Barrier, steps: int, seconds: SimpleQueue[float]) -> None:
    """One process: warm up, wait for the others, train, and say how long a step took."""
    spec = RunSpec.model_validate(fields)
    seconds.put(measure_throughput([spec], steps, ready=lambda: barrier.wait(timeout=START_SECONDS)))


if __name__ == "__main__":
    main()
