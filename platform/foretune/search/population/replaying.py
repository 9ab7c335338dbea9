"""Schedules of settings: written to a file, read from one, and trained from scratch at any rung."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.planning import Skipped, find_obstacle
from foretune.records import Changeable, Decision, Frozen, Result, RunSpec
from foretune.search.interface import score
from foretune.search.population.course import count_steps
from foretune.search.population.lineage import Stretch, find_winner, make_phase, read_stretches, trace_lineage
from foretune.sections import ScaleSection
from foretune.study import Study

REPLAY = "replay"
"""Kind of the decision to train a population's winning schedule from scratch."""


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
    """Settings against the share of the run, as a population found them."""

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


def decide_replays(
    study: Study, corpus: CorpusFacts, decisions: Sequence[Decision], results: Mapping[str, Result]
) -> list[Decision]:
    """The replays that a population's study asks for of its winner, once that is known; those decided on left out."""
    replay, stretches = study.search.replay, read_stretches(decisions)
    winner = find_winner(stretches, results, study.search.objective)
    if replay is None or replay.file or winner is None:
        return []
    schedule = make_schedule(study.study.name, winner, stretches, score(results[winner.run_id], study.search.objective))
    known = [item.details for item in decisions if item.kind == REPLAY]
    new = []
    for name, seed in itertools.product(list_replay_scales(study), replay.seeds):
        details = {"scale": name, "seed": seed, "schedule": schedule.model_dump(mode="json")}
        if details not in known:
            run_id = replay_schedule(study, study.scale_named(name), schedule, seed, corpus).run_id
            new.append(Decision(number=0, kind=REPLAY, run_id=run_id, details=details))
    return new


def find_replays(decisions: Iterable[Decision]) -> list[Decision]:
    """The replays that were decided on, of the newest winner: a failed run that is tried again may win late."""
    replays = [item for item in decisions if item.kind == REPLAY]
    return [item for item in replays if item.details["schedule"] == replays[-1].details["schedule"]]


def list_replays(study: Study, corpus: CorpusFacts, decisions: Iterable[Decision]) -> list[RunSpec]:
    """The replays that were decided on and that the study still asks for."""
    replay = study.search.replay
    if replay is None or replay.file:
        return []
    scales = list_replay_scales(study)
    return [
        replay_schedule(
            study,
            study.scale_named(item.details["scale"]),
            Schedule.model_validate(item.details["schedule"]),
            item.details["seed"],
            corpus,
        )
        for item in find_replays(decisions)
        if item.details["scale"] in scales and item.details["seed"] in replay.seeds
    ]


def list_replay_scales(study: Study) -> tuple[str, ...]:
    """The rungs of the replays: those named, or that of the population."""
    replay, population = study.search.replay, study.search.population
    named = replay.scales if replay else ()
    return named or (population.scale if population and population.scale else study.scales[0].name,)


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
    if not replay.file and study.search.strategy != "pbt":
        problems.append("search.replay.file: needed where the study trains no population whose winner could be meant")
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


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write a schedule as TOML or JSON, which can be replayed, or as CSV for other programs.

    Raises InputError for another suffix.
    """
    plain = schedule.model_dump(mode="json")
    writers = {
        ".toml": lambda: tomli_w.dumps(plain),
        ".json": lambda: json.dumps(plain, indent=2, allow_nan=False) + "\n",
        ".csv": lambda: _write_csv(schedule.rows()),
    }
    if path.suffix not in writers:
        raise InputError(f"--to: must end in {', '.join(writers)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writers[path.suffix](), encoding="utf-8")


def read_schedule(path: Path) -> Schedule:
    """Read a schedule that `write_schedule` wrote as TOML or JSON; InputError names the file and what is wrong."""
    if not path.is_file():
        raise InputError(
            f"search.replay.file: {str(path)!r} not found; `foretune lineage STUDY --to FILE.toml` writes it"
        )
    try:
        text = path.read_text(encoding="utf-8")
        return Schedule.model_validate(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"search.replay.file: {path}: {where}: {first['msg']}, got {first['input']!r}") from None
    except ValueError as error:
        raise InputError(f"search.replay.file: {path} is no TOML or JSON: {error}") from None


def _write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
