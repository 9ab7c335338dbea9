"""`random`, `qmc`, `tpe` and `gp`: so many settings at every rung, each run with every seed and judged by its mean.

`random` and `qmc` know all settings at once. `tpe` and `gp` decide on a batch at a time, by Optuna's samplers, whose
study is made anew in memory from the decisions and results whenever one is needed: nothing of it is stored, so nothing
of it can be stale, and a setting that is still being run counts as pending (Optuna's constant liar).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from foretune.deriving import CorpusFacts
from foretune.records import RunSpec
from foretune.search.descent import add_descent
from foretune.search.interface import Asked, Findings, History, Strategy, make_rng, number_decisions
from foretune.search.sampling import (
    Coordinate,
    Placed,
    count_coordinates,
    count_points,
    draw_points,
    find_mixture_problems,
    list_rungs,
    place_choices,
    walk_tree,
)
from foretune.search.tried import (
    Setting,
    ask_settings,
    conclude_settings,
    decide_setting,
    list_settings,
    make_setting,
)
from foretune.sections import ScaleSection, SearchSection
from foretune.study import Study

if TYPE_CHECKING:
    import optuna

START_PER_CHOICE = 2
"""Settings per coordinate of the space that are spread evenly before a model is asked (measured in
benchmarks/samplers.py)."""
START_LEAST = 4
"""Fewest of them (assumption)."""


class _Sampled(Strategy):
    """What all four have in common: the space, the rungs, the seeds, and what is found."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """Bounds on mixtures that do not suit the corpus, and more settings than the space has."""
        problems = find_mixture_problems(study.search, list(corpus.mixture))
        if study.search.runs > (points := count_points(study.search)):
            problems.append(
                f"search.runs: the space has {points:.0f} settings, fewer than {study.search.runs} runs; lower it, or "
                'take strategy = "grid"'
            )
        return problems

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """The best setting of the largest rung, with all those within noise of it."""
        settings = list_settings(study, corpus, history)
        return add_descent(conclude_settings(study, corpus, settings), settings, history.results)


class Drawn(_Sampled):
    """`random` and `qmc`: points of a sequence that does not depend on what comes of them."""

    def __init__(self, method: Literal["random", "qmc"]) -> None:
        """The sequence."""
        self._method: Literal["random", "qmc"] = method

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """All runs at once; more `runs` prolong the sequence."""
        settings = list_settings(study, corpus, history)
        new = []
        for rung in list_rungs(study):
            known = [item for item in settings if item.scale == rung.name]
            for placed in _draw_sequence(study, corpus, rung, study.search.runs, self._method)[len(known) :]:
                new.append(make_setting(study, corpus, rung.name, placed, history.results))
        decisions = number_decisions(history.decisions, [decide_setting(item, model=self._method) for item in new])
        return ask_settings([*settings, *new], decisions, finished=True)


class Modelled(_Sampled):
    """`tpe` and `gp`: settings where a model of the runs so far promises most."""

    def __init__(self, kind: Literal["tpe", "gp"]) -> None:
        """The model."""
        self._kind: Literal["tpe", "gp"] = kind

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """A Gaussian process has no place for branches."""
        problems = super().find_problems(study, corpus)
        if self._kind == "gp" and study.search.branches:
            problems.append('search.branches: a Gaussian process needs one flat space; take strategy = "tpe"')
        return problems

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """The batches so far, and the next one where it is time for it."""
        settings = list_settings(study, corpus, history)
        new = []
        for rung in list_rungs(study):
            own = [item for item in settings if item.scale == rung.name]
            for _ in range(_count_room(study, own)):
                model, placed = self._propose(study, corpus, rung, own)
                own.append(make_setting(study, corpus, rung.name, placed, history.results))
                new.append((own[-1], model))
        decisions = number_decisions(history.decisions, [decide_setting(item, model=model) for item, model in new])
        settings = [*settings, *(item for item, _ in new)]
        return ask_settings(settings, decisions, finished=len(settings) == study.search.runs * len(list_rungs(study)))

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """Settings drawn evenly, in the order of the batches."""
        rungs, search = list_rungs(study), study.search
        places = {rung.name: _draw_sequence(study, corpus, rung, search.runs, "qmc") for rung in rungs}
        order = [
            (rung.name, placed)
            for first in range(0, search.runs, search.batch)
            for rung in rungs
            for placed in places[rung.name][first : first + search.batch]
        ]
        settings = [make_setting(study, corpus, scale, placed, {}) for scale, placed in order]
        return list(ask_settings(settings, (), finished=False).specs)

    def _propose(
        self, study: Study, corpus: CorpusFacts, rung: ScaleSection, own: Sequence[Setting]
    ) -> tuple[str, Placed]:
        """The next point of a rung, and what proposed it: an even sequence at the beginning, and beside repeats."""
        domains = list(corpus.mixture)
        start = max(START_LEAST, START_PER_CHOICE * count_coordinates(study.search, domains))
        known = [item.point for item in own]
        if sum(item.has_ended for item in own) >= start and sum(math.isfinite(item.mean) for item in own) > 1:
            seed = int(make_rng(study, self._kind, rung.name, len(own)).integers(2**31))
            placed = _suggest(self._kind, seed, study.search, domains, own)
            if placed.point not in known:
                return self._kind, placed
        even = _draw_sequence(study, corpus, rung, len(own) + 1, "qmc")
        return "qmc", next((placed for placed in even if placed.point not in known), even[-1])


def _draw_sequence(
    study: Study, corpus: CorpusFacts, rung: ScaleSection, count: int, method: Literal["random", "qmc"]
) -> list[Placed]:
    return draw_points(study.search, list(corpus.mixture), make_rng(study, method, rung.name), count, method)


def _count_room(study: Study, own: Sequence[Setting]) -> int:
    """Settings to decide on now: a batch when the last is complete, or as many as have ended of it."""
    search, pending = study.search, sum(not item.has_ended for item in own)
    room = search.batch if not pending else 0 if search.synchronous else search.batch - pending
    return max(0, min(room, search.runs - len(own)))


def _suggest(
    kind: Literal["tpe", "gp"], seed: int, search: SearchSection, domains: Sequence[str], own: Sequence[Setting]
) -> Placed:
    """Where Optuna's sampler would go next, having seen these settings."""
    import optuna  # half a second, which only this waits for

    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # groups of branches
        sampler: optuna.samplers.BaseSampler = (
            optuna.samplers.TPESampler(seed=seed, n_startup_trials=0, multivariate=True, group=bool(search.branches))
            if kind == "tpe"
            else optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        )
        memory = optuna.create_study(sampler=sampler)
        penalty = _choose_penalty(own)
        for item in own:
            memory.add_trial(_as_trial(item, search, domains, penalty))
        trial = memory.ask()
        return place_choices(search, domains, lambda coordinate: _suggest_choice(trial, coordinate))


