"""The mixture to train on: lowest expected objective on the bounded simplex, beside the natural and the best tried one.

    best = find_best_mixture(fits, natural={"pile_cc": 0.6, "github": 0.4})

Legend: S draws, d training domains, n mixtures tried
The expectation is over the draws of the fits. An optimum far from every mixture tried is an extrapolation: the distance
is reported and warned about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scalelaws.mixtures.domains import DomainFits, stack_shares
from scalelaws.observations import MIXTURE_SUM_TOLERANCE, BoolArray, FloatArray, Observations
from scalelaws.results import Estimate

EPOCHS_FREE = 4.0
"""Up to four epochs, repeated tokens are worth nearly as much as new ones (Muennighoff et al. 2023, section 6)."""
FAR_FROM_RUNS = 0.1
"""Assumption: with more than a tenth of the tokens outside of all blends of tried mixtures, an optimum is a guess."""
OPTIMA_DRAWN = 30
"""Draws of which the optimum is found, for the intervals of the shares."""
UNDECIDED = 0.9
"""Below this probability to be better no gain is claimed."""
SLACK = 1e-9
"""Bounds that leave a single mixture may miss the sum of 1 by rounding."""
TOLERANCE = 1e-5
"""A step that lowers the objective by less ends the search: runs repeat to .0005 nats at best."""
EDGE = 1e-3
"""Shares within this of a bound lie on it."""


@dataclass(frozen=True)
class Comparison:
    """The recommended mixture against another one, under the same draws."""

    name: str
    mixture: Mapping[str, float]
    objective: Estimate
    """Of the other mixture, for a new run."""
    gain: Estimate
    """Objective of the other less that of the recommended one: positive where the recommended one is better."""
    probability_better: float
    """That a new run on the recommended mixture beats a new run on the other."""


@dataclass(frozen=True)
class BestMixture:
    """The mixture of lowest expected objective, within the bounds."""

    shares: Mapping[str, Estimate]
    """The recommended share of each domain; the interval holds the optima of single draws."""
    objective: Estimate
    """Weighted mean loss of a new run on it, with the drift beyond the largest run, which all mixtures share."""
    comparisons: tuple[Comparison, ...]
    """With the natural mixture where it was given, and with the best mixture tried."""
    nearest_distance: float
    """Share of the tokens that differ from the nearest mixture tried (total variation)."""
    outside_distance: float
    """Share of the tokens that differ from the nearest blend of mixtures tried; 0: an interpolation."""
    weights: Mapping[str, float]
    level: float
    warnings: tuple[str, ...]

    @property
    def mixture(self) -> dict[str, float]:
        """The recommended shares, as a Target takes them."""
        return {name: estimate.value for name, estimate in self.shares.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "mixture": {name: item.to_dict() for name, item in self.shares.items()},
            "objective": self.objective.to_dict(),
            "comparisons": [
                {
                    "name": item.name, "mixture": dict(item.mixture), "objective": item.objective.to_dict(),
                    "gain": item.gain.to_dict(), "probability_better": item.probability_better,
                }
                for item in self.comparisons
            ],
            "nearest_distance": self.nearest_distance,
            "outside_distance": self.outside_distance,
            "weights": dict(self.weights),
            "level": self.level,
            "warnings": list(self.warnings),
        }  # fmt: skip


def find_best_mixture(
    fits: DomainFits,
    *,
    weights: Mapping[str, float] | None = None,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    natural: Mapping[str, float] | None = None,
    tokens: float | None = None,
    domain_tokens: Mapping[str, float] | None = None,
    epochs: float = EPOCHS_FREE,
    level: float = 0.9,
    seed: int = 0,
) -> BestMixture:
    """The mixture that minimises the expected weighted mean of the losses.

    `weights` by validation loss (equal by default); `minimum` and `maximum` share by domain; with `tokens` of the run
    and `domain_tokens` that each domain holds, none is repeated more than `epochs` times; a domain that is not named
    there is not capped. Domains that no run has used stay at their minimum. Raises ValueError where the bounds leave
    no mixture.
    """
    used = np.any(fits.shares > 0, axis=0)
    bounds = bound_shares(fits.domains, used, minimum, maximum, tokens, domain_tokens, epochs)
    tried, measured = _measure(fits, weights)
    others = {} if natural is None else {"natural": order_shares(fits.domains, natural)}
    others["best tried"] = tried[int(np.argmin(measured))]
    starts = [*others.values(), *tried[np.argsort(measured)[1:2]], np.full(len(fits.domains), 1 / len(fits.domains))]
    best = min(
        (_descend(_expect(fits, weights, slice(None)), start, bounds) for start in starts), key=lambda end: end[0]
    )
    optima = np.stack([
        _descend(_expect(fits, weights, slice(row, row + 1)), best[1], bounds)[1]
        for row in range(min(OPTIMA_DRAWN, fits.draws))
    ])  # fmt: skip
    rng = np.random.default_rng(seed)
    own = _draw_run(fits, best[1], weights, rng)
    comparisons = tuple(_compare(fits, name, other, own, weights, level, rng) for name, other in others.items())
    drift = sum(weight * fits.fitted[name].drift_log for name, weight in fits.weigh(weights).items())
    drifted = own * np.exp(drift * rng.standard_normal(len(own)))
    nearest, outside = measure_distance(best[1], fits.shares)
    shares = {
        name: _contain(Estimate.from_draws(optima[:, j], level, value=float(best[1][j])))
        for j, name in enumerate(fits.domains)
    }
    return BestMixture(
        shares, Estimate.from_draws(drifted, level, value=best[0]), comparisons, nearest, outside, fits.weigh(weights),
        level, tuple(_warn(fits, best[1], bounds, outside, comparisons)),
    )  # fmt: skip


def measure_distance(mixture: FloatArray, tried: FloatArray) -> tuple[float, float]:
    """Total variation between a mixture (d,) and the nearest of those tried (n, d), and the nearest blend of them."""
    from scipy.optimize import linprog

    (n, d), one = tried.shape, np.eye(len(mixture))
    nearest = float(np.abs(tried - mixture).sum(axis=1).min() / 2)
    cost = np.concatenate([np.zeros(n), np.full(2 * d, 0.5)])
    equal = np.block([[tried.T, one, -one], [np.ones((1, n)), np.zeros((1, 2 * d))]])
    found = linprog(cost, A_eq=equal, b_eq=np.append(mixture, 1.0), bounds=(0, None), method="highs")
    return nearest, nearest if found.fun is None else float(found.fun)


def _contain(share: Estimate) -> Estimate:
    """With an interval that holds the value: the optimum of the mean may lie beside those of nearly all draws."""
    low, high = (share.value if end is None else end for end in (share.low, share.high))
    return replace(share, low=min(low, share.value), high=max(high, share.value))


def order_shares(domains: tuple[str, ...], mixture: Mapping[str, float]) -> FloatArray:
    """The shares (d,) of a mixture in the order of the domains. Raises ValueError for one that is none."""
    unknown = sorted(set(mixture) - set(domains))
    if unknown:
        raise ValueError(f"there is no domain {unknown[0]!r}; the runs have {', '.join(domains)}")
    shares = np.array([mixture.get(name, 0.0) for name in domains])
    if not (shares.min() >= 0 and abs(shares.sum() - 1) <= MIXTURE_SUM_TOLERANCE):
        raise ValueError(f"shares must be >= 0 and add up to 1; got {dict(mixture)}, in sum {shares.sum():.6g}")
    return np.asarray(shares / shares.sum())


def bound_shares(
    domains: tuple[str, ...],
    used: BoolArray,
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    tokens: float | None = None,
    domain_tokens: Mapping[str, float] | None = None,
    epochs: float = EPOCHS_FREE,
) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest share (d,) of each domain; `used` (d,): whether any run has tried it.

    Raises ValueError, with the domains at fault, for bounds that are no shares or leave no mixture.
    """
    _check_bounds(domains, minimum or {}, maximum or {}, tokens, domain_tokens, epochs)
    low = np.array([(minimum or {}).get(name, 0.0) for name in domains])
    high = np.array([(maximum or {}).get(name, 1.0) for name in domains])
    high = np.where(used, high, np.minimum(high, low))
    if tokens is not None and domain_tokens is not None:
        held = np.array([domain_tokens.get(name, np.inf) for name in domains])
        high = np.minimum(high, epochs * held / tokens)
    crossed = [
        f"{name} at least {least:.4g} and at most {most:.4g}"
        for name, least, most in zip(domains, low, high, strict=True)
        if least > most
    ]
    if low.sum() > 1 + SLACK:
        crossed.append(f"the lowest shares add up to {low.sum():.4g}")
    if high.sum() < 1 - SLACK:
        crossed.append(f"the highest shares add up to {high.sum():.4g}")
    if crossed:
        raise ValueError(
            f"the bounds leave no mixture: {'; '.join(crossed)}; they must allow a sum of 1. Lower a minimum, raise a "
            "maximum, or allow more epochs"
        )
    return low, high


