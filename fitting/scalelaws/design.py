"""Which runs next? Those that most lower the expected regret (or the interval) at the target, per FLOP or per run.

With no run done yet `start_design` spreads a few over sizes and horizons; `choose_runs` goes on from what they say.
"""

from __future__ import annotations

import numpy as np

from scalelaws.designs.brackets import find_brackets
from scalelaws.designs.candidates import Candidates, Design
from scalelaws.designs.first_runs import choose_first
from scalelaws.designs.prospects import SCENARIOS, look_ahead
from scalelaws.designs.selection import Limits, choose_greedily, describe_design
from scalelaws.designs.starts import StartPrior, start_surface
from scalelaws.laws.base import FitOptions
from scalelaws.laws.surface import ResponseSurface, SurfaceFit
from scalelaws.observations import Observations
from scalelaws.results import FitError, Target
from scalelaws.sweeps.surfaces import Surface

DRIFT = 0.05
"""Assumption: the optimum leaves its law by 5 % per root e-fold of N and of D away from the target; refits of the
exponents over a decade of scale differ by as much (Li et al. 2025 and its refits: .71 to .77 in N). Measured in
`benchmarks/fitting/design.py`: 0 to .1 choose designs of like regret, .2 worse ones."""
BRACKET_SHARE = 0.5
"""Assumption: up to half of a batch goes beyond the edges at which cells' best runs lie; see `brackets`."""


def choose_runs(
    source: Observations | SurfaceFit | Surface,
    candidates: Candidates,
    target: Target,
    *,
    runs: int | None = None,
    budget_flops: float | None = None,
    objective: str = "regret",
    per: str = "flops",
    drift: float = DRIFT,
    prior: StartPrior | None = None,
    scenarios: int = SCENARIOS,
    seed: int = 0,
) -> Design:
    """The candidates to run next, given what was done.

    `runs` limits their number (8 where neither limit is given), `budget_flops` what they cost together. `objective` is
    "regret" (expected excess ln loss of the target at the recommended settings) or "interval" (the 90 % widths of
    ln lr* and ln B*, added); `per` says what a gain is divided by. Per FLOP is cheapest; where the number of runs is
    what is scarce, per run needs fewer. `source` is the runs done so far, or a fit of `response_surface` to them, or
    its surface. Runs that the law refuses (too few, or optima at the edge) are read with `prior`, by default that of
    `StartPrior.from_candidates`, and the design says so: more runs are the cure. `seed` draws the scenarios.

    Raises ValueError for candidates that are empty, all done, or all dearer than the budget, and FitError for a fit
    whose status is not ok.
    """
    limits = Limits.check(runs, budget_flops, objective, per, drift)
    rows = candidates.find_new(source) if isinstance(source, Observations) else np.arange(len(candidates))
    fresh = candidates.rows(rows)
    limits.require(fresh, len(candidates))
    surface, warnings = _read_source(source, candidates, prior, seed)
    prospects = look_ahead(surface, fresh, target, drift=drift, scenarios=scenarios, seed=seed)
    brackets = find_brackets(source, fresh) if isinstance(source, Observations) else []
    chosen, known = choose_greedily(prospects, fresh, limits, _limit_brackets(brackets, fresh, limits))
    if len(rows) < len(candidates):
        warnings = (*warnings, f"{len(candidates) - len(rows)} candidates are done already and were left out")
    return describe_design(candidates, rows[np.array(chosen, dtype=np.int64)], known, limits, warnings, len(fresh))


def start_design(
    candidates: Candidates,
    target: Target,
    *,
    runs: int = 16,
    budget_flops: float | None = None,
    prior: StartPrior | None = None,
    per: str = "flops",
    drift: float = DRIFT,
    seed: int = 0,
) -> Design:
    """The first runs, where none is done: a few in each of some cells that spread over sizes and horizons.

    The cells are D-optimal for a plane in ln N and ln D, per cost, with three sizes and two horizons where the
    candidates have them; the runs in them are those that most lower the expected regret at the target under `prior` (by
    default that of `StartPrior.from_candidates`), with three learning rates (and batches) in every cell. `seed` draws
    the scenarios.

    Raises ValueError where the candidates or the budget do not carry three runs in each of three cells.
    """
    limits = Limits.check(runs, budget_flops, "regret", per, drift)
    limits.require(candidates, len(candidates))
    held = prior or StartPrior.from_candidates(candidates)
    prospects = look_ahead(start_surface(held, candidates), candidates, target, drift=drift, seed=seed)
    chosen, known = choose_first(prospects, candidates, target, limits)
    note = f"no run is done yet: the prior is {held.source}"
    return describe_design(candidates, np.array(chosen), known, limits, (note,), len(candidates))


def _limit_brackets(brackets: list[int], fresh: Candidates, limits: Limits) -> list[int]:
    """The first brackets, within their share of the batch and of the budget."""
    some = brackets[: max(int(BRACKET_SHARE * limits.runs), 1)]
    paid = np.cumsum(fresh.cost[some]) <= BRACKET_SHARE * limits.budget_flops
    return [row for row, within in zip(some, paid, strict=True) if within]


def _read_source(
    source: Observations | SurfaceFit | Surface,
    candidates: Candidates,
    prior: StartPrior | None,
    seed: int,
) -> tuple[Surface, tuple[str, ...]]:
    """The surface to go on from, and what to know of it."""
    searched = candidates.batch_tokens is not None and len(np.unique(candidates.batch_tokens)) > 1
    if isinstance(source, Surface):
        return source, _warn_batch(source, searched)
    if isinstance(source, Observations):
        fit = ResponseSurface().estimate(source, FitOptions(seed=seed))
        found = fit.surface if isinstance(fit, SurfaceFit) and fit.status.ok else None
        if found is not None and (found.layout.batched or not searched):
            return found, ()
        reason = fit.message if found is None else "the batch was not searched in three cells yet"
        held = start_surface(prior or StartPrior.from_candidates(candidates), candidates, source)
        return held, (f"the runs are read with the start prior ({reason})",)
    if not source.status.ok or source.surface is None:
        raise FitError(source.status, f"this fit must not be used to choose runs: {source.message}", source)
    return source.surface, _warn_batch(source.surface, searched)


def _warn_batch(surface: Surface, searched: bool) -> tuple[str, ...]:
    if surface.layout.batched or not searched:
        return ()
    return ("the batch is not part of the surface: candidates that differ in it alone count as equal",)
