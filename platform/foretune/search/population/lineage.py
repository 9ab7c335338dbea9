"""The lineages of a population, read off its decisions: who went on from whom, when, and with which settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from foretune.records import Decision, Frozen, Phase, Result
from foretune.search.interface import score
from foretune.search.replaying.schedule import Schedule, SchedulePhase

KINDS = ("start", "continue", "exploit")
"""Decisions by which a member trains: begin, go on from its own state, or from that of a donor."""


class Stretch(Frozen):
    """What a member trains between two occasions: a run that goes on from another one."""

    member: int
    """Number of the member: 0, 1, ..."""
    generation: int
    """1 for the first stretch of a member, and so on."""
    donor: int
    """The member that it goes on from; itself unless it copied another one."""
    seed: int
    """Seed of the first run of the lineage."""
    root: dict[str, Any]
    """The searched settings with which the lineage began."""
    phases: tuple[Phase, ...] = ()
    """Changes of the settings along the lineage."""
    start_tokens: int
    """Tokens of the lineage when it begins."""
    stop_tokens: int
    """Tokens of the lineage when it ends."""
    horizon_tokens: int
    """Tokens at which the population ends."""
    seen: dict[int, float | None] = Field(default_factory=dict)
    """Scores that the decision went by, by member; None for a member that was lost."""
    kind: str = "start"
    """start, continue or exploit."""
    run_id: str = ""
    """The run."""
    parent_run_id: str = ""
    """The run of the generation before."""

    @property
    def settings(self) -> dict[str, Any]:
        """The searched settings that it trains with."""
        return self.root | merge_phases(self.phases)

    @property
    def is_last(self) -> bool:
        """Whether the lineage ends with it."""
        return self.stop_tokens == self.horizon_tokens

    def decide(self) -> Decision:
        """The decision that the ledger keeps; its number is given when it is written down."""
        details = self.model_dump(mode="json", exclude={"kind", "run_id", "parent_run_id"})
        return Decision(number=0, kind=self.kind, run_id=self.run_id, parent_run_id=self.parent_run_id, details=details)


def read_stretches(decisions: Iterable[Decision]) -> list[Stretch]:
    """The stretches that were decided on, in order."""
    return [read_stretch(item) for item in decisions if item.kind in KINDS]


def read_stretch(item: Decision) -> Stretch:
    """The stretch that a decision was."""
    return Stretch(**item.details, kind=item.kind, run_id=item.run_id, parent_run_id=item.parent_run_id)


def trace_lineage(stretch: Stretch, stretches: Sequence[Stretch]) -> list[Stretch]:
    """The stretches by which a run came to be, first to last."""
    by_run = {item.run_id: item for item in stretches}
    lineage = [stretch]
    while lineage[-1].parent_run_id:
        lineage.append(by_run[lineage[-1].parent_run_id])
    return lineage[::-1]


def find_latest(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The last stretch of every member."""
    return list({stretch.member: stretch for stretch in stretches}.values())


def find_winner(
    stretches: Sequence[Stretch], results: Mapping[str, Result], objective: Mapping[str, float]
) -> Stretch | None:
    """The last stretch of the best member; None before all have ended, or where none came to the end."""
    latest = find_latest(stretches)
    if any(item.run_id not in results for item in latest):
        return None
    scores = [(score(results[item.run_id], objective), item.member, item) for item in latest if item.is_last]
    ended = [item for item in scores if math.isfinite(item[0])]
    return min(ended, key=lambda item: item[:2])[2] if ended else None


def make_schedule(study: str, last: Stretch, stretches: Sequence[Stretch], score: float) -> Schedule:
    """The schedule of a run of a population, read along its lineage."""
    phases: list[SchedulePhase] = []
    for stretch in trace_lineage(last, stretches):
        settings = dict(stretch.settings)
        mixture = settings.pop("mixture", {})
        if not phases or phases[-1].point != stretch.settings:
            share = stretch.start_tokens / stretch.horizon_tokens
            phases.append(SchedulePhase(start_share=share, settings=settings, mixture=mixture))
    return Schedule(study=study, run_id=last.run_id, tokens=last.horizon_tokens, score=score, phases=tuple(phases))


def merge_phases(phases: Iterable[Phase]) -> dict[str, Any]:
    """What the phases have set in the end."""
    settings: dict[str, Any] = {}
    for phase in phases:
        settings |= phase.settings | ({"mixture": phase.mixture} if phase.mixture else {})
    return settings
