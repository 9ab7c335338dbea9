"""A search under way: what it has asked for and decided, in step with what the ledger holds."""

from __future__ import annotations

from functools import cached_property

from foretune.deriving import CorpusFacts
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
from foretune.search.interface import fingerprint_search
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
        self._sought: set[str] = set()
        found = ledger.decisions(study.study.name, self.fingerprint) if ledger else []
        self._decisions: tuple[Decision, ...] = tuple(found)

    def ask(self) -> Asked:
        """Every run that should exist by now; nothing is written."""
        while True:
            asked = ask_further(self._study, self._corpus, self._history())
            self._decisions = asked.decisions
            if not self._look_up(asked):
                return asked

    def take(self, result: Result) -> None:
        """A run has ended."""
        self._results[result.run_id] = result

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
        return History(dict(self._results), self._decisions)

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
