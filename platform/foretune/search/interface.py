"""What every search strategy promises: it asks for runs, as a pure function of what the ledger holds.

A strategy keeps nothing between two calls. What it decided comes back to it as decisions, what came of the runs as
results; from both it makes the same runs again, and decides what is new. A driver that was killed therefore goes on by
asking again, and a library that proposes other points in its next version changes nothing that was decided.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.planning import Skipped
from foretune.records import Decision, Result, RunSpec, RunStatus, hash_content, trainer_of
from foretune.study import Study

EXTENDABLE = ("runs", "points", "batch", "synchronous", "baselines", "soup", "replay", "check_tuned")
"""Keys of `[search]` that may change while a search goes on: more runs of it, or others beside it."""
IDENTITY = ("proxy", "scales", "training")
"""Tables of a study that decide what a search is about, beside `[search]`."""
Kept = TypeVar("Kept")


class DecisionChanged(InputError):
    """A decision of the ledger means another run than the one that was decided on."""

    def __init__(self, decision: Decision, spec: RunSpec) -> None:
        """`spec`: the run that it means now."""
        super().__init__(
            f"study {spec.study!r}: decision {decision.number} of its search ({decision.kind!r}) was for run "
            f"{decision.run_id}, and now means {spec.run_id}: runs are made in another way than by the version of "
            "foretune that decided it. Go on with that version, or give the study another name to search anew (what "
            "is in the ledger is used again where a run is the same)"
        )
        self.decision, self.spec = decision, spec


@dataclass(frozen=True)
class History:
    """What a search goes by."""

    results: Mapping[str, Result] = field(default_factory=dict)
    """Runs that have ended, by id, in the order in which they did; failed ones only if they are not tried again."""
    decisions: tuple[Decision, ...] = ()
    """What it has decided before, in order."""
    kept: dict[Hashable, Any] | None = field(default=None, repr=False, compare=False)
    """What was made of decisions and results when it was asked before, which saves making it again and decides nothing;
    None: nothing is kept. A search has one of its own."""

    def extend(self, decisions: tuple[Decision, ...]) -> History:
        """The same with further decisions."""
        return replace(self, decisions=decisions)

    def keep(
        self, key: Hashable, make: Callable[[], Kept], is_settled: Callable[[Kept], bool] = lambda made: True
    ) -> Kept:
        """What `make` gives; made no more once it is settled, that is, once no further result can change it."""
        if self.kept is not None and key in self.kept:
            found: Kept = self.kept[key]
            return found
        made = make()
        if self.kept is not None and is_settled(made):
            self.kept[key] = made
        return made

    def remake(self, decision: Decision, make: Callable[[], RunSpec]) -> RunSpec:
        """The run that a decision means; see `hold_to_decision`."""
        return hold_to_decision(decision, self.keep(("run", decision.number), make))


@dataclass(frozen=True)
class Asked:
    """What a search asks for."""

    specs: tuple[RunSpec, ...]
    """Every run so far, done or not, but for failed ones that a decision has gone past."""
    skipped: tuple[Skipped, ...] = ()
    """What the space holds and will not be run, with the reason."""
    decisions: tuple[Decision, ...] = ()
    """Every decision so far, those of the history first."""
    retained: frozenset[str] = frozenset()
    """Runs whose final state may still be gone on from."""
    finished: bool = True
    """Whether nothing more will be asked for when these runs have ended."""


@dataclass(frozen=True)
class Findings:
    """What a search has found."""

    sentence: str
    """The finding in a sentence or two, with its uncertainty."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings to use; `mixture` as shares per domain."""
    tables: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows by title."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Plain data behind the figures, by the name of the figure."""

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain data that is strict JSON: numbers that are not finite are null."""
        plain: dict[str, Any] = drop_infinities(asdict(self))
        return plain


class Strategy(ABC):
    """Which runs next? A file each; instances hold no state."""

    @abstractmethod
    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """Every run that should exist by now; called again after every result until it is finished."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """What is wrong with the study for this strategy: key, rule, value, what to try."""
        return []

    def expect(self, study: Study, corpus: CorpusFacts) -> list[RunSpec]:
        """Runs that cost what all runs of the search will cost, though their settings are still unknown."""
        return list(self.ask(study, corpus, History()).specs)

    def expect_rest(
        self, study: Study, corpus: CorpusFacts, asked: Asked, expected: Sequence[RunSpec]
    ) -> Sequence[RunSpec]:
        """Runs that cost what will be asked for after these, in that order; `expected`: what all of them cost.

        A run that was expected as it is asked for is not to come; any other stands for the first that is left.
        """
        known, foreseen = ({spec.run_id for spec in specs} for specs in (asked.specs, expected))
        return [spec for spec in expected if spec.run_id not in known][len(known - foreseen) :]

    def conclude(self, study: Study, corpus: CorpusFacts, history: History) -> Findings | None:
        """What the runs so far have shown; None where the laws fitted to them say it all, or nothing can be said."""
        return None


def hold_to_decision(decision: Decision, spec: RunSpec) -> RunSpec:
    """The run that a decision means, made again.

    Raises DecisionChanged where it is not the one that was decided on: what came of that would be missed, and the
    search would repeat runs under decisions that were taken for others.
    """
    if decision.run_id and decision.run_id != spec.run_id:
        raise DecisionChanged(decision, spec)
    return spec


def score(result: Result, objective: Mapping[str, float]) -> float:
    """What is minimised: the loss, or the weighted sum of held-out losses per domain; infinite without a loss.

    Raises InputError where a weighted domain was not evaluated.
    """
    if result.status is not RunStatus.COMPLETED or result.loss is None:
        return math.inf
    if not objective:
        return result.loss
    missing = [domain for domain in objective if domain not in result.loss_by_domain]
    if missing:
        raise InputError(
            f"search.objective: run {result.run_id} has no held-out loss of domain {missing[0]!r}; a trainer must "
            "return `loss_by_domain` for every domain that is weighed"
        )
    return sum(weight * result.loss_by_domain[domain] for domain, weight in objective.items())


def find_objective_problems(objective: Mapping[str, float], domains: Sequence[str]) -> Iterator[str]:
    """Weights of domains that the corpus lacks, and weights that weigh nothing."""
    for name in sorted(set(objective) - set(domains)):
        close = difflib.get_close_matches(name, domains, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        yield f"search.objective.{name}: no such domain; {meant}domains of this corpus: {', '.join(domains)}"
    if objective and not any(objective.values()):
        yield "search.objective: all weights are 0; weigh at least one domain"


def fingerprint_search(study: Study, corpus: CorpusFacts) -> str:
    """16 hex digits that tell one search from another: what may be extended is not in it, nor what is at its default,
    so that a later version with more keys goes on with it."""
    plain = study.model_dump(mode="json", exclude_defaults=True)
    identity = {name: plain[name] for name in IDENTITY}
    identity["search"] = {key: value for key, value in plain["search"].items() if key not in EXTENDABLE}
    identity["search"]["space"] = {key: value for key, value in plain["search"]["space"].items() if key != "seed"}
    identity["data"] = {key: value for key, value in plain.get("data", {}).items() if key != "domains"}
    identity |= {
        "seed": study.study.seed,
        "corpus": corpus.digest,
        "target": plain.get("target"),
        "trainer": trainer_of(study.trainable, study.runner),
    }
    return hash_content(identity)[:16]


def make_rng(study: Study, *parts: object) -> np.random.Generator:
    """Random numbers that depend on the study's seed and on what they are for, and on nothing else."""
    digest = hash_content([study.study.seed, *(str(part) for part in parts)])
    return np.random.Generator(np.random.Philox(key=int(digest[:32], 16)))


def number_decisions(known: Sequence[Decision], new: Sequence[Decision]) -> tuple[Decision, ...]:
    """The known decisions and the new ones behind them, numbered on."""
    first = len(known)
    return (*known, *(item.model_copy(update={"number": first + place}) for place, item in enumerate(new)))


def drop_infinities(value: Any) -> Any:
    """Plain data without numbers that JSON does not have: they become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): drop_infinities(item) for key, item in value.items()}
    return [drop_infinities(item) for item in value] if isinstance(value, list | tuple) else value
