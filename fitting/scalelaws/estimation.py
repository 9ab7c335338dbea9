"""fit(law, observations) -> Fit; raises by default, and the error carries the partial fit."""

from __future__ import annotations

import math

from scalelaws.laws import FitOptions, Law, SumOfPowers, get_law
from scalelaws.laws.base import Data
from scalelaws.results import Fit, FitError


def fit(
    law: Law[Data] | str,
    observations: Data,
    *,
    objective: str = "auto",
    huber_delta: float = 1e-3,
    bootstrap: int = 400,
    level: float = 0.9,
    seed: int = 0,
    prior_slope_sd: float = 0.5,
    trim_excess: float = math.inf,
    compute_weight: float = 0.0,
    throw: bool = True,
) -> Fit:
    """Fits a law (an instance or a name from `list_laws`) to what it reads (most laws: Observations).

    Intervals at `level` come from seeded draws; `scalelaws.profile` gives those of profile likelihood and of Laplace.

    `objective` is "auto", "map" (weak, stated priors), "huber", "lad" or "least_squares" (no priors); runs whose ln
    loss is more than `trim_excess` above the best of their compute are left out, and runs weigh C^`compute_weight`.
    The Fit says in words what was used and what the choices did. Raises FitError when the numbers must not be used,
    with the partial Fit as `error.partial`; with `throw=False` that Fit is returned, and its status says why.
    """
    chosen = get_law(law) if isinstance(law, str) else law
    if not isinstance(observations, chosen.reads):
        given, read = type(observations).__name__, chosen.reads.__name__
        raise TypeError(f"fit: {chosen.name} is fitted to {read}; got {given}")
    options = FitOptions(objective, huber_delta, bootstrap, level, seed, prior_slope_sd, trim_excess, compute_weight)
    _check_support(chosen, options)
    result = chosen.estimate(observations, options)
    if throw and not result.status.ok:
        raise FitError(result.status, f"fit {result.law}: {result.message}", result)
    return result


def _check_support(law: Law[Data], options: FitOptions) -> None:
    """Refuses what only sums of powers can do, rather than leaving it undone in silence."""
    if isinstance(law, SumOfPowers):
        return
    if options.objective in ("lad", "least_squares"):
        raise ValueError(f"fit: {law.name} knows the objectives auto, huber and map; got {options.objective!r}")
    if math.isfinite(options.trim_excess) or options.compute_weight:
        raise ValueError(f"fit: trim_excess and compute_weight are for sums of powers; {law.name} is none")
