"""The runs of `[search.replay]`: a schedule from a file, or that which the study's own search finds."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.planning import Skipped, find_obstacle
from foretune.records import Decision, RunSpec
from foretune.search.interface import hold_to_decision
from foretune.search.replaying.files import read_schedule
from foretune.search.replaying.schedule import Schedule, replay_schedule
from foretune.search.sampling import list_rungs
from foretune.study import Study

REPLAY = "replay"
"""Kind of the decision to train the schedule from scratch that the study's own search found."""
FINDERS = ("pbt", "autolrs")
"""Strategies that find a schedule."""


def replays_itself(study: Study) -> bool:
    """Whether the schedule that the study's own search finds is to be trained from scratch."""
    return study.search.replay is not None and not study.search.replay.file


def decide_replays(
    study: Study, corpus: CorpusFacts, decisions: Sequence[Decision], schedule: Schedule | None
) -> list[Decision]:
    """The replays that a study asks for of the schedule it found, once that is known; those decided on left out."""
    replay = study.search.replay
    if replay is None or replay.file or schedule is None:
        return []
    known = [item.details for item in decisions if item.kind == REPLAY]
    new = []
    for name, seed in itertools.product(list_replay_scales(study), replay.seeds):
        details = {"scale": name, "seed": seed, "schedule": schedule.model_dump(mode="json")}
        if details not in known:
            run_id = replay_schedule(study, study.scale_named(name), schedule, seed, corpus).run_id
            new.append(Decision(number=0, kind=REPLAY, run_id=run_id, details=details))
    return new


def find_replays(decisions: Iterable[Decision], schedule: Schedule | None) -> list[Decision]:
    """The replays of a schedule that were decided on; without one those of the newest winner.

    A failed run that is tried again may win late, and so may a model that is searched later.
    """
    replays = [item for item in decisions if item.kind == REPLAY]
    if not replays:
        return []
    wanted = schedule.model_dump(mode="json") if schedule else replays[-1].details["schedule"]
    return [item for item in replays if item.details["schedule"] == wanted]


def list_replays(
    study: Study, corpus: CorpusFacts, decisions: Iterable[Decision], schedule: Schedule | None
) -> list[RunSpec]:
    """The replays that were decided on and that the study still asks for; `schedule` is the winner's, once known."""
    replay = study.search.replay
    if replay is None or replay.file:
        return []
    scales = list_replay_scales(study)
    return [
        hold_to_decision(item, _remake(study, corpus, item))
        for item in find_replays(decisions, schedule)
        if item.details["scale"] in scales and item.details["seed"] in replay.seeds
    ]


def _remake(study: Study, corpus: CorpusFacts, item: Decision) -> RunSpec:
    """The run of a decision."""
    scale, schedule = study.scale_named(item.details["scale"]), Schedule.model_validate(item.details["schedule"])
    return replay_schedule(study, scale, schedule, item.details["seed"], corpus)


def expect_replays(study: Study, corpus: CorpusFacts, stand_in: Schedule) -> list[RunSpec]:
    """Runs that cost what the replays of the study's own schedule will; `stand_in` is any schedule."""
    replay = study.search.replay
    if replay is None or replay.file:
        return []
    return [
        replay_schedule(study, study.scale_named(name), stand_in, seed, corpus)
        for name in list_replay_scales(study)
        for seed in replay.seeds
    ]


def find_useless_replays(study: Study, corpus: CorpusFacts, stand_in: Schedule) -> Iterator[str]:
    """Replays of the study's own schedule that would be of no use, with the reason."""
    for spec in {spec.scale: spec for spec in expect_replays(study, corpus, stand_in)}.values():
        if obstacle := find_obstacle(spec, study, corpus):
            yield f"search.replay.scales: the run at {spec.scale!r} would be of no use: {obstacle}"


def list_replay_scales(study: Study) -> tuple[str, ...]:
    """The rungs of the replays: those named, or those of the search that finds a schedule, or else the first."""
    replay, population = study.search.replay, study.search.population
    if replay and replay.scales:
        return replay.scales
    if replays_itself(study) and study.search.strategy == "autolrs":
        return tuple(scale.name for scale in list_rungs(study))
    return (population.scale if population and population.scale else study.scales[0].name,)


def find_replay_problems(study: Study) -> list[str]:
    """What speaks against `[search.replay]`: key, rule, value, what to try."""
    replay = study.search.replay
    if replay is None:
        return []
    names = [scale.name for scale in study.scales]
    problems = [
        f"search.replay.scales: no such scale {name!r}; scales: {', '.join(names)}"
        for name in replay.scales
        if name not in names
    ]
    if not replay.file and study.search.strategy not in FINDERS:
        problems.append(
            f"search.replay.file: needed where the study finds no schedule itself; strategies that do: "
            f"{', '.join(FINDERS)}, got {study.search.strategy!r}"
        )
    return problems


def ask_replays(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs of `[search.replay] file`, and those that would be of no use with the reason.

    Raises InputError for a rung that is not there, a file that is no schedule, and domains that the corpus lacks.
    """
    replay = study.search.replay
    if problems := find_replay_problems(study):
        raise InputError("\n".join(problems))
    if replay is None or not replay.file:
        return [], []
    schedule = read_schedule(Path(replay.file))
    domains = {domain for phase in schedule.phases for domain in phase.mixture} - set(corpus.mixture)
    if domains:
        raise InputError(
            f"search.replay.file: {replay.file} mixes the domain {min(domains)!r}, which the corpus lacks; it has "
            f"{', '.join(corpus.mixture)}"
        )
    specs, skipped = [], []
    for name in list_replay_scales(study):
        for seed in replay.seeds:
            spec = replay_schedule(study, study.scale_named(name), schedule, seed, corpus)
            if obstacle := find_obstacle(spec, study, corpus):
                skipped.append(Skipped(name, {"seed": seed}, obstacle))
            else:
                specs.append(spec)
    return specs, skipped
