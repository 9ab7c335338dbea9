"""A search under way: what it has asked for and decided, in step with what the ledger holds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from typing import Any

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.ledger import Ledger
from foretune.records import Decision, Result, RunSpec
from foretune.search import (
    STRATEGIES,
    Asked,
    Findings,
    History,
    ask_further,
    check_search,
    conclude_search,
    expect_search,
)
from foretune.search.interface import DecisionChanged, fingerprint_search
from foretune.study import Study


def note_other_searches(study: Study, corpus: CorpusFacts, ledger: Ledger | None) -> str:
    """What to know where the study was edited since a search of its name began; empty where it was not."""
    counts = ledger.count_decisions(study.study.name) if ledger else {}
    own = counts.pop(fingerprint_search(study, corpus), 0)
    others = sum(counts.values())
    if not others:
        return ""
    return (
        f"study {study.study.name!r}: {others} decisions in the ledger are of other versions of this search, and this "
        f"one {'goes on from its own ' + str(own) if own else 'begins anew'}; their runs stay there, and are used "
        "again where a run is the same"
    )


def _tell_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The keys of two runs that are not the same, with what they were and are."""
    old, new = dict(_list_leaves(before)), dict(_list_leaves(after))
    unlike = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key, 'not there')}, is {new.get(key, 'not there')}" for key in unlike)


def _list_leaves(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _list_leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


class Searching:
    """Asks a study's strategy with everything that is known, as often as something new is."""

    def __init__(self, study: Study, corpus: CorpusFacts, ledger: Ledger | None) -> None:
        """Go on from the decisions in the ledger; without one, begin.

        Raises InputError where the strategy cannot search this study.
        """
        check_search(study, corpus)
        self.fingerprint = fingerprint_search(study, corpus)
        self._study = study
        self._corpus = corpus
        self._ledger = ledger
        self._results: dict[str, Result] = {}
        self._kept: dict[Hashable, Any] = {}
        self._sought: set[str] = set()
        found = ledger.decisions(study.study.name, self.fingerprint) if ledger else []
        self._decisions: tuple[Decision, ...] = tuple(found)

    def ask(self) -> Asked:
        """Every run that should exist by now; nothing is written."""
        while True:
            asked = self._ask_strategy()
            self._decisions = asked.decisions
            if not self._look_up(asked):
                return asked

    def _ask_strategy(self) -> Asked:
        """Ask once; where a decision means another run than it did, say in what they differ."""
        try:
            return ask_further(self._study, self._corpus, self._history())
        except DecisionChanged as error:
            before = self._ledger.spec(error.decision.run_id) if self._ledger else None
            told = f"; now differs: {_tell_differences(before, error.spec.content())}" if before else ""
            raise InputError(f"{error}{told}") from error

    def take(self, result: Result) -> None:
        """A run has ended."""
        self._results[result.run_id] = result

    def look_again(self) -> None:
        """Another study may have brought runs to their end: seek the results that were missing once more."""
        self._sought.clear()

    def expect_rest(self, asked: Asked) -> list[RunSpec]:
        """Stand-ins for the runs that will still be asked for, in the order of that."""
        if asked.finished:
            return []
        strategy = STRATEGIES[self._study.search.strategy]
        return list(strategy.expect_rest(self._study, self._corpus, asked, self._expected))

    def conclude(self) -> Findings | None:
        """What the search has found by now."""
        self.ask()
        return conclude_search(self._study, self._corpus, self._history())

    @cached_property
    def _expected(self) -> list[RunSpec]:
        return expect_search(self._study, self._corpus)

    def _history(self) -> History:
        return History(dict(self._results), self._decisions, self._kept)

    def _look_up(self, asked: Asked) -> bool:
        """Take results that the ledger already has, of this study or another; whether there were any.

        A run that failed in an earlier launch is tried again, so it has no result yet.
        """
        ids = {spec.run_id: None for spec in asked.specs}
        ids |= {item.run_id: None for item in asked.decisions if item.run_id}
        unsought = [run_id for run_id in ids if run_id not in self._sought and run_id not in self._results]
        self._sought.update(unsought)
        found = self._ledger.results(unsought) if self._ledger else []
        final = [result for result in found if result.status.final]
        for result in final:
            self.take(result)
        return bool(final)
