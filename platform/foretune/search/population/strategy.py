"""Population-based training (Jaderberg et al. 2017): members train side by side, copy better ones and change settings.

A member's stretch between two occasions is a run like any other: it ends at the occasion, goes on from the run of the
generation before, and has as its phases every change of settings along its lineage. What a population did is therefore
in the ledger whole, and one that was killed goes on from its last decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.planning import find_obstacle
from foretune.records import Phase, Result, RunSpec
from foretune.search.interface import Asked, Findings, History, Strategy, make_rng, number_decisions, score
from foretune.search.population.course import Course, find_course_problems, plot_course
from foretune.search.population.exploiting import Standing, choose_donor
from foretune.search.population.exploring import draw_settings, explore_settings
from foretune.search.population.findings import describe_population
from foretune.search.population.lineage import Stretch, find_latest, make_phase, read_stretches
from foretune.search.population.replaying import (
    decide_replays,
    find_replay_problems,
    list_replay_scales,
    list_replays,
    make_schedule,
    replay_schedule,
)
from foretune.study import Study

TRIES = 20
"""Draws for settings that no other copy of the same state has; after them a repeat is taken, which costs nothing."""

Results = Mapping[str, Result]


class Population(Strategy):
    """Strategy `pbt`."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """What speaks against the population, or against training its winner's schedule again."""
        problems = [*find_course_problems(study, corpus), *find_replay_problems(study)]
        return problems or list(_find_useless_replays(plot_course(study, corpus)))

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """Every stretch that was decided on by now, and the decisions that the results allow."""
        course, decisions = plot_course(study, corpus), history.decisions
        stretches = read_stretches(decisions)
        while new := _decide(course, stretches, history.results):
            decisions = number_decisions(decisions, [stretch.decide() for stretch in new])
            stretches += new
        decisions = number_decisions(decisions, decide_replays(study, corpus, decisions, history.results))
        return Asked(
            specs=(*_list_specs(course, stretches, history.results), *list_replays(study, corpus, decisions)),
            decisions=decisions,
            retained=_find_retained(stretches, history.results),
            finished=_is_finished(stretches, history.results, replays=_replays_itself(study)),
        )

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """A stretch for every member and generation, as if none ever copied."""
        course = plot_course(study, corpus)
        roots = [_start(course, member) for member in range(course.rules.size)]
        specs: list[RunSpec] = []
        for generation in range(1, course.generations + 1):
            parents = [spec.run_id for spec in specs[-len(roots) :]] if specs else [""] * len(roots)
            specs += [
                course.make_spec(root.root, root.seed, generation, (), parent)
                for root, parent in zip(roots, parents, strict=True)
            ]
        return [*specs, *_expect_replays(course, roots[0])]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The best member, how it came to be, and what its schedule gives from scratch."""
        return describe_population(study.study.name, history.decisions, history.results, study.search.objective)


def _replays_itself(study: Study) -> bool:
    """Whether the winner's schedule is to be trained from scratch."""
    return study.search.replay is not None and not study.search.replay.file


def _expect_replays(course: Course, root: Stretch) -> list[RunSpec]:
    replay = course.study.search.replay
    if replay is None or replay.file:
        return []
    schedule = make_schedule(course.study.study.name, root, [root], 0.0)
    return [
        replay_schedule(course.study, course.study.scale_named(name), schedule, seed, course.corpus)
        for name in list_replay_scales(course.study)
        for seed in replay.seeds
    ]


def _find_useless_replays(course: Course) -> Iterator[str]:
    for spec in {spec.scale: spec for spec in _expect_replays(course, _start(course, 0))}.values():
        if obstacle := find_obstacle(spec, course.study, course.corpus):
            yield f"search.replay.scales: the run at {spec.scale!r} would be of no use: {obstacle}"


def _decide(course: Course, stretches: Sequence[Stretch], results: Results) -> list[Stretch]:
    """The stretches that members begin now: all at once, or each that is ready in the order in which they ended."""
    if not stretches:
        return [_start(course, member) for member in range(course.rules.size)]
    latest = find_latest(stretches)
    ended = [item for item in latest if item.run_id in results]
    if course.study.search.synchronous:
        ended = ended if len(ended) == len(latest) else []
    else:
        order = {run_id: place for place, run_id in enumerate(results)}
        ended.sort(key=lambda item: order[item.run_id])
    new: list[Stretch] = []
    for own in ended:
        if not own.is_last:
            new += _go_on(course, own, [*stretches, *new], results)
    return new


