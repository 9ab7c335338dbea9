"""Which runs next? One file per strategy; none of them knows how a run is executed."""

from __future__ import annotations

from dataclasses import replace

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.planning import Skipped, check_decays
from foretune.records import RunSpec
from foretune.search.autolrs.strategy import AutoLRS
from foretune.search.baselines import ask_baselines, score_against_baselines
from foretune.search.bilevel import Bilevel
from foretune.search.grid import Grid
from foretune.search.halving.strategy import Halving
from foretune.search.interface import Asked, Findings, History, Strategy, find_objective_problems
from foretune.search.mixing.strategy import Mixtures
from foretune.search.points import Points, ask_points
from foretune.search.population.strategy import Population
from foretune.search.replaying.findings import add_replays
from foretune.search.replaying.replays import ask_replays
from foretune.search.sampled import Drawn, Modelled
from foretune.search.soups import add_soups, find_soup_problems, tell_soups
from foretune.search.tuned import add_checks, expect_checks, find_check_problems, tell_tuned
from foretune.study import Study

__all__ = [
    "STRATEGIES",
    "Asked",
    "Findings",
    "History",
    "Strategy",
    "ask_further",
    "ask_search",
    "check_search",
    "conclude_search",
    "concludes",
    "expect_search",
]

STRATEGIES: dict[str, Strategy] = {
    "grid": Grid(),
    "points": Points(),
    "random": Drawn("random"),
    "qmc": Drawn("qmc"),
    "tpe": Modelled("tpe"),
    "gp": Modelled("gp"),
    "halving": Halving(),
    "pbt": Population(),
    "mixture": Mixtures(),
    "autolrs": AutoLRS(),
    "bilevel": Bilevel(),
}
"""Every strategy by its name in `[search] strategy`."""

NOTHING_YET = History()
"""What a search has to go by at its beginning."""


def ask_search(study: Study, corpus: CorpusFacts, history: History = NOTHING_YET) -> Asked:
    """The runs that the study's search and its single points ask for by now, each once.

    Raises InputError where the strategy cannot search this study.
    """
    check_search(study, corpus)
    return ask_further(study, corpus, history)


def check_search(study: Study, corpus: CorpusFacts) -> None:
    """Raise InputError where the strategy cannot search this study."""
    problems = list(find_objective_problems(study.search.objective, list(corpus.mixture)))
    problems += [*STRATEGIES[study.search.strategy].find_problems(study, corpus), *find_check_problems(study)]
    if study.search.soup and not problems:
        problems = find_soup_problems(_ask_runs(study, corpus, NOTHING_YET), study)
    if problems:
        raise InputError("\n".join(problems))


def ask_further(study: Study, corpus: CorpusFacts, history: History) -> Asked:
    """The same as `ask_search`, of a study that is checked: it is asked again after every result."""
    return add_soups(add_checks(_ask_runs(study, corpus, history), study, history), study, history)


def expect_search(study: Study, corpus: CorpusFacts) -> list[RunSpec]:
    """Runs that cost what the whole search will cost, whatever their settings, in the order of its asking."""
    expected = [*_ask_beside(study, corpus)[0], *STRATEGIES[study.search.strategy].expect(study, corpus)]
    return [*expected, *expect_checks(study, expected)]


def concludes(study: Study) -> bool:
    """Whether the study's search finds something itself, beside gathering runs for the laws."""
    replays = study.search.replay and study.search.replay.file
    beside = study.search.baselines or study.search.soup or replays or study.training.self_tuning
    return bool(beside) or type(STRATEGIES[study.search.strategy]).conclude is not Strategy.conclude


def conclude_search(study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
    """What the search has found so far."""
    strategy = STRATEGIES[study.search.strategy]
    findings = add_replays(strategy.conclude(study, corpus, history), study, corpus, history.results)
    told = study.search.baselines or study.search.soup or study.training.self_tuning
    specs = ask_search(study, corpus, history).specs if told else ()
    findings = tell_soups(tell_tuned(findings, specs, study, history), specs, study, history)
    return score_against_baselines(findings, specs, study, corpus, history)


def _ask_runs(study: Study, corpus: CorpusFacts, history: History) -> Asked:
    """Everything that is trained: what the strategy asks for by now, and what it has beside that."""
    asked = STRATEGIES[study.search.strategy].ask(study, corpus, history)
    beside, skipped = _ask_beside(study, corpus)
    specs = _list_distinct([*asked.specs, *beside])
    check_decays(study, specs)
    return replace(asked, specs=tuple(specs), skipped=(*asked.skipped, *skipped))


def _ask_beside(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """What every strategy has beside its own runs: single points, schedules to train from scratch, and baselines."""
    found = [ask(study, corpus) for ask in (ask_points, ask_replays, ask_baselines)]
    return [spec for specs, _ in found for spec in specs], [item for _, skipped in found for item in skipped]


def _list_distinct(specs: list[RunSpec]) -> list[RunSpec]:
    """Each run once; where two ask for it, the first says what it is for."""
    unique: dict[str, RunSpec] = {}
    for spec in specs:
        unique.setdefault(spec.run_id, spec)
    return list(unique.values())
