"""Which data mixture? Small runs first, then those that promise most per FLOP, then a check at larger scales.

The search begins with the natural mixture, with every seed, and a design at the smallest size; proposals follow at the
sizes and mixtures that most improve what is recommended (`mixing.proposal`). What is recommended has the lowest
posterior mean at the target fidelity; it is confirmed there, recommended anew, and trained beside the natural and the
best observed mixture at the larger scales. Each of these is a decision, from which every run is made again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np

from foretune.deriving import CorpusFacts
from foretune.records import Decision, RunSpec
from foretune.search.interface import Asked, Findings, History, Strategy, make_rng, number_decisions
from foretune.search.mixing.advice import advise
from foretune.search.mixing.course import (
    ADVICE,
    Advice,
    Course,
    Results,
    Trial,
    find_lost,
    is_same_mixture,
    read_advice,
    read_trials,
)
from foretune.search.mixing.designs import choose_d_optimal, draw_dirichlet
from foretune.search.mixing.findings import describe_search
from foretune.search.mixing.multifidelity import FEWEST_RUNS
from foretune.search.mixing.proposal import propose
from foretune.search.mixing.refusals import find_course_problems
from foretune.search.mixing.simplex import FloatArray
from foretune.sections import ScaleSection
from foretune.study import Study

Fields = dict[str, Any]
"""Of a trial."""
CLOSE = 0.01
"""Mixtures whose shares differ by no more than this are checked once (an assumption: two that lay .02 apart in
studies/mixture_two_sizes were within the noise of three seeds at both larger scales)."""


class Mixtures(Strategy):
    """Bayesian over mixtures and sizes, or a regression at one size."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """Wrong keys, bounds without a mixture, sizes that do not fit, too few runs."""
        return find_course_problems(Course(study, corpus))

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """The runs decided on, and those that are decided on now."""
        course, results = Course(study, corpus), history.results
        decisions = history.decisions
        while new := _decide(course, decisions, results):  # runs that are known already let it go on at once
            decisions = number_decisions(decisions, new)
        trials, runs = read_trials(decisions), (item for item in decisions if item.kind != ADVICE)
        lost, pending = find_lost(trials, results), _list_pending(trials, results)
        pairs = zip(runs, trials, strict=True)
        specs = [history.remake(item, partial(course.make_spec, trial)) for item, trial in pairs]
        return Asked(
            specs=tuple(spec for spec in specs if spec.run_id not in lost),
            decisions=decisions,
            finished=not pending or _is_advised(course, trials, read_advice(decisions)),
        )

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """At most these: the sizes of proposals are not known before, and are taken to be the dearest."""
        course = Course(study, corpus)
        trials = _begin(course)
        return [course.make_spec(trial) for trial in (*trials, *_list_rest(course, trials, []))]

    def expect_rest(
        self, study: Study, corpus: CorpusFacts, asked: Asked, expected: Sequence[RunSpec]
    ) -> Sequence[RunSpec]:
        """At most these; by what was decided, for a search that goes on confirms and checks anew."""
        course, known = Course(study, corpus), {spec.run_id for spec in asked.specs}
        rest = _list_rest(course, read_trials(asked.decisions), read_advice(asked.decisions))
        return [course.make_spec(trial) for trial in rest if trial.run_id not in known]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The recommended mixture against the natural one, and whether the check bears it out."""
        return describe_search(Course(study, corpus), history)


def _decide(course: Course, decisions: Sequence[Decision], results: Results) -> list[Decision]:
    """What is decided now; nothing while there is to be waited."""
    trials, advice = read_trials(decisions), read_advice(decisions)
    if not trials:
        return [trial.decide() for trial in _begin(course)]
    pending = _list_pending(trials, results)
    if not _is_searched(course, trials, advice):
        room = course.study.search.batch - len(pending)
        waits = course.study.search.synchronous
        if room <= 0 or (waits and pending):
            return []
        proposed = _propose(course, trials, results, room, waited=not pending)
        if proposed:
            return [trial.decide() for trial in proposed]
    return [] if pending else _conclude(course, trials, advice, results)


