"""Tokens per second of one proxy, beside the loops that others would write for the same model and batch.

The peers (benchmarks/peers.py) are timed in turn with ours, on one thread of a CPU or on the GPU; a peer's batches lie
ready in memory, ours come from the corpus. On a CPU the bare matrix products of the same shapes stand beside them: the
least that such a model must compute. Ratios are ours over theirs: above 1 ours trains more tokens.
"""

from __future__ import annotations

import os
import statistics

import torch

from benchmarks.devices import choose_device, describe_device, find_peak_flops
from benchmarks.peers import time_compact_loop, time_products, time_transformers_loop
from benchmarks.shapes import Workload, resolve_members
from foretune.proxies.train import measure_throughput
from foretune.records import RunSpec

ON_CPU = Workload(widths=(32, 64, 128, 256), depth=2, seq_len=128, batch_tokens=2048, precision="float32")
ON_GPU = Workload(widths=(64, 128, 256, 512, 1024), depth=8, seq_len=512, batch_tokens=65536, precision="bfloat16")
ROUNDS = 5


def main() -> None:
    """One line for each width."""
    device = choose_device()
    on_gpu = device.type == "cuda"
    workload, steps = (ON_GPU, 50) if on_gpu else (ON_CPU, 5)
    if not on_gpu:
        torch.set_num_threads(1)
        os.environ["FORETUNE_THREADS"] = "1"
    print(f"{describe_device(workload.precision)}; depth {workload.depth}, {workload.batch_tokens} tokens a step")
    print(f"medians of {ROUNDS} rounds in turn, {steps} steps each{'; ours and compact compiled' if on_gpu else ''}")
    last = "MFU" if on_gpu else "products only"
    names = f"{'width':>6} {'params':>9} {'ours, tok/s':>12} {'transformers':>13} {'ratio':>6}"
    print(f"{names} {'compact':>9} {'ratio':>6} {last:>14}")
    for width in workload.widths:
        report(resolve_members(workload, width, 1)[0], device, steps)


def report(spec: RunSpec, device: torch.device, steps: int) -> None:
    """Measure one width and print it."""
    tokens = spec.training.batch_tokens
    rounds = [
        (
            measure_throughput([spec], steps),
            time_transformers_loop(spec, device, steps),
            time_compact_loop(spec, device, steps, compiled=device.type == "cuda"),
        )
        for _ in range(ROUNDS)
    ]
    ours, library, compact = (tokens / statistics.median(values) for values in zip(*rounds, strict=True))
    bound = _compare_to_bound(spec, device, steps, ours)
    print(
        f"{spec.model.width:>6} {spec.model.shape.params_non_embedding:>9} {ours:>12.0f} {library:>13.0f} "
        f"{ours / library:>6.2f} {compact:>9.0f} {ours / compact:>6.2f} {bound:>14}",
        flush=True,
    )


def _compare_to_bound(spec: RunSpec, device: torch.device, steps: int, tokens_per_second: float) -> str:
    if device.type == "cpu":
        return f"{spec.training.batch_tokens / time_products(spec, steps):.0f}"
    peak = find_peak_flops()
    flops = spec.model.shape.flops_per_token(spec.data.seq_len) * tokens_per_second
    return f"{flops / peak:.3f}" if peak else "-"


if __name__ == "__main__":
    main()
