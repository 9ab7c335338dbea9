"""Which of two recipes is better at the target? A winner is named only where the runs can bear it.

Two fitted curves that cross between the runs and the target rank the recipes there by extrapolation alone (scaling-law
crossover, Xiao 2024, arXiv 2409.15156), and overlapping intervals do not rank them at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scalelaws.forecasting import draw_loss, require_ok
from scalelaws.laws import LossLaw, get_law
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Fit, Target

POINTS = 200
"""Places between the runs and the target at which the curves are compared."""


@dataclass(frozen=True)
class Comparison:
    """The losses of two recipes at a target, and whether one of them may be called better."""

    names: tuple[str, str]
    losses: tuple[Estimate, Estimate]
    """Of one new run each."""
    difference: Estimate
    """Relative loss of the second above the first."""
    crossings: tuple[float, ...]
    """Compute, FLOPs, at which the fitted curves meet between the runs and the target."""
    overlap: bool
    """Whether the intervals of the losses overlap."""
    winner: str | None
    """The better recipe, or None where none is named."""
    message: str
    """The verdict as a sentence with its numbers."""

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data."""
        return {
            "names": list(self.names),
            "losses": [loss.to_dict() for loss in self.losses],
            "difference": self.difference.to_dict(),
            "crossings": list(self.crossings),
            "overlap": self.overlap,
            "winner": self.winner,
            "message": self.message,
        }


def compare_laws(
    first: Fit, second: Fit, target: Target, *, names: tuple[str, str] = ("first", "second"), seed: int = 0
) -> Comparison:
    """Compares two fits of laws of the loss (of two recipes) at a target.

    The curves are followed from the largest size and horizon of the runs (of the fit that reaches less far) to the
    target. Raises FitError for a fit whose status is not ok, and ValueError for one that is of no law of the loss.
    """
    laws = (_require_loss(first), _require_loss(second))
    rng = np.random.default_rng(seed)
    draws = [draw_loss(law, fit, target, rng) for law, fit in zip(laws, (first, second), strict=True)]
    values = [float(_trace(law, fit, [target])[0]) for law, fit in zip(laws, (first, second), strict=True)]
    level = min(first.level, second.level)
    losses = [Estimate.from_draws(one, level, value=v, unit="nats") for one, v in zip(draws, values, strict=True)]
    count = min(len(one) for one in draws)
    ratio = draws[1][:count] / draws[0][:count] - 1
    difference = Estimate.from_draws(ratio, level, value=values[1] / values[0] - 1)
    crossings = _find_crossings(laws, (first, second), target)
    overlap = _overlap(losses[0], losses[1])
    better = names[0] if values[0] <= values[1] else names[1]
    winner = None if crossings or overlap else better
    message = _explain(names, difference, crossings, overlap, better, level)
    return Comparison(names, (losses[0], losses[1]), difference, crossings, overlap, winner, message)


def _require_loss(fit: Fit) -> LossLaw:
    require_ok(fit)
    law = get_law(fit.law)
    if not isinstance(law, LossLaw):
        raise ValueError(f"compare_laws needs laws of the loss; {fit.law} is none: give its loss_fit")
    return law


def _trace(law: LossLaw, fit: Fit, targets: list[Target]) -> FloatArray:
    return np.array([float(law.predict_loss(fit.values[None, :], target)[0]) for target in targets])


def _find_crossings(laws: tuple[LossLaw, LossLaw], fits: tuple[Fit, Fit], target: Target) -> tuple[float, ...]:
    """Compute at which the curves meet on the line in logs from the runs' largest size and horizon to the target."""
    nearest = max(fits, key=lambda fit: fit.evidence.compare_compute(target)).evidence
    if nearest.compare_compute(target) <= 1:
        return ()
    path = [_place(target, (nearest.params[1], nearest.tokens[1]), share) for share in np.linspace(0, 1, POINTS)]
    gap = np.log(_trace(laws[0], fits[0], path) / _trace(laws[1], fits[1], path))
    change = np.flatnonzero(np.sign(gap[1:]) * np.sign(gap[:-1]) < 0)
    ln_compute = np.log([point.compute for point in path])
    share = gap[change] / (gap[change] - gap[change + 1])
    found = np.exp(ln_compute[change] + share * (ln_compute[change + 1] - ln_compute[change]))
    return tuple(float(value) for value in found)


def _place(target: Target, start: tuple[float, float], share: float) -> Target:
    """The point that lies `share` of the way from the start (N, D) to the target."""
    params = start[0] ** (1 - share) * target.params_non_embedding**share
    tokens = start[1] ** (1 - share) * target.tokens**share
    shrink = params * tokens / (target.params_non_embedding * target.tokens)
    compute = None if target.compute_flops is None else target.compute_flops * shrink
    return replace(target, params_non_embedding=params, tokens=tokens, compute_flops=compute)


def _overlap(one: Estimate, other: Estimate) -> bool:
    assert one.low is not None
    assert one.high is not None
    assert other.low is not None
    assert other.high is not None
    return one.low <= other.high and other.low <= one.high


def _explain(
    names: tuple[str, str], difference: Estimate, crossings: tuple[float, ...], overlap: bool, better: str, level: float
) -> str:
    said = f"the loss of {names[1]} is {100 * difference.value:+.2g} % of that of {names[0]} at the target"
    assert difference.low is not None
    assert difference.high is not None
    said += f" ({100 * level:g} % interval {100 * difference.low:+.2g} to {100 * difference.high:+.2g} %)"
    reasons = []
    if crossings:
        listed = ", ".join(f"{value:.3g}" for value in crossings)
        reasons.append(f"the fitted curves cross at {listed} FLOPs, between the runs and the target")
    if overlap:
        reasons.append("the intervals of the two losses overlap")
    if not reasons:
        return f"{better} is better: {said}"
    return f"no winner is named: {said}; {', and '.join(reasons)}"
