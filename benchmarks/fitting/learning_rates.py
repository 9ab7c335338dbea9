"""Learning rate and batch of a cell that was left out: the joint response surface beside what is published.

Regret is the measured loss at the prediction over the cell's best run, less one: interpolated bilinearly in
(ln lr, ln batch) on the cell's grid, its levels matched within 2 %, on triangles where a corner was not run. Runs
are noisy and the best of them lucky, so that a perfect optimum scores about .06 %. Seconds are CPU time of one fit.

Procedures beside ours: `near-optimal` takes the runs within .25 % of a cell's best (Li et al. 2025) and regresses their
mean logs, lr on N and D, batch on D; `quadratics` does so with the vertex of a parabola in both logs through the runs
within 2 %; `constants` is the published law, which saw more cells than these; `lr_batch` is our two-stage law.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import scalelaws
from benchmarks.fitting.datasets import read_runs
from scalelaws import Observations, Target
from scalelaws.laws.surface import ResponseSurface, SurfaceFit
from scalelaws.sweeps.surface_fits import fit_surface
from scalelaws.sweeps.surfaces import Layout, SurfaceRuns

Array = np.ndarray
SAME_LEVEL = 0.02
DRAWS, RANDOM_RUNS, NEAR, WITHIN = 20, 190, 0.0025, 0.02
Procedure = Callable[[Observations, Target], Sequence[float] | Array]


@dataclass(frozen=True, eq=False)
class Cell:
    """The grid of one cell."""

    target: Target
    rows: Array
    levels: tuple[Array, Array]
    loss: Array
    """(rates, batches), NaN where nothing was run."""

    def measure(self, point: Sequence[float] | Array) -> float:
        """Regret in per cent at (ln lr, ln batch); points beyond the grid are drawn to its edge."""
        at = [float(np.clip(value, level[0], level[-1])) for value, level in zip(point, self.levels, strict=True)]
        place = [min(int(np.searchsorted(x, a, "right")) - 1, len(x) - 2) for a, x in zip(at, self.levels, strict=True)]
        i, j = place
        t, u = ((a - x[k]) / (x[k + 1] - x[k]) for a, x, k in zip(at, self.levels, place, strict=True))
        corners = self.loss[i : i + 2, j : j + 2]
        value = float(np.array([1 - t, t]) @ corners @ np.array([1 - u, u]))
        return 100 * ((self._interpolate(at) if np.isnan(value) else value) / np.nanmin(self.loss) - 1)

    def _interpolate(self, at: Sequence[float]) -> float:
        from scipy.interpolate import LinearNDInterpolator

        known = np.argwhere(np.isfinite(self.loss))
        points = np.stack([self.levels[k][known[:, k]] for k in (0, 1)], axis=1)
        return float(LinearNDInterpolator(points, self.loss[tuple(known.T)])([at])[0])


def find_cells(runs: Observations) -> list[Cell]:
    """Every cell with its grid."""
    assert runs.peak_lr is not None
    assert runs.batch_tokens is not None
    return [_find_cell(runs, rows) for rows in runs.cells()]


def _find_cell(runs: Observations, rows: Array) -> Cell:
    assert runs.peak_lr is not None
    assert runs.batch_tokens is not None
    x, z = _level(np.log(runs.peak_lr[rows])), _level(np.log(runs.batch_tokens[rows]))
    levels = (np.unique(x), np.unique(z))
    loss = np.full((len(levels[0]), len(levels[1])), np.nan)
    loss[np.searchsorted(levels[0], x), np.searchsorted(levels[1], z)] = runs.loss[rows]
    return Cell(Target(float(runs.params_non_embedding[rows[0]]), float(runs.tokens[rows[0]])), rows, levels, loss)


def _level(values: Array) -> Array:
    """Values that differ by less than `SAME_LEVEL` become the lowest of them."""
    ordered = np.unique(values)
    starts = np.concatenate([[True], np.diff(ordered) > SAME_LEVEL])
    return np.asarray(ordered[starts][np.cumsum(starts)[np.searchsorted(ordered, values)] - 1])


def regress_near(runs: Observations, target: Target) -> Array:
    """The published procedure."""
    return _regress(runs, target, lambda x, z, y: np.stack([x, z], 1)[y < y.min() + np.log1p(NEAR)].mean(axis=0))


def regress_vertices(runs: Observations, target: Target) -> Array:
    """Two stages with a parabola for every cell."""
    return _regress(runs, target, _find_vertex)


def _find_vertex(x: Array, z: Array, y: Array) -> Array:
    near = y < y.min() + np.log1p(WITHIN)
    middle = np.array([x[near].mean(), z[near].mean()])
    u, v = x[near] - middle[0], z[near] - middle[1]
    design = np.stack([np.ones_like(u), u, v, u * u / 2, v * v / 2, u * v], axis=1)
    t = np.linalg.lstsq(design, y[near], rcond=None)[0]
    return np.asarray(middle - np.linalg.solve([[t[3], t[5]], [t[5], t[4]]], t[1:3]))


def _regress(runs: Observations, target: Target, find: Callable[[Array, Array, Array], Array]) -> Array:
    assert runs.peak_lr is not None
    assert runs.batch_tokens is not None
    logs = np.log(runs.peak_lr), np.log(runs.batch_tokens), np.log(runs.loss)
    optima = np.array([find(*(column[rows] for column in logs)) for rows in runs.cells()])
    first = [rows[0] for rows in runs.cells()]
    design = np.stack(
        [np.ones(len(first)), np.log(runs.params_non_embedding[first]), np.log(runs.tokens[first])], axis=1
    )
    at = np.array([1.0, np.log(target.params_non_embedding), np.log(target.tokens)])
    rate = np.linalg.lstsq(design, optima[:, 0], rcond=None)[0]
    batch = np.linalg.lstsq(design[:, [0, 2]], optima[:, 1], rcond=None)[0]
    return np.array([at @ rate, at[[0, 2]] @ batch])


def quote_constants(runs: Observations, target: Target) -> Array:
    """Published constants of Step Law."""
    law = scalelaws.get_published("step_law")
    found = scalelaws.forecast(law, target)
    assert found.peak_lr is not None
    assert found.batch_tokens is not None
    return np.log([found.peak_lr.value, found.batch_tokens.value])


def fit_two_stages(runs: Observations, target: Target) -> Array:
    """`lr_batch`."""
    found = scalelaws.forecast(scalelaws.fit("lr_batch", runs, bootstrap=100), target)
    assert found.peak_lr is not None
    assert found.batch_tokens is not None
    return np.log([found.peak_lr.value, found.batch_tokens.value])


def predict_joint(runs: Observations, target: Target) -> tuple[Array, Array]:
    """`response_surface`: (ln lr*, ln B*) and their standard deviations for a new cell."""
    fit = scalelaws.fit(ResponseSurface(), runs, bootstrap=100)
    assert isinstance(fit, SurfaceFit)
    assert fit.surface is not None
    mean, covariance = fit.surface.predict(target.params_non_embedding, target.tokens)
    return mean, np.sqrt(np.diag(covariance))


def fit_joint(runs: Observations, target: Target) -> Array:
    """`response_surface`."""
    return predict_joint(runs, target)[0]


PROCEDURES: dict[str, Procedure] = {
    "response_surface": fit_joint,
    "near-optimal": regress_near,
    "quadratics": regress_vertices,
    "constants": quote_constants,
    "lr_batch": fit_two_stages,
}


def fit_alone(runs: Observations, cell: Cell) -> Array:
    """The optimum that a cell shows by itself: the same basin fitted to its own runs within 5 % of its best."""
    part = runs.rows(cell.rows[np.log(runs.loss[cell.rows] / runs.loss[cell.rows].min()) < 0.05])
    assert part.peak_lr is not None
    assert part.batch_tokens is not None
    ln_n, ln_d = np.log(cell.target.params_non_embedding), np.log(cell.target.tokens)
    layout = Layout(np.array([ln_n]), np.array([ln_d]), True, (ln_n, ln_d), (True, True))
    logs = SurfaceRuns(np.log(part.peak_lr), np.log(part.batch_tokens), np.log(part.loss), np.zeros(len(part), int))
    return fit_surface(layout, logs).surface.predict(cell.target.params_non_embedding, cell.target.tokens)[0]


def leave_out(runs: Observations, cells: Sequence[Cell], procedure: Procedure) -> tuple[list[float], float]:
    """Regret of every cell from the others, and CPU seconds of one fit."""
    started, regrets = time.process_time(), []
    for cell in cells:
        others = runs.rows(np.setdiff1d(np.arange(len(runs)), cell.rows))
        regrets.append(cell.measure(procedure(others, cell.target)))
    return regrets, (time.process_time() - started) / len(cells)


def draw_few(runs: Observations, cells: Sequence[Cell], procedure: Procedure, seed: int) -> float:
    """Mean regret over the cells, each from so many random runs of the others."""
    rng, regrets = np.random.default_rng(seed), []
    for cell in cells:
        others = np.setdiff1d(np.arange(len(runs)), cell.rows)
        regrets.append(cell.measure(procedure(runs.rows(rng.choice(others, RANDOM_RUNS, replace=False)), cell.target)))
    return float(np.mean(regrets))


def print_regrets(runs: Observations, cells: Sequence[Cell]) -> None:
    """One line a procedure: mean and worst regret, and from few random runs."""
    print(f"{'':18} {'mean %':>7} {'max %':>7} {'CPU s':>7}   {RANDOM_RUNS} random runs: median (90th percentile)")
    for name, procedure in PROCEDURES.items():
        regrets, seconds = leave_out(runs, cells, procedure)
        few = [] if name in NO_DRAWS else [draw_few(runs, cells, procedure, seed) for seed in range(DRAWS)]
        spread = f"{np.median(few):.4f} ({np.quantile(few, 0.9):.4f})" if few else "-"
        print(f"{name:18} {np.mean(regrets):7.4f} {np.max(regrets):7.4f} {seconds:7.3f}   {spread}", flush=True)


NO_DRAWS = ("constants", "quadratics", "lr_batch")
"""Constants need no runs; a parabola and a basin of its own need more runs in every cell than these."""


def print_coverage(runs: Observations, cells: Sequence[Cell]) -> None:
    """Coverage of the 90 % intervals of left-out cells, by two measures of what the cell's optimum is."""
    fit = scalelaws.fit(ResponseSurface(), runs, bootstrap=100)
    assert isinstance(fit, SurfaceFit)
    assert fit.surface is not None
    surface = fit.surface
    gaps: dict[str, list[Array]] = {"own runs only": [], "own runs, common shape": []}
    widths, alone = [], []
    for cell in cells:
        others = runs.rows(np.setdiff1d(np.arange(len(runs)), cell.rows))
        mean, spread = predict_joint(others, cell.target)
        own = fit_alone(runs, cell)
        common = surface.predict(cell.target.params_non_embedding, cell.target.tokens)[0]
        gaps["own runs only"].append(np.abs(own - mean) / spread)
        gaps["own runs, common shape"].append(np.abs(common - mean) / spread)
        widths.append(2 * 1.645 * spread)
        alone.append(cell.measure(own))
    print(f"90 % intervals of lr*, B* in ln: mean width {np.mean(widths, axis=0).round(3)}")
    print(f"regret of the optimum fitted to the cell's own runs only: {np.mean(alone):.4f} %")
    for truth, gap in gaps.items():
        print(
            f"coverage, the truth being the optimum from its {truth}: {np.mean(np.array(gap) < 1.645, axis=0).round(2)}"
        )


def main() -> None:
    """The dense cells in full; of the experts the regret."""
    dense = Observations.from_frame(read_runs("steplaw_dense"))
    cells = find_cells(dense)
    print(f"dense: {len(dense)} runs, {len(cells)} cells, each left out in turn")
    print_regrets(dense, cells)
    print_coverage(dense, cells)
    experts = Observations.from_frame(read_runs("steplaw_moe"))
    cells = find_cells(experts)
    print(f"experts: {len(experts)} runs, {len(cells)} cells of two layouts and about one size")
    for name in ("response_surface", "near-optimal", "lr_batch"):
        regrets, seconds = leave_out(experts, cells, PROCEDURES[name])
        print(f"{name:18} {np.mean(regrets):7.4f} {np.max(regrets):7.4f} {seconds:7.3f}", flush=True)


if __name__ == "__main__":
    main()
