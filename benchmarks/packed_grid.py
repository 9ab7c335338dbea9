"""A learning-rate grid through `foretune run`, packed and unpacked: wall time of the whole command, losses compared.

The same study, each time with a fresh ledger, inline in one process on one thread (CPU) or on the GPU, so that nothing
but the packing differs. Rounds in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import foretune
from benchmarks.devices import describe_device

ROUNDS = 3
PACKS = (1, 4, 12)
STUDY = """
[study]
name = "packed-grid"
[proxy]
base_width = 32
head_size = 8
depth = 2
[[scales]]
name = "w32"
width = 32
tokens = 51_200
[data]
seq_len = 128
[training]
batch_tokens = 512
[search.space]
peak_lr = {{ low = "2^-9", high = "2^-4", factor = 2 }}
weight_decay = [0.1, 0.2]
[runner]
kind = "inline"
pack = {pack}
"""


def main() -> None:
    """One line for each size of pack."""
    print(
        f"{describe_device('float32')}; 12 runs of width 32, 512 tokens a step, 100 steps; medians of {ROUNDS} rounds"
    )
    rounds = [{pack: run_study(pack) for pack in PACKS} for _ in range(ROUNDS)]
    alone = statistics.median(found[1][0] for found in rounds)
    for pack in PACKS:
        seconds = statistics.median(found[pack][0] for found in rounds)
        apart = max(abs(rounds[0][pack][1][key] - loss) for key, loss in rounds[0][1][1].items())
        print(f"pack {pack:>3}: {seconds:6.1f} s, {alone / seconds:.2f} x unpacked, losses within {apart:.1e}")


def run_study(pack: int) -> tuple[float, dict[str, float]]:
    """Seconds of the command, and the losses of the runs by id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.toml").write_text(STUDY.format(pack=pack), encoding="utf-8")
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "foretune.cli", "run", str(folder / "study.toml"), "--quiet"],
            cwd=folder,
            env=os.environ | {"FORETUNE_LEDGER": str(folder / "ledger.db"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # a grid of one width has no law of the loss to answer with
        )
        seconds = time.perf_counter() - began
        with foretune.open_ledger(str(folder / "ledger.db")) as ledger:
            frame = ledger.runs(study="packed-grid")
    done = frame[frame["status"] == "completed"]
    return seconds, dict(zip(done["run_id"], done["loss"], strict=True))


if __name__ == "__main__":
    main()
