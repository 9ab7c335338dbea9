"""What runs learned on their way, averaged over their seeds, and trained from scratch beside what they began with."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.records import Result, RunSpec, RunStatus
from foretune.search.comparing import compare, measure_noise
from foretune.search.interface import score

FROM_SCRATCH = "Trained from scratch"
"""Title of the table that compares what was learned with what was given."""
VERDICTS = {
    "better": "Use it.",
    "worse": "Do not use it.",
    "within noise": "They are alike within the noise of the seeds.",
    "unknown": "One seed does not tell it from noise; give search.space.seed several.",
}
"""What to do with what was learned, by the verdict on it."""


def average_learned(
    key: str, scale: str, learners: Sequence[RunSpec], results: Mapping[str, Result]
) -> dict[str, Any] | None:
    """The details of a decision, once all runs have ended: under `key` the mean of what they learned, name by name.

    It is empty where all were lost. `learned` is what each came to, `passed_over` those that failed.
    """
    ended = [results.get(spec.run_id) for spec in learners]
    if not all(ended):
        return None
    learned = {spec.run_id: result.learned for spec, result in zip(learners, ended, strict=True) if result}
    found = [values for values in learned.values() if values]
    names = found[0] if found else {}
    return {
        "scale": scale,
        key: {name: statistics.fmean(values[name] for values in found) for name in names},
        "learned": learned,
        "passed_over": [result.run_id for result in ended if result and result.status is RunStatus.FAILED],
    }


def list_scores(specs: Sequence[RunSpec], results: Mapping[str, Result], objective: Mapping[str, float]) -> list[float]:
    """What is minimised, of the runs that came to their end."""
    ended = [results[spec.run_id] for spec in specs if spec.run_id in results]
    return [score(result, objective) for result in ended if result.status is RunStatus.COMPLETED]


def compare_trained(scale: str, learned: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    """A row: the scores of plain runs with what was learned beside those with what was given; both have some."""
    verdict = compare(learned, given, measure_noise([learned, given]))
    return {
        "scale": scale,
        "learned": statistics.fmean(learned),
        "given": statistics.fmean(given),
        "difference": verdict.difference,
        "low": verdict.low,
        "high": verdict.high,
        "seeds": len(learned),
        "verdict": verdict.verdict,
    }
