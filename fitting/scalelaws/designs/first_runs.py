"""The first runs of a study: cells by D-optimality for a plane in ln N and ln D, and in them runs by exchange."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scalelaws.designs.candidates import Candidates, Precision
from scalelaws.designs.prospects import Prospects
from scalelaws.designs.selection import Limits
from scalelaws.designs.starts import lay_plane
from scalelaws.observations import FloatArray, count_levels
from scalelaws.results import Target
from scalelaws.sweeps.surface_fits import START_SCATTER
from scalelaws.sweeps.surfaces import SLOPE_SD

RUNS_PER_CELL = 4
"""First runs of a cell: a floor, a slope and a curvature along two settings are read from few (an assumption)."""
FEWEST = 3
"""Cells, and runs in each, that a fit needs; and sizes that the first runs shall have, where there are so many."""
HORIZONS = 2
"""Horizons that the first runs shall have, where there are so many."""
PASSES = 3
"""Rounds in which every run is exchanged for a better one; most designs rest after two."""


def choose_first(
    prospects: Prospects, candidates: Candidates, target: Target, limits: Limits
) -> tuple[list[int], list[Precision]]:
    """Rows in the order chosen, and what is known before the first and after each."""
    cells = choose_cells(candidates, target, limits)
    share, extra = divmod(limits.runs, len(cells))
    plots = [_Plot(candidates, cell, share + (place < extra)) for place, cell in enumerate(cells)]
    known, fresh = [prospects.measure()], prospects.copy()
    for plot in plots:
        while len(plot.rows) < plot.runs and (run := plot.pick(prospects)) is not None:
            prospects.learn(run)
            plot.rows.append(run)
    for _ in range(PASSES):
        moved = [plot.exchange(prospects) for plot in plots]
        if not any(moved):
            break
    chosen = [row for plot in plots for row in plot.rows]
    for row in chosen:
        fresh.learn(row)
        known.append(fresh.measure())
    return chosen, known


@dataclass(eq=False)
class _Plot:
    """The first runs of one cell."""

    candidates: Candidates
    cell: np.ndarray
    runs: int
    rows: list[int] = field(default_factory=list)

    def pick(self, prospects: Prospects) -> int | None:
        """The run to add: that of the largest gain among those that keep the settings spread."""
        free = self.cell[~np.isin(self.cell, self.rows)]
        spread = np.array([self._spreads(int(row)) for row in free], dtype=bool)
        free = free[spread] if spread.any() else free
        if len(free) == 0:
            return None
        local = prospects.restrict(free)
        value = local.value("regret")
        return int(free[np.argmax(value)] if self.rows else free[np.argmin(local.noise.mean(axis=0))])

    def exchange(self, prospects: Prospects) -> bool:
        """Exchanges each run for the best one in its place; says whether any moved."""
        moved = False
        for row in tuple(self.rows):
            prospects.learn(row, forget=True)
            self.rows.remove(row)
            run = self.pick(prospects)
            assert run is not None
            prospects.learn(run)
            self.rows.append(run)
            moved |= run != row
        return moved

    def _spreads(self, row: int) -> bool:
        """Whether the cell can still have three learning rates (and batches) with this run."""
        rows = [*self.rows, row]
        spare = max(self.runs - FEWEST, 0)
        columns = (self.candidates.peak_lr, self.candidates.batch_tokens)
        searched = [column for column in columns if column is not None and count_levels(column[self.cell]) >= FEWEST]
        return all(len(rows) - count_levels(column[rows]) <= spare for column in searched)


def choose_cells(candidates: Candidates, target: Target, limits: Limits) -> list[np.ndarray]:
    """Cells that are D-optimal for a plane in ln N and ln D, per cost; by exchange from a greedy start."""
    cells = tuple(cell for cell in candidates.cells() if count_levels(candidates.peak_lr[cell]) >= FEWEST)
    if len(cells) < FEWEST or limits.runs < FEWEST * FEWEST:
        raise ValueError(
            f"a start needs {FEWEST} runs in each of {FEWEST} cells of (N, D) with {FEWEST} learning rates; got runs = "
            f"{limits.runs} and {len(cells)} such cells. Offer more sizes, horizons or learning rates"
        )
    cost = np.array([float(candidates.cost[cell].mean()) for cell in cells])
    number = min(max(limits.runs // RUNS_PER_CELL, FEWEST), len(cells))
    plan = _CellPlan(candidates, cells, cost, target, limits)
    chosen: list[int] = []
    for _ in range(number):
        chosen.append(max((i for i in range(len(cells)) if i not in chosen), key=lambda i: plan.score([*chosen, i])))
    for _ in range(PASSES):
        for place in range(number):
            others = [i for i in chosen if i != chosen[place]]
            free = [i for i in range(len(cells)) if i not in others]
            chosen[place] = max(free, key=lambda i: plan.score([*others, i]))
    spent = float(cost[chosen].mean()) * limits.runs
    if spent > limits.budget_flops:
        raise ValueError(
            f"{limits.runs} first runs in {number} cells cost {spent:.4g} FLOPs, more than budget_flops = "
            f"{limits.budget_flops:.4g}; raise the budget, ask for fewer runs, or add smaller sizes"
        )
    return [cells[i] for i in sorted(chosen, key=lambda i: cost[i])]


class _CellPlan:
    """Scores a set of cells."""

    def __init__(
        self, candidates: Candidates, cells: tuple[np.ndarray, ...], cost: FloatArray, target: Target, limits: Limits
    ) -> None:
        _, self.design = lay_plane(candidates, cells)
        self.sizes, self.horizons = (
            np.round(np.log(column[[cell[0] for cell in cells]]), 3)
            for column in (candidates.params_non_embedding, candidates.tokens)
        )
        way = np.abs(self.sizes - np.log(target.params_non_embedding)) + np.abs(self.horizons - np.log(target.tokens))
        self.weight = 1 / (START_SCATTER**2 + limits.drift**2 * way)
        self.cost = cost if limits.per == "flops" else np.ones(len(cells))
        self.over = cost * limits.runs - limits.budget_flops

    def score(self, chosen: list[int]) -> tuple[float, float, float]:
        """Cells in budget first, then sizes and horizons that are wanted, then information per cost."""
        wanted = ((self.sizes, FEWEST), (self.horizons, HORIZONS))
        spread = sum(min(len(set(scale[chosen])), few) for scale, few in wanted)
        rows = self.design[chosen]
        information = rows.T @ (rows * self.weight[chosen, None]) + np.diag([1e-6, 1.0, 1.0]) / SLOPE_SD**2
        _, size = np.linalg.slogdet(information)
        return (
            float(-max(self.over[chosen].mean(), 0.0)) if np.isfinite(self.over).all() else 0.0,
            float(spread),
            float(size) - 3 * float(np.log(self.cost[chosen].sum())),
        )