def _check_bounds(
    domains: tuple[str, ...], minimum: Mapping[str, float], maximum: Mapping[str, float], tokens: float | None,
    domain_tokens: Mapping[str, float] | None, epochs: float,
) -> None:  # fmt: skip
    """Raise ValueError for unknown domains, and for numbers that no share or count of tokens has."""
    unknown = sorted({*minimum, *maximum, *(domain_tokens or {})} - set(domains))
    if unknown:
        raise ValueError(f"there is no domain {unknown[0]!r}; the runs have {', '.join(domains)}")
    for what, bounds in (("minimum", minimum), ("maximum", maximum)):
        if wrong := {name: share for name, share in bounds.items() if not 0 <= share <= 1}:
            raise ValueError(f"{what}: a share must lie between 0 and 1 (0.3 for 30 %); got {wrong}")
    if (tokens is None) != (domain_tokens is None):
        raise ValueError("the cap on repetition needs both: tokens of the run, and domain_tokens")
    given = {"epochs": epochs, **({} if tokens is None else {"tokens": tokens}), **(domain_tokens or {})}
    if not all(size >= 0 for size in given.values()) or tokens == 0:
        raise ValueError(f"tokens, domain_tokens and epochs must be positive; got {given}")


def _measure(fits: DomainFits, weights: Mapping[str, float] | None) -> tuple[FloatArray, FloatArray]:
    """Mixtures tried with every loss that counts, and their measured objective.

    Losses of several sizes or horizons cannot be compared: there it is the objective that the fits give.
    """
    weighed = fits.weigh(weights)
    parts = [_average_repeats(fits.runs[name], fits.domains) for name in weighed]
    common = [key for key in parts[0] if all(key in part for part in parts)]
    if not common:
        raise ValueError("no mixture was tried with every loss that has a weight")
    tried = np.array(common)
    if any(len(fits.runs[name].cells()) > 1 for name in weighed):
        return tried, fits.draw_objective(tried, weights)[0].mean(axis=0)
    return tried, np.array([[part[key] for part in parts] for key in common]) @ np.array(list(weighed.values()))


