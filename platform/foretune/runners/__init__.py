"""How runs are executed: on Ray, in this process, or replayed. Importing this package loads neither ray nor torch."""

from __future__ import annotations

from pathlib import Path

from foretune.runners.interface import Note, Observer, Runner, Trainer
from foretune.runners.surface import Surface
from foretune.runners.trainers import load_trainer
from foretune.sections import RunnerSection

__all__ = ["Note", "Observer", "Runner", "Surface", "Trainer", "load_trainer", "make_runner"]


def make_runner(section: RunnerSection, *, address: str = "local", workspace: Path) -> Runner:
    """The runner that a study asks for.

    `address` says where Ray runs: `local` starts one on this machine, `auto` joins the one that runs here, HOST:PORT
    joins a cluster; the other runners take no notice of it. Files of runs go under `workspace`, which every node of a
    cluster must see. Raises InputError when the address or the replay table is of no use.
    """
    if section.kind == "inline":
        from foretune.runners.inline import InlineRunner

        return InlineRunner(section, workspace)
    if section.kind == "replay":
        from foretune.runners.replay import ReplayRunner

        return ReplayRunner(section)
    from foretune.runners.environment import prepare_environment

    prepare_environment(address)  # Ray reads its settings once, when it is imported
    from foretune.runners.raytune import RayRunner

    return RayRunner(section, address, workspace)
