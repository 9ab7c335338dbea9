"""Machines, addresses, memory, and the environment that Ray is given."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from foretune.errors import InputError
from foretune.runners.memory import count_cpus, share_memory
from foretune.runners.nodes import (
    NodeFacts,
    check_address,
    check_nodes,
    check_resources,
    count_slots,
    inspect_node,
    list_import_folders,
)
from foretune.sections import RunnerSection

VERSIONS = {"python": "3.11", "foretune": "0.1.0", "torch": "2.6.0", "ray": "2.60.0"}
NODES = [{"CPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}]


def run_python(code: str, **environment: str) -> str:
    """The output of a fresh interpreter without Ray's variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    variables = inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "ray job submit"),
        ("head", "must be local, auto or HOST:PORT"),
        ("head:port", "must be local, auto or HOST:PORT"),
        ("127.0.0.1:1", "nothing answers"),
        ("127.0.0.1:99999", "nothing answers"),
        ("no-such-host.invalid:6379", "nothing answers"),
    ],
)
def test_useless_addresses_are_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_address(address)


def test_a_port_that_answers_is_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    check_address("local")
    check_address("auto")


def test_nodes_must_agree_in_versions_trainer_and_files(tmp_path: Path) -> None:
    here = NodeFacts("driver", {**VERSIONS, "torch": "2.6.0+cpu"}, sees_workspace=True)
    fine = NodeFacts("a", VERSIONS, sees_workspace=True)
    check_nodes(here, [fine, fine], tmp_path)
    bad = NodeFacts("b", {**VERSIONS, "torch": "2.7.0", "ray": "2.59.0"}, False, ("trainer 'x': cannot import 'x'",))
    with pytest.raises(InputError) as caught:
        check_nodes(here, [fine, bad], tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("node b: ") for line in lines)
    assert "torch must be 2.6.0 as on the first node, got 2.7.0" in str(caught.value)
    assert "ray must be 2.60.0 as on the driver, got 2.59.0" in str(caught.value)


def test_a_node_is_inspected_from_within(tmp_path: Path) -> None:
    facts = inspect_node(str(tmp_path / "absent"), ["toy_trainers:train_toy", "no_such_package:train"])
    assert facts.name == socket.gethostname()
    assert facts.versions["python"] == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert not facts.sees_workspace
    assert len(facts.trainer_problems) == 1


@pytest.mark.parametrize(("cpus", "gpus"), [(16, 0), (9, 0), (0.5, 2)])
def test_a_run_may_take_a_whole_machine(cpus: float, gpus: float) -> None:
    check_resources(RunnerSection(cpus_per_run=cpus, gpus_per_run=gpus), NODES)


@pytest.mark.parametrize(("cpus", "gpus"), [(17, 0), (1, 3), (24, 2)])
def test_a_run_must_fit_on_one_machine(cpus: float, gpus: float) -> None:
    with pytest.raises(InputError, match=r"the largest has 16 CPU and 2 GPU; lower cpus_per_run"):
        check_resources(RunnerSection(cpus_per_run=cpus, gpus_per_run=gpus), NODES)


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrency", "slots"),
    [(1, 0, 64, 24), (1, 0, 5, 5), (2, 0.25, 64, 8), (8, 1, 64, 2), (9, 0, 64, 1)],
)
def test_slots_are_counted_per_machine(cpus: float, gpus: float, concurrency: int, slots: int) -> None:
    assert count_slots(RunnerSection(cpus_per_run=cpus, gpus_per_run=gpus, concurrency=concurrency), NODES) == slots


def test_memory_is_shared_among_the_runs_of_a_machine() -> None:
    whole = share_memory(cpus_per_run=1, concurrency=1)
    assert whole > 2**28
    assert share_memory(1, 10**6) == pytest.approx(whole / count_cpus(), rel=1e-6)
    assert share_memory(10**6, 8) == whole


MEMORY = """
import resource
import numpy as np
from foretune.runners.memory import limit_memory

before = resource.getrlimit(resource.RLIMIT_DATA)
with limit_memory(256 * 2**20):
    fits = np.ones(128 * 2**17)
    try:
        np.ones(512 * 2**17)
    except MemoryError:
        print("refused")
assert resource.getrlimit(resource.RLIMIT_DATA) == before
print(len(np.ones(512 * 2**17)))
"""


def test_a_run_that_wants_more_than_its_share_gets_a_memory_error() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_DATA counts mapped memory on Linux only")
    assert run_python(MEMORY).split() == ["refused", str(512 * 2**17)]


PRIVATE = """
import os
from foretune.runners.environment import prepare_environment
prepare_environment("local")
prepare_environment("local")
print(os.environ["RAY_AUTH_MODE"], os.environ["RAY_TMPDIR"], os.environ["RAY_AUTH_TOKEN_PATH"])
print(oct(os.stat(os.environ["RAY_TMPDIR"]).st_mode), oct(os.stat(os.environ["RAY_AUTH_TOKEN_PATH"]).st_mode))
"""


def test_ray_is_given_a_private_folder_and_token_that_end_with_the_process() -> None:
    words = run_python(PRIVATE).split()
    assert words[0] == "token"
    assert [stat.S_IMODE(int(mode, 8)) for mode in words[3:]] == [0o700, 0o600]
    assert not Path(words[1]).exists()
    assert not Path(words[2]).exists()


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_are_not() -> None:
    prepare = "import os; from foretune.runners.environment import prepare_environment as p; p('local');"
    show = "print(os.environ['RAY_TMPDIR'], flush=True);"
    orphan = Path(run_python(prepare + show + "os._exit(0)"))
    assert orphan.is_dir()
    living = Path(run_python(prepare + show + f"assert not os.path.exists({str(orphan)!r}); os._exit(0)"))
    assert living.is_dir()
    with (living / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_python(prepare)
        assert living.is_dir()
    run_python(prepare)
    assert not living.exists()


def test_what_the_user_has_set_is_kept(tmp_path: Path) -> None:
    code = (
        "import os; from foretune.runners.environment import prepare_environment as p; p('local');"
        "print(os.environ['RAY_AUTH_MODE'], os.environ['RAY_TMPDIR'], os.environ.get('RAY_AUTH_TOKEN_PATH'))"
    )
    kept = run_python(code, RAY_AUTH_MODE="disabled", RAY_TMPDIR=str(tmp_path), RAY_AUTH_TOKEN="t")
    assert kept == f"disabled {tmp_path} None"


def test_a_cluster_is_joined_with_the_users_own_token() -> None:
    code = (
        "import os; from foretune.runners.environment import prepare_environment as p; p('head:6379');"
        "print(os.environ['RAY_AUTH_MODE'], 'RAY_AUTH_TOKEN_PATH' in os.environ)"
    )
    assert run_python(code) == "token False"


def test_importing_runners_is_light() -> None:
    code = "import sys, foretune.runners; print({'ray', 'torch', 'pandas', 'scipy'} & set(sys.modules))"
    assert run_python(code) == "set()"


def test_import_folders_leave_out_what_every_interpreter_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folders = list_import_folders()
    assert folders[0] == str(tmp_path)
    assert not [folder for folder in folders if folder.endswith("site-packages")]
