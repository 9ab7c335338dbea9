"""The Power scheduler: a learning rate that falls as a power of the tokens seen and rises with the batch.

Legend: n tokens seen, T horizon in tokens, B batch, p exponent of the batch, a coefficient, b exponent of the tokens,
eta_max ceiling
    eta(n) = min(eta_max, B^p a n^b), after a linear warm-up and before a decay        fitted on lr* = B^p a T^b
Source: Shen et al. 2024, Power Scheduler, arXiv 2408.13359, equation 5 (there p = 1 and B in sequences).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.laws.base import FitOptions, SettingsDraws
from scalelaws.laws.settings import find_cell_optima
from scalelaws.laws.two_stages import CellOptimum, Setting, TwoStageLaw
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Fit, Target


@dataclass(frozen=True)
class PowerSchedule:
    """The learning rate at every token, as a function that a trainer can call."""

    coefficient: float
    """a, for a batch in sequences."""
    exponent: float
    """b, negative."""
    max_lr: float
    """eta_max."""
    batch_exponent: float = 1.0
    """p: 1 as published; 1/2 is Adam's square root."""

    def rate_at(self, tokens: float, batch_sequences: float) -> float:
        """Learning rate after `tokens`, without warm-up and decay."""
        if not (tokens > 0 and batch_sequences > 0):
            raise ValueError(f"tokens and batch_sequences must be positive; got {tokens} and {batch_sequences}")
        grown = batch_sequences**self.batch_exponent * self.coefficient
        return float(min(self.max_lr, grown * np.exp(self.exponent * np.log(tokens))))


PUBLISHED_SCHEDULE = PowerSchedule(4.0, -0.51, 0.02)
"""a = 4 and b = -.51 as quoted in the paper's public review; eta_max = .02 in third-party code (not read in it)."""


@dataclass(frozen=True, kw_only=True)
class PowerScheduleLaw(TwoStageLaw):
    """The best rate over a power of the batch, against the horizon: one law for proxies of any batch and size.

    Each cell (N, T) gives one pair of rate and batch: both optimal where the batch was swept, else the batch at hand.
    """

    name: str = "power_schedule"
    """Another exponent of the batch is another law: its name says so, else a forecast would read it with p = 1."""
    batch_exponent: float = 1.0
    """p: 1 as published; 1/2 is Adam's square root (Malladi et al. 2022, arXiv 2205.10287)."""
    scope: str = "sweeps of the learning rate in at least three cells, three horizons or more, under muP"
    source: str = "Shen et al. 2024, arXiv 2408.13359, equation 5; estimator: random-effects regression"
    settings: tuple[Setting, ...] = (Setting("schedule", "the rate over the batch's power", ("tokens",)),)
    shape: tuple[str, ...] = ("lr_curvature", "lr_skew")

    def __post_init__(self) -> None:
        """Writes the exponent of the batch into the formula, and into the name where it is not the published one."""
        p = self.batch_exponent
        object.__setattr__(
            self, "formula", f"peak_lr = schedule_coefficient * batch_tokens^{p:g} * D^schedule_exponent_tokens"
        )
        if self.name == "power_schedule" and p != 1:
            object.__setattr__(self, "name", "power_schedule_sqrt" if p == 0.5 else f"power_schedule_{p:g}")

    def find_cells(self, observations: Observations, options: FitOptions) -> tuple[CellOptimum, ...]:
        """As `lr_batch`; the batch must be recorded."""
        if observations.peak_lr is None or observations.batch_tokens is None:
            raise ValueError(f"{self.name} needs peak_lr and batch_tokens in the observations")
        return find_cell_optima(observations, level=options.level, seed=options.seed)

    def respond(self, setting: Setting, observations: Observations, cell: CellOptimum) -> FloatArray | None:
        """ln of the rate over the batch to the power p."""
        draws = cell.optimum.draws
        if cell.optimum.batch_tokens is not None:
            return np.asarray(draws[:, 0] - self.batch_exponent * draws[:, 2])
        assert observations.batch_tokens is not None
        return np.asarray(draws[:, 0] - self.batch_exponent * np.log(observations.batch_tokens[cell.rows[0]]))

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """The exponent of the batch is not fitted."""
        return [f"the exponent of the batch, {self.batch_exponent:g}, is assumed and not fitted"]

    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the rate at the end of the horizon, for the batch that the target gives."""
        if "batch_tokens" not in target.covariates:
            raise ValueError(
                f"{self.name} needs the batch of the target; give Target(covariates={{'batch_tokens': B}})"
            )
        (ln_ratio,), value = self.draw_optima(fit, target, rng), self.read_draws(fit)
        return SettingsDraws(
            ln_peak_lr=ln_ratio + self.batch_exponent * np.log(target.covariates["batch_tokens"]),
            ln_batch_tokens=None,
            lr_curvature=value["lr_curvature"],
            lr_skew=value["lr_skew"],
            batch_curvature=None,
        )

    def make_schedule(self, fit: Fit, *, seq_len: int, max_lr: float) -> PowerSchedule:
        """The schedule with the fitted constants; `max_lr` bounds the rate where few tokens were seen."""
        self.require_own(fit)
        value = {name: estimate.value for name, estimate in fit.parameters.items()}
        coefficient = value["schedule_coefficient"] * seq_len**self.batch_exponent
        return PowerSchedule(coefficient, value["schedule_exponent_tokens"], max_lr, self.batch_exponent)
