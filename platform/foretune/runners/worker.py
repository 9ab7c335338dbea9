"""What a worker of another process does: takes plain data, makes one attempt at a pack, reports plain data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.records import CurvePoint, RunSpec
from foretune.runners.attempts import Fault, attempt_runs, find_conditions
from foretune.runners.sizing import Timing, measure_packs
from foretune.runners.transport import OutcomeFolder, decode_spec, encode_spec
from foretune.sections import RunnerSection

RUN, POINT, OUTCOME, FAILURE = "foretune_run", "foretune_point", "foretune_outcome", "foretune_failure"
"""What is reported, of which run. `done`, `training_iteration`, `config` and `trial_id` would be commands to Tune."""


def describe_job(section: RunnerSection, workspace: Path, outcomes: Path) -> dict[str, str]:
    """What all packs of an experiment have in common; outcomes are kept in a folder until it has ended."""
    return {"section": section.model_dump_json(), "workspace": str(workspace), "outcomes": str(outcomes)}


def describe_pack(specs: Sequence[RunSpec]) -> dict[str, list[str]]:
    """The runs of a pack."""
    return {"runs": [spec.run_id for spec in specs], "specs": [encode_spec(spec) for spec in specs]}


def execute_pack(job: Mapping[str, Any], pack: Mapping[str, Any], report: Callable[[dict[str, str]], None]) -> None:
    """One attempt at the runs of a pack that have no outcome yet; raises RuntimeError when some of them raised."""
    section, kept = RunnerSection.model_validate_json(job["section"]), OutcomeFolder(Path(job["outcomes"]))
    specs = {spec.run_id: spec for spec in map(decode_spec, pack["specs"])}
    for run_id, text in kept.load(list(specs)).items():  # an earlier attempt came so far
        report({RUN: run_id, OUTCOME: text})
        del specs[run_id]

    def report_point(spec: RunSpec, point: CurvePoint) -> None:
        report({RUN: spec.run_id, POINT: point.model_dump_json()})

    _hide_gpus(section)
    faults = {}
    for spec, result in attempt_runs(
        list(specs.values()), find_conditions(section, Path(job["workspace"])), report_point
    ):
        if isinstance(result, Fault):
            faults[spec.run_id] = result.reason
            continue
        kept.save(spec.run_id, text := result.model_dump_json())
        report({RUN: spec.run_id, OUTCOME: text})
    for run_id, reason in faults.items():
        report({RUN: run_id, FAILURE: reason})
    if faults:  # the original may not survive pickling
        raise RuntimeError(f"{len(faults)} runs raised")


def measure_texts(texts: Sequence[str], most: int, section: RunnerSection) -> Timing:
    """Time packs of these runs; see `measure_packs`."""
    _hide_gpus(section)
    return measure_packs([decode_spec(text) for text in texts], most, section)


def _hide_gpus(section: RunnerSection) -> None:
    """Ray leaves every GPU visible to a run that asked for none."""
    if not section.gpus_per_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
