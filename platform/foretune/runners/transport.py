"""Run specs and outcomes as JSON text, between the driver and workers in other processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from foretune.records import RunSpec


def encode_spec(spec: RunSpec) -> str:
    """The spec as JSON, exact in every digit, with the places that a run's hash leaves out."""
    fields = spec.model_dump(mode="json")
    fields["data"]["section"] = spec.data.section.model_dump(mode="json")
    return json.dumps(fields, allow_nan=False)


def decode_spec(text: str) -> RunSpec:
    """The spec that `encode_spec` wrote."""
    return RunSpec.model_validate_json(text)


class OutcomeFolder:
    """Outcomes of the runs of a pack, as text, for the worker that goes on where another was killed.

    A report may be lost with the worker that made it; what lies here is reported again, and taken once.
    """

    def __init__(self, folder: Path) -> None:
        """The folder is made with the first outcome."""
        self._folder = folder

    def save(self, run_id: str, text: str) -> None:
        """Keep an outcome, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f"{run_id}.{os.getpid()}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._folder / f"{run_id}.json")

    def load(self, run_ids: Sequence[str]) -> dict[str, str]:
        """The outcomes that are there, by run."""
        files = {run_id: self._folder / f"{run_id}.json" for run_id in run_ids}
        return {run_id: file.read_text(encoding="utf-8") for run_id, file in files.items() if file.exists()}