def _suggest_choice(trial: optuna.Trial, coordinate: Coordinate) -> float:
    name, count = coordinate.name, coordinate.count
    if not count:
        return trial.suggest_float(name, 0.0, 1.0)
    return (
        trial.suggest_int(name, 0, count - 1)
        if coordinate.is_ordered
        else trial.suggest_categorical(name, range(count))
    )


def _distribution(coordinate: Coordinate) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not coordinate.count:
        return FloatDistribution(0.0, 1.0)
    if coordinate.is_ordered:
        return IntDistribution(0, coordinate.count - 1)
    return CategoricalDistribution(range(coordinate.count))


def _as_trial(item: Setting, search: SearchSection, domains: Sequence[str], penalty: float) -> optuna.trial.FrozenTrial:
    """A setting in Optuna's terms: pending, without a loss for no reason of its own, or with one."""
    from optuna.trial import TrialState, create_trial

    taken: dict[str, float] = {}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}

    def note(coordinate: Coordinate) -> float:
        choice = item.placed.choices[coordinate.name]
        taken[coordinate.name] = int(choice) if coordinate.count else choice
        distributions[coordinate.name] = _distribution(coordinate)
        return choice

    walk_tree(search, domains, note)
    if not item.has_ended:
        return create_trial(state=TrialState.RUNNING, params=taken, distributions=distributions)
    if item.obstacle or not (item.losses or item.has_diverged):
        return create_trial(state=TrialState.FAIL, params=taken, distributions=distributions)
    value = item.mean if math.isfinite(item.mean) else penalty
    return create_trial(value=value, params=taken, distributions=distributions)


def _choose_penalty(own: Sequence[Setting]) -> float:
    """The loss of a diverged setting: as much above the worst as that is above the best (assumption)."""
    means = [item.mean for item in own if math.isfinite(item.mean)]
    return 2 * max(means) - min(means)
