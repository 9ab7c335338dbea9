"""fit(law, observations) -> Fit; raises by default, and the error carries the partial fit."""

from __future__ import annotations

from scalelaws.laws import FitOptions, Law, get_law
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
    throw: bool = True,
) -> Fit:
    """Fits a law (an instance or a name from `list_laws`) to what it reads (most laws: Observations).

    Intervals at `level` come from seeded draws.

    `objective` is "huber" (no priors), "map" (weak, stated priors; for few runs) or "auto"; the Fit says in words what
    was used. Raises FitError when the numbers must not be used, with the partial Fit as `error.partial`;
    with `throw=False` that Fit is returned, and its status says why.
    """
    chosen = get_law(law) if isinstance(law, str) else law
    if not isinstance(observations, chosen.reads):
        given, read = type(observations).__name__, chosen.reads.__name__
        raise TypeError(f"fit: {chosen.name} is fitted to {read}; got {given}")
    options = FitOptions(objective, huber_delta, bootstrap, level, seed, prior_slope_sd)
    result = chosen.estimate(observations, options)
    if throw and not result.status.ok:
        raise FitError(result.status, f"fit {result.law}: {result.message}", result)
    return result
