"""Checkpoints that are whole or absent: a killed run goes on from the newest one that verifies.

A checkpoint is a folder, written under another name and renamed when every byte of it is on disk; its manifest holds
the run, the step and the SHA-256 of the state, because torch reads a flipped byte without a word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

KEPT = 2
"""Checkpoints kept: the newest, and one to walk back to."""
STALE_SECONDS = 3600
"""Age at which a draft has no writer any more (assumption: no checkpoint takes an hour to write)."""
STATE = "state.pt"
MANIFEST = "manifest.json"
_log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Checkpoints of any other run in `folder` are not loaded."""
        self.folder = folder
        self.run_id = run_id

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps; tensors and plain data only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="draft-", dir=self.folder))
        try:
            self._write(draft, step, state)
            self._publish(draft, self.folder / f"step-{step:010d}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # what is published has another name
        self._prune()

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint, not even one that does not verify."""
        return not self._list()

    def load(self, device: torch.device, step: int | None = None) -> dict[str, Any] | None:
        """The newest state that verifies, or None; what does not verify is left out with a logged reason.

        With `step`, only the state after so many steps will do.
        """
        for checkpoint in reversed(self._list()):
            try:
                if step in (None, self._read_manifest(checkpoint)["step"]):
                    return self._read(checkpoint, device)
            except Exception as error:  # whatever is wrong with it, an older one may be right
                _log.warning("checkpoint %s not used: %s", checkpoint, error)
        return None

    def _write(self, draft: Path, step: int, state: dict[str, Any]) -> None:
        with (draft / STATE).open("wb") as file:
            torch.save(state, file)
            _flush(file.fileno(), file)
        manifest = {"run_id": self.run_id, "step": step, "sha256": _hash_file(draft / STATE)}
        with (draft / MANIFEST).open("w") as file:
            json.dump(manifest, file)
            _flush(file.fileno(), file)

    def _read(self, checkpoint: Path, device: torch.device) -> dict[str, Any]:
        manifest = self._read_manifest(checkpoint)
        if manifest["sha256"] != _hash_file(checkpoint / STATE):
            raise ValueError("its bytes have changed since it was written")
        state: dict[str, Any] = torch.load(checkpoint / STATE, map_location=device, weights_only=True)
        return state

    def _read_manifest(self, checkpoint: Path) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
        if manifest["run_id"] != self.run_id:
            raise ValueError(f"it belongs to run {manifest['run_id']}, this is {self.run_id}")
        return manifest

    def _list(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _publish(self, draft: Path, target: Path) -> None:
        _sync_folder(draft)
        shutil.rmtree(target, ignore_errors=True)  # one that did not verify, or the same
        draft.rename(target)
        _sync_folder(self.folder)

    def _prune(self) -> None:
        """Remove old checkpoints, and the drafts of killed processes; a young draft may still be written to."""
        for checkpoint in self._list()[:-KEPT]:
            shutil.rmtree(checkpoint, ignore_errors=True)
        for draft in self.folder.glob("draft-*"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(draft, ignore_errors=True)


def _flush(descriptor: int, file: Any) -> None:
    file.flush()
    os.fsync(descriptor)


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
