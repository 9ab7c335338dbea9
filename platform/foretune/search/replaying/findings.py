"""What a schedule gives when it is trained from scratch, told beside what it came to where it was found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.deriving import CorpusFacts
from foretune.records import Decision, Result
from foretune.search.interface import Findings, score
from foretune.search.replaying.files import read_schedule
from foretune.search.replaying.replays import ask_replays, find_replays
from foretune.search.replaying.schedule import Schedule
from foretune.study import Study

REPLAYS = "schedule trained from scratch"
"""Title of the table of replays."""

Results = Mapping[str, Result]
Row = dict[str, Any]


def add_replays(findings: Findings | None, study: Study, corpus: CorpusFacts, results: Results) -> Findings | None:
    """The findings with the runs of `[search.replay] file` beside what the schedule came to where it was found."""
    specs, _ = ask_replays(study, corpus)
    if not specs or study.search.replay is None:
        return findings
    schedule, objective = read_schedule(Path(study.search.replay.file)), study.search.objective
    rows = [_row_of_replay(item.scale, item.seed, item.run_id, results, objective) for item in specs]
    if not any(row["score"] for row in rows):
        return findings
    sentence = f"The schedule of study {schedule.study!r}: {schedule.score:.4f} nats per token where it was found. "
    sentence += describe_replays(rows)
    if findings is None:
        return Findings(sentence, tables={REPLAYS: rows}, data={"schedule": schedule.model_dump(mode="json")})
    return replace(findings, sentence=f"{findings.sentence} {sentence}", tables={**findings.tables, REPLAYS: rows})


def describe_replays(replays: Sequence[Row]) -> str:
    """What a schedule gave from scratch, rung by rung; empty where no replay has ended well."""
    parts = []
    for scale in dict.fromkeys(row["scale"] for row in replays):
        scores = [row["score"] for row in replays if row["scale"] == scale and row["score"] is not None]
        lost = sum(row["scale"] == scale and row["status"] == "lost" for row in replays)
        spread = f" +- {statistics.stdev(scores):.4f} (standard deviation)" if len(scores) > 1 else ""
        tail = f", {lost} lost" if lost else ""
        if scores:
            parts.append(f"{statistics.fmean(scores):.4f}{spread} at {scale} over {len(scores)} seeds{tail}")
    return f"Its schedule trained from scratch: {'; '.join(parts)}." if parts else ""


def tabulate_replays(
    decisions: Sequence[Decision], schedule: Schedule, results: Results, objective: Mapping[str, float]
) -> list[Row]:
    """A row for every replay of a schedule that a study's own search found."""
    return [
        _row_of_replay(item.details["scale"], item.details["seed"], item.run_id, results, objective)
        for item in find_replays(decisions, schedule)
    ]


def _row_of_replay(scale: str, seed: int, run_id: str, results: Results, objective: Mapping[str, float]) -> Row:
    result = results.get(run_id)
    value = score(result, objective) if result else math.inf
    is_known = math.isfinite(value)
    return {
        "scale": scale,
        "seed": seed,
        "run_id": run_id,
        "status": "ended" if is_known else "lost" if result else "to do",
        "score": value if is_known else None,
    }
