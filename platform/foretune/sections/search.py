"""`[search]` and `[verification]`: which runs are tried, and which larger ones check the forecast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.autolrs import AutoLRSSection
from foretune.sections.base import Name, Parametrization, Section, as_tuple
from foretune.sections.halving import HalvingSection
from foretune.sections.mixing import MixtureSearchSection
from foretune.sections.population import PopulationSection, ReplaySection
from foretune.sections.spaces import BranchSection, Leaf, Space, find_tree_problems, list_leaves

StrategyName = Literal[
    "grid", "points", "random", "qmc", "tpe", "gp", "halving", "pbt", "mixture", "autolrs", "bilevel"
]


class PointSection(Section):
    """`[[search.points]]`: one run beside those of the strategy; `foretune next` proposes such runs."""

    scale: Name
    """The rung at which it is run; not the one that is held out for verification."""
    peak_lr: Quantity = Field(ge=1e-7, le=0.5)
    """Peak learning rate."""
    batch_tokens: Count = Field(default=0, ge=0)
    """Tokens per optimizer step, a divisor of the rung's horizon; 0 takes that of `[training]`."""
    parametrization: Parametrization | None = None
    """Branch of the study; that of `[proxy]` unless given."""
    seed: Annotated[Count, Field(ge=0, lt=2**32)] | None = None
    """Seed of data order and initial weights; that of `[study]` unless given."""


BaselineName = Literal["calibrated_nadamw", "schedulefree", "prodigy"]


class SearchSection(Section):
    """`[search]`: which runs are tried."""

    strategy: StrategyName = "grid"
    """`grid`: every combination of the space's values at every scale; `points`: only the runs named one by one;
    `random`, `qmc`, `tpe`, `gp`: `runs` settings at every scale, drawn at random, evenly, or where past runs promise
    most; `halving`: many begun, the better ones gone on with; `pbt`: a population whose settings change as it trains;
    `mixture`: data mixtures by a Gaussian process over sizes; `autolrs`: a learning rate searched while training;
    `bilevel`: mixtures that runs learn along the way (`[training.mixture_learning]`), then trained from scratch."""
    runs: Count = Field(default=16, ge=1)
    """Settings that a strategy other than `grid` and `points` tries at each scale."""
    batch: Count = Field(default=4, ge=1)
    """Settings that are decided on together, before their results are seen."""
    synchronous: bool = True
    """Whether a decision waits for all runs before it, so that a study ends the same however it was interrupted;
    otherwise it is taken as soon as there is room for a run."""
    objective: dict[str, Annotated[Quantity, Field(ge=0)]] = Field(default_factory=dict)
    """Weights of the held-out losses per domain of which the sum is minimised; empty takes the run's `loss`, which its
    own mixture weighs, so that a search over mixtures needs it."""
    metric: Literal["loss"] = "loss"
    """What is minimised: the held-out loss at the end of a run."""
    space: Space = Field(min_length=1)
    """What is varied: `peak_lr = { low = "2^-10", high = "2^-4", factor = 2 }` or a list of values."""
    branches: Annotated[tuple[BranchSection, ...], BeforeValidator(as_tuple)] = ()
    """What is varied in some cases only: a tree, of which every run takes one way down."""
    points: Annotated[tuple[PointSection, ...], BeforeValidator(as_tuple)] = ()
    """Single runs: those of strategy `points`, or further ones beside a grid."""
    halving: HalvingSection | None = None
    """When runs are stopped and which go on; strategy `halving` needs it."""
    population: PopulationSection | None = None
    """How a population trains; strategy `pbt` needs it."""
    replay: ReplaySection | None = None
    """A schedule of settings to train from scratch, beside the strategy's own runs."""
    mixture: MixtureSearchSection | None = None
    """How strategy `mixture` searches."""
    autolrs: AutoLRSSection = Field(default_factory=AutoLRSSection)
    """How strategy `autolrs` searches a learning rate."""
    baselines: Annotated[tuple[BaselineName, ...], BeforeValidator(as_tuple)] = ()
    """Fixed settings that every search is scored against, trained beside it at the same rungs and with the same seeds:
    `calibrated_nadamw` (AlgoPerf's), `schedulefree`, `prodigy`. No fit sees them."""
    soup: Literal["", "greedy", "uniform"] = ""
    """Average, at the end, the weights of runs that share their first half: `uniform` takes all of them, `greedy` adds
    each that lowers the held-out loss, best first (Wortsman et al. 2022). Recorded as a run; no fit sees it."""

    check_tuned: bool = False
    """Train, once the runs of a scale have tuned themselves (`[training.self_tuning]`), plain runs with the dropout
    that they came to and with the one they began with: two for every seed, in the settings that did best otherwise."""

    @model_validator(mode="after")
    def _check_points(self) -> SearchSection:
        if self.strategy == "points" and not self.points and not (self.replay and self.replay.file):
            raise ValueError(
                'strategy = "points" needs [[search.points]], which `foretune next` proposes, or a [search.replay] file'
            )
        return self

    @model_validator(mode="after")
    def _check_tree(self) -> SearchSection:
        if problems := find_tree_problems(self.space, self.branches):
            raise ValueError("\n".join(problems))
        return self

    def leaves(self) -> tuple[Leaf, ...]:
        """Every way down the branches as a flat space; one where there are none."""
        return list_leaves(self.space, self.branches)

    def leaf_at(self, point: Mapping[str, Any]) -> Leaf:
        """The way down that a point took, by its `branch`; what is above all branches where it names none."""
        above = list_leaves(self.space, ())
        return next((leaf for leaf in (*self.leaves(), *above) if leaf.name == point.get("branch", "")), above[0])

    def list_keys(self) -> tuple[str, ...]:
        """Everything that the space and its branches vary or set."""
        return tuple(dict.fromkeys(key for leaf in self.leaves() for key in leaf.space))

    def axis(self, name: str) -> tuple[Any, ...]:
        """The grid values of one dimension in all branches; empty when it is not searched, or has no grid."""
        return _distinct(value for leaf in self.leaves() for value in leaf.axis(name))


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once; mixtures are tables, which cannot be hashed."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


class VerificationSection(Section):
    """`[verification]`: larger runs that the fit does not see, at the predicted settings and around them."""

    scale: Name
    """The rung that is held out of the search and trained after the forecast has been written down."""
    lr_steps: int = Field(default=1, ge=0, le=4)
    """Neighbours of the predicted learning rate on each side."""
    lr_factor: Quantity = Field(default=2.0, gt=1)
    """Ratio between those neighbours."""
