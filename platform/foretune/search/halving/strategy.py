"""Successive halving: many settings are begun, the best part of them goes on to the next stop (see `[search.halving]`).

A setting on its way is a run that ends at a stop; going on is the same run with a later end, from the state of the one
before. So what was stopped is in the ledger with the tokens that it came to, beside the horizon of its schedule, and no
fit takes it for a run of either length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from foretune.deriving import CorpusFacts
from foretune.planning import MIN_STEPS
from foretune.records import Decision, Result, RunSpec
from foretune.search.descent import add_descent
from foretune.search.halving.findings import describe_brackets
from foretune.search.halving.levels import Bracket, Contender, plot_bracket
from foretune.search.interface import Asked, Findings, History, Strategy, make_rng, number_decisions
from foretune.search.sampling import (
    Placed,
    count_points,
    draw_points,
    find_grid_problems,
    find_mixture_problems,
    list_grid,
    list_rungs,
)
from foretune.search.tried import ask_settings
from foretune.study import Study

Results = Mapping[str, Result]


class Halving(Strategy):
    """Strategy `halving`."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """No rules, a space that cannot be sampled, too few settings for the stops, stops that come too early."""
        if study.search.halving is None:
            return ['search.halving: strategy = "halving" needs it; give min_tokens']
        problems = [*_find_space_problems(study), *find_mixture_problems(study.search, list(corpus.mixture))]
        return problems or [line for item in _plot_brackets(study, corpus) for line in _find_stop_problems(item)]

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """Every run up to its stop that was decided on by now, and what the results allow beside."""
        found: list[tuple[Bracket, list[Contender]]] = []
        for bracket in history.keep("brackets", partial(_plot_brackets, study, corpus)):
            known = bracket.read(history)
            new = _decide(bracket, known, history)
            history = history.extend(number_decisions(history.decisions, new))
            found.append((bracket, bracket.read(history) if new else known))
        needed = [item for bracket, contenders in found for item in _list_needed(bracket, contenders)]
        settings = [setting for item in needed for setting in item.levels]
        asked = ask_settings(settings, history.decisions, finished=not _count_open(needed))
        return replace(asked, retained=_find_retained(found))

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """The settings of the beginning, of which the first ones go on."""
        brackets = _plot_brackets(study, corpus)
        specs: list[RunSpec] = []
        for level in range(max(bracket.last for bracket in brackets) + 1):
            for bracket in (item for item in brackets if level <= item.last):
                placed = list(_draw(bracket))
                for one in placed[: bracket.count_survivors(len(placed), level)]:
                    setting = bracket.train(one, {}, levels=level + 1).now
                    specs += [] if setting.obstacle else setting.specs
        return specs

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The best of those that came to the end, how the others fared, and what stopping them has saved."""
        brackets = _plot_brackets(study, corpus)
        fields = [(item, item.read(history)) for item in brackets]
        levels = [level for _, contenders in fields for item in contenders for level in item.levels]
        return add_descent(describe_brackets(fields), levels, history.results)


def _plot_brackets(study: Study, corpus: CorpusFacts) -> list[Bracket]:
    return [plot_bracket(study, corpus, rung) for rung in list_rungs(study)]


def _draw(bracket: Bracket) -> Iterator[Placed]:
    """The settings of a rung in their order: those that the strategies `random`, `qmc` and `grid` would try there."""
    search, domains, method = bracket.study.search, list(bracket.corpus.mixture), bracket.rules.sampler
    if method != "grid":
        rng = make_rng(bracket.study, method, bracket.scale.name)
        yield from draw_points(search, domains, rng, search.runs, method)
        return
    points: list[dict[str, Any]] = []
    for point in list_grid(search, domains):
        point.pop("seed", None)  # every setting is run with all of them
        if point not in points:
            points.append(point)
            yield Placed(point, {})


def _decide(bracket: Bracket, known: Sequence[Contender], history: History) -> list[Decision]:
    """What is begun or gone on with now."""
    contenders, results = list(known), history.results
    drawn = history.keep(("drawn", bracket.scale.name), lambda: list(_draw(bracket)))
    placed = islice(drawn, len(contenders), None)
    if bracket.study.search.synchronous:
        return [*_begin(bracket, contenders, placed, results, None), *_promote_level(bracket, contenders, results)]
    new: list[Decision] = []
    while _count_open(contenders) < bracket.study.search.batch:
        further = _promote_one(bracket, contenders, results) or _begin(bracket, contenders, placed, results, 1)
        if not further:
            break
        new += further
    return new


def _begin(
    bracket: Bracket, contenders: list[Contender], placed: Iterator[Placed], results: Results, most: int | None
) -> list[Decision]:
    """Settings that are tried up to the first stop; `contenders` grows by them."""
    new: list[Decision] = []
    for one in islice(placed, most):
        contenders.append(bracket.train(one, results))
        new += bracket.decide(contenders[-1], len(contenders) - 1, sampler=bracket.rules.sampler)
    return new


