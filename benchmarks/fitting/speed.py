"""Seconds of one thread: importing scalelaws, a cold fit of the 240 Chinchilla runs, and 4,000 exact bootstraps.

A cold fit is the first of a fresh process, in process time after the import; bootstraps are whole fits of resampled
runs, each at its own minimum, drift and scatter included. Usual: a grid of 4,500 L-BFGS starts takes 55 to 80 s.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.fitting.datasets import FOLDER, read_runs

REPEATS = 7
IMPORT = "import time; s = time.perf_counter(); import scalelaws; print(time.perf_counter() - s)"
POINT = """
import time
import pandas as pd
import scalelaws
from scalelaws.laws.base import FitOptions
from scalelaws.laws.loss import Chinchilla
frame = pd.read_csv({path!r}).query("kept_240").rename(columns={{"N": "params_total"}})
runs = scalelaws.Observations.from_frame(frame, params="params_total")
start = time.process_time()
Chinchilla().pose(runs, FitOptions(objective={objective!r})).solve()
print(time.process_time() - start)
"""
WHOLE = """
import time
import pandas as pd
import scalelaws
frame = pd.read_csv({path!r}).query("kept_240").rename(columns={{"N": "params_total"}})
runs = scalelaws.Observations.from_frame(frame, params="params_total")
start = time.process_time()
scalelaws.fit("chinchilla", runs, objective={objective!r}, bootstrap=4000)
print(time.process_time() - start)
"""


def main() -> None:
    """Prints medians over fresh processes."""
    read_runs("chinchilla_epoch")
    path = str(FOLDER / "chinchilla_epoch.csv")
    print(f"import scalelaws: {measure(IMPORT):.3f} s (median of {REPEATS} fresh processes, wall)")
    for objective in ("huber", "auto"):
        cold = 1e3 * measure(POINT.format(path=path, objective=objective))
        whole = measure(WHOLE.format(path=path, objective=objective))
        print(f"{objective}: cold point fit {cold:.1f} ms, whole fit with 4,000 draws {whole:.2f} s (process time)")
    print(f"package: {count_lines()} lines of Python")


def measure(code: str) -> float:
    """Median of what the code prints in fresh processes of one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    times = []
    for _ in range(REPEATS):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        times.append(float(done.stdout))
    return statistics.median(times)


def count_lines() -> int:
    """Lines of the package's sources."""
    root = Path(__file__).resolve().parents[2] / "fitting" / "scalelaws"
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in root.rglob("*.py"))


if __name__ == "__main__":
    main()
