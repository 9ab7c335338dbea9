"""A schedule of settings against the share of a run, and the run that trains with it from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from foretune.deriving import CorpusFacts, resolve_run
from foretune.records import CHANGEABLE, Changeable, Frozen, Phase, RunSpec
from foretune.sections import ScaleSection
from foretune.study import Study
from foretune.training.lineages import count_steps


class SchedulePhase(Frozen):
    """The settings from a share of the run on, all of them."""

    start_share: float = Field(ge=0, lt=1)
    """Share of the run's tokens at which it begins."""
    settings: dict[Changeable, float] = Field(default_factory=dict)
    """Settings by their names in `[training]`; `peak_lr` is the peak of the whole schedule's shape."""
    mixture: dict[str, float] = Field(default_factory=dict)
    """Share of training sequences per domain; empty where the mixture was not searched."""

    @property
    def point(self) -> dict[str, Any]:
        """The settings with the mixture among them."""
        mixture: dict[str, Any] = {"mixture": self.mixture} if self.mixture else {}
        return mixture | self.settings


class Schedule(Frozen):
    """Settings against the share of the run, as a search found them."""

    study: str
    """The study that found it."""
    run_id: str
    """The run that it is read off."""
    tokens: int
    """Training tokens at the end of that run's schedule: `start_share` is a share of them."""
    score: float
    """What that run came to: its held-out loss, or the weighted losses of the objective, nats per token."""
    phases: tuple[SchedulePhase, ...] = Field(min_length=1)
    """In the order of their beginnings, the first at 0."""

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a phase."""
        return [
            {"start_share": phase.start_share, "start_tokens": round(phase.start_share * self.tokens)}
            | phase.settings
            | {f"mixture.{domain}": share for domain, share in phase.mixture.items()}
            for phase in self.phases
        ]


def replay_schedule(study: Study, scale: ScaleSection, schedule: Schedule, seed: int, corpus: CorpusFacts) -> RunSpec:
    """The run that trains with a schedule from scratch; its phases begin at the same shares of its tokens."""
    first, *others = schedule.phases
    spec = resolve_run(study, scale, {**first.point, "seed": seed}, corpus)
    phases, before = [], first.point
    for phase in others:
        step = count_steps(spec.training, round(phase.start_share * spec.training.tokens))
        phases.append(make_phase(step, before, phase.point))
        before = phase.point
    return spec.model_copy(update={"phases": tuple(phases)})


def make_phase(start_step: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Phase:
    """The phase that turns the settings before into those after."""
    changed = {key: value for key, value in after.items() if value != before[key]}
    return Phase(
        start_step=start_step,
        settings={key: changed[key] for key in CHANGEABLE if key in changed},
        mixture=changed.get("mixture", {}),
    )