def _conclude(course: Course, trials: list[Trial], advice: list[Advice], results: Results) -> list[Decision]:
    """Confirm what is recommended, then recommend, then check; nothing where that is done or cannot be."""
    if _is_advised(course, trials, advice) or not _can_advise(course, trials, results):
        return []
    found = advise(course, trials, results)
    if not _is_confirmed(course, trials):
        fields: Fields = {"kind": "confirm", "scale": course.target.name, "planned": course.study.search.runs}
        fields["searched"] = _count_searched(trials)
        return [trial.decide() for trial in _spread_seeds(course, trials, [found.shares], fields)]
    return [found.decide(), *(trial.decide() for trial in list_checks(course, found))]


def list_checks(course: Course, advice: Advice) -> list[Trial]:
    """The larger runs of every mixture that is compared, each mixture once."""
    unlike: dict[str, Mapping[str, float]] = {"recommended": advice.shares}
    if not is_same_mixture(course.natural, advice.shares):
        unlike["natural"] = course.natural
    if advice.best and not any(_is_close(advice.best, other) for other in unlike.values()):
        unlike["best observed"] = advice.best
    return [
        course.begin(kind="check", mixture=name, scale=rung.name, seed=seed, shares=shares, searched=advice.searched)
        for rung in course.checks
        for name, shares in unlike.items()
        for seed in course.seeds
    ]


