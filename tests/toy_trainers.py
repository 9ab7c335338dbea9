"""Trainers for tests of runners, importable on workers: functions of the spec and of files in the run's folder."""

from __future__ import annotations

import builtins
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus

Report = Callable[[CurvePoint], None]


def train_toy(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """A basin around 2^-7 with two held-out evaluations; it diverges at 2^-1."""
    training = spec.training
    if training.peak_lr >= 0.5:
        return RunOutcome(status=RunStatus.DIVERGED, reason="planted", tokens=training.batch_tokens)
    loss = 3 + math.log2(training.peak_lr * 2**7) ** 2 / 10 + spec.seed / 7
    curve = []
    for step, held_out in ((training.steps // 4, None), (training.steps // 2, loss + 1), (training.steps, loss)):
        tokens = step * training.batch_tokens
        curve.append(CurvePoint(step=step, tokens=tokens, lr=training.peak_lr, loss=loss + 1, held_out=held_out))
        report(curve[-1])
    return RunOutcome(
        status=RunStatus.COMPLETED, loss=loss, curve=tuple(curve), tokens=training.tokens, loss_by_domain={"code": loss}
    )


def raise_on_odd_seed(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    if spec.seed % 2:
        raise ValueError(f"planted failure of seed {spec.seed}")
    return train_toy(spec, folder, report)


def raise_once(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """A passing fault: the second attempt finds the mark of the first."""
    mark = folder / "mark"
    if not mark.exists():
        mark.touch()
        raise OSError("planted, passing")
    return train_toy(spec, folder, report)


def kill_once(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """The process dies at step 20 after a checkpoint; the next one says at which step it went on."""
    checkpoint = folder / "step"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    if step == 0:
        checkpoint.write_text("20")
        os.kill(os.getpid(), signal.SIGKILL)
    return RunOutcome(status=RunStatus.COMPLETED, loss=1.0, reason=f"resumed at step {step}")


def kill_always(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    (folder / f"attempt-{os.getpid()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def exit_hard(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    os._exit(3)


def exit_softly(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    sys.exit("planted exit")


def return_nothing(spec: RunSpec, folder: Path, report: Report) -> Any:
    return None


def return_nan(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    return RunOutcome(status=RunStatus.COMPLETED, loss=math.nan)


def return_nan_domain(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    return RunOutcome(status=RunStatus.COMPLETED, loss=1.0, loss_by_domain={"code": math.nan})


def sleep_long(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """Says which process it is in, and stays there."""
    (folder / "pid").write_text(str(os.getpid()))
    report(CurvePoint(step=1, tokens=1, lr=0.0, loss=1.0, held_out=1.0))
    time.sleep(120)
    return RunOutcome(status=RunStatus.FAILED, reason="slept")


def tell_process(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """Which process it was in; waits for the other run of its round, so that two workers are needed."""
    place = f"round-{spec.seed // 2}-"
    (folder.parent / f"{place}{os.getpid()}").touch()
    end = time.monotonic() + 60
    while len(list(folder.parent.glob(f"{place}*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return RunOutcome(status=RunStatus.COMPLETED, loss=1.0, device=str(os.getpid()))


def train_fragile(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """Takes a moment; about one in four first attempts dies with its process."""
    time.sleep(0.2)
    mark = folder / "mark"
    if spec.run_id[0] in "0123" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train_toy(spec, folder, report)


def nap(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    time.sleep(1)
    return train_toy(spec, folder, report)


def remove_storage(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """What is left when a network drive goes away in mid-run."""
    shutil.rmtree(folder.parents[1] / "tune")
    raise OSError("stale file handle")


def leak(spec: RunSpec, folder: Path, report: Report) -> RunOutcome:
    """Changes all that a process shares between runs, and tells what it found before."""
    import torch

    found = observe_process()
    os.environ["FORETUNE_CANARY"] = "dirty"
    os.environ.pop("HOME", None)
    os.chdir("/")
    os.umask(0)
    random.seed(1)
    builtins.canary = True  # type: ignore[attr-defined]
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(7)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    dirty = observe_process()
    unchanged = [name for name in found if found[name] == dirty[name]]
    return RunOutcome(status=RunStatus.COMPLETED, loss=1.0, device=repr(found), reason=f"{os.getpid()} {unchanged}")


def observe_process() -> dict[str, object]:
    """What `leak` changes."""
    import torch

    return {
        "canary": os.environ.get("FORETUNE_CANARY"),
        "home": os.environ.get("HOME"),
        "folder": os.getcwd(),
        "mask": Path("/proc/self/status").read_text().partition("Umask:")[2].split()[0],
        "random": hash(random.getstate()),
        "builtins": hasattr(builtins, "canary"),
        "dtype": str(torch.get_default_dtype()),
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }
