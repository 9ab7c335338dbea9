"""The joint response surface as a law of settings: learning rate and batch from all runs of all cells at once.

Legend: N parameters, D tokens; see `surfaces` for the surface and `surface_fits` for how it is fitted.
    peak_lr = lr_coefficient N^lr_exponent_params D^lr_exponent_tokens          batch_tokens likewise

It needs no optimum of any single cell: cells of a few runs each count for what they are worth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from scalelaws.laws.base import FitOptions, SettingsDraws, SettingsLaw
from scalelaws.laws.loss import fit_minima
from scalelaws.laws.two_stages import CELLS_NEEDED, UNUSED
from scalelaws.observations import BoolArray, Exclusion, FloatArray, Observations, count_levels
from scalelaws.optima import EXCESS_KEPT, POINTS_NEEDED
from scalelaws.results import Estimate, Evidence, Fit, Status, Target
from scalelaws.sweeps.surface_checks import find_refusal
from scalelaws.sweeps.surface_fits import SurfaceSearch, fit_surface
from scalelaws.sweeps.surfaces import Layout, Surface, SurfaceRuns, hold_slopes

LEVELS_NEEDED = 3
"""Distinct learning rates (or batches) from which a cell can have an optimum of its own."""
SETTINGS = ("lr", "batch")


@dataclass(frozen=True, eq=False)
class SurfaceFit(Fit):
    """A fit that keeps its surface, which knows the cells: a target of a known size shares in what they showed."""

    surface: Surface | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class ResponseSurface(SettingsLaw):
    """One robust asymmetric basin over all cells, its centre a power law of size and horizon with scatter."""

    name: str = "response_surface"
    formula: str = (
        "peak_lr = lr_coefficient * N^lr_exponent_params * D^lr_exponent_tokens; "
        "batch_tokens = batch_coefficient * N^batch_exponent_params * D^batch_exponent_tokens"
    )
    scope: str = (
        "runs of several learning rates (and batches) in at least three cells of (N, D); few runs a cell will do"
    )
    source: str = "form of the optimum: Li et al. 2025 (Step Law), section 4; surface: `scalelaws.sweeps.surfaces`"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Coefficient, exponents and scatter of both optima; curvature, skew and shear of the basin."""
        laws = ("coefficient", "exponent_params", "exponent_tokens", "scatter")
        shapes = ("curvature", "skew", "shear")
        return tuple(f"{setting}_{name}" for names in (laws, shapes) for setting in SETTINGS for name in names)

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits all cells at once; runs that diverged or lie far above their cell's best are left out and counted."""
        started = time.perf_counter()
        if observations.peak_lr is None:
            raise ValueError(f"{self.name} needs peak_lr in the observations; this table has none")
        kept, excluded = _choose_runs(observations)
        if not kept.any():
            return self._refuse(
                Status.TOO_FEW_POINTS, "finds no run that ended", observations, excluded, options, started
            )
        used = observations.rows(np.flatnonzero(kept))
        usable = [rows for rows in used.cells() if _count_rates(used, rows) >= LEVELS_NEEDED]
        if len(usable) < CELLS_NEEDED:
            message = (
                f"needs >= {CELLS_NEEDED} cells of (N, D) with >= {LEVELS_NEEDED} learning rates that did not diverge "
                f"(have {len(usable)}); add sizes or horizons"
            )
            return self._refuse(Status.TOO_FEW_SCALES, message, used, excluded, options, started)
        layout, runs = _lay_out(used, options)
        search = fit_surface(layout, runs, draws=options.bootstrap, seed=options.seed)
        refusal = find_refusal(search, runs, _list_guards(observations, used))
        if refusal:
            return self._refuse(*refusal, used, excluded, options, started)
        return self._accept(search, used, excluded, options, started)

    def _refuse(
        self, status: Status, advice: str, used: Observations, excluded: tuple[Exclusion, ...], options: FitOptions,
        started: float,
    ) -> Fit:  # fmt: skip
        unknown = {name: Estimate(np.nan) for name in self.parameter_names}
        return SurfaceFit(
            self.name, self.formula, unknown, np.empty((0, len(unknown))), "none", np.nan, status,
            f"{status.value}: {self.name} {advice}", np.nan, np.nan, Evidence.of(used, excluded),
            time.perf_counter() - started, options.level, dict(used.scope),
        )  # fmt: skip

    def _accept(
        self, search: SurfaceSearch, used: Observations, excluded: tuple[Exclusion, ...], options: FitOptions,
        started: float,
    ) -> Fit:  # fmt: skip
        surface = search.surface
        draws = np.stack([_draw(surface, name) for name in self.parameter_names], axis=1)
        status = Status.CONVERGED if search.settled else Status.NOT_CONVERGED
        return SurfaceFit(
            law=self.name, formula=self.formula, draws=draws, status=status, message=status.value,
            parameters=_estimate(self.parameter_names, draws, options.level), objective=_describe(options),
            objective_value=search.objective, rmse_log=float(np.sqrt(np.mean(search.residuals**2))),
            scatter_log=surface.scatter[0], evidence=Evidence.of(used, excluded), level=options.level,
            scope=dict(used.scope), warnings=tuple(_warn(surface, used)), loss_fit=_fit_loss(surface, used, options),
            surface=surface, seconds=time.perf_counter() - started,
        )  # fmt: skip

    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the optimum at a target, with what its size shares with the cells and the scatter of a new one."""
        if not isinstance(fit, SurfaceFit) or fit.surface is None:
            raise ValueError(f"a fit of {self.name} carries its surface, and this one does not; fit the runs again")
        at = (target.params_non_embedding, target.tokens)
        optima, shape = fit.surface.draw_optima(*at, rng), fit.surface.draw_shapes(*at)
        return SettingsDraws(
            ln_peak_lr=optima[:, 0],
            ln_batch_tokens=optima[:, 1] if fit.surface.layout.batched else None,
            **{f"{name}": shape.get(name) for name in ("batch_curvature", "batch_skew", "lr_shear", "batch_shear")},
            lr_curvature=shape["lr_curvature"],
            lr_skew=shape["lr_skew"],
        )


def _choose_runs(observations: Observations) -> tuple[BoolArray, tuple[Exclusion, ...]]:
    """The runs that shape the surface, and why the others do not."""
    assert observations.peak_lr is not None
    finite = ~observations.diverged
    kept, at_best = np.zeros(len(observations), dtype=bool), np.ones(len(observations), dtype=bool)
    batched = _is_batched(observations)
    for rows in observations.cells():
        sound = rows[finite[rows]]
        if len(sound) == 0:
            continue
        best = sound[np.argmin(observations.loss[sound])]
        if not batched and observations.batch_tokens is not None:
            at_best[rows] = np.isclose(observations.batch_tokens[rows], observations.batch_tokens[best], rtol=1e-9)
            sound = sound[at_best[sound]]
        kept[sound] = _choose_near(np.log(observations.loss[sound]))
    reasons = {
        UNUSED: ~at_best,
        "diverged (the loss is not finite): they do not shape the surface": at_best & ~finite,
        f"more than {100 * EXCESS_KEPT:g} % above the lowest run of the cell": at_best & finite & ~kept,
    }
    excluded = tuple(Exclusion(reason, int(mask.sum())) for reason, mask in reasons.items() if mask.any())
    return kept, (*observations.excluded, *excluded)


def _choose_near(ln_loss: FloatArray) -> BoolArray:
    """Runs within `EXCESS_KEPT` of the lowest, and at least the lowest `POINTS_NEEDED`."""
    ordered = np.sort(ln_loss)
    least = ordered[min(POINTS_NEEDED, len(ordered)) - 1]
    return np.asarray(ln_loss <= max(least, ordered[0] + EXCESS_KEPT))


def _is_batched(observations: Observations) -> bool:
    """Whether the batch was searched: three levels or more, in three cells or more."""
    batches = observations.batch_tokens
    if batches is None:
        return False
    levels = [count_levels(batches[rows]) for rows in observations.cells()]
    return sum(count >= LEVELS_NEEDED for count in levels) >= CELLS_NEEDED


def _count_rates(observations: Observations, rows: np.ndarray) -> int:
    assert observations.peak_lr is not None
    return count_levels(observations.peak_lr[rows])


def _lay_out(used: Observations, options: FitOptions) -> tuple[Layout, SurfaceRuns]:
    """The surface's parameters and the runs in logs."""
    assert used.peak_lr is not None
    cells, batched = used.cells(), _is_batched(used)
    ln_n = np.log([used.params_non_embedding[rows[0]] for rows in cells])
    ln_d = np.log([used.tokens[rows[0]] for rows in cells])
    origin = (float(ln_n.mean()), float(ln_d.mean()))
    layout = Layout(ln_n, ln_d, batched, origin, hold_slopes(ln_n, ln_d), options.prior_slope_sd)
    ln_batch = np.log(used.batch_tokens) if batched and used.batch_tokens is not None else None
    return layout, SurfaceRuns(np.log(used.peak_lr), ln_batch, np.log(used.loss), used.cell_index())


def _list_guards(observations: Observations, used: Observations) -> FloatArray:
    """For each used cell the lowest ln learning rate that diverged there, inf where none did."""
    assert observations.peak_lr is not None
    guards = []
    for rows in used.cells():
        n, d = used.params_non_embedding[rows[0]], used.tokens[rows[0]]
        same = np.isclose(observations.params_non_embedding, n) & np.isclose(observations.tokens, d)
        broken = observations.peak_lr[same & observations.diverged]
        guards.append(np.log(broken.min()) if len(broken) else np.inf)
    return np.array(guards)


def _draw(surface: Surface, name: str) -> FloatArray:
    """Draws of one parameter of the law; NaN for those of a batch that was not searched."""
    setting, term = name.split("_", 1)
    layout, draws = surface.layout, surface.draws
    if setting == "batch" and not layout.batched:
        return np.full(len(draws), np.nan)
    if term == "scatter":
        return surface.scatter_draws[:, SETTINGS.index(setting)]
    at = layout.at(f"{setting}_intercept")
    slopes = np.where(layout.slopes_held, 0.0, draws[:, at + 1 : at + 3])
    if term == "coefficient":
        return np.asarray(np.exp(draws[:, at] - slopes @ np.array(layout.origin)))
    if term.startswith("exponent"):
        return np.asarray(slopes[:, ("exponent_params", "exponent_tokens").index(term)])
    if term == "curvature":
        return np.asarray(np.exp(draws[:, layout.at(f"{setting}_ln_curvature")]))
    known = f"{setting}_{term}" in layout.shape_names
    return draws[:, layout.at(f"{setting}_{term}")] if known else np.full(len(draws), np.nan)


