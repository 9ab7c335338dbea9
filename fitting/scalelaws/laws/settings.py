"""Laws of the best settings: learning rate and batch as power laws of size and horizon.

Legend: N parameters, D tokens, lr* optimal peak learning rate, B* optimal batch in tokens, a..e coefficients.
    ln lr* = a + b ln N + c ln D          ln B* = d + e ln D
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from scalelaws.hierarchy import Regression, regress
from scalelaws.laws.base import FitOptions, SettingsDraws, SettingsLaw
from scalelaws.laws.loss import Chinchilla, PowerLaw, SumOfPowers
from scalelaws.observations import Exclusion, FloatArray, Observations, count_levels
from scalelaws.optima import SURFACE_LEVELS_NEEDED, Optimum, find_basin_optimum, find_surface_optimum
from scalelaws.results import Estimate, Evidence, Fit, Status, Target, find_horizon_path

CELLS_NEEDED = 3
"""Two cells always lie on a line; the third is the first that can contradict it."""
NAMES = (
    "lr_coefficient",
    "lr_exponent_params",
    "lr_exponent_tokens",
    "lr_scatter",
    "batch_coefficient",
    "batch_exponent_tokens",
    "batch_scatter",
    "lr_curvature",
    "lr_skew",
    "batch_curvature",
)


@dataclass(frozen=True, eq=False)
class CellOptimum:
    """The optimum of one cell and the runs that it came from."""

    params: float
    tokens: float
    rows: np.ndarray
    optimum: Optimum
    batch_levels: int


@dataclass(frozen=True)
class OptimumLaw(SettingsLaw):
    """Two stages: the optimum of every cell with its uncertainty, then a regression with scatter between cells."""

    name: str = "lr_batch"
    formula: str = (
        "peak_lr = lr_coefficient * N^lr_exponent_params * D^lr_exponent_tokens; "
        "batch_tokens = batch_coefficient * D^batch_exponent_tokens"
    )
    scope: str = "sweeps of the learning rate (and batch) in at least three cells of (N, D)"
    source: str = "form of Li et al. 2025 (Step Law), equations of section 4; estimator: random-effects regression"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Coefficients and exponents of both laws, their scatter between cells, and the typical basin."""
        return NAMES

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Finds the cells' optima and fits them; refused cells are listed as exclusions."""
        started = time.perf_counter()
        if observations.peak_lr is None:
            raise ValueError("lr_batch needs peak_lr in the observations; this table has none")
        cells = find_cell_optima(observations, level=options.level, seed=options.seed)
        usable = tuple(cell for cell in cells if cell.optimum.status.ok)
        excluded = (*observations.excluded, *_list_refused(observations, cells))
        if len(usable) < CELLS_NEEDED:
            return self._unfitted(observations, usable, excluded, options, time.perf_counter() - started)
        fit = _Stage.of(observations, usable, options).finish(self, excluded)
        return replace(fit, seconds=time.perf_counter() - started)

    def _unfitted(
        self,
        observations: Observations,
        usable: tuple[CellOptimum, ...],
        excluded: tuple[Exclusion, ...],
        options: FitOptions,
        seconds: float,
    ) -> Fit:
        refused = "; ".join(sorted({f"{item.reason} ({item.runs} runs)" for item in excluded})) or "none"
        message = (
            f"{Status.TOO_FEW_SCALES.value}: lr_batch needs >= {CELLS_NEEDED} cells of (N, D) with an optimum inside "
            f"the grid (have {len(usable)}); refused: {refused}"
        )
        evidence = replace(Evidence.of(observations, excluded), cells=len(usable))
        unknown = {name: Estimate(np.nan) for name in NAMES}
        return Fit(
            self.name, self.formula, unknown, np.empty((0, len(NAMES))), "none", np.nan, Status.TOO_FEW_SCALES,
            message, np.nan, np.nan, evidence, seconds, options.level, dict(observations.scope),
        )  # fmt: skip

    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the optimum at a target, with the scatter of a new cell around the law."""
        value = dict(zip(NAMES, fit.draws.T, strict=True))
        ln_n, ln_d = np.log(target.params_non_embedding), np.log(target.tokens)
        noise = rng.standard_normal((2, len(fit.draws)))
        ln_lr = np.log(value["lr_coefficient"]) + value["lr_exponent_params"] * ln_n
        ln_lr = ln_lr + value["lr_exponent_tokens"] * ln_d + value["lr_scatter"] * noise[0]
        varied = bool(np.isfinite(value["batch_coefficient"]).all())
        ln_batch = np.log(value["batch_coefficient"]) + value["batch_exponent_tokens"] * ln_d if varied else None
        return SettingsDraws(
            ln_peak_lr=ln_lr,
            ln_batch_tokens=None if ln_batch is None else ln_batch + value["batch_scatter"] * noise[1],
            lr_curvature=value["lr_curvature"],
            lr_skew=value["lr_skew"],
            batch_curvature=value["batch_curvature"] if varied else None,
        )


def find_cell_optima(observations: Observations, *, level: float = 0.9, seed: int = 0) -> tuple[CellOptimum, ...]:
    """The optimum of every cell of (N, D): a surface where the batch has three levels, else the best batch's basin."""
    if observations.peak_lr is None:
        raise ValueError("cell optima need peak_lr in the observations; this table has none")
    return tuple(_find_cell(observations, rows, level, seed) for rows in observations.cells())


