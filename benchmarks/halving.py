"""Successive halving beside random search at equal training FLOPs, on real small proxies.

Both draw settings from the same sequence of the same space (peak learning rate, weight decay, beta2), through
`execute_study`. Halving begins 27 of them and stops all but one in three at 1/9 and 1/3 of the horizon, which costs as
much as 7 whole runs: so many has random search. `asha` decides without waiting for a level, and so goes on with more
settings than that: its FLOPs are higher. Judged is the held-out loss, at the end of the horizon, of the setting
that each recommends; the runs of one study seed have one seed. What was spent is read from the ledger.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.devices import describe_device
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.study import Study, read_study

SEEDS = 5
STEPS, BATCH_TOKENS = 216, 512
HALVING: dict[str, Any] = {"runs": 27, "halving": {"min_tokens": STEPS * BATCH_TOKENS // 9, "reduction": 3}}
WAYS: dict[str, dict[str, Any]] = {
    "random": {"strategy": "random", "runs": 7},
    "halving": {"strategy": "halving", **HALVING},
    "asha": {"strategy": "halving", "synchronous": False, "batch": 4, **HALVING},
}
SPACE = {
    "peak_lr": {"low": 1e-4, "high": 0.3},
    "weight_decay": {"low": 1e-3, "high": 1.0},
    "beta2": {"low": 0.8, "high": 0.999, "scale": "linear"},
}


def main() -> None:
    """A line for each way to search, with the spread over seeds, and the paired difference from random search."""
    print(f"{describe_device('float32')}; {SEEDS} seeds, {STEPS} steps of {BATCH_TOKENS} tokens, width 32, depth 2")
    found = {way: [search(way, seed) for seed in range(SEEDS)] for way in WAYS}
    for way, results in found.items():
        losses, flops, seconds = (list(column) for column in zip(*results, strict=True))
        gaps = [loss - other for loss, (other, _, _) in zip(losses, found["random"], strict=True)]
        print(
            f"  {way:8} loss {statistics.fmean(losses):.4f} +- {statistics.stdev(losses):.4f}, less random search's "
            f"{statistics.fmean(gaps):+.4f} +- {statistics.stdev(gaps):.4f} ({sum(gap < 0 for gap in gaps)} of {SEEDS} "
            f"lower), {statistics.fmean(flops):.3g} FLOPs, {statistics.fmean(seconds):.0f} s of CPU"
        )


def search(way: str, seed: int) -> tuple[float, float, float]:
    """Loss of what is recommended, FLOPs spent, CPU seconds."""
    began = time.process_time()
    study = make_study(way, seed)
    with tempfile.TemporaryDirectory() as name, open_ledger(Path(name) / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=Path(name))
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        frame = ledger.runs(study.study.name)
    whole = frame[frame["tokens"].eq(frame["horizon_tokens"].fillna(frame["tokens"]))]
    return float(whole["loss"].min()), float(frame["spent_flops"].sum()), time.process_time() - began


def make_study(way: str, seed: int) -> Study:
    """One search."""
    return read_study(
        {
            "study": {"name": f"{way}-{seed}", "seed": seed},
            "proxy": {"parametrization": "mup", "base_width": 32, "head_size": 8, "depth": 2},
            "scales": [{"name": "w32", "width": 32, "tokens": STEPS * BATCH_TOKENS}],
            "data": {"seq_len": 128, "validation_sequences": 64},
            "training": {"batch_tokens": BATCH_TOKENS, "warmup": 10 * BATCH_TOKENS},
            "search": {"space": SPACE, **WAYS[way]},
            "runner": {"kind": "inline", "pack": 9},
        }
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
