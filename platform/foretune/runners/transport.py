"""Run specs as JSON text, for workers in other processes; places that a run's hash leaves out travel too."""

from __future__ import annotations

import json

from foretune.records import RunSpec


def encode_spec(spec: RunSpec) -> str:
    """The spec as JSON, exact in every digit."""
    fields = spec.model_dump(mode="json")
    fields["data"]["section"] = spec.data.section.model_dump(mode="json")
    return json.dumps(fields, allow_nan=False)


def decode_spec(text: str) -> RunSpec:
    """The spec that `encode_spec` wrote."""
    return RunSpec.model_validate_json(text)