def _is_close(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    """Whether two mixtures are so near that runs at larger scales would not tell them apart."""
    return all(abs(left.get(name, 0.0) - right.get(name, 0.0)) <= CLOSE for name in {*left, *right})


def _begin(course: Course) -> list[Trial]:
    """The natural mixture with every seed at the smallest size and at the target, and the design at the smallest."""
    cheapest = course.fidelities[0]
    rungs = {rung.name: rung for rung in (cheapest, course.target)}
    natural = [
        course.begin(kind="natural", scale=name, seed=seed, shares=course.natural, searched=0)
        for name in rungs
        for seed in course.seeds
    ]
    regresses = course.rules.surrogate != "gp"
    count = course.study.search.runs - len(natural) if regresses else course.rules.initial
    fields: Fields = {"kind": "design", "scale": cheapest.name, "searched": 0}
    mixtures = [course.name_shares(shares) for shares in _design(course, count)]
    return natural + _spread_seeds(course, natural, mixtures, fields)


def _design(course: Course, count: int) -> FloatArray:
    rng = make_rng(course.study, "mixture", "design")
    if course.rules.design == "d_optimal":
        return choose_d_optimal(course.region, count, rng)
    return draw_dirichlet(course.region, course.list_shares(course.natural), count, rng)


def _propose(course: Course, trials: list[Trial], results: Results, count: int, *, waited: bool) -> list[Trial]:
    """Further runs of the search, at most so many, as far as its budget reaches."""
    count = min(count, _count_left(course, trials))
    observed = course.observe(trials, results)
    rng = make_rng(course.study, "mixture", len(trials))
    if observed.known.sum() >= FEWEST_RUNS:
        found = [(item.level, item.shares, item.gain) for item in propose(course.problem, observed, count, rng)]
    else:  # nearly all runs were lost: go on as at the beginning
        found = [(0, shares, 0.0) for shares in course.region.sample(count, rng)]
    proposed: list[Trial] = []
    for level, shares, gain in found:
        fields: Fields = {"kind": "propose", "scale": course.fidelities[level].name, "gain": gain, "waited": waited}
        fields["searched"] = _count_searched(trials)
        proposed += _spread_seeds(course, trials + proposed, [course.name_shares(shares)], fields)
    return _keep_affordable(course, trials, proposed)


def _spread_seeds(
    course: Course, trials: Sequence[Trial], mixtures: Iterable[dict[str, float]], fields: Fields
) -> list[Trial]:
    """A trial for each mixture, the seeds in turn, so that the noise between seeds is in what is compared.

    A mixture that the scale has had with a seed already takes one that it has not had, while there is one.
    """
    new: list[Trial] = []
    for shares in mixtures:
        known = [*trials, *new]
        had = {trial.seed for trial in known if trial.scale == fields["scale"] and trial.shares == shares}
        turn = list(islice(cycle(course.seeds), len(known), len(known) + len(course.seeds)))
        seed = next((seed for seed in turn if seed not in had), max(had, default=0) + 1)
        new.append(course.begin(**fields, seed=seed % 2**32, shares=shares))
    return new


def _keep_affordable(course: Course, trials: Sequence[Trial], proposed: Sequence[Trial]) -> list[Trial]:
    """The proposals, in order, that the search's own budget of FLOPs still pays for."""
    spent = _count_flops(course, trials)
    costs = np.cumsum([course.make_spec(trial).compute_flops for trial in proposed])
    return [trial for trial, cost in zip(proposed, costs, strict=True) if spent + cost <= course.rules.flops]


def _list_rest(course: Course, trials: Sequence[Trial], advice: Sequence[Advice]) -> list[Trial]:
    """Runs that are no fewer and cost no less than those still to come."""
    if _is_advised(course, trials, advice):
        return []
    dear, cheap = (0, 0) if _is_searched(course, trials, advice) else _count_further(course, trials)
    dear += max(0, course.rules.confirmations - _count_confirmed(course, trials))
    rest = _list_stand_ins(course, course.fidelities[0], cheap, "propose")
    rest += _list_stand_ins(course, course.target, dear, "propose")
    for rung in course.checks:
        fields: Fields = {"kind": "check", "scale": rung.name, "shares": course.natural, "searched": 1}
        rest += [course.begin(**fields, seed=seed) for seed in course.seeds]
        rest += _list_stand_ins(course, rung, 2 * len(course.seeds), "check")  # recommended and best observed
    return rest


def _count_further(course: Course, trials: Sequence[Trial]) -> tuple[int, int]:
    """Numbers of proposals at the dearest and at the cheapest size that bound those to come, in number and cost."""
    cheap, dear = (course.resolve(rung).compute_flops for rung in (course.fidelities[0], course.target))
    left, flops = _count_left(course, trials), max(0.0, course.rules.flops - _count_flops(course, trials))
    if flops >= left * dear:
        return left, 0
    count = min(left, int(flops // cheap))
    dearer = math.ceil((flops - count * cheap) / (dear - cheap)) if dear > cheap else 0
    return min(count, dearer), count - min(count, dearer)


def _list_stand_ins(course: Course, rung: ScaleSection, count: int, kind: str) -> list[Trial]:
    """Runs at the price of those to come, each of a mixture of its own."""
    mixtures = course.region.sample(count, make_rng(course.study, "mixture", "stand-ins", rung.name))
    fields: Fields = {"kind": kind, "scale": rung.name, "seed": course.seeds[0], "searched": 1}
    return [course.begin(**fields, shares=course.name_shares(shares)) for shares in mixtures]


def _list_pending(trials: Sequence[Trial], results: Results) -> list[Trial]:
    lost = find_lost(trials, results)
    return [trial for trial in trials if trial.run_id not in results and trial.run_id not in lost]


def _count_searched(trials: Sequence[Trial]) -> int:
    return sum(trial.is_searched for trial in trials)


def _count_flops(course: Course, trials: Sequence[Trial]) -> int:
    """Training FLOPs of the runs of the search."""
    return sum(course.make_spec(trial).compute_flops for trial in trials if trial.is_searched)


def _count_left(course: Course, trials: Sequence[Trial]) -> int:
    return max(0, course.study.search.runs - _count_searched(trials))


def _is_searched(course: Course, trials: Sequence[Trial], advice: Sequence[Advice]) -> bool:
    """Whether the search is over: its runs are spent, or it has gone on to what comes after."""
    gone_on = _count_confirmed(course, trials) > 0 or _is_advised(course, trials, advice)
    return gone_on or not _count_left(course, trials)


def _is_confirmed(course: Course, trials: Sequence[Trial]) -> bool:
    """Whether what these runs recommend has been run often enough."""
    return _count_confirmed(course, trials) >= course.rules.confirmations


def _count_confirmed(course: Course, trials: Sequence[Trial]) -> int:
    """Runs of what was recommended after these; none where the study wants more runs now, and so searches on."""
    count, planned = _count_searched(trials), course.study.search.runs
    return sum(trial.kind == "confirm" and trial.searched == count and trial.planned >= planned for trial in trials)


def _is_advised(course: Course, trials: Sequence[Trial], advice: Sequence[Advice]) -> bool:
    """Whether a mixture was recommended from these runs."""
    count, planned = _count_searched(trials), course.study.search.runs
    return any(item.searched == count and item.planned >= planned for item in advice)


def _can_advise(course: Course, trials: Sequence[Trial], results: Results) -> bool:
    return bool(course.observe(trials, results).known.sum() >= FEWEST_RUNS)
