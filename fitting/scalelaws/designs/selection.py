"""Picks runs one after the other, or in exchange for one another, by what they tell of the target.

The first runs of a cell that has none tell nothing alone (its floor is its own), so a cell is looked at `PACK` runs
ahead, and the pack of the best gain per cost is taken. Every choice takes those before it as done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelaws.designs.candidates import Candidates, Design, Precision, record_choices
from scalelaws.designs.prospects import Prospects

PACK = 4
"""Runs of one cell that are looked ahead: a floor, a slope and a curvature, and one to spare (an assumption)."""
NEGLIGIBLE = 1e-5
"""A pack that lowers the objective by less than this share of it per run is not worth doing."""
OBJECTIVES = ("regret", "interval")
COSTS = ("flops", "run")
ENDLESS = 10**9
"""Runs, where only the budget limits them."""


@dataclass(frozen=True)
class Limits:
    """What a design may cost and what it is for."""

    runs: int
    budget_flops: float
    objective: str
    per: str
    drift: float

    @classmethod
    def check(cls, runs: int | None, budget_flops: float | None, objective: str, per: str, drift: float) -> Limits:
        """Refuses limits that have no meaning."""
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}")
        if per not in COSTS:
            raise ValueError(f"per must be one of {', '.join(COSTS)}; got {per!r}")
        if runs is not None and runs < 1:
            raise ValueError(f"runs must be at least 1; got {runs}")
        if budget_flops is not None and not budget_flops > 0:
            raise ValueError(f"budget_flops must be positive; got {budget_flops}")
        if not (np.isfinite(drift) and drift >= 0):
            raise ValueError(f"drift must be finite and not negative; got {drift}")
        most = runs if runs is not None else 8 if budget_flops is None else ENDLESS
        return cls(most, np.inf if budget_flops is None else budget_flops, objective, per, drift)

    def require(self, fresh: Candidates, given: int) -> None:
        """Raises ValueError where nothing can be chosen."""
        if given == 0:
            raise ValueError("there are no candidates to choose from; list the runs that could be done")
        if len(fresh) == 0:
            raise ValueError(f"all {given} candidates are done already; add settings, sizes or horizons")
        if fresh.cost.min() > self.budget_flops:
            raise ValueError(
                f"budget_flops = {self.budget_flops:.4g} does not pay for the cheapest candidate, which costs "
                f"{fresh.cost.min():.4g} FLOPs; raise the budget or add smaller runs"
            )


def choose_greedily(
    prospects: Prospects, candidates: Candidates, limits: Limits, first: Sequence[int] = ()
) -> tuple[list[int], list[Precision]]:
    """Rows in the order chosen, and what is known before the first and after each; moves the prospects.

    Those of `first` that the limits allow are taken before any other.
    """
    chosen: list[int] = []
    known, left = [prospects.measure()], limits.budget_flops
    cells = candidates.cells()
    while len(chosen) < limits.runs:
        due = [row for row in first if row not in chosen and candidates.cost[row] <= left]
        free = limits.runs - len(chosen)
        packs = [_look_into(prospects, candidates, cell, chosen, left, free, limits) for cell in cells if not due]
        rows = tuple(due[:1]) if due else max(packs, key=lambda pack: pack.worth).rows
        if not rows:
            break
        for row in rows:
            prospects.learn(row)
            chosen.append(row)
            known.append(prospects.measure())
            left -= float(candidates.cost[row])
    return chosen, known


@dataclass(frozen=True)
class _Pack:
    """Runs of one cell and their gain per cost."""

    rows: tuple[int, ...] = ()
    worth: float = -np.inf


def _look_into(
    prospects: Prospects, candidates: Candidates, cell: np.ndarray, chosen: Sequence[int], left: float, runs: int,
    limits: Limits,
) -> _Pack:  # fmt: skip
    """The best pack of a cell."""
    free = cell[~np.isin(cell, chosen) & (candidates.cost[cell] <= left)]
    best, gain = _Pack(), 0.0
    taken: list[int] = []
    if len(free) == 0:
        return best
    local = prospects.restrict(free)
    cost = candidates.cost[free] if limits.per == "flops" else np.ones(len(free))
    floor = NEGLIGIBLE * _total(prospects, limits.objective)
    for _ in range(min(PACK, runs)):
        value = local.value(limits.objective)
        value[taken] = -np.inf
        if not taken and value.max() < floor:
            run = int(np.argmin(local.noise.mean(axis=0)))
        else:
            run = int(np.argmax(value / cost))
        if candidates.cost[free[[*taken, run]]].sum() > left:
            break
        gain += float(value[run])
        taken.append(run)
        local.learn(run)
        worth = gain / float(cost[taken].sum())
        if worth > best.worth and gain > floor * len(taken):
            best = _Pack(tuple(int(row) for row in free[taken]), worth)
    return best


def _total(prospects: Prospects, objective: str) -> float:
    known = prospects.measure()
    if objective == "regret":
        return known.expected_regret
    return known.peak_lr_width + (known.batch_tokens_width or 0.0)


def describe_design(
    candidates: Candidates, rows: np.ndarray, known: Sequence[Precision], limits: Limits, warnings: Sequence[str],
    offered: int,
) -> Design:  # fmt: skip
    """The record of a design."""
    choices = record_choices(candidates, [int(row) for row in rows], known)
    before, after = known[0].expected_regret, known[-1].expected_regret
    status = (
        f"chose {len(choices)} of {offered} candidates: the expected regret falls from {100 * before:.3g} % to "
        f"{100 * after:.3g} %"
        if choices
        else f"none of {offered} candidates tells anything of the target within these limits"
    )
    if choices and len(choices) < limits.runs < ENDLESS:
        warnings = (*warnings, f"only {len(choices)} of {limits.runs} runs were chosen: no other tells more or fits")
    return Design(choices, known[0], limits.objective, limits.per, limits.drift, status, tuple(warnings))