def _average_repeats(runs: Observations, domains: tuple[str, ...]) -> dict[tuple[float, ...], float]:
    """Mean finite loss of each mixture."""
    found: dict[tuple[float, ...], list[float]] = {}
    for shares, loss in zip(np.round(stack_shares(runs, domains), 9).tolist(), runs.loss.tolist(), strict=True):
        if np.isfinite(loss):
            found.setdefault(tuple(shares), []).append(loss)
    return {shares: float(np.mean(losses)) for shares, losses in found.items()}


def _expect(
    fits: DomainFits, weights: Mapping[str, float] | None, rows: slice
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """Mean objective over some draws, with its gradient by the shares."""

    def evaluate(shares: FloatArray) -> tuple[float, FloatArray]:
        values, slopes = fits.draw_objective(np.maximum(shares, 0.0)[None], weights, rows)
        return float(values.mean()), np.asarray(slopes.mean(axis=(0, 1)))

    return evaluate


def _descend(
    objective: Callable[[FloatArray], tuple[float, FloatArray]],
    start: FloatArray,
    bounds: tuple[FloatArray, FloatArray],
) -> tuple[float, FloatArray]:
    """The lowest objective from a start, and where; sequential quadratic programming on the bounded simplex."""
    from scipy.optimize import minimize

    settings: Any = {
        "method": "SLSQP", "jac": True, "bounds": list(zip(*bounds, strict=True)), "options": {"ftol": TOLERANCE},
        "constraints": {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
    }  # fmt: skip
    found = minimize(objective, _project(start, bounds), **settings)
    end = _project(found.x, bounds)
    return objective(end)[0], end


def _project(shares: FloatArray, bounds: tuple[FloatArray, FloatArray]) -> FloatArray:
    """The nearest mixture within the bounds: all shares shifted alike and clipped, by bisection on the shift."""
    low, high = -1.0 - np.abs(shares).max(), 1.0 + np.abs(shares).max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(shares + middle, *bounds).sum() < 1 else (low, middle)
    return np.asarray(np.clip(shares + high, *bounds))


def _draw_run(
    fits: DomainFits, shares: FloatArray, weights: Mapping[str, float] | None, rng: np.random.Generator
) -> FloatArray:
    """Draws (S,) of the objective of a new run: the fits' and, for each mixture anew, their scatter."""
    total = np.zeros(fits.draws)
    for name, weight in fits.weigh(weights).items():
        ln_loss = fits.fitted[name].draw(shares[None])[0][:, 0]
        total += weight * np.exp(ln_loss + fits.fitted[name].scatter_log * rng.standard_normal(len(ln_loss)))
    return total


def _compare(
    fits: DomainFits, name: str, other: FloatArray, own: FloatArray, weights: Mapping[str, float] | None, level: float,
    rng: np.random.Generator,
) -> Comparison:  # fmt: skip
    theirs = _draw_run(fits, other, weights, rng)
    return Comparison(
        name, _name(fits, other), Estimate.from_draws(theirs, level), Estimate.from_draws(theirs - own, level),
        float(np.mean(own < theirs)),
    )  # fmt: skip


def _name(fits: DomainFits, shares: FloatArray) -> dict[str, float]:
    return dict(zip(fits.domains, shares.tolist(), strict=True))


def _warn(
    fits: DomainFits, best: FloatArray, bounds: tuple[FloatArray, FloatArray], outside: float,
    comparisons: tuple[Comparison, ...],
) -> list[str]:  # fmt: skip
    warnings = []
    if outside > FAR_FROM_RUNS:
        warnings.append(
            f"{100 * outside:.0f} % of the tokens lie outside of every blend of the mixtures tried: an extrapolation; "
            "try this mixture on a proxy, add the run, and ask again"
        )
    used = np.any(fits.shares > 0, axis=0).tolist()
    unused = [name for name, seen in zip(fits.domains, used, strict=True) if not seen]
    warnings += [f"no run has used the domain {name}: it stays at its minimum" for name in unused]
    capped = [
        name
        for name, share, high in zip(fits.domains, best, bounds[1], strict=True)
        if 0 < high - EDGE < share < 1 - EDGE
    ]
    warnings += [f"the share of {name} ended on its highest: more of it looks better still" for name in capped]
    for item in comparisons:
        shares = np.array([item.mixture[name] for name in fits.domains])
        if np.any(shares < bounds[0] - EDGE) or np.any(shares > bounds[1] + EDGE):
            warnings.append(f"{item.name} lies outside of the bounds: it is shown for what they cost")
        elif item.probability_better < UNDECIDED:
            probability = f"{item.probability_better:.2f}"
            warnings.append(f"not told apart from {item.name}: a new run is better with probability {probability}")
    return warnings
