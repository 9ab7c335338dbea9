"""What the machines of a cluster say of themselves, and whether runs can work there. No Ray in here."""

from __future__ import annotations

import platform
import re
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from foretune.errors import InputError
from foretune.runners.trainers import load_trainer
from foretune.sections import RunnerSection

_CONNECT_SECONDS = 5.0
"""How long a cluster's head may take to accept a connection: an assumption, ample within a data centre."""
_PACKAGES = ("foretune", "torch", "ray")


@dataclass(frozen=True)
class NodeFacts:
    """One machine, as seen from a process on it."""

    name: str
    """Host name."""
    versions: Mapping[str, str]
    """Versions of python and of the packages that compute or carry results."""
    sees_workspace: bool
    """Whether the probe file of the workspace is visible there."""
    trainer_problems: tuple[str, ...] = ()
    """Why a trainer cannot be loaded there."""


def inspect_node(probe_file: str, trainers: Sequence[str]) -> NodeFacts:
    """The facts of the machine that this is called on."""
    python = ".".join(platform.python_version_tuple()[:2])
    versions = {"python": python} | {name: _find_version(name) for name in _PACKAGES}
    problems = []
    for trainer in trainers:
        try:
            load_trainer(trainer)
        except InputError as error:
            problems.append(str(error))
    return NodeFacts(socket.gethostname(), versions, Path(probe_file).is_file(), tuple(problems))


def check_nodes(here: NodeFacts, nodes: Sequence[NodeFacts], workspace: Path) -> None:
    """Raise InputError listing the nodes with other versions, no trainer, or another file system.

    A driver may have a torch without CUDA, since it trains nothing; the nodes must have one and the same.
    """
    expected = {**here.versions, "torch": nodes[0].versions["torch"]} if nodes else {}
    problems = []
    for node in nodes:
        for name, version_wanted in expected.items():
            if node.versions[name] != version_wanted:
                rule = f"must be {version_wanted} as on the {'first node' if name == 'torch' else 'driver'}"
                problems.append(f"node {node.name}: {name} {rule}, got {node.versions[name]}; install that there")
        problems += [f"node {node.name}: {problem}" for problem in node.trainer_problems]
        if not node.sees_workspace:
            problems.append(f"node {node.name}: does not see the workspace {workspace}; use a shared file system")
    if problems:
        raise InputError("\n".join(problems))


def check_address(address: str) -> None:
    """Raise InputError unless the address is local, auto, or a HOST:PORT that accepts connections."""
    if address in ("local", "auto"):
        return
    if address.startswith("ray://"):
        raise InputError(
            f"address {address!r}: Ray Client is not supported by Ray Tune; run foretune on the cluster instead: "
            "ray job submit --address http://HOST:8265 -- foretune run STUDY --address auto"
        )
    match = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})", address)
    if not match:
        raise InputError(f"address {address!r}: must be local, auto or HOST:PORT (the port of the head, usually 6379)")
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        hint = "is the head running, and is the port right?"
        raise InputError(f"address {address!r}: nothing answers ({error}); {hint}") from error


def check_resources(section: RunnerSection, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise InputError when no machine has the CPUs and GPUs that one run asks for: Ray would wait for ever."""
    wanted = {"CPU": section.cpus_per_run, "GPU": section.gpus_per_run}
    if any(all(node.get(kind, 0.0) >= amount for kind, amount in wanted.items()) for node in nodes):
        return
    largest = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
    raise InputError(
        f"runner: no machine has {section.cpus_per_run:g} CPU and {section.gpus_per_run:g} GPU for one run; the "
        f"largest has {largest.get('CPU', 0):g} CPU and {largest.get('GPU', 0):g} GPU; lower cpus_per_run or "
        "gpus_per_run"
    )


def count_slots(section: RunnerSection, nodes: Sequence[Mapping[str, float]]) -> int:
    """Runs that the machines can execute at once."""
    slots = 0
    for node in nodes:
        by_cpu = node.get("CPU", 0.0) / section.cpus_per_run
        by_gpu = node.get("GPU", 0.0) / section.gpus_per_run if section.gpus_per_run else by_cpu
        slots += int(min(by_cpu, by_gpu) + 1e-9)
    return min(slots, section.concurrency)


def list_import_folders() -> list[str]:
    """Folders from which this process imports and an interpreter started afresh would not, in order."""
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = [str(Path(entry or ".").absolute()) for entry in sys.path]
    return [folder for folder in dict.fromkeys(folders) if folder not in installed and Path(folder).is_dir()]


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
