"""What every law offers; a new law is one class and one line in the list of `laws`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np

from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Fit, Target

OBJECTIVES = ("auto", "huber", "lad", "least_squares", "map")


@dataclass(frozen=True)
class FitOptions:
    """How to fit; every field is recorded in the Fit in words or shows in its numbers."""

    objective: str = "auto"
    """`huber`, `lad`, `least_squares`: the plain penalty of ln loss, no priors, resampled cells. `map`: robust, weak
    and stated priors. `auto`: `map` with less weight for runs of which a misfit is expected (see `weighting`)."""
    huber_delta: float = 1e-3
    """Residual of ln loss at which `huber` turns linear (Hoffmann et al. 2022, section 3.3)."""
    bootstrap: int = 400
    """Number of draws; at least 50."""
    level: float = 0.9
    """Probability content of the intervals, between 0 and 1."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same numbers."""
    prior_slope_sd: float = 0.5
    """Laws of settings: exponents are pulled towards 0 with this standard deviation (an assumption)."""
    trim_excess: float = math.inf
    """Sums of powers: runs whose ln loss lies more than this above the best of their compute level are left out."""
    compute_weight: float = 0.0
    """Sums of powers: weights C^compute_weight; 0 gives all runs the same."""

    def __post_init__(self) -> None:
        """Refuses options that have no meaning."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {self.objective!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, for example 0.9; got {self.level}")
        if self.bootstrap < 50:
            raise ValueError(f"bootstrap must be at least 50 draws to give an interval; got {self.bootstrap}")
        for name in ("huber_delta", "prior_slope_sd", "trim_excess"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if not (math.isfinite(self.compute_weight) and self.compute_weight >= 0):
            raise ValueError(f"compute_weight must be finite and not negative; got {self.compute_weight}")


Data = TypeVar("Data")


class Law(ABC, Generic[Data]):
    """A formula with parameters, the runs it may be fitted to, and how it is estimated."""

    reads: ClassVar[type] = Observations
    """What the law is fitted to: a table of finished runs, unless it says otherwise."""
    asked_with: ClassVar[str] = "forecast(fit, target)"
    """The call of scalelaws that a fit of this law answers."""
    name: str
    formula: str
    scope: str
    """Which runs it is for, in words."""
    source: str

    @property
    @abstractmethod
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the columns of the draws."""

    @abstractmethod
    def estimate(self, observations: Data, options: FitOptions) -> Fit:
        """Fits the law; a failure is a status of the Fit, not an exception."""


class LossLaw(Law[Observations]):
    """A law that gives the loss of a well-tuned run."""

    @abstractmethod
    def predict_loss(self, values: FloatArray, target: Target) -> FloatArray:
        """Loss of the target for each row of parameter values (draws, parameters)."""


@dataclass(frozen=True, eq=False)
class SettingsDraws:
    """Draws of what a law of settings says about one target; a batch that was never varied is None."""

    ln_peak_lr: FloatArray
    ln_batch_tokens: FloatArray | None
    lr_curvature: FloatArray
    """Second derivative of ln loss by ln learning rate at the optimum."""
    lr_skew: FloatArray
    """Skew of the basin per unit of ln learning rate (see `optima`)."""
    batch_curvature: FloatArray | None
    """Second derivative of ln loss by ln batch at the optimum."""
    batch_skew: FloatArray | None = None
    """Skew of the basin per unit of ln batch; None is 0."""
    lr_shear: FloatArray | None = None
    """By how much of the gap in ln batch the learning rate's valley moves along (see `surfaces`); None is 0."""
    batch_shear: FloatArray | None = None
    """By how much of the gap in ln learning rate the batch's valley moves along; None is 0."""
    ln_weight_decay: FloatArray | None = None
    """None where the law says nothing of weight decay; else the learning rate and the batch are those of the target."""
    weight_decay_curvature: FloatArray | None = None
    """Second derivative of ln loss by ln weight decay at the optimum."""
    weight_decay_skew: FloatArray | None = None
    """Skew of the basin per unit of ln weight decay."""


class SettingsLaw(Law[Observations]):
    """A law that gives the best settings of a run."""

    @abstractmethod
    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the optimum at a target, with the scatter of a new cell around the law."""
