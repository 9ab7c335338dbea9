"""A law of the loss and a budget -> how many parameters and how many tokens, with intervals.

Legend: N parameters, D tokens, C training FLOPs; C = 6ND. B rows of parameter values (draws).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scalelaws.conventions import count_compute, count_plain
from scalelaws.forecasting import (
    measure_extrapolation,
    require_ok,
    spread_beyond,
    warn_range,
)
from scalelaws.laws import Chinchilla, LossLaw, MixtureLaw, PublishedLoss, SumOfPowers, get_law
from scalelaws.laws.published import PUBLISHED_ALLOCATIONS, PublishedAllocation
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, BoolArray, FloatArray
from scalelaws.published_forecasts import PUBLISHED_MESSAGE, reach_published, warn_published
from scalelaws.results import Allocation, Estimate, Fit, Status, Target

SEARCH_STEP = 0.1
"""Step of ln N where there is no closed form; the parabola through the best three errs by some 1e-4 of N*."""
SEARCH_SPAN = float(np.log(1e6))
"""How far the search reaches on both sides of 20 tokens per parameter: any law that has an optimum has it in there."""
ATTENTION_ROUNDS = 30
"""Rounds of N from M / 6N, which falls as the cube root of N: each gains a factor of three or more."""
USUAL_RATIO = 20.0
"""Tokens per parameter in the middle of the search (Hoffmann et al. 2022)."""


def allocate(
    law: Fit | PublishedLoss | PublishedAllocation,
    compute_flops: float,
    *,
    covariates: Mapping[str, float] | None = None,
    mixture: Mapping[str, float] | None = None,
) -> Allocation:
    """The split of a budget C = 6ND that minimises the loss under any law of the loss in N and D.

    In closed form for Chinchilla (Hoffmann et al. 2022, equation 4), else by a search along the budget. `covariates`
    and `mixture` are what else the law reads of the run and stay fixed along the budget: {"unique_tokens": 1e11} gives
    the best split of a budget over data that repeat. A published split counts the budget as its `compute_convention`
    says, and knows no loss. Raises ValueError where the law has no optimum along the budget,
    and FitError for a fit whose status is not ok.
    """
    if not (np.isfinite(compute_flops) and compute_flops > 0):
        raise ValueError(f"compute_flops must be positive and finite; got {compute_flops}")
    if isinstance(law, PublishedAllocation):
        return _published_split(law, compute_flops)
    given = _Given(compute_flops, dict(covariates or {}), dict(mixture or {}))
    if isinstance(law, PublishedLoss):
        _require_both_scales(law.law, law.name)
        return _published_allocation(law, given, find_split(law.law, law.values, given))
    if not isinstance(law, Fit):
        raise ValueError(
            "allocate needs a law of the loss in N and D, for example hoffmann or besiroglu, or a published split: "
            f"{', '.join(PUBLISHED_ALLOCATIONS)}"
        )
    held = law if isinstance(get_law(law.law), LossLaw) else law.loss_fit
    family = None if held is None else get_law(held.law)
    if held is None or not isinstance(family, LossLaw):
        raise ValueError(f"allocate needs a law in N and D, and {law.law} is not one; fit chinchilla to these runs")
    _require_both_scales(family, held.law)
    require_ok(held)
    if isinstance(family, MixtureLaw):
        family.require_domains(held, given.at(1.0))
    return _fitted_allocation(held, family, given)


@dataclass(frozen=True)
class _Given:
    """What is fixed along the budget."""

    compute_flops: float
    covariates: Mapping[str, float]
    mixture: Mapping[str, float]

    def at(self, params: float) -> Target:
        """The run of that size; its compute is 6ND, also where the runs behind a fit count otherwise."""
        tokens = self.compute_flops / FLOPS_PER_PARAM_TOKEN / params
        return Target(params, tokens, covariates=self.covariates, mixture=self.mixture)


@dataclass(frozen=True, eq=False)
class Split:
    """N, D and loss at the optimum for each row of values, (B,), and which rows have one."""

    params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    usable: BoolArray

    def point(self) -> tuple[float, float, float]:
        """The first row; raises ValueError where it has no optimum."""
        if not self.usable[0]:
            raise ValueError(
                "the law has no optimum along this budget: its loss keeps falling towards ever larger or ever smaller "
                "models. Look at the exponents, or fit runs that vary both sizes and horizons"
            )
        return float(self.params[0]), float(self.tokens[0]), float(self.loss[0])


def _require_both_scales(law: LossLaw, name: str) -> None:
    if isinstance(law, SumOfPowers):
        read = {variable for variable, _, _ in law.terms}
    else:
        read = {"params" if item == "params_non_embedding" else item for item in getattr(law, "needs", ())}
    if not {"params", "tokens"} <= read:
        raise ValueError(f"allocate needs a law in N and D, and {name} is not one; fit chinchilla to these runs")


def find_split(law: LossLaw, values: FloatArray, given: _Given) -> Split:
    """The optimum of each row of parameter values, in closed form where there is one."""
    if law.name not in CLOSED_FORMS:
        return _search_split(law, values, given)
    parts = CLOSED_FORMS[law.name](values, given.compute_flops)
    usable = np.isfinite(np.stack(parts)).all(axis=0) & (values[:, 3:] > 0).all(axis=1)
    return Split(*parts, np.asarray(usable))


def split_compute(values: FloatArray, compute_flops: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """N, D and loss at the optimum for each row (E, A, B, alpha, beta)."""
    _, a, b, alpha, beta = values.T
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        params = ratio * (compute_flops / FLOPS_PER_PARAM_TOKEN) ** (beta / (alpha + beta))
        tokens = compute_flops / FLOPS_PER_PARAM_TOKEN / params
        return params, tokens, values[:, 0] + a * params**-alpha + b * tokens**-beta


CLOSED_FORMS: Mapping[str, Callable[[FloatArray, float], tuple[FloatArray, FloatArray, FloatArray]]] = {
    Chinchilla().name: split_compute
}


def _search_split(law: LossLaw, values: FloatArray, given: _Given) -> Split:
    """The least loss along the budget on a grid of ln N, refined by the parabola through the best three sizes."""
    middle = 0.5 * np.log(given.compute_flops / FLOPS_PER_PARAM_TOKEN / USUAL_RATIO)
    ln_size = middle + np.arange(-SEARCH_SPAN, SEARCH_SPAN + SEARCH_STEP, SEARCH_STEP)
    with np.errstate(all="ignore"):
        loss = np.stack([law.predict_loss(values, given.at(float(size))) for size in np.exp(ln_size)])
    loss = np.where(np.isfinite(loss), loss, np.inf)
    best, rows = np.argmin(loss, axis=0), np.arange(len(values))
    inside = np.clip(best, 1, len(ln_size) - 2)
    below, there, above = loss[inside - 1, rows], loss[inside, rows], loss[inside + 1, rows]
    with np.errstate(all="ignore"):
        slope, bend = (above - below) / 2, above - 2 * there + below
        params = np.exp(ln_size[inside] - SEARCH_STEP * slope / bend)
        least = there - slope**2 / (2 * bend)
    usable = (best == inside) & np.isfinite(least) & (bend > 0)
    tokens = given.compute_flops / FLOPS_PER_PARAM_TOKEN / params
    return Split(params, tokens, least, np.asarray(usable))


def _fitted_allocation(fit: Fit, law: LossLaw, given: _Given) -> Allocation:
    found = find_split(law, fit.draws, given)
    point, level = find_split(law, fit.values[None, :], given).point(), fit.level
    params, tokens, loss = (part[found.usable] for part in (found.params, found.tokens, found.loss))
    spread = np.random.default_rng(0).standard_normal(len(loss)) * spread_beyond(
        fit, given.compute_flops / fit.evidence.largest_6nd
    )
    at = given.at(point[0])
    warnings = list(warn_range(fit, at))
    if not found.usable.all():
        lost = int((~found.usable).sum())
        warnings.append(f"{lost} of {len(fit.draws)} draws have no optimum along this budget and were left out")
    return Allocation(
        given.compute_flops, Estimate.from_draws(params, level, value=point[0]),
        Estimate.from_draws(tokens, level, value=point[1], unit="tokens"),
        Estimate.from_draws(tokens / params, level, value=point[1] / point[0]),
        Estimate.from_draws(loss * np.exp(spread), level, value=point[2], unit="nats"), level,
        measure_extrapolation(fit.evidence, at), fit.law, fit.status, fit.message,
        {**fit.scope, "compute_convention": "6ND"}, (*fit.warnings, *warnings),
    )  # fmt: skip


def _published_allocation(law: PublishedLoss, given: _Given, found: Split) -> Allocation:
    params, tokens, loss = found.point()
    at = given.at(params)
    return Allocation(
        given.compute_flops, Estimate(params), Estimate(tokens, unit="tokens"), Estimate(tokens / params),
        Estimate(loss, unit="nats"), 0.9, reach_published(law, at), law.name, Status.PUBLISHED, PUBLISHED_MESSAGE,
        law.scope, tuple(warn_published(law, at)),
    )  # fmt: skip


def _published_split(law: PublishedAllocation, compute_flops: float) -> Allocation:
    """Tokens as published; parameters from the FLOPs per token, with the bounds that usual shapes leave."""
    flops_per_token, tokens = law.split(compute_flops)
    params = _count_params(flops_per_token, tokens)
    span = law.compute_range
    assert span is not None
    warnings = [
        "published without an interval that can be carried to a target",
        f"the budget is counted as {law.compute_convention}, where M are training FLOPs per token with attention and "
        "without embeddings; the bounds of params are those of usual shapes and sequence lengths",
    ]
    if not span[0] <= compute_flops <= span[1]:
        warnings.append(f"compute {compute_flops:.3g} lies outside of the fitted range, {span[0]:.3g} to {span[1]:.3g}")
    return Allocation(
        compute_flops, params, Estimate(tokens, unit="tokens"), Estimate(tokens / params.value),
        Estimate(np.nan, unit="nats"), 0.9, {"params": None, "tokens": None, "compute": compute_flops / span[1]},
        law.name, Status.PUBLISHED, PUBLISHED_MESSAGE, law.scope, tuple(warnings),
    )  # fmt: skip


def _count_params(flops_per_token: float, tokens: float) -> Estimate:
    """N of a model that trains at M FLOPs per token; M / 6N depends on its shape, hence the bounds."""

    def solve(bound: str) -> float:
        params = flops_per_token / FLOPS_PER_PARAM_TOKEN
        for _ in range(ATTENTION_ROUNDS):
            target = Target(params, tokens)
            counted = count_compute(target, "M D")
            ratio = float(getattr(counted, bound) or counted.value) / count_plain(target)
            params = flops_per_token / FLOPS_PER_PARAM_TOKEN / ratio
        return params

    return Estimate(solve("value"), solve("high"), solve("low"))
