"""Faults on a real Ray: dying workers, trainers that break their promise, leaking state, a broken executor."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.errors import InputError, RunnerInterruption
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.runners import make_runner
from foretune.runners.memory import count_cpus
from foretune.sections import RunnerSection
from foretune_factories import make_spec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("shared_ray")]


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


def execute(section: RunnerSection, specs: list[RunSpec], workspace: Path) -> dict[str, RunOutcome]:
    """Outcomes by the trainer's function; every spec must name another."""
    runner = make_runner(section, workspace=workspace)
    return {spec.trainer.partition(":")[2]: outcome for spec, outcome in runner.run(specs, ignore)}


Rounds = list[list[RunOutcome]]
FAULTS = ["raise_once", "kill_once", "kill_always", "exit_hard", "return_nothing", "return_nan", "return_nan_domain"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def outcomes(shared_ray: None, workspace: Path) -> dict[str, RunOutcome]:
    """All faults in one experiment, beside a healthy run."""
    specs = [make_spec(trainer=f"toy_trainers:{name}") for name in [*FAULTS, "train_toy"]]
    return execute(RunnerSection(kind="ray", retries=1), specs, workspace)


def test_faults_stay_with_their_run(outcomes: dict[str, RunOutcome]) -> None:
    completed = {name for name, outcome in outcomes.items() if outcome.status is RunStatus.COMPLETED}
    assert completed == {"raise_once", "kill_once", "train_toy"}
    assert {outcome.status for name, outcome in outcomes.items() if name not in completed} == {RunStatus.FAILED}


def test_a_killed_worker_is_replaced_and_the_run_goes_on_from_its_checkpoint(outcomes: dict[str, RunOutcome]) -> None:
    assert outcomes["kill_once"].reason == "resumed at step 20"


def test_a_run_that_kills_every_worker_fails_after_its_retries(
    outcomes: dict[str, RunOutcome], workspace: Path
) -> None:
    assert "the worker process died" in outcomes["kill_always"].reason
    run_id = make_spec(trainer="toy_trainers:kill_always").run_id
    assert len(list((workspace / "runs" / run_id).glob("attempt-*"))) == 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("exit_hard", "the worker process died"),
        ("return_nothing", "the trainer must return a RunOutcome, got NoneType"),
        ("return_nan", "a completed run must have a finite loss, got nan"),
        ("return_nan_domain", "the trainer's outcome cannot be written as JSON"),
    ],
)
def test_reasons_say_what_happened(outcomes: dict[str, RunOutcome], name: str, reason: str) -> None:
    assert outcomes[name].reason.startswith(reason)


def test_tune_leaves_no_files(outcomes: dict[str, RunOutcome], workspace: Path) -> None:
    assert list((workspace / "tune").iterdir()) == []


def test_nothing_leaks_from_run_to_run_in_a_reused_worker(tmp_path: Path) -> None:
    specs = [make_spec(trainer="toy_trainers:leak", seed=seed) for seed in range(3)]
    runner = make_runner(RunnerSection(kind="ray", concurrency=1), workspace=tmp_path)
    outcomes = [outcome for _, outcome in runner.run(specs, ignore)]
    assert len({outcome.reason for outcome in outcomes}) == 1, "one worker for all, or nothing is shown"
    assert outcomes[0].reason.endswith("[]"), "the canary must change all that it looks at"
    states = [ast.literal_eval(outcome.device) for outcome in outcomes]
    assert states[0] == states[1] == states[2]
    assert states[0]["canary"] is None
    assert states[0]["threads"] == 1


def test_impossible_resources_are_refused_at_once(tmp_path: Path) -> None:
    runner = make_runner(RunnerSection(kind="ray", cpus_per_run=4096), workspace=tmp_path)
    began = time.monotonic()
    with pytest.raises(InputError, match=f"no machine has 4096 CPU .* has {count_cpus()} CPU"):
        list(runner.run([make_spec(trainer="toy_trainers:train_toy")], ignore))
    assert time.monotonic() - began < 5


def test_closing_stops_the_workers(tmp_path: Path) -> None:
    specs = [make_spec(trainer="toy_trainers:sleep_long", seed=seed) for seed in range(3)]

    def interrupt(spec: RunSpec, point: CurvePoint) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(make_runner(RunnerSection(kind="ray"), workspace=tmp_path).run(specs, interrupt))
    assert time.monotonic() - began < 15
    pids = [int(file.read_text()) for file in tmp_path.glob("runs/*/pid")]
    assert pids
    assert wait_until_gone(pids, seconds=5)


