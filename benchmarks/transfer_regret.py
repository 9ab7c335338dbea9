"""The demo study over three seeds: what trusting the forecast costs at the largest width, muP against standard.

Regret is the loss at the predicted learning rate over the best of the runs at the largest width (the predicted one and
its neighbours), less one. Each seed has its own initial weights, data order, forecast and verification.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.places import DEMO
from foretune.answers import Answer
from foretune.launching import launch_study
from foretune.ledger import open_ledger
from foretune.query import answer_study
from foretune.study import Study, load_study

SEEDS = (0, 1, 2)


def main() -> None:
    """Three runs of the whole study, and one table."""
    study = load_study(DEMO)
    print(f"{'seed':>4} {'branch':>9} {'predicted':>10} {'best tried':>10} {'regret %':>9} {'loss inside':>11} "
          f"{'grid steps':>10} {'verdict':>10}")  # fmt: skip
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            answer = run_seed(study, seed, Path(folder))
            report(answer, seed)
            share = float(answer.runs["wall_seconds"].sum()) / (time.monotonic() - started)
            print(f"     wall {time.monotonic() - started:.0f} s, run seconds per wall second {share:.2f}", flush=True)


def run_seed(study: Study, seed: int, folder: Path) -> Answer:
    """The study under another seed, in a ledger of its own."""
    seeded = study.model_copy(update={"study": study.study.model_copy(update={"seed": seed})})
    with open_ledger(folder / "ledger.db", create=True) as ledger:
        launch_study(seeded, ledger, results=folder, quiet=True)
        return answer_study(seeded, ledger)


def report(answer: Answer, seed: int) -> None:
    """One line for each parametrization."""
    for branch in answer.branches:
        check = answer.verification_of(branch.parametrization)
        moved = branch.drift.steps_moved if branch.drift else None
        steps = "-" if moved is None else f"{moved:+.1f}"
        verdict = branch.drift.verdict if branch.drift else "-"
        if check is None or check.regret is None:
            print(f"{seed:>4} {branch.parametrization:>9} no forecast: {branch.problem}")
            continue
        print(
            f"{seed:>4} {branch.parametrization:>9} {check.predicted_lr:>10.4g} {check.best_lr:>10.4g} "
            f"{100 * check.regret:>9.2f} {check.loss_inside!s:>11} {steps:>10} {verdict:>10}"
        )


if __name__ == "__main__":
    main()
