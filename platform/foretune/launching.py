"""From a study to a finished ledger: what `foretune run` sets up around the main loop."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from foretune.checking import describe_plan
from foretune.execution import execute_study
from foretune.ledger import Ledger
from foretune.progress import ProgressBar
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.study import Study


def launch_study(
    study: Study,
    ledger: Ledger,
    *,
    address: str = "local",
    results: Path = Path("results"),
    quiet: bool = False,
    steal: bool = False,
) -> int:
    """Launch or resume a study and wait for it; the number of its runs that failed.

    Raises InputError before any compute is spent: a plan over the budget, another live driver, a cluster that cannot
    be reached or that has no node large enough. Raises RunnerInterruption when the executor breaks down for good.
    """
    corpus = resolve_corpus(study)
    planned, _, refusal = describe_plan(study, ledger, probe=study.budget.limits_hours, results=results)
    if refusal:
        raise refusal
    workspace = (results / study.study.name).resolve()
    workspace.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written is found out before any compute
    runner = make_runner(study.runner, address=address, workspace=workspace)
    watcher = ProgressBar(quiet=quiet)
    watcher.note(f"runner: {runner.describe()}")
    for note in (*ledger.notes, *corpus.notes, planned.get("note", "")):
        if note:
            watcher.note(note)
    try:
        sweep = partial(_sweep_checkpoints, workspace, ledger, study.study.name)
        execute_study(study, ledger, runner, corpus, watcher, steal=steal, sweep=sweep)
    finally:
        watcher.close()
        runner.close()
    failures = ledger.failures(study.study.name)
    if not failures:  # those are tried again by the next launch, perhaps from the state of another run
        _sweep_checkpoints(workspace, ledger, study.study.name, ())
    return len(failures)


def _sweep_checkpoints(workspace: Path, ledger: Ledger, study: str, retained: Collection[str]) -> None:
    """Remove the checkpoints of runs that have ended, but for those that others may go on from.

    Those of a failed run go only when the study asks for it no more: it may be tried again and go on from them. A
    folder in which nothing is left goes, too.
    """
    folders = {folder.name: folder for folder in (workspace / "runs").glob("*")}
    kept = {*retained, *(failure.run_id for failure in ledger.failures(study))}
    for run_id in ledger.statuses([run_id for run_id in folders if run_id not in kept]):
        shutil.rmtree(folders[run_id] / "checkpoints", ignore_errors=True)
        with suppress(OSError):
            folders[run_id].rmdir()
