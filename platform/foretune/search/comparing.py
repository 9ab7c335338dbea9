"""Is one setting better than another, or is the difference what another seed would make?

Losses are compared as logarithms, so that a difference is relative and small and large models have like noise. Runs
that are equal but for their seed are replicates; their scatter, pooled over all settings, is the noise floor.

Symbols
    sd    standard deviation of the log loss between seeds      n, m  replicates of two settings
    dof   replicates less settings: what sd was estimated from  t     quantile of Student's distribution
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95
"""Coverage of every interval here (convention)."""
Verdict = Literal["better", "worse", "within noise", "unknown"]


@dataclass(frozen=True)
class Noise:
    """The scatter of replicates."""

    sd: float
    """Standard deviation of the log loss between seeds, pooled over settings."""
    dof: int
    """Degrees of freedom of that estimate."""
    upper: float
    """Upper confidence bound of the standard deviation (one-sided)."""

    def describe(self) -> str:
        """The noise floor in a phrase."""
        return f"{self.sd:.2%} of the loss between seeds ({self.describe_dof()}, below {self.upper:.2%})"

    def describe_dof(self) -> str:
        """The degrees of freedom in words."""
        return f"{self.dof} degree{'s' if self.dof > 1 else ''} of freedom"


@dataclass(frozen=True)
class Comparison:
    """Two settings side by side."""

    verdict: Verdict
    """What the first is beside the second: `better` has the lower loss; `unknown` without replicates."""
    difference: float
    """Mean log loss of the first less that of the second: about the relative difference of the losses."""
    low: float
    """Lower end of its confidence interval; -infinity without replicates."""
    high: float
    """Upper end."""


@dataclass(frozen=True)
class Ranking:
    """Settings in the order of their loss, and what may be said of the best."""

    order: tuple[str, ...]
    """All settings that have a loss, best mean first."""
    rivals: tuple[str, ...]
    """Those that are not proven worse than the best one; all others where there are no replicates."""
    noise: Noise | None
    """The noise floor; None without replicates."""


def measure_noise(groups: Iterable[Sequence[float]]) -> Noise | None:
    """The pooled scatter of log losses within groups of replicates; None where no group has two.

    Raises ValueError for a loss that is not positive and finite: such a run is no replicate of one that succeeded.

    >>> measure_noise([[3.0, 3.0], [2.0]])
    Noise(sd=0.0, dof=1, upper=0.0)
    """
    from scipy.stats import chi2  # half a second, which only a comparison waits for

    logs = [_take_logs(group) for group in groups if len(group) > 1]
    dof = sum(len(group) - 1 for group in logs)
    if not dof:
        return None
    squares = math.fsum((value - math.fsum(group) / len(group)) ** 2 for group in logs for value in group)
    upper = math.sqrt(squares / float(chi2.ppf(1 - LEVEL, dof)))
    return Noise(math.sqrt(squares / dof), dof, upper)


def compare(
    first: Sequence[float], second: Sequence[float], noise: Noise | None, *, comparisons: int = 1
) -> Comparison:
    """Whether the losses of one setting are below those of another, by Student's t with the pooled scatter.

    `comparisons`: how many are made at once, over which the error is shared (Bonferroni). Seeds that settings have in
    common make a difference less noisy than it is taken for here, so that a verdict errs towards `within noise`.
    """
    from scipy.stats import t as student  # half a second, which only a comparison waits for

    ours, theirs = _take_logs(first), _take_logs(second)
    difference = math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)
    if noise is None:
        return Comparison("unknown", difference, -math.inf, math.inf)
    reach = float(student.ppf(1 - (1 - LEVEL) / 2 / comparisons, noise.dof))
    half = reach * noise.sd * math.sqrt(1 / len(ours) + 1 / len(theirs))
    verdict: Verdict = "within noise"
    if abs(difference) > half:
        verdict = "better" if difference < 0 else "worse"
    return Comparison(verdict, difference, difference - half, difference + half)


def rank_settings(losses: Mapping[str, Sequence[float]]) -> Ranking:
    """Order settings by their mean loss, and find those that the best one is not proven better than.

    The best is chosen after the fact, so that any pair might be the one compared: the error is shared by all of them.
    """
    noise = measure_noise(losses.values())
    means = {name: math.fsum(_take_logs(group)) / len(group) for name, group in losses.items()}
    order = tuple(sorted(means, key=lambda name: (means[name], name)))
    pairs = max(1, math.comb(len(order), 2))
    rivals = tuple(
        name
        for name in order[1:]
        if compare(losses[order[0]], losses[name], noise, comparisons=pairs).verdict != "better"
    )
    return Ranking(order, rivals, noise)


def _take_logs(losses: Sequence[float]) -> list[float]:
    if not losses or any(not math.isfinite(loss) or loss <= 0 for loss in losses):
        raise ValueError(f"losses to compare must be positive and finite, got {list(losses)}; leave out diverged runs")
    return [math.log(loss) for loss in losses]