def _estimate(names: tuple[str, ...], draws: FloatArray, level: float) -> dict[str, Estimate]:
    """Each parameter with its interval; one without draws is NaN."""
    return {
        name: Estimate.from_draws(column, level) if np.isfinite(column).all() else Estimate(np.nan)
        for name, column in zip(names, draws.T, strict=True)
    }


def _fit_loss(surface: Surface, used: Observations, options: FitOptions) -> Fit | None:
    """The loss law that the cells' floors can hold, if any."""
    layout, floors = surface.layout, surface.layout.effects("floor")
    spread = np.sqrt(np.diag(surface.covariance)[floors])
    minima = Observations(
        params_non_embedding=np.exp(layout.ln_params), tokens=np.exp(layout.ln_tokens),
        loss=np.exp(surface.parameters[floors]), loss_se_log=np.maximum(spread, 1e-6),
        compute_flops=np.array([used.compute[rows].mean() for rows in used.cells()]), scope=used.scope,
        params_convention=used.params_convention, loss_unit=used.loss_unit,
    )  # fmt: skip
    return fit_minima(minima, options)


def _warn(surface: Surface, used: Observations) -> Iterator[str]:
    layout = surface.layout
    settings = "the learning rate and the batch" if layout.batched else "the learning rate"
    one_size, one_horizon = (float(np.ptp(scale)) < 1e-3 for scale in (layout.ln_params, layout.ln_tokens))
    if one_size:
        yield f"sizes were not varied: the dependence of {settings} on size is unknown"
    elif count_levels(np.exp(layout.ln_params)) == 2:
        yield "only two sizes: the exponent in size is not checked by a third"
    if one_horizon:
        yield f"tokens were not varied: the dependence of {settings} on the horizon is unknown"
    elif layout.slopes_held[1]:
        yield "tokens moved in step with parameters: the law holds along that path only"
    if not layout.batched:
        yield _describe_batch(used)
    elif not one_size:
        yield from _describe_lean(_draw(surface, "batch_exponent_params"))


def _describe_lean(exponents: FloatArray) -> Iterator[str]:
    """Published laws of the batch know the horizon alone (Li et al. 2025), so a law that leans on size says so."""
    low, middle, high = np.quantile(exponents, [0.05, 0.5, 0.95])
    if low * high > 0:
        yield (
            f"in these runs the optimal batch goes with N^{middle:.2g} ({low:.2g} to {high:.2g}); published laws know D"
            " alone: far beyond these sizes compare lr_batch, whose batch depends on D only"
        )


def _describe_batch(used: Observations) -> str:
    batches = used.batch_tokens
    if batches is None:
        return "the batch is not recorded: the learning rate holds for the batch of these runs only"
    if count_levels(batches) == 1:
        return f"the batch was not varied: the learning rate holds for {batches[0]:.6g} tokens per step only"
    return (
        f"the batch was not searched in three cells ({batches.min():.6g} to {batches.max():.6g} tokens per step): no "
        "law of the batch, and the learning rate holds for these batches only"
    )


def _describe(options: FitOptions) -> str:
    return (
        "Student's t over all runs with a noise that grows with the excess; cells' optima scatter around the law; "
        f"priors: exponents ~ normal(0, {options.prior_slope_sd:g}), scatter ~ half normal"
    )