def stream_rounds(section: RunnerSection, workspace: Path, rounds: int, between: Callable[[list[int]], None]) -> Rounds:
    """Rounds of two runs with a barrier between them, at which nothing runs; the processes of each round."""
    ended: list[tuple[RunSpec, RunOutcome]] = []

    def make_round(number: int) -> list[RunSpec]:
        return [make_spec(trainer="toy_trainers:tell_process", seed=2 * number + place) for place in range(2)]

    def more() -> list[RunSpec]:
        if len(ended) % 2 or len(ended) == 2 * rounds:
            return []
        between([int(outcome.device) for _, outcome in ended])
        return make_round(len(ended) // 2)

    for pair in make_runner(section, workspace=workspace).run(make_round(0), ignore, more=more):
        ended.append(pair)
    return [[outcome for _, outcome in ended[first : first + 2]] for first in range(0, len(ended), 2)]


def test_workers_stay_from_round_to_round(tmp_path: Path) -> None:
    """Ray Tune by itself keeps one idle worker; another one would import torch anew in every round."""
    rounds = stream_rounds(RunnerSection(kind="ray", concurrency=2), tmp_path, 6, lambda processes: None)
    workers = [sorted(outcome.device for outcome in outcomes) for outcomes in rounds]
    assert len(set(workers[0])) == 2
    assert workers == [workers[0]] * 6


def test_a_worker_killed_between_rounds_costs_no_attempt(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill(processes: list[int]) -> None:
        if len(processes) == 4:
            killed.append(processes[-1])
            os.kill(processes[-1], signal.SIGKILL)
            wait_until_gone(processes[-1:], seconds=5)

    rounds = stream_rounds(RunnerSection(kind="ray", concurrency=2, retries=0), tmp_path, 4, kill)
    assert killed
    assert [[outcome.status for outcome in outcomes] for outcomes in rounds] == [[RunStatus.COMPLETED] * 2] * 4
    assert str(killed[0]) not in {outcome.device for outcomes in rounds[2:] for outcome in outcomes}


def test_a_fault_within_a_stream_stays_with_its_run(tmp_path: Path) -> None:
    ended: dict[str, RunOutcome] = {}

    def more() -> list[RunSpec]:
        names = ["kill_once", "kill_always", "raise_once"]
        return [make_spec(trainer=f"toy_trainers:{name}") for name in names] if len(ended) == 1 else []

    runner = make_runner(RunnerSection(kind="ray", retries=1), workspace=tmp_path)
    for spec, outcome in runner.run([make_spec(trainer="toy_trainers:train_toy")], ignore, more=more):
        ended[spec.trainer.partition(":")[2]] = outcome
    assert {name: outcome.status.value for name, outcome in ended.items()} == {
        "train_toy": "completed",
        "kill_once": "completed",
        "kill_always": "failed",
        "raise_once": "completed",
    }


def test_a_storage_that_cannot_be_written_interrupts_the_study(tmp_path: Path) -> None:
    (tmp_path / "tune").write_text("a file where Tune wants a folder")
    runner = make_runner(RunnerSection(kind="ray"), workspace=tmp_path)
    with pytest.raises(RunnerInterruption, match="Ray broke down with 1 runs to do"):
        list(runner.run([make_spec(trainer="toy_trainers:train_toy")], ignore))


def test_a_storage_that_goes_away_interrupts_the_study(tmp_path: Path) -> None:
    runner = make_runner(RunnerSection(kind="ray", retries=0), workspace=tmp_path)
    with pytest.raises(RunnerInterruption, match="with 1 runs to do"):
        list(runner.run([make_spec(trainer="toy_trainers:remove_storage")], ignore))


DRIVER = """
import signal, sys
from pathlib import Path
from foretune.runners import make_runner
from foretune.sections import RunnerSection
from foretune_factories import make_spec

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
runner = make_runner(RunnerSection(kind="ray"), workspace=Path(sys.argv[1]))
specs = [make_spec(trainer="toy_trainers:sleep_long", seed=seed) for seed in range(2)]
for _ in runner.run(specs, lambda spec, point: print("heard", flush=True)):
    pass
"""


def test_a_terminated_driver_takes_its_ray_and_its_folder_with_it(tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    temporary.mkdir()
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "heard\n"
        pids = [int(file.read_text()) for file in tmp_path.glob("runs/*/pid")]
        folders = list_private_folders(driver.pid)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=15) == 75
    assert wait_until_gone(pids, seconds=5)
    assert folders
    assert not any(folder.exists() for folder in folders)


CLUSTER = """
import sys
from pathlib import Path
from foretune.errors import InputError
from foretune.runners import make_runner
from foretune.runners.environment import prepare_environment
from foretune.sections import RunnerSection
from foretune_factories import make_spec

prepare_environment("local")  # one token for both sides
from ray.cluster_utils import Cluster

memory = 80 * 2**20
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
second = cluster.add_node(num_cpus=1, object_store_memory=memory)
workspace = Path(sys.argv[1])
runner = make_runner(RunnerSection(kind="ray", retries=0), address=cluster.address, workspace=workspace)
specs = [make_spec(trainer="toy_trainers:nap", seed=seed) for seed in range(5)]
for number, (spec, outcome) in enumerate(runner.run(specs, lambda spec, point: None)):
    print(outcome.status.value, runner.describe(), flush=True)
    if number == 0:
        cluster.remove_node(second, allow_graceful=False)
runner.close()
cluster.shutdown()
"""


def test_runs_of_a_lost_node_move_to_another_without_a_retry(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_health_check_period_ms": "1000"}
    environment["RAY_health_check_initial_delay_ms"] = "1000"  # a dead node is found in 6 s, not in 20
    command = [sys.executable, "-c", CLUSTER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["completed"] * 5, f"{done.stdout}\n{done.stderr}"
    assert lines[0].endswith("2 runs at once")


def list_private_folders(pid: int) -> list[Path]:
    """The Ray folders that processes started by this driver were told of."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) != pid:
                continue
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found |= {Path(text.partition("=")[2]) for text in variables if text.startswith("RAY_TMPDIR=")}
    return sorted(found)


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    """Whether the processes end in time; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