def _promote_level(bracket: Bracket, contenders: list[Contender], results: Results) -> list[Decision]:
    """The best part of every level at which all have ended, up to the first at which they have not."""
    new: list[Decision] = []
    for level in range(bracket.last):
        members, judged = _list_members(contenders, level), _find_judged(contenders, level)
        if any(_is_awaited(contenders[place], level, judged) for place in members):
            break
        quota = len(members) // bracket.rules.reduction
        for place in _rank(contenders, members, level)[:quota]:
            if contenders[place].level == level:
                new += _promote(bracket, contenders, place, results)
    return new


def _promote_one(bracket: Bracket, contenders: list[Contender], results: Results) -> list[Decision]:
    """One that is among the best part of those that have ended at its level, from the highest level down (ASHA)."""
    for level in reversed(range(bracket.last)):
        ended = [place for place in _list_members(contenders, level) if contenders[place].levels[level].has_ended]
        ranked = _rank(contenders, ended, level)
        for place in ranked[: len(ended) // bracket.rules.reduction]:
            if contenders[place].level == level:
                return _promote(bracket, contenders, place, results)
    return []


def _promote(bracket: Bracket, contenders: list[Contender], place: int, results: Results) -> list[Decision]:
    why = {"loss": contenders[place].now.mean}
    contenders[place] = bracket.promote(contenders[place], results)
    return bracket.decide(contenders[place], place, **why)


def _list_members(contenders: Sequence[Contender], level: int) -> list[int]:
    """Those that were taken to a level, by their number."""
    return [place for place, item in enumerate(contenders) if item.level >= level and not item.now.obstacle]


def _rank(contenders: Sequence[Contender], members: Sequence[int], level: int) -> list[int]:
    """Those with a loss at this level, the lowest first."""
    means = {place: contenders[place].levels[level].mean for place in members}
    return sorted((place for place in members if math.isfinite(means[place])), key=means.__getitem__)


def _find_judged(contenders: Sequence[Contender], level: int) -> float:
    """The last decision that a level was judged for; -1 where it was not yet."""
    return max((item.number for item in contenders if item.level > level), default=-1)


def _is_awaited(contender: Contender, level: int, judged: float) -> bool:
    """Whether a level is judged only when this one has ended; not one that failed, when the level was judged since."""
    return not contender.levels[level].has_ended and contender.number > judged


def _list_needed(bracket: Bracket, contenders: Sequence[Contender]) -> list[Contender]:
    """All but those that failed in an earlier launch and were gone past, which nobody waits for."""
    if not bracket.study.search.synchronous:
        return list(contenders)
    judged = [_find_judged(contenders, level) for level in range(bracket.last + 1)]
    return [item for item in contenders if item.now.has_ended or _is_awaited(item, item.level, judged[item.level])]


def _count_open(contenders: Sequence[Contender]) -> int:
    return sum(not item.now.has_ended for item in contenders)


def _find_retained(found: Sequence[tuple[Bracket, Sequence[Contender]]]) -> frozenset[str]:
    """The runs that may be gone on with: while anything is under way, all that stopped with a loss and can be chosen.

    Where levels are judged whole, only so many of the best so far as will be chosen.
    """
    retained: set[str] = set()
    for bracket, contenders in found:
        for level in range(bracket.last if _count_open(contenders) else 0):
            members = _list_members(contenders, level)
            ranked = _rank(contenders, [place for place in members if contenders[place].levels[level].has_ended], level)
            if bracket.study.search.synchronous:
                ranked = ranked[: len(members) // bracket.rules.reduction]
            stopped = (contenders[place] for place in ranked if contenders[place].level == level)
            retained |= {spec.run_id for item in stopped for spec in item.now.specs}
    return frozenset(retained)


def _find_space_problems(study: Study) -> list[str]:
    rules = study.search.halving
    assert rules is not None
    if rules.sampler == "grid":
        return find_grid_problems(study.search)
    points = count_points(study.search)
    if study.search.runs > points:
        return [f"search.runs: the space has {points:.0f} settings, fewer than {study.search.runs} runs; lower it"]
    return []


def _find_stop_problems(bracket: Bracket) -> Iterator[str]:
    rules, scale, horizon, settings = bracket.rules, bracket.scale.name, bracket.stop_tokens[-1], list(_draw(bracket))
    if not bracket.last:
        yield (
            f"search.halving.min_tokens: {rules.min_tokens} leaves no stop before the {horizon} tokens of scale "
            f"{scale!r}, or one that is hardly earlier; take at most {horizon // rules.reduction}"
        )
        return
    if not bracket.count_survivors(len(settings), bracket.last):
        yield (
            f"search.runs: of {len(settings)} settings none comes to the end of scale {scale!r} when one in "
            f"{rules.reduction} goes on at each of {bracket.last} stops; take at least "
            f"{rules.reduction**bracket.last}, or raise search.halving.min_tokens"
        )
    for placed in settings:
        whole = bracket.train(placed, {}, levels=bracket.last + 1)
        training, stop = whole.now.specs[0].training, whole.levels[0].specs[0].last_step
        least = max(MIN_STEPS, training.warmup_steps + 1)
        if stop < least and not whole.now.obstacle:
            yield (
                f"search.halving.min_tokens: the first stop at scale {scale!r} must come after the warm-up of "
                f"{training.warmup_steps} steps and {MIN_STEPS} steps at least, got step {stop}; take at least "
                f"{training.tokens_at(least)} tokens, or a shorter warm-up"
            )
            return
