"""Whether a fitted surface may be used: refuses hills, flat basins, and optima beyond what was tried.

Legend: u ln learning rate (or ln batch) of a run less the optimum of its cell.
"""

from __future__ import annotations

import numpy as np

from scalelaws.observations import FloatArray
from scalelaws.results import Status
from scalelaws.sweeps.surface_fits import SurfaceSearch
from scalelaws.sweeps.surfaces import CURVATURE_PRIOR, SurfaceRuns

CELLS_INSIDE = 3
"""As many cells must hold their optimum inside the settings tried: the law of the optimum has three coefficients."""
HILL_CLEARANCE = 3.0
"""A hill is called one when its pooled curvature lies this many standard errors below 0 (an assumption)."""
CURVATURE_KNOWN = 0.8
"""The posterior of ln K must be narrower than this share of its prior: else the basin comes from the prior."""


def find_refusal(search: SurfaceSearch, runs: SurfaceRuns, guards: FloatArray) -> tuple[Status, str] | None:
    """Status and advice where the surface must not be used; `guards` are the cells' lowest diverged ln rates."""
    if _measure_bend(runs) < -HILL_CLEARANCE:
        return Status.UPSIDE_DOWN, "finds losses that bend downwards in ln learning rate; look at the runs one by one"
    layout = search.surface.layout
    spans = {"lr": (runs.ln_lr, guards, "learning rates")}
    if runs.ln_batch is not None:
        spans["batch"] = (runs.ln_batch, np.full(layout.cells, np.inf), "batches")
    for name, (value, guard, words) in spans.items():
        sides = _find_sides(search, name, value, runs.cell, guard)
        inside = int((sides == 0).sum())
        if inside < CELLS_INSIDE:
            status = Status.EDGE_LOW if (sides < 0).sum() >= (sides > 0).sum() else Status.EDGE_HIGH
            return status, (
                f"needs >= {CELLS_INSIDE} cells whose optimum lies inside the {words} tried there (have {inside} of "
                f"{layout.cells}); widen them on that side"
            )
        at = layout.at(f"{name}_ln_curvature")
        if np.sqrt(search.surface.covariance[at, at]) > CURVATURE_KNOWN * CURVATURE_PRIOR[1]:
            return Status.FLAT, f"cannot tell the curvature along the {words} from noise; widen the grid or add repeats"
    return None


def _find_sides(search: SurfaceSearch, name: str, value: FloatArray, cell: np.ndarray, guard: FloatArray) -> np.ndarray:
    """For each cell -1, 0 or 1: its optimum lies below, inside or above what was tried (a diverged run guards)."""
    layout = search.surface.layout
    sides = np.zeros(layout.cells, dtype=np.int64)
    for i in range(layout.cells):
        tried = value[cell == i]
        rows, _ = search.surface.locate(float(np.exp(layout.ln_params[i])), float(np.exp(layout.ln_tokens[i])))
        optimum = float(rows[0 if name == "lr" else 1] @ search.surface.parameters)
        high = max(float(tried.max()), guard[i]) if np.isfinite(guard[i]) else float(tried.max())
        sides[i] = -1 if optimum <= tried.min() else 1 if optimum >= high else 0
    return sides


def _measure_bend(runs: SurfaceRuns) -> float:
    """Pooled curvature of ln loss along the learning rate in standard errors; each cell has its own line.

    Where the batch was varied, its line and its square are the cell's and the surface's own too.
    """
    settings = [runs.ln_lr] if runs.ln_batch is None else [runs.ln_lr, runs.ln_batch]
    columns, squares = [], []
    for value in settings:
        middle = np.array([value[runs.cell == i].mean() for i in range(int(runs.cell.max()) + 1)])
        offset = value - middle[runs.cell]
        columns += [np.where(runs.cell == i, offset, 0.0) for i in range(len(middle))]
        squares.append(offset**2)
    columns += [np.where(runs.cell == i, 1.0, 0.0) for i in range(int(runs.cell.max()) + 1)]
    design = np.stack([*squares, *columns], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(design, runs.ln_loss, rcond=None)
    residual = runs.ln_loss - design @ solution
    variance = float(residual @ residual) / max(len(residual) - rank, 1)
    error = np.sqrt(variance * np.linalg.pinv(design.T @ design)[0, 0])
    return float(solution[0] / max(error, 1e-300))
