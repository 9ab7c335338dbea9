from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foretune.proxies.checkpoint import CheckpointFolder
from foretune.proxies.train import train_run
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus

MakeRun = Callable[..., RunSpec]
CPU = torch.device("cpu")
DIE_AT = 13


class Killed(BaseException):
    """Stands for the end of a process in the middle of a run."""


def train(spec: RunSpec, workspace: Path) -> RunOutcome:
    return train_run(spec, workspace, lambda point: None)


def train_until_killed(spec: RunSpec, workspace: Path) -> None:
    def die(point: CurvePoint) -> None:
        if point.step == DIE_AT:
            raise Killed

    with pytest.raises(Killed):
        train_run(spec, workspace, die)


def damage(checkpoint: Path, how: str) -> None:
    state, manifest = checkpoint / "state.pt", checkpoint / "manifest.json"
    if how == "truncated":
        os.truncate(state, state.stat().st_size // 2)
    elif how == "flipped":
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif how == "no manifest":
        manifest.unlink()
    elif how == "another run":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "run_id": "f" * 16}))


@pytest.mark.parametrize("spoiled", [None, "truncated", "flipped", "no manifest", "another run"])
def test_a_killed_run_ends_with_the_same_bits(make_run: MakeRun, tmp_path: Path, spoiled: str | None) -> None:
    whole = train(make_run(), tmp_path / "whole")
    spec = make_run(checkpoint_steps=5)
    assert spec.run_id == make_run().run_id
    train_until_killed(spec, tmp_path / "killed")
    folder = tmp_path / "killed" / "checkpoints"
    assert [path.name for path in sorted(folder.iterdir())] == ["step-0000000005", "step-0000000010"]
    if spoiled:
        damage(folder / "step-0000000010", spoiled)
    points: list[CurvePoint] = []
    resumed = train_run(spec, tmp_path / "killed", points.append)
    assert points[0].step == (6 if spoiled else 11)
    assert resumed.curve == whole.curve
    assert resumed.loss_by_domain == whole.loss_by_domain
    assert resumed.status is RunStatus.COMPLETED


def test_with_every_checkpoint_spoiled_the_run_starts_again(make_run: MakeRun, tmp_path: Path) -> None:
    spec = make_run(checkpoint_steps=5)
    whole = train(spec, tmp_path / "whole")
    train_until_killed(spec, tmp_path / "killed")
    for checkpoint in (tmp_path / "killed" / "checkpoints").iterdir():
        damage(checkpoint, "flipped")
    assert train(spec, tmp_path / "killed").curve == whole.curve


def test_divergence_is_counted_across_a_resumption(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"peak_lr": 3.0, "steps": 120, "warmup_steps": 1, "weight_decay": 0.0, "clip_norm": 1e9}
    whole = train(make_run(**settings), tmp_path / "whole")
    assert whole.status is RunStatus.DIVERGED
    spec = make_run(**settings, checkpoint_steps=5)
    train_until_killed(spec, tmp_path / "killed")
    resumed = train(spec, tmp_path / "killed")
    assert (resumed.reason, resumed.curve) == (whole.reason, whole.curve)


def test_a_process_killed_for_real_goes_on(make_run: MakeRun, tmp_path: Path, cache: Path) -> None:
    spec = make_run(checkpoint_steps=4)
    whole = train(make_run(), tmp_path / "whole")
    content = spec.model_dump(mode="json")
    content["data"]["section"] = spec.data.section.model_dump(mode="json")
    code = (
        "import os, signal, sys, pathlib; from foretune.records import RunSpec;"
        "from foretune.proxies.train import train_run; spec = RunSpec.model_validate_json(sys.argv[1]);"
        f"die = lambda point: os.kill(os.getpid(), signal.SIGKILL) if point.step == {DIE_AT} else None;"
        "train_run(spec, pathlib.Path(sys.argv[2]), die)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FORETUNE_CACHE": str(cache)}
    command = [sys.executable, "-c", code, json.dumps(content), str(tmp_path / "killed")]
    done = subprocess.run(command, env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    points: list[CurvePoint] = []
    resumed = train_run(spec, tmp_path / "killed", points.append)
    assert points[0].step == 13
    assert resumed.curve == whole.curve


def test_two_checkpoints_are_kept_and_old_drafts_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "run")
    for name in ("draft-of-a-killed-process", "draft-young"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "draft-of-a-killed-process", (0, 0))
    for step in (1, 2, 3, 10):
        folder.save(step, {"step": step, "weights": torch.arange(3)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft-young", "step-0000000003", "step-0000000010"]
    state = folder.load(CPU)
    assert state is not None
    assert state["step"] == 10
    assert torch.equal(state["weights"], torch.arange(3))


def test_nothing_to_load_is_none(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "absent", "run").load(CPU) is None


def test_a_checkpoint_is_never_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that would run a function when unpickled is not loaded, even with a right manifest."""

    class Hostile:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    folder = CheckpointFolder(tmp_path / "checkpoints", "run")
    folder.save(1, {"step": 1})
    folder.save(2, {"step": 2, "weights": Hostile()})
    state = folder.load(CPU)
    assert state == {"step": 1}
    assert not (tmp_path / "owned").exists()
