"""What a generation of a population costs beside its steps: from what stayed on the device, and from files.

Eight members of one pack, each generation copied and changed from the one before, through the same trainer; both ways
in turn, generation by generation, so that what else the machine does meets both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.devices import describe_device
from foretune.proxies.residents import RESIDENTS, Residents
from foretune.proxies.train import train_runs
from foretune.records import Phase, RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.study import read_study

WIDTHS = (32, 96)
MEMBERS = 8
GENERATIONS = 13
STEPS = 2
"""Steps of a generation: few, since they cost the same both ways."""


def main() -> None:
    """Print the seconds of a generation both ways."""
    clock = "wall time" if torch.cuda.is_available() else "process time"
    print(f"{describe_device('float32')}; {MEMBERS} members, medians of {GENERATIONS - 1} generations, {clock}")
    print(f"{'width':>6} {'parameters':>11} {'from device':>12} {'from files':>11} {'saved, with quartiles':>24}")
    for width in WIDTHS:
        roots = resolve_roots(width)
        device, files = measure_generations(roots)
        low, middle, high = statistics.quantiles([more - less for less, more in zip(device, files, strict=True)])
        print(
            f"{width:>6} {roots[0].model.shape.params_total:>11} {statistics.median(device) * 1e3:>9.0f} ms "
            f"{statistics.median(files) * 1e3:>8.0f} ms {middle * 1e3:>8.0f} ms ({low * 1e3:.0f} to {high * 1e3:.0f})"
        )


def resolve_roots(width: int) -> list[RunSpec]:
    """The members as they begin, of different seeds."""
    study = read_study(
        {
            "study": {"name": "generations"},
            "proxy": {"base_width": 32, "head_size": 8, "depth": 2},
            "scales": [{"name": "all", "width": width, "tokens": 409_600}],
            "data": {"seq_len": 128, "validation_sequences": 1},
            "training": {"batch_tokens": 512, "schedule": "constant", "warmup": 10_240, "evaluations": 1},
            "search": {"space": {"peak_lr": [2**-6], "seed": list(range(MEMBERS))}},
        }
    )
    return list(ask_search(study, resolve_corpus(study)).specs)


def measure_generations(roots: list[RunSpec]) -> tuple[list[float], list[float]]:
    """Seconds of each generation but the first: from the device, and from files."""
    seconds: dict[str, list[float]] = {"device": [], "files": []}
    with tempfile.TemporaryDirectory() as folder:
        for specs in plan_generations(roots):
            for way, found in seconds.items():
                spent = train_generation(specs, Path(folder) / way, hold=way == "device")
                found += [spent] if specs[0].parent_run_id else []
    HELD.clear()
    return seconds["device"], seconds["files"]


HELD: list[Residents] = []
"""What the way over the device has left, while the other one is timed."""


def train_generation(specs: list[RunSpec], workspace: Path, *, hold: bool) -> float:
    """Seconds of a generation; `hold` goes on with what the last one that did so left on the device."""
    RESIDENTS.release()
    if hold and HELD and HELD[0].stepper:
        RESIDENTS.keep(HELD[0].stepper, HELD[0].rows)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    began = clock()
    for _ in train_runs(specs, [workspace / spec.run_id for spec in specs], lambda *_: None):
        pass
    spent = clock() - began
    if hold:
        HELD[:] = [Residents(RESIDENTS.stepper, RESIDENTS.rows)]
    RESIDENTS.release()
    return spent


def plan_generations(members: list[RunSpec]) -> Iterator[list[RunSpec]]:
    """Generations of a few steps: the second half of the places copies the first half and changes the rate."""
    for number in range(GENERATIONS):
        start = number * STEPS
        change = Phase(start_step=start, settings={"peak_lr": 2**-6 * 1.01**number})
        donors = [*members[: MEMBERS // 2], *members[: MEMBERS // 2]] if start else members
        members = [
            donor.model_copy(
                update={
                    "stop_step": start + STEPS,
                    "phases": (*donor.phases, *([change] if start and place >= MEMBERS // 2 else [])),
                    "parent_run_id": donor.run_id if start else "",
                    "parent_step": start,
                }
            )
            for place, donor in enumerate(donors)
        ]
        yield members


if __name__ == "__main__":
    main()
