"""Decision (what a search asked for, and why) and Result (what it may know of a run): all that a search goes by."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from foretune.records.frozen import Frozen
from foretune.records.outcomes import CurvePoint, LearnedPoint, RunRecord, RunStatus


class Decision(Frozen):
    """One decision of a search. The ledger appends it before anything is run, and nothing decides it a second time."""

    number: int
    """0, 1, ... in the order in which they were taken."""
    kind: str
    """What was decided, in the words of the strategy."""
    run_id: str = ""
    """The run that was asked for; empty where none was."""
    parent_run_id: str = ""
    """The run from whose state it goes on."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Plain data from which the run is made again, and what the decision was based on."""


class Result(Frozen):
    """What came of a run."""

    run_id: str
    """The run."""
    status: RunStatus
    """completed, diverged, or failed with its retries spent."""
    reason: str = ""
    """Why it is not completed; of a soup, the runs that are in it."""
    loss: float | None
    """Held-out loss, nats per token, weighted by the run's own mixture; None unless completed."""
    loss_by_domain: dict[str, float]
    """Held-out loss per domain, nats per token."""
    tokens: int
    """Training tokens that it came to, those of its parents included."""
    spent_flops: float
    """Training FLOPs that it cost itself; 0 where nothing was trained."""
    curve: tuple[CurvePoint, ...]
    """Its curve, those of its parents included."""
    learned: dict[str, float] = Field(default_factory=dict)
    """What it learned: the share of each domain, or the settings that it tuned; empty for others."""
    learned_path: tuple[LearnedPoint, ...] = ()
    """How that moved."""


def result_of(record: RunRecord) -> Result:
    """What a search may know of a recorded run."""
    return Result(
        run_id=record.run_id,
        status=record.status,
        reason=record.reason or "",
        loss=record.loss,
        loss_by_domain=record.loss_by_domain,
        tokens=record.tokens_trained or 0,
        spent_flops=record.spent_flops or 0.0,
        curve=record.curve,
        learned=record.learned,
        learned_path=record.learned_path,
    )
