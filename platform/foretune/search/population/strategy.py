"""Population-based training (Jaderberg et al. 2017): members train side by side, copy better ones and change settings.

A member's stretch between two occasions is a run like any other: it ends at the occasion, goes on from the run of the
generation before, and has as its phases every change of settings along its lineage. What a population did is therefore
in the ledger whole, and one that was killed goes on from its last decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from foretune.deriving import CorpusFacts
from foretune.records import Phase, Result, RunSpec
from foretune.search.interface import Asked, Findings, History, Strategy, make_rng, number_decisions, score
from foretune.search.population.bandit import read_bandit
from foretune.search.population.course import Course, find_course_problems, plot_course
from foretune.search.population.exploiting import Standing, choose_donor
from foretune.search.population.exploring import draw_settings, explore_settings
from foretune.search.population.findings import describe_population
from foretune.search.population.lineage import KINDS, Stretch, find_latest, find_winner, make_schedule, read_stretch
from foretune.search.replaying.replays import (
    decide_replays,
    expect_replays,
    find_replay_problems,
    find_useless_replays,
    list_replays,
    replays_itself,
)
from foretune.search.replaying.schedule import Schedule, make_phase
from foretune.study import Study

TRIES = 20
"""Draws for settings that no other copy of the same state has; after them a repeat is taken, which costs nothing."""

Results = Mapping[str, Result]


class Population(Strategy):
    """Strategy `pbt`."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """What speaks against the population, or against training its winner's schedule again."""
        problems = [*find_course_problems(study, corpus), *find_replay_problems(study)]
        return problems or list(find_useless_replays(study, corpus, _stand_in(plot_course(study, corpus))))

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """Every stretch that was decided on by now, and the decisions that the results allow."""
        course = history.keep("course", partial(plot_course, study, corpus))
        decisions, stretches = history.decisions, _read_stretches(history)
        while new := _decide(course, stretches, history.results):
            decisions = number_decisions(decisions, [stretch.decide() for stretch in new])
            stretches += new
        schedule = _find_schedule(study, stretches, history.results)
        decisions = number_decisions(decisions, decide_replays(study, corpus, decisions, schedule))
        return Asked(
            specs=(*_list_specs(course, history.extend(decisions)), *list_replays(study, corpus, decisions, schedule)),
            decisions=decisions,
            retained=_find_retained(stretches, history.results),
            finished=_is_finished(stretches, history.results, replays=replays_itself(study)),
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
        return [*specs, *expect_replays(study, corpus, _stand_in(course))]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The best member, how it came to be, and what its schedule gives from scratch."""
        return describe_population(study.study.name, history.decisions, history.results, study.search.objective)


def _find_schedule(study: Study, stretches: Sequence[Stretch], results: Results) -> Schedule | None:
    """The schedule of the best member, once all have ended."""
    winner = find_winner(stretches, results, study.search.objective)
    if winner is None:
        return None
    return make_schedule(study.study.name, winner, stretches, score(results[winner.run_id], study.search.objective))


def _stand_in(course: Course) -> Schedule:
    """A schedule that costs what the winner's will: the settings that the first member begins with."""
    root = _start(course, 0)
    return make_schedule(course.study.study.name, root, [root], 0.0)


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
    phases = donor.phases if donor is own else (*donor.phases, *_explore(course, donor, stretches, results, rng))
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
    course: Course, donor: Stretch, stretches: Sequence[Stretch], results: Results, rng: np.random.Generator
) -> tuple[Phase, ...]:
    """The change of settings of a copy, unlike those of all others that go on from the same state."""
    bandit = None
    if course.rules.explore == "bandit":
        bandit = read_bandit(course.axes, stretches, results, course.study.search.objective, donor.generation + 1)
    taken = [donor.settings, *(item.settings for item in stretches if item.parent_run_id == donor.run_id)]
    for _ in range(TRIES):
        settings = explore_settings(donor.settings, course.axes, course.domains, course.rules, rng)
        settings |= bandit.propose(donor.settings, rng) if bandit else {}
        if settings not in taken:
            return (make_phase(course.step_after(donor.generation), donor.settings, settings),)
    return ()


def _judge(course: Course, stretch: Stretch, result: Result) -> Standing:
    """How a member stands at the end of a stretch."""
    losses = tuple(point.held_out for point in result.curve if point.held_out is not None)
    return Standing(stretch.member, score(result, course.study.search.objective), losses)


def _make_spec(course: Course, stretch: Stretch) -> RunSpec:
    return course.make_spec(stretch.root, stretch.seed, stretch.generation, stretch.phases, stretch.parent_run_id)


def _read_stretches(history: History) -> list[Stretch]:
    """The stretches that were decided on, in order."""
    decisions = (item for item in history.decisions if item.kind in KINDS)
    return [history.keep(("stretch", item.number), partial(read_stretch, item)) for item in decisions]


def _list_specs(course: Course, history: History) -> list[RunSpec]:
    """The runs of all stretches but those that failed and were gone past."""
    decisions, stretches = (item for item in history.decisions if item.kind in KINDS), _read_stretches(history)
    latest = {(item.member, item.generation) for item in find_latest(stretches)}
    specs = []
    for item, stretch in zip(decisions, stretches, strict=True):
        spec = history.remake(item, partial(_make_spec, course, stretch))
        if (stretch.member, stretch.generation) in latest or stretch.run_id in history.results:
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
