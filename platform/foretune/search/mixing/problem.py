"""What a search over mixtures is told, and what it answers, as plain data.

Legend: n runs, m candidates, d domains
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foretune.errors import InputError
from foretune.search.mixing.simplex import BoolArray, FloatArray, ShareRegion, build_region

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Fidelity:
    """A size and horizon of proxy runs."""

    name: str
    """Scale of the study."""
    params: float
    """Non-embedding parameters, > 0."""
    tokens: float
    """Training tokens, > 0."""
    cost: float
    """What a run costs, in any unit that all fidelities share (FLOPs, say), > 0."""


@dataclass(frozen=True)
class MixingProblem:
    """A search over mixtures; the loss at the last fidelity, the target, is what counts."""

    domains: tuple[str, ...]
    """Names of the domains, in the order of the columns of every array of shares."""
    fidelities: tuple[Fidelity, ...]
    """From the cheapest to the target; one is enough."""
    minimum: Mapping[str, float] = field(default_factory=dict)
    """Lowest share by domain; 0 where it is not named."""
    maximum: Mapping[str, float] = field(default_factory=dict)
    """Highest share by domain (`cap_shares`); 1 where it is not named."""
    limits: tuple[tuple[Mapping[str, float], float], ...] = ()
    """Weighted sums of shares that stay at or below a ceiling: (coefficient by domain, ceiling)."""
    noise_sd: float = 0.0
    """Standard deviation of a run's objective over seeds, in the unit of the loss; 0: estimated from the runs."""
    cost_floor: float = 0.0
    """A run is reckoned to cost at least this share of one at the target, 0 to 1: waiting and handling are not free."""
    target_share: float = 0.0
    """At least this share of all runs is at the target, 0 to 1; the next proposal makes up for what is missing."""

    def __post_init__(self) -> None:
        """Raises InputError for a problem that has no answer."""
        if len(set(self.domains)) < max(len(self.domains), 2):
            raise InputError(f"domains: a mixture needs two or more, each once; got {', '.join(self.domains)}")
        if not self.fidelities:
            raise InputError("fidelities: at least one is needed, the target; got none")
        for item in self.fidelities:
            if not min(item.params, item.tokens, item.cost) > 0:
                raise InputError(f"fidelity {item.name}: params, tokens and cost must be > 0; got {item}")
        for name in ("cost_floor", "target_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: must lie between 0 and 1; got {getattr(self, name)}")
        if not (np.isfinite(self.noise_sd) and self.noise_sd >= 0):
            raise InputError(f"noise_sd: must be 0 (estimated) or positive; got {self.noise_sd}")

    @property
    def target(self) -> int:
        """Number of the target among the fidelities."""
        return len(self.fidelities) - 1

    @property
    def region(self) -> ShareRegion:
        """The mixtures that are allowed; raises InputError where there is none."""
        return build_region(self.domains, self.minimum, self.maximum, self.limits)

    @property
    def costs(self) -> FloatArray:
        """What a run at each fidelity is reckoned to cost, in runs at the target."""
        costs = np.array([item.cost for item in self.fidelities]) / self.fidelities[-1].cost
        return np.asarray(np.maximum(costs, self.cost_floor))

    @property
    def distances(self) -> FloatArray:
        """How far each fidelity is from the target: |ln N/N*| + |ln D/D*|, in units of the farthest one's."""
        sizes = np.log([[item.params, item.tokens] for item in self.fidelities])
        gaps = np.abs(sizes - sizes[-1]).sum(axis=1)
        return np.asarray(gaps / max(float(gaps.max()), 1e-300))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Runs that a search may ask for, where it may not ask for any mixture at any fidelity."""

    shares: FloatArray
    """(m, d)."""
    level: IntArray
    """(m,) number of the fidelity."""


@dataclass(frozen=True, eq=False)
class Observed:
    """The runs so far."""

    shares: FloatArray
    """(n, d)."""
    level: IntArray
    """(n,) number of the fidelity."""
    loss: FloatArray
    """(n,) objective, > 0; inf: failed or diverged; NaN: still running."""

    def __post_init__(self) -> None:
        """Raises InputError for runs that cannot be read."""
        if not len(self.shares) == len(self.level) == len(self.loss):
            raise InputError("runs: shares, level and loss must have the same length")
        if np.any(self.loss <= 0):
            raise InputError(f"runs: an objective must be > 0, for its logarithm is modelled; got {self.loss.min():g}")

    @property
    def known(self) -> BoolArray:
        """(n,) runs that ended with a finite objective."""
        return np.isfinite(self.loss)

    @property
    def pending(self) -> BoolArray:
        """(n,) runs that have not ended."""
        return np.isnan(self.loss)


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The mixture with the lowest expected objective at the target: the posterior mean's, never the best run's."""

    shares: FloatArray
    """(d,)."""
    loss: float
    """Expected objective there, in the unit of the loss."""
    loss_sd: float
    """Standard deviation of that expectation; a run scatters by the noise beside it."""
    share_low: FloatArray
    """(d,) 5 % quantile of each share over the optima of the posterior's draws."""
    share_high: FloatArray
    """(d,) 95 % quantile."""
    noise_sd: float
    """Scatter of a run around the posterior, as estimated or given, in the unit of the loss."""
    message: str
    """What to know before it is used: runs at the target, and how far from the mixtures tried it lies."""
    regret_high: float = math.nan
    """What another mixture may be better by, in the unit of the loss: 90 % quantile over draws of the posterior; NaN:
    a regression does not tell."""
