"""Runs lost and runs repeated when the driver is killed (-9) at random moments and started again.

A finished run is lost if it was in the ledger at a kill and is not there, or has another loss, later. It is repeated
if a later launch executes it again, which the launch says when it comes to record it.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.places import DEMO
from foretune.ledger import open_ledger

REPLAY_KILLS, REAL_KILLS = 10, 2
ALREADY = re.compile(r"run \w+ was in the ledger already")


def main() -> None:
    """Ten kills of a replayed study and two of a real one."""
    for name, kills, span in (("replay", REPLAY_KILLS, (1.0, 4.0)), ("real, Ray Tune", REAL_KILLS, (15.0, 40.0))):
        with tempfile.TemporaryDirectory() as folder:
            study = write_study(Path(folder), real=name != "replay")
            lost, repeated, launches, rows = torment(study, Path(folder), kills, span, seed=0)
            print(f"{name}: {launches - 1} kills, {rows} runs in the end, {lost} lost, {repeated} repeated")


def write_study(folder: Path, *, real: bool) -> Path:
    """The demo study: as it is on one horizon, or replayed with a pause in every run."""
    text = (DEMO / "study.toml").read_text(encoding="utf-8")
    if not real:
        surface = '[runner]\nkind = "replay"\n\n[runner.surface]\nlr_coefficient = 1.0\n'
        surface += "lr_params_exponent = { mup = -0.4, standard = -0.5 }\nlr_tokens_exponent = 0.0\n"
        surface += "lr_curvature = 0.02\nseconds_per_run = 0.15\n"
        text = re.sub(r"\[runner\].*?(?=\n\[budget\])", surface, text, flags=re.DOTALL)
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def torment(study: Path, folder: Path, kills: int, span: tuple[float, float], seed: int) -> tuple[int, int, int, int]:
    """Launch and kill `kills` times, then let it finish: (lost, repeated, launches, rows at the end)."""
    chance = random.Random(seed)
    seen: dict[str, float | None] = {}
    lost = repeated = launches = 0
    while True:
        before = read_ledger(folder)
        lost += sum(1 for run_id in seen if run_id not in before)
        seen |= before
        launches += 1
        done, log = launch(study, folder, chance.uniform(*span) if launches <= kills else None)
        repeated += count_repeated(log)
        if done:
            after = read_ledger(folder)
            changed = sum(1 for run_id, loss in seen.items() if run_id not in after or after[run_id] != loss)
            return lost + changed, repeated, launches, len(after)


def launch(study: Path, folder: Path, kill_after: float | None) -> tuple[bool, str]:
    """One launch of the command line; whether it came to its end, and what it said."""
    command = [sys.executable, "-m", "foretune.cli", "run", str(study), "--quiet"]
    command += ["--ledger", str(folder / "ledger.db"), "--results", str(folder / "results")]
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.2)
        log.seek(0)
        text = log.read()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the launch failed with {process.returncode}:\n{text}")
    return process.returncode == 0, text


def count_repeated(log: str) -> int:
    """Runs that a launch executed although the ledger held them: it says so when it comes to record them."""
    return len(ALREADY.findall(log))


def read_ledger(folder: Path) -> dict[str, float | None]:
    """Loss of every run in the ledger."""
    if not (folder / "ledger.db").exists():
        return {}
    with open_ledger(folder / "ledger.db") as ledger:
        if not ledger.studies():
            return {}
        frame = ledger.runs()
    return {
        run: None if pd.isna(loss) else float(loss) for run, loss in zip(frame["run_id"], frame["loss"], strict=True)
    }


if __name__ == "__main__":
    main()