def _find_cell(observations: Observations, rows: np.ndarray, level: float, seed: int) -> CellOptimum:
    part = observations.rows(rows)
    assert part.peak_lr is not None
    batches = 1 if part.batch_tokens is None else count_levels(part.batch_tokens)
    if part.batch_tokens is not None and batches >= SURFACE_LEVELS_NEEDED:
        optimum = find_surface_optimum(part.peak_lr, part.batch_tokens, part.loss, level=level, seed=seed)
    else:
        if part.batch_tokens is not None and batches > 1 and bool((~part.diverged).any()):
            best = part.batch_tokens[np.nanargmin(np.where(part.diverged, np.nan, part.loss))]
            rows = rows[np.isclose(part.batch_tokens, best, rtol=1e-9)]
            part = observations.rows(rows)
        assert part.peak_lr is not None
        optimum = find_basin_optimum(part.peak_lr, part.loss, level=level, seed=seed)
    return CellOptimum(float(part.params_non_embedding[0]), float(part.tokens[0]), rows, optimum, batches)


def _list_refused(observations: Observations, cells: tuple[CellOptimum, ...]) -> list[Exclusion]:
    """One exclusion for every refused cell, and one for each reason to leave runs of a usable cell out."""
    refused = [
        Exclusion(f"cell N={cell.params:.4g}, D={cell.tokens:.4g}: {cell.optimum.message}", len(cell.rows))
        for cell in cells
        if not cell.optimum.status.ok
    ]
    counts = {"not at the best batch of a cell with fewer than three batches": len(observations)}
    for cell in cells:
        counts[next(iter(counts))] -= len(cell.rows)
        for reason, runs in cell.optimum.left_out if cell.optimum.status.ok else ():
            counts[reason] = counts.get(reason, 0) + runs
    return [*refused, *(Exclusion(reason, runs) for reason, runs in counts.items() if runs)]


