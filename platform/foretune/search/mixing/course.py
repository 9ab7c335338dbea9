"""What a search over mixtures goes by: its domains and their bounds, its sizes, and the runs it has decided on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from foretune.deriving import CorpusFacts, resolve_run
from foretune.errors import InputError
from foretune.records import Decision, Frozen, Result, RunSpec
from foretune.repetition import count_domain_tokens
from foretune.search.interface import score
from foretune.search.mixing.problem import Fidelity, MixingProblem, Observed
from foretune.search.mixing.simplex import FloatArray, ShareRegion, cap_shares
from foretune.search.sampling import list_rungs, list_seeds
from foretune.sections import ScaleSection
from foretune.sections.mixing import MixtureSearchSection
from foretune.space import Simplex
from foretune.study import Study

DECIMALS = 5
"""Digits of a share: they read well, and a further one is far below what any loss can tell."""
UNIT = 10**-DECIMALS
"""Shares are whole multiples of this."""
Results = Mapping[str, Result]


class Trial(Frozen):
    """A run that was decided on."""

    kind: Literal["natural", "design", "propose", "confirm", "check"]
    """What for: to measure the natural mixture; to begin with; because it promised most; to confirm what is
    recommended; to check it at a larger scale."""
    mixture: Literal["natural", "recommended", "best observed", ""] = ""
    """Of a check: which mixture it is."""
    scale: str
    """Rung."""
    seed: int
    """Seed of initial weights and data order."""
    shares: dict[str, float]
    """The mixture."""
    gain: float = 0.0
    """Of a proposal: expected fall of the recommended ln objective, per cost of a run at the target fidelity."""
    searched: int
    """Runs of the search that had been decided on before it."""
    planned: int = 0
    """Of a confirmation: runs that the search was to have in all."""
    waited: bool = True
    """Whether all runs before it had ended."""
    run_id: str = ""
    """The run."""
    passed: bool = False
    """Whether a later decision has waited for it; known when decisions are read, and not written down."""

    @property
    def is_searched(self) -> bool:
        """Whether it counts as a run of the search: confirmations and checks come after it."""
        return self.kind in ("natural", "design", "propose")

    def is_decided_with(self, following: Trial) -> bool:
        """Whether the trial that follows was decided on in the same step; confirmations come one by one."""
        steps = [(item.searched, item.is_searched, item.kind == "confirm") for item in (self, following)]
        return steps[0] == steps[1] and self.kind != "confirm"

    def decide(self) -> Decision:
        """The decision that the ledger keeps; its number is given when it is written down."""
        details = self.model_dump(mode="json", exclude={"kind", "run_id", "passed"})
        return Decision(number=0, kind=self.kind, run_id=self.run_id, details=details)


class Advice(Frozen):
    """A mixture that was recommended, with what was known then; kept as a decision, and never computed again."""

    searched: int
    """Runs of the search that had been decided on."""
    planned: int
    """Runs that it was to have in all."""
    shares: dict[str, float]
    """The mixture."""
    low: dict[str, float]
    """Lower end of the interval of each share, 5 %."""
    high: dict[str, float]
    """Upper end, 95 %."""
    loss: float
    """Expected objective at the target fidelity."""
    loss_sd: float
    """Standard deviation of that expectation."""
    noise_sd: float
    """Standard deviation of a run around it."""
    gain: float
    """Expected objective of the natural mixture less that of this one."""
    gain_sd: float
    """Standard deviation of the gain."""
    probability: float
    """That this one is better than the natural one, by the posterior."""
    message: str
    """What to know before it is used."""
    best: dict[str, float]
    """The mixture with the lowest measured objective at the target fidelity; empty where none was measured there."""
    best_loss: float | None
    """That objective, the mean over seeds where there are several."""

    def decide(self) -> Decision:
        """The decision that the ledger keeps."""
        return Decision(number=0, kind=ADVICE, details=self.model_dump(mode="json"))


ADVICE = "recommend"
"""The kind of decision that is no run."""


def read_trials(decisions: Iterable[Decision]) -> list[Trial]:
    """The runs that were decided on, in order, each with whether a later decision has waited for it."""
    trials: list[Trial] = []
    passed = False
    for item in reversed(tuple(decisions)):
        if item.kind == ADVICE:
            passed = True
            continue
        trial = Trial(**item.details, kind=item.kind, run_id=item.run_id)
        passed = passed or (bool(trials) and trials[-1].waited and not trial.is_decided_with(trials[-1]))
        trials.append(trial.model_copy(update={"passed": passed}))
    return trials[::-1]


def read_later_trials(decisions: Sequence[Decision]) -> list[Trial]:
    """The runs that were decided on with the last recommendation and after it: its checks, and further search."""
    last = max((place for place, item in enumerate(decisions) if item.kind == ADVICE), default=len(decisions))
    return read_trials(decisions[last:])


def read_advice(decisions: Iterable[Decision]) -> list[Advice]:
    """The recommendations, in order; the last one stands."""
    return [Advice(**item.details) for item in decisions if item.kind == ADVICE]


@dataclass(frozen=True)
class Course:
    """A search over mixtures, as its study means it."""

    study: Study
    corpus: CorpusFacts

    @cached_property
    def rules(self) -> MixtureSearchSection:
        """`[search.mixture]`."""
        return self.study.search.mixture or MixtureSearchSection()

    @cached_property
    def bounds(self) -> Simplex:
        """The bounds of the space."""
        bounds = self.study.search.space["mixture"]
        assert isinstance(bounds, Simplex), "find_mixture_search_problems refuses others"
        return bounds

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the corpus."""
        return tuple(self.corpus.mixture)

    @property
    def natural(self) -> dict[str, float]:
        """The mixture that others are compared with: `[data] mixture`, else the corpus's own."""
        return dict(self.corpus.mixture)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the space."""
        return list_seeds(self.study)

    @cached_property
    def objective(self) -> dict[str, float]:
        """Weights of the held-out losses; every domain alike unless the study gives them, never a run's own mixture."""
        given = self.study.search.objective
        return dict(given) if given else dict.fromkeys(self.domains, 1 / len(self.domains))

    @cached_property
    def fidelities(self) -> tuple[ScaleSection, ...]:
        """The scales that are searched, from the cheapest to the target fidelity."""
        named = self.rules.fidelities
        rungs = [rung for rung in list_rungs(self.study) if rung.name not in self.rules.check_scales]
        chosen = [rung for rung in rungs if rung.name in named or not named]
        return tuple(sorted(chosen, key=lambda rung: self.resolve(rung).compute_flops))

    @property
    def target(self) -> ScaleSection:
        """The dearest scale that is searched."""
        return self.fidelities[-1]

    @cached_property
    def checks(self) -> tuple[ScaleSection, ...]:
        """The scales at which what is recommended is checked, from the cheapest."""
        rungs = [rung for rung in self.study.scales if rung.name in self.rules.check_scales]
        return tuple(sorted(rungs, key=lambda rung: self.resolve(rung).compute_flops))

    def resolve(
        self,
        rung: ScaleSection,
        shares: Mapping[str, float] | None = None,
        seed: int | None = None,
        *,
        check: bool = False,
    ) -> RunSpec:
        """A run of a mixture, by default of the natural one."""
        point = {"mixture": dict(shares or self.natural), "seed": self.seeds[0] if seed is None else seed}
        return resolve_run(self.study, rung, point, self.corpus, role="verification" if check else "search")

    def make_spec(self, trial: Trial) -> RunSpec:
        """The run of a trial."""
        rung = self.study.scale_named(trial.scale)
        return self.resolve(rung, trial.shares, trial.seed, check=trial.kind == "check")

    def begin(self, **fields: Any) -> Trial:
        """A trial with the id of its run."""
        trial = Trial(**fields)
        return trial.model_copy(update={"run_id": self.make_spec(trial).run_id})

    @cached_property
    def caps(self) -> dict[str, float]:
        """The highest share by domain that the space, and `max_epochs` in every run and the target, leave."""
        caps = {name: self.bounds.maximum.get(name, 1.0) for name in self.domains}
        for place, tokens, held in self._list_loads():
            try:
                found = cap_shares(tokens, held, self.study.data.max_epochs)
            except InputError as error:
                raise InputError(f"data.{error} ({place})") from None
            caps = {name: min(cap, found.get(name, 1.0)) for name, cap in caps.items()}
        return {name: round(math.floor(cap / UNIT + 1e-3) * UNIT, DECIMALS) for name, cap in caps.items()}

    def _list_loads(self) -> Iterator[tuple[str, float, Mapping[str, float]]]:
        """Who trains on how many tokens, and how many of them every domain holds for it."""
        target = self.study.target
        whole = count_domain_tokens(self.study, self.corpus.train_tokens)
        if target and set(self.domains) <= set(whole):
            yield "the target", target.tokens_resolved, whole
        for rung in (*self.fidelities, *self.checks) if self.corpus.train_tokens else ():
            spec = self.resolve(rung)
            yield f"scale {rung.name}", spec.tokens, {**self.corpus.train_tokens, **spec.data.unique_tokens}

    @cached_property
    def problem(self) -> MixingProblem:
        """The search as the mathematics reads it."""
        specs = {rung.name: self.resolve(rung) for rung in self.fidelities}
        return MixingProblem(
            domains=self.domains,
            fidelities=tuple(
                Fidelity(name, spec.model.shape.params_non_embedding, spec.tokens, spec.compute_flops)
                for name, spec in specs.items()
            ),
            minimum=self.bounds.minimum,
            maximum=self.caps,
            cost_floor=self.rules.cost_floor,
            target_share=self.rules.target_share,
        )

    @cached_property
    def region(self) -> ShareRegion:
        """The mixtures that may be tried."""
        return self.problem.region

    def name_shares(self, shares: FloatArray) -> dict[str, float]:
        """A mixture (d,) by domain, in whole units within the bounds."""
        units = settle_units(shares, self.region)
        return {name: round(int(unit) * UNIT, DECIMALS) for name, unit in zip(self.domains, units, strict=True)}

    def list_shares(self, shares: Mapping[str, float]) -> FloatArray:
        """A mixture as an array (d,)."""
        return np.array([shares.get(name, 0.0) for name in self.domains])

    def measure(self, trial: Trial, results: Results) -> float:
        """The objective of a trial; infinite where its run failed or diverged, NaN while it is under way."""
        result = results.get(trial.run_id)
        return math.nan if result is None else score(result, self.objective)

    def observe(self, trials: Sequence[Trial], results: Results) -> Observed:
        """The runs at the sizes that are searched."""
        levels = {rung.name: number for number, rung in enumerate(self.fidelities)}
        seen = [trial for trial in trials if trial.scale in levels]
        lost = find_lost(trials, results)
        losses = [math.inf if trial.run_id in lost else self.measure(trial, results) for trial in seen]
        return Observed(
            shares=np.array([self.list_shares(trial.shares) for trial in seen]).reshape(-1, len(self.domains)),
            level=np.array([levels[trial.scale] for trial in seen], dtype=np.int64),
            loss=np.array(losses, dtype=np.float64),
        )


