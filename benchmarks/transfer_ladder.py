"""Does the optimum stay where it is? Four widths and three depths under standard, muP and CompleteP, three seeds.

Real training of `studies/transfer_ladder`, with the seeds as repeats of each setting in one study. The optimum of each
width and depth with its interval, and the verdict on each axis, are those of `foretune transfer`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.places import TRANSFER
from foretune.gates.transferring import TransferAnswer, measure_transfer
from foretune.launching import launch_study
from foretune.ledger import Ledger, open_ledger
from foretune.space import Choice
from foretune.study import Study, load_study
from scalelaws import Optimum

SEEDS = (0, 1, 2)


def main() -> None:
    """Train, then print the table and the verdicts."""
    study = seed_study(load_study(TRANSFER), SEEDS)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        with open_ledger(Path(folder) / "ledger.db", create=True) as ledger:
            failed = launch_study(study, ledger, results=Path(folder), quiet=True)
            report(study, ledger)
        print(f"wall {time.monotonic() - started:.0f} s, {failed} runs failed", flush=True)


def seed_study(study: Study, seeds: tuple[int, ...]) -> Study:
    """The study with every setting under several seeds."""
    space = {**study.search.space, "seed": Choice(values=seeds)}
    return study.model_copy(update={"search": study.search.model_copy(update={"space": space})})


def report(study: Study, ledger: Ledger) -> None:
    """The optima, the verdicts, and how the runs ended."""
    name = study.study.name
    frame = ledger.runs(name)
    answer = measure_transfer(name, frame, study)
    for axis in ("width", "depth"):
        print_optima(answer, axis)
    for branch in answer.branches:
        for axis, drift in branch.drifts.items():
            print(f"{branch.parametrization:>10}, {axis}: {drift.message}")
    states = ", ".join(f"{count} {state}" for state, count in frame["status"].value_counts().items())
    print(f"{len(frame)} runs: {states}; {float(frame['wall_seconds'].sum()):.0f} run seconds")


def print_optima(answer: TransferAnswer, axis: str) -> None:
    """A line for each parametrization: the optimum at every place, with its interval."""
    print(f"\noptimal learning rate over {axis} (90 % interval)")
    for branch in answer.branches:
        for ladder in branch.drifts[axis].ladders if axis in branch.drifts else ():
            places = zip(ladder.drift.scale, ladder.drift.optima, strict=True)
            told = "  ".join(f"{place:g}: {_tell(optimum)}" for place, optimum in places)
            print(f"{branch.parametrization:>10}  {told}")


def _tell(optimum: Optimum) -> str:
    if not optimum.status.ok:
        return f"none ({optimum.status.name.lower().replace('_', ' ')}, best tried {optimum.value:.2g})"
    return f"{optimum.value:.3g} ({optimum.low:.2g} to {optimum.high:.2g})"


if __name__ == "__main__":
    main()
