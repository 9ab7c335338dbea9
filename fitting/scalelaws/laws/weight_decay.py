"""Weight decay by the timescale of AdamW: how long an update lives, as a share of the training.

Legend: N parameters, D tokens, B batch in tokens, eta peak learning rate, lambda decoupled weight decay (applied as
eta lambda), tau timescale, TPP = D / N
    tau = B / (eta lambda D)          tau* = c TPP^m          lambda* = B / (eta tau* D) = B TPP^-m / (c eta D)
Source: Wang and Aitchison 2024, arXiv 2405.13698; Bergsma et al. 2025, Power Lines, arXiv 2505.13738.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scalelaws.laws.base import FitOptions, SettingsDraws
from scalelaws.laws.two_stages import CellOptimum, Setting, TwoStageLaw
from scalelaws.observations import FloatArray, Observations
from scalelaws.optima import Optimum, find_basin_optimum
from scalelaws.results import Fit, Target

PUBLISHED_TIMESCALE = (1.084, -0.527)
"""(c, m) of Bergsma et al. 2025 as quoted; they agree with its table: .224 at 20 tokens per parameter, .21 measured."""


def find_timescale(tokens_per_param: float, constants: tuple[float, float] = PUBLISHED_TIMESCALE) -> float:
    """tau*, the best timescale as a share of the training."""
    return float(constants[0] * tokens_per_param ** constants[1])


@dataclass(frozen=True, kw_only=True)
class TimescaleLaw(TwoStageLaw):
    """The best weight decay of every sweep, turned into a timescale and fitted against tokens per parameter."""

    name: str = "weight_decay"
    formula: str = (
        "weight_decay = batch_tokens / (peak_lr * timescale * D); "
        "timescale = timescale_coefficient * (D / N)^timescale_exponent_tokens_per_param"
    )
    scope: str = "AdamW; sweeps of the weight decay at fixed learning rate and batch, three values of D / N or more"
    source: str = "Bergsma et al. 2025, arXiv 2505.13738, section 3; estimator: random-effects regression"
    settings: tuple[Setting, ...] = (Setting("timescale", "the timescale", ("tokens_per_param",)),)
    shape: tuple[str, ...] = ("weight_decay_curvature", "weight_decay_skew")

    def prepare(self, observations: Observations) -> Observations:
        """Leaves out runs without weight decay: they have no place on a logarithmic axis."""
        decay = observations.column("weight_decay")
        return observations.select(decay > 0, "no weight decay: its logarithm has no place in a basin")

    def find_cells(self, observations: Observations, options: FitOptions) -> tuple[CellOptimum, ...]:
        """One cell for each size, horizon, learning rate and batch."""
        if observations.peak_lr is None or observations.batch_tokens is None:
            raise ValueError(f"{self.name} needs peak_lr and batch_tokens in the observations")
        decay = observations.column("weight_decay")
        return tuple(
            _find_sweep(observations, decay, rows, options)
            for cell in observations.cells()
            for rows in _split(cell, observations.peak_lr[cell], observations.batch_tokens[cell])
        )

    def respond(self, setting: Setting, observations: Observations, cell: CellOptimum) -> FloatArray | None:
        """ln timescale at the best weight decay."""
        assert observations.peak_lr is not None
        assert observations.batch_tokens is not None
        row = cell.rows[0]
        steps = observations.tokens[row] / observations.batch_tokens[row]
        return np.asarray(-np.log(observations.peak_lr[row] * steps) - cell.optimum.draws[:, 0])

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """Up to which batch the law holds."""
        assert observations.batch_tokens is not None
        largest = observations.batch_tokens[np.concatenate([cell.rows for cell in cells])].max()
        return [
            f"weight decay in proportion to the batch was seen up to {largest:.4g} tokens per step; beyond the "
            "critical batch it grows less"
        ]

    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the best weight decay for the learning rate and the batch that the target gives."""
        lacking = [name for name in ("peak_lr", "batch_tokens") if name not in target.covariates]
        if lacking:
            told = " and ".join(lacking)
            raise ValueError(f"{self.name} needs {told} of the target; give it in Target(covariates={{...}})")
        (ln_timescale,), value = self.draw_optima(fit, target, rng), self.read_draws(fit)
        rate, batch = target.covariates["peak_lr"], target.covariates["batch_tokens"]
        flat = np.zeros_like(ln_timescale)
        return SettingsDraws(
            ln_peak_lr=flat + np.log(rate),
            ln_batch_tokens=flat + np.log(batch),
            lr_curvature=flat,
            lr_skew=flat,
            batch_curvature=flat,
            ln_weight_decay=np.log(batch / (rate * target.tokens)) - ln_timescale,
            weight_decay_curvature=value["weight_decay_curvature"],
            weight_decay_skew=value["weight_decay_skew"],
        )


def _split(cell: np.ndarray, rates: FloatArray, batches: FloatArray) -> list[np.ndarray]:
    """The rows of a cell by learning rate and batch."""
    pairs = np.round(np.log(np.stack([rates, batches])), 9)
    index = np.unique(pairs, axis=1, return_inverse=True)[1].reshape(-1)
    return [cell[index == number] for number in range(int(index.max()) + 1)]


def _find_sweep(observations: Observations, decay: FloatArray, rows: np.ndarray, options: FitOptions) -> CellOptimum:
    found = find_basin_optimum(decay[rows], observations.loss[rows], level=options.level, seed=options.seed)
    first = rows[0]
    return CellOptimum(
        float(observations.params_non_embedding[first]), float(observations.tokens[first]), rows, _rename(found), 1
    )


def _rename(optimum: Optimum) -> Optimum:
    """The same optimum, whose sentences speak of weight decays: the sweep was one of them."""
    return replace(optimum, message=optimum.message.replace("learning rates", "weight decays"))