def is_same_mixture(left: Mapping[str, float], right: Mapping[str, float]) -> bool:
    """Whether two mixtures differ by rounding at most."""
    return all(abs(left.get(name, 0.0) - right.get(name, 0.0)) < 2 * UNIT for name in {*left, *right})


def find_lost(trials: Sequence[Trial], results: Results) -> frozenset[str]:
    """Runs without a result that a later decision has gone past, although it waited for all: they failed before.

    One that is decided on anew, like a check of the natural mixture, is not lost.
    """
    wanted = {trial.run_id for trial in trials if not trial.passed}
    return frozenset(trial.run_id for trial in trials if trial.run_id not in {*wanted, *results})


def settle_units(shares: FloatArray, region: ShareRegion) -> FloatArray:
    """Shares (d,) in whole units that add up to 1 within the region's bounds, each as near as can be."""
    low, high = np.ceil(region.low / UNIT - 1e-3), np.floor(region.high / UNIT + 1e-3)
    units = np.clip(np.floor(shares / UNIT), low, high)
    order = np.argsort(units - shares / UNIT, kind="stable")  # those first that were cut most
    missing = round(1 / UNIT - units.sum())
    while missing:
        room = (high - units if missing > 0 else units - low) > 0
        if not room.any():
            raise InputError(f"search.space.mixture: its bounds leave no mixture in steps of {UNIT:g}; widen them")
        for place in [place for place in order if room[place]][: abs(missing)]:
            units[place] += np.sign(missing)
        missing = round(1 / UNIT - units.sum())
    return np.asarray(units)
