"""Laws of the best settings: learning rate and batch as power laws of size and horizon.

Legend: N parameters, D tokens, lr* optimal peak learning rate, B* optimal batch in tokens, a..e coefficients.
    ln lr* = a + b ln N + c ln D          ln B* = d + e ln D
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.laws.base import FitOptions, SettingsDraws
from scalelaws.laws.two_stages import CELLS_NEEDED, CellOptimum, Setting, TwoStageLaw
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.optima import SURFACE_LEVELS_NEEDED, find_basin_optimum, find_surface_optimum
from scalelaws.results import Fit, Target


@dataclass(frozen=True, kw_only=True)
class OptimumLaw(TwoStageLaw):
    """Learning rate and batch of every cell, then their regression on size and horizon."""

    name: str = "lr_batch"
    formula: str = (
        "peak_lr = lr_coefficient * N^lr_exponent_params * D^lr_exponent_tokens; "
        "batch_tokens = batch_coefficient * D^batch_exponent_tokens"
    )
    scope: str = "sweeps of the learning rate (and batch) in at least three cells of (N, D)"
    source: str = "form of Li et al. 2025 (Step Law), equations of section 4; estimator: random-effects regression"
    settings: tuple[Setting, ...] = (
        Setting("lr", "the learning rate", ("params", "tokens")),
        Setting("batch", "the batch", ("tokens",)),
    )

    def find_cells(self, observations: Observations, options: FitOptions) -> tuple[CellOptimum, ...]:
        """A surface where the batch has three levels, else the best batch's basin."""
        if observations.peak_lr is None:
            raise ValueError(f"{self.name} needs peak_lr in the observations; this table has none")
        return find_cell_optima(observations, level=options.level, seed=options.seed)

    def respond(self, setting: Setting, observations: Observations, cell: CellOptimum) -> FloatArray | None:
        """ln learning rate, or ln batch where it was searched."""
        if setting.name == "lr":
            return cell.optimum.draws[:, 0]
        return None if cell.optimum.batch_tokens is None else cell.optimum.draws[:, 2]

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """For which batches the learning rate holds, where the batch has no law."""
        return [_describe_batch(observations, cells)] if "batch" in absent else []

    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the optimum at a target, with the scatter of a new cell around the law."""
        value = self.read_draws(fit)
        ln_lr, ln_batch = self.draw_optima(fit, target, rng)
        varied = bool(np.isfinite(value["batch_coefficient"]).all())
        return SettingsDraws(
            ln_peak_lr=ln_lr,
            ln_batch_tokens=ln_batch if varied else None,
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


def _describe_batch(observations: Observations, cells: tuple[CellOptimum, ...]) -> str:
    batches = observations.batch_tokens
    if batches is None:
        return "the batch is not recorded: the learning rate holds for the batch of these runs only"
    used = batches[np.concatenate([cell.rows for cell in cells])]
    if count_levels(used) == 1:
        return f"the batch was not varied: the learning rate holds for {used[0]:.6g} tokens per step only"
    return (
        f"the batch was not searched in every cell ({used.min():.6g} to {used.max():.6g} tokens per step): no law "
        "of the batch, and the learning rate holds for these batches only"
    )


__all__ = ["CELLS_NEEDED", "CellOptimum", "OptimumLaw", "find_cell_optima"]
