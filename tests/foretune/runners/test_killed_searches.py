"""A search on a real Ray whose workers and whose driver are killed (-9): it ends as one that nothing happened to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.progress import ProgressBar
from foretune.records import Decision
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.study import load_study

pytestmark = pytest.mark.live
STUDY = """
trainable = "toy_trainers:{trainer}"
[study]
name = "searched"
[proxy]
base_width = 32
head_size = 16
depth = 2
[[scales]]
name = "w32"
width = 32
tokens = 92_160
[training]
batch_tokens = 1024
warmup = 2048
[search]
strategy = "halving"
runs = 9
[search.space]
peak_lr = {{ low = 1e-4, high = 0.1 }}
[search.halving]
min_tokens = 10_240
[runner]
kind = "{kind}"
concurrency = 2
"""
KILL_AFTER = (3, 10)
"""Results in the ledger at which the driver is killed: among the first settings, and after the first decisions."""


def write_study(folder: Path, kind: str, trainer: str) -> Path:
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY.format(kind=kind, trainer=trainer), encoding="utf-8")
    return folder / "study.toml"


def launch(study: Path, kill_after: int) -> str:
    """What the command line said; it is killed when the ledger holds so many results, if more than 0."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "foretune.cli", "run", "study.toml", "--ledger", "ledger.db", "--quiet"]
    with (study.parent / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=study.parent, env=environment | {"PYTHONPATH": path}
        )
        while kill_after and process.poll() is None and count_results(study.parent / "ledger.db") < kill_after:
            time.sleep(0.02)
        if kill_after:
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=240)
    return (study.parent / "log").read_text(encoding="utf-8")


def count_results(path: Path) -> int:
    if not path.exists():
        return 0
    with open_ledger(path) as ledger:
        return len(ledger.runs()) if ledger.studies() else 0


def read(ledger: Ledger) -> tuple[list[Decision], dict[str, float]]:
    """What was decided, and what came of it."""
    frame = ledger.runs("searched")
    assert frame["status"].eq("completed").all()
    return ledger.decisions("searched"), dict(zip(frame["run_id"], frame["loss"], strict=True))


def test_a_killed_search_goes_on_with_the_same_proposals(tmp_path: Path) -> None:
    killed = write_study(tmp_path / "killed", "ray", "train_fragile")
    said = [launch(killed, after) for after in (*KILL_AFTER, 0)]
    assert not [line for text in said for line in re.findall(r"run \w+ was in the ledger already", text)]
    assert list(killed.parent.rglob("runs/*/mark")), "some workers were killed, too"
    with open_ledger(tmp_path / "killed/ledger.db") as ledger:
        decisions, losses = read(ledger)
    calm = load_study(write_study(tmp_path / "calm", "inline", "train_toy"))
    with open_ledger(tmp_path / "calm.db", create=True) as ledger:
        runner = make_runner(calm.runner, workspace=tmp_path)
        execute_study(calm, ledger, runner, resolve_corpus(calm), ProgressBar(quiet=True))
        expected, expected_losses = read(ledger)
    assert len(decisions) == 9 + 3 + 1
    assert [item.details for item in decisions] == [item.details for item in expected]
    assert sorted(losses.values()) == sorted(expected_losses.values()), "the trainer's name is part of a run's id"