@dataclass(frozen=True, eq=False)
class _Stage:
    """The second stage: regression of the usable cells' optima."""

    observations: Observations
    cells: tuple[CellOptimum, ...]
    options: FitOptions
    ln_n: FloatArray
    ln_d: FloatArray

    @classmethod
    def of(cls, observations: Observations, cells: tuple[CellOptimum, ...], options: FitOptions) -> _Stage:
        ln_n = np.log(np.array([cell.params for cell in cells]))
        return cls(observations, cells, options, ln_n, np.log(np.array([cell.tokens for cell in cells])))

    def finish(self, law: OptimumLaw, excluded: tuple[Exclusion, ...]) -> Fit:
        rng, level = np.random.default_rng(self.options.seed), self.options.level
        rate, use_n, use_d = self._fit_rate()
        batch, use_batch_d = self._fit_batch()
        draws = np.stack(
            [*self._draw_rate(rate, use_n, use_d, rng), *self._draw_batch(batch, use_batch_d, rng), *self._pool(rng)], 1
        )
        used = self.observations.rows(np.concatenate([cell.rows[cell.optimum.used] for cell in self.cells]))
        residual = self._column(0)[0] - self._design(use_n, use_d) @ rate.coefficients
        return Fit(
            law=law.name, formula=law.formula, parameters=_estimate(draws, level), draws=draws,
            objective=self._describe(), objective_value=float(residual @ residual), status=Status.CONVERGED,
            message=Status.CONVERGED.value, rmse_log=float(np.sqrt(np.mean(residual**2))),
            scatter_log=rate.scatter,
            evidence=Evidence.of(used, excluded), seconds=0.0, level=level, scope=dict(self.observations.scope),
            warnings=self._warn(use_n, use_d, batch is not None, use_batch_d), loss_fit=self._fit_loss(),
        )  # fmt: skip

    def _column(self, column: int) -> tuple[FloatArray, FloatArray]:
        """Centre and squared standard error of one coordinate of the cells' optima (robust: from quantiles)."""
        quantiles = np.stack([np.quantile(cell.optimum.draws[:, column], [0.159, 0.5, 0.841]) for cell in self.cells])
        return quantiles[:, 1], (0.5 * (quantiles[:, 2] - quantiles[:, 0])) ** 2

    def _design(self, use_n: bool, use_d: bool) -> FloatArray:
        columns = [np.ones_like(self.ln_n)]
        columns += [self.ln_n - self.ln_n.mean()] if use_n else []
        columns += [self.ln_d - self.ln_d.mean()] if use_d else []
        return np.stack(columns, axis=1)

    def _fit_rate(self) -> tuple[Regression, bool, bool]:
        """Regression of the learning rate on what varied; a horizon tied to the size leaves the size alone."""
        use_n = count_levels(np.exp(self.ln_n)) > 1
        tied = find_horizon_path(np.exp(self.ln_n), np.exp(self.ln_d)) is not None
        use_d = count_levels(np.exp(self.ln_d)) > 1 and not (use_n and tied)
        return self._regress(0, use_n, use_d), use_n, use_d

    def _fit_batch(self) -> tuple[Regression | None, bool]:
        if any(cell.optimum.batch_tokens is None for cell in self.cells):
            return None, False
        use_d = count_levels(np.exp(self.ln_d)) > 1
        return self._regress(2, False, use_d), use_d

    def _regress(self, column: int, use_n: bool, use_d: bool) -> Regression:
        centre, variance = self._column(column)
        design = self._design(use_n, use_d)
        prior = np.full(design.shape[1], self.options.prior_slope_sd)
        prior[0] = np.inf
        return regress(design, centre, variance, prior, self.ln_n)

    def _draw_rate(
        self, rate: Regression, use_n: bool, use_d: bool, rng: np.random.Generator
    ) -> tuple[FloatArray, ...]:
        t, scatter = rate.draw(self.options.bootstrap, rng)
        zero = np.zeros(len(t))
        b = t[:, 1] if use_n else zero
        c = t[:, 1 + use_n] if use_d else zero
        return np.exp(t[:, 0] - b * self.ln_n.mean() - c * self.ln_d.mean()), b, c, scatter

    def _draw_batch(self, batch: Regression | None, use_d: bool, rng: np.random.Generator) -> tuple[FloatArray, ...]:
        if batch is None:
            return (np.full(self.options.bootstrap, np.nan),) * 3
        t, scatter = batch.draw(self.options.bootstrap, rng)
        e = t[:, 1] if use_d else np.zeros(len(t))
        return np.exp(t[:, 0] - e * self.ln_d.mean()), e, scatter

    def _pool(self, rng: np.random.Generator) -> list[FloatArray]:
        """Curvatures and skew: a draw of a random cell each, so that their spread between cells is kept."""
        count = self.options.bootstrap
        cell = rng.integers(len(self.cells), size=count)
        picked = [self.cells[i].optimum.curvature_draws for i in cell]
        row = rng.integers(min(len(item) for item in picked), size=count)
        shapes = [item[i] for item, i in zip(picked, row, strict=True)]
        columns = [np.array([shape[j] for shape in shapes]) for j in (0, 1)]
        flat = any(len(shape) == 2 for shape in shapes)
        return [*columns, np.full(count, np.nan) if flat else np.array([shape[2] for shape in shapes])]

    def _fit_loss(self) -> Fit | None:
        """The loss law that the cells' minima can hold, if any."""
        logs = self._column(1)
        minima = Observations(
            params_non_embedding=np.exp(self.ln_n), tokens=np.exp(self.ln_d), loss=np.exp(logs[0]),
            compute_flops=np.array([self.observations.compute[cell.rows].mean() for cell in self.cells]),
            loss_se_log=np.maximum(np.sqrt(logs[1]), 1e-6), scope=self.observations.scope,
            params_convention=self.observations.params_convention, loss_unit=self.observations.loss_unit,
        )  # fmt: skip
        candidates: tuple[SumOfPowers, ...] = (Chinchilla(), PowerLaw(variable="params"), PowerLaw(variable="tokens"))
        if find_horizon_path(minima.params_non_embedding, minima.tokens) is None:
            candidates = candidates[:1]
        options = replace(self.options, objective="map")
        fits = (law.estimate(minima, options) for law in candidates)
        return next((fit for fit in fits if fit.status.ok), None)

    def _warn(self, use_n: bool, use_d: bool, batch: bool, batch_d: bool) -> tuple[str, ...]:
        warnings = []
        if not use_n:
            warnings.append("sizes were not varied: the dependence of the learning rate on size is unknown")
        if not use_d and use_n and count_levels(np.exp(self.ln_d)) > 1:
            warnings.append("tokens moved in step with parameters: the law holds along that path only")
        elif not use_d:
            warnings.append("tokens were not varied: the dependence of the learning rate on the horizon is unknown")
        if batch and not batch_d:
            warnings.append("tokens were not varied: the dependence of the batch on the horizon is unknown")
        if use_n and count_levels(np.exp(self.ln_n)) == 2:
            warnings.append("only two sizes: the exponent in size is not checked by a third")
        if not batch:
            warnings.append(self._describe_batch())
        return tuple(warnings)

    def _describe_batch(self) -> str:
        batches = self.observations.batch_tokens
        if batches is None:
            return "the batch is not recorded: the learning rate holds for the batch of these runs only"
        used = batches[np.concatenate([cell.rows for cell in self.cells])]
        if count_levels(used) == 1:
            return f"the batch was not varied: the learning rate holds for {used[0]:.6g} tokens per step only"
        return (
            f"the batch was not searched in every cell ({used.min():.6g} to {used.max():.6g} tokens per step): no law "
            "of the batch, and the learning rate holds for these batches only"
        )

    def _describe(self) -> str:
        return (
            "posterior of ln optima with scatter between cells; priors: exponents ~ normal(0, "
            f"{self.options.prior_slope_sd:g}), scatter ~ half normal"
        )


def _estimate(draws: FloatArray, level: float) -> dict[str, Estimate]:
    columns = zip(NAMES, draws.T, strict=True)
    return {
        name: Estimate.from_draws(column, level) if np.isfinite(column).all() else Estimate(float("nan"))
        for name, column in columns
    }
