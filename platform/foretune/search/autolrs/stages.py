"""The stages of AutoLRS, and where a rate that was tried at the beginning of one would have led at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import Field

from foretune.records import Decision, Frozen, Phase, Result, RunStatus, TrainingSpec
from foretune.sections.autolrs import AutoLRSSection
from scalelaws.curves.exponentials import FEWEST_POINTS, LossForecast, forecast_loss

KINDS = ("warm-up", "try", "settle")
"""Decisions: train the warm-up, try a rate, train a stage at the best one."""
HELD_OUT_POINTS = 16
"""Held-out losses in a trial from which on they are forecast in place of training losses (the published code goes over
to 16 of them in a trial when its stages have stopped growing)."""
SHORTEST_REST = 0.5
"""What is left of a run is added to a stage where it is less than this share of it (assumption)."""


@dataclass(frozen=True)
class Stage:
    """A stretch of a run at one rate, in steps done."""

    start: int
    """Where it begins."""
    trial_stop: int
    """How far rates are tried."""
    stop: int
    """Where it ends."""


class Move(Frozen):
    """A run of the search: the warm-up, a trial, or a stage."""

    scale: str
    """Rung."""
    seed: int
    """Seed of the run."""
    stage: int
    """1, 2, ...; 0 for the warm-up."""
    lr: float
    """Peak learning rate while it trains."""
    phases: tuple[Phase, ...] = ()
    """The rates of all stages up to its end."""
    stop_step: int
    """Steps done at its end."""
    parent_step: int = 0
    """Steps done by the run that it goes on from."""
    forecasts: dict[str, tuple[float, float] | None] = Field(default_factory=dict)
    """What the decision went by: the loss forecast for each trial's run, with its standard deviation; None if it was
    lost."""
    passed_over: tuple[str, ...] = ()
    """Runs that failed for good and that the decision goes past."""
    kind: str
    """warm-up, try or settle."""
    run_id: str = ""
    """The run."""
    parent_run_id: str = ""
    """The run that it goes on from."""

    def decide(self) -> Decision:
        """The decision that the ledger keeps; its number is given when it is written down."""
        details: dict[str, Any] = self.model_dump(mode="json", exclude={"kind", "run_id", "parent_run_id"})
        return Decision(number=0, kind=self.kind, run_id=self.run_id, parent_run_id=self.parent_run_id, details=details)


def read_move(decision: Decision) -> Move:
    """The move that a decision was."""
    return Move(**decision.details, kind=decision.kind, run_id=decision.run_id, parent_run_id=decision.parent_run_id)


def plan_stages(section: AutoLRSSection, training: TrainingSpec) -> list[Stage]:
    """All stages of a run after its warm-up, each twice as long as the one before up to the longest."""
    longest = _count_steps(section.longest_stage, training)
    length, start, stages = min(_count_steps(section.first_stage, training), longest), training.warmup_steps, []
    while start < training.steps:
        stop = start + length
        if training.steps - stop < SHORTEST_REST * length:
            stop = training.steps
        stages.append(Stage(start, start + max(1, round((stop - start) * section.trial)), stop))
        start, length = stop, min(2 * length, longest)
    return stages


def _count_steps(length: float, training: TrainingSpec) -> int:
    """Steps of a length that is a share of the run below 1, else tokens."""
    return max(1, round(length * training.steps if length < 1 else length / training.batch_tokens))


def forecast_trial(result: Result, stage: Stage) -> LossForecast | None:
    """The loss at the end of a stage, from the trial of a rate at its beginning; None where the run was lost.

    A trial with too few points on its curve is judged by the held-out loss at its end.
    """
    if result.status is not RunStatus.COMPLETED or result.loss is None:
        return None
    series = _choose_series(result, stage)
    if len(series) < FEWEST_POINTS:
        return LossForecast(result.loss, 0.0, 0.0, 0)
    return _forecast(tuple(series), tuple(series.values()), stage.stop)


@lru_cache(maxsize=4096)
def _forecast(steps: tuple[int, ...], losses: tuple[float, ...], at: int) -> LossForecast:
    """Every trial is asked for again after every run that ends."""
    return forecast_loss(steps, losses, at)


def _choose_series(result: Result, stage: Stage) -> Mapping[int, float]:
    """Losses of the trial by step: held-out ones where there are enough, else those of training."""
    points = [point for point in result.curve if point.step > stage.start]
    held_out = {point.step: point.held_out for point in points if point.held_out is not None}
    if len(held_out) >= HELD_OUT_POINTS:
        return held_out
    return {point.step: point.loss for point in points if point.loss is not None}