def _start(course: Course, member: int) -> Stretch:
    """The first stretch of a member: settings drawn from the space."""
    seed = course.choose_seed(member)
    root = draw_settings(course.axes, course.domains, make_rng(course.study, "population", "start", member))
    return Stretch(
        member=member,
        generation=1,
        donor=member,
        seed=seed,
        root=root,
        start_tokens=0,
        stop_tokens=course.tokens_after(1),
        horizon_tokens=course.training.tokens,
        run_id=course.make_spec(root, seed, 1).run_id,
    )


def _go_on(course: Course, own: Stretch, stretches: Sequence[Stretch], results: Results) -> list[Stretch]:
    """The next stretch of a member, judged beside all that have ended the same generation; none if nobody lives."""
    peers = {item.member: item for item in stretches if item.generation == own.generation and item.run_id in results}
    standings = {member: _judge(course, item, results[item.run_id]) for member, item in peers.items()}
    rng = make_rng(course.study, "population", own.generation, own.member)
    others = [standing for member, standing in standings.items() if member != own.member]
    chosen = choose_donor(standings[own.member], others, course.rules, rng)
    if chosen.is_lost:
        return []
    donor = peers[chosen.member]
    phases = donor.phases if donor is own else (*donor.phases, *_explore(course, donor, stretches, rng))
    generation = own.generation + 1
    next_stretch = Stretch(
        member=own.member,
        generation=generation,
        donor=donor.member,
        seed=donor.seed,
        root=donor.root,
        phases=phases,
        start_tokens=own.stop_tokens,
        stop_tokens=course.tokens_after(generation),
        horizon_tokens=own.horizon_tokens,
        seen={member: None if item.is_lost else item.score for member, item in standings.items()},
        kind="continue" if donor is own else "exploit",
        parent_run_id=donor.run_id,
    )
    return [next_stretch.model_copy(update={"run_id": _make_spec(course, next_stretch).run_id})]


def _explore(
    course: Course, donor: Stretch, stretches: Sequence[Stretch], rng: np.random.Generator
) -> tuple[Phase, ...]:
    """The change of settings of a copy, unlike those of all others that go on from the same state."""
    taken = [donor.settings, *(item.settings for item in stretches if item.parent_run_id == donor.run_id)]
    for _ in range(TRIES):
        settings = explore_settings(donor.settings, course.axes, course.domains, course.rules, rng)
        if settings not in taken:
            return (make_phase(course.step_after(donor.generation), donor.settings, settings),)
    return ()


def _judge(course: Course, stretch: Stretch, result: Result) -> Standing:
    """How a member stands at the end of a stretch."""
    losses = tuple(point.held_out for point in result.curve if point.held_out is not None)
    return Standing(stretch.member, score(result, course.study.search.objective), losses)


def _make_spec(course: Course, stretch: Stretch) -> RunSpec:
    return course.make_spec(stretch.root, stretch.seed, stretch.generation, stretch.phases, stretch.parent_run_id)


def _list_specs(course: Course, stretches: Sequence[Stretch], results: Results) -> list[RunSpec]:
    """The runs of all stretches but those that failed and were gone past."""
    latest = {(item.member, item.generation) for item in find_latest(stretches)}
    specs = []
    for stretch in stretches:
        if (stretch.member, stretch.generation) in latest or stretch.run_id in results:
            spec = _make_spec(course, stretch)
            if spec.run_id != stretch.run_id:
                raise InputError(
                    f"study {course.study.study.name!r}: its ledger has run {stretch.run_id} for member "
                    f"{stretch.member} in generation {stretch.generation}, and the study now means {spec.run_id}: it "
                    "has changed; give it another name to train another population"
                )
            specs.append(spec)
    return specs


def _find_retained(stretches: Sequence[Stretch], results: Results) -> frozenset[str]:
    """Runs that a member may still go on from: those of the generations that some member has yet to end or leave, and
    the parents of what is under way."""
    latest = find_latest(stretches)
    behind = min((item.generation for item in latest), default=1)
    sources = {item.run_id for item in stretches if item.generation >= behind and not item.is_last}
    return frozenset(sources | {item.parent_run_id for item in latest if item.run_id not in results} - {""})


def _is_finished(stretches: Sequence[Stretch], results: Results, *, replays: bool) -> bool:
    """Whether nothing more is asked when what is under way has ended; replays wait for their winner."""
    return all(item.run_id in results or (item.is_last and not replays) for item in find_latest(stretches))
