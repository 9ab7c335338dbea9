"""A population of eight real proxies killed (-9) six times ends with the lineage and the losses of one never killed.

Five kills of the driver and one of a worker, each after a random number of runs while others are at work; the same
command is then started again. Compared are every decision of the search (members, donors, settings, scores seen) and
the loss of every run, to the last bit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.places import POPULATION
from foretune.ledger import open_ledger
from foretune.records import Decision

KILLS, WORKER_KILL = 6, 3
"""Kills in all, and which of them hits a worker."""
SPAN = (2, 12)
"""Runs that end in a launch before it is hit, and up to a second later; there are 80."""
Ending = tuple[list[Decision], dict[str, float | None]]


def main() -> None:
    """The study once in peace and once tormented, and whether they ended the same."""
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder))
        peaceful, launches, _ = torment(study, Path(folder) / "peaceful", 0)
        killed, launches, hits = torment(study, Path(folder) / "killed", KILLS)
    exploits = sum(item.kind == "exploit" for item in peaceful[0])
    print(f"{len(peaceful[1])} runs, {len(peaceful[0])} decisions, {exploits} of them copies")
    print(f"killed: {', '.join(hits)}; {launches} launches")
    print(f"same decisions: {killed[0] == peaceful[0]}; same losses to the last bit: {killed[1] == peaceful[1]}")


def write_study(folder: Path) -> Path:
    """The small population without its replays, at a third of its horizon."""
    text = (POPULATION / "study.toml").read_text(encoding="utf-8")
    text = re.sub(r"\[search\.replay\].*?(?=\n\[)", "", text, flags=re.DOTALL)
    text = text.replace("655_360", "245_760").replace("65_536", "24_576")
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def torment(study: Path, folder: Path, kills: int) -> tuple[Ending, int, list[str]]:
    """Launch and kill `kills` times, then let it finish: how it ended, the launches, and what was hit."""
    folder.mkdir()
    chance, hits, launches = random.Random(0), list[str](), 0
    while True:
        launches += 1
        process = start(study, folder)
        while len(hits) < kills and wait_for_runs(process, folder, chance.randint(*SPAN)):
            time.sleep(chance.random())
            hits.append(hit(process, is_worker=len(hits) + 1 == WORKER_KILL))
        process.wait()
        if process.returncode == 0:
            return read_ending(folder), launches, hits
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"the launch failed with {process.returncode}:\n{(folder / 'log').read_text()}")


def wait_for_runs(process: subprocess.Popen[bytes], folder: Path, runs: int) -> bool:
    """Wait until so many more runs are in the ledger; False when the launch ends before."""
    wanted = count_runs(folder) + runs
    while process.poll() is None:
        if count_runs(folder) >= wanted:
            return True
        time.sleep(0.5)
    return False


def start(study: Path, folder: Path) -> subprocess.Popen[bytes]:
    """One launch of the command line."""
    command = [sys.executable, "-m", "foretune.cli", "run", str(study), "--quiet"]
    command += ["--ledger", str(folder / "ledger.db"), "--results", str(folder / "results")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)


def hit(process: subprocess.Popen[bytes], *, is_worker: bool) -> str:
    """Kill the driver, or one worker of it and let the driver go on; says which."""
    workers = [pid for pid in list_descendants(process.pid) if read_title(pid).startswith("ray::")]
    busy = [pid for pid in workers if "IDLE" not in read_title(pid)]
    if is_worker and busy:
        os.kill(busy[0], signal.SIGKILL)
        return "a worker"
    process.send_signal(signal.SIGKILL)
    return "the driver"


def list_descendants(pid: int) -> list[int]:
    """The processes below a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found = [pid]
    for place in found:
        found += [child for child, parent in parents.items() if parent == place]
    return found[1:]


def read_title(pid: int) -> str:
    """How a process calls itself; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def count_runs(folder: Path) -> int:
    """Runs that the ledger holds by now."""
    return len(read_ending(folder)[1]) if (folder / "ledger.db").exists() else 0


def read_ending(folder: Path) -> Ending:
    """Every decision, and the loss of every run."""
    with open_ledger(folder / "ledger.db") as ledger:
        decisions = ledger.decisions("pbt_small")
        results = ledger.results([item.run_id for item in decisions])
    return decisions, {item.run_id: item.loss for item in results}


if __name__ == "__main__":
    main()
