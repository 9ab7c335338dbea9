"""How far a search that stops runs early takes its settings: the stops, and the runs up to each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from foretune.deriving import CorpusFacts, resolve_horizon, resolve_run
from foretune.planning import find_obstacle
from foretune.records import Decision, Result, RunSpec, TrainingSpec
from foretune.search.interface import History
from foretune.search.sampling import Placed, list_seeds
from foretune.search.tried import TRY, Setting, judge_setting
from foretune.sections import HalvingSection, ScaleSection
from foretune.study import Study
from foretune.training.lineages import count_steps

PROMOTE = "promote"
"""Kind of a decision to go on with a setting."""


@dataclass(frozen=True)
class Contender:
    """A setting at a rung, with the levels that it was given."""

    placed: Placed
    """The settings, and the choices that led to them."""
    levels: tuple[Setting, ...]
    """Its runs up to each stop, as far as it was gone on with."""
    number: float
    """The last decision on it; infinite when that is only now taken."""

    @property
    def level(self) -> int:
        """The stop that it is on its way to, or has reached: 0, 1, ..."""
        return len(self.levels) - 1

    @property
    def now(self) -> Setting:
        """Its runs up to that stop."""
        return self.levels[-1]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be known of any of its runs."""
        return all(setting.has_ended for setting in self.levels)


@dataclass(frozen=True)
class Bracket:
    """The settings of one rung of the study, and how far they go."""

    study: Study
    corpus: CorpusFacts
    scale: ScaleSection
    rules: HalvingSection
    stop_tokens: tuple[int, ...]
    """Training tokens at the stops; the last is the horizon."""

    @property
    def last(self) -> int:
        """The level of runs that come to their end."""
        return len(self.stop_tokens) - 1

    def count_survivors(self, settings: int, level: int) -> int:
        """How many of so many settings go on to a level."""
        for _ in range(level):
            settings //= self.rules.reduction
        return settings

    def train(
        self, placed: Placed, results: Mapping[str, Result], levels: int = 1, number: float = math.inf
    ) -> Contender:
        """A setting with its runs up to so many stops, and what came of them."""
        whole = [self._resolve(placed, seed) for seed in list_seeds(self.study)]
        obstacle = find_obstacle(whole[0], self.study, self.corpus)
        runs = [self._divide(spec, levels) for spec in whole]
        settings = tuple(
            Setting(self.scale.name, placed, tuple(of_seed[level] for of_seed in runs), obstacle, (), ())
            for level in range(levels)
        )
        return self.judge(Contender(placed, settings, number), results)

    def judge(self, contender: Contender, results: Mapping[str, Result]) -> Contender:
        """The same with what came of its runs by now."""
        objective = self.study.search.objective
        return replace(contender, levels=tuple(judge_setting(item, results, objective) for item in contender.levels))

    def find_stops(self, training: TrainingSpec) -> list[int]:
        """Steps at the stops of a run."""
        return [count_steps(training, tokens) for tokens in self.stop_tokens[:-1]] + [training.steps]

    def read(self, history: History) -> list[Contender]:
        """The settings that were decided on at this rung, in the order of their beginning."""
        begun: dict[int, Decision] = {}
        for item in history.decisions:
            if item.kind in (TRY, PROMOTE) and item.details["scale"] == self.scale.name:
                begun[item.details["setting"]] = item
                history.remake(item, partial(self._remake, item))
        return [self._read_one(item, history) for item in begun.values()]

    def decide(self, contender: Contender, setting: int, **why: Any) -> list[Decision]:
        """The decisions to take the setting of this number to its present level, one for every seed."""
        details = {
            "scale": self.scale.name,
            "setting": setting,
            "level": contender.level,
            "stop_tokens": self.stop_tokens[contender.level],
            "point": contender.placed.point,
            "choices": contender.placed.choices,
            **why,
        }
        return [
            Decision(
                number=0,
                kind=PROMOTE if contender.level else TRY,
                run_id="" if contender.now.obstacle else spec.run_id,
                parent_run_id=spec.parent_run_id,
                details={**details, "seed": spec.seed},
            )
            for spec in contender.now.specs
        ]

    def promote(self, contender: Contender, results: Mapping[str, Result]) -> Contender:
        """The same, one level further."""
        return self.train(contender.placed, results, len(contender.levels) + 1)

    def _read_one(self, item: Decision, history: History) -> Contender:
        """The setting that a decision is the last one on; kept when all of its runs have ended."""
        placed, levels = Placed(item.details["point"], item.details["choices"]), item.details["level"] + 1

        def judge() -> Contender:
            begun = history.keep(("begun", item.number), partial(self.train, placed, {}, levels, item.number))
            return self.judge(begun, history.results)

        return history.keep(("ended", item.number), judge, lambda contender: contender.has_ended)

    def _remake(self, item: Decision) -> RunSpec:
        """The run of a decision, whose seed the study may no longer have."""
        whole = self._resolve(Placed(item.details["point"], item.details["choices"]), item.details["seed"])
        return self._divide(whole, item.details["level"] + 1)[-1]

    def _resolve(self, placed: Placed, seed: int) -> RunSpec:
        return resolve_run(self.study, self.scale, {**placed.point, "seed": seed}, self.corpus)

    def _divide(self, whole: RunSpec, levels: int) -> list[RunSpec]:
        """The parts of a run, each of which goes on from the one before."""
        parts: list[RunSpec] = []
        stops = self.find_stops(whole.training)
        for level, stop in enumerate(stops[:levels]):
            is_last = level == self.last
            begin = {"parent_run_id": parts[-1].run_id, "parent_step": stops[level - 1]} if parts else {}
            end = {"stop_step": 0 if is_last else stop, "keep_state": not is_last}
            parts.append(whole.model_copy(update={**begin, **end}))
        return parts


def plot_bracket(study: Study, corpus: CorpusFacts, scale: ScaleSection) -> Bracket:
    """The stops of a rung: `min_tokens` and its multiples by `reduction`.

    The last leg is between sqrt(reduction) and reduction^1.5 times as long as what came before it.
    """
    rules = study.search.halving
    assert rules is not None, "Halving.find_problems asks for it"
    horizon = resolve_horizon(study, scale, corpus)
    count = max(0, round(math.log(horizon / rules.min_tokens, rules.reduction)))
    return Bracket(
        study, corpus, scale, rules, (*(rules.min_tokens * rules.reduction**level for level in range(count)), horizon)
    )
