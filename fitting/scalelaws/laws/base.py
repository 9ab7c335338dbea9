"""What every law offers; a new law is one class and one line in the list of `laws`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np

from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Fit, Target


@dataclass(frozen=True)
class FitOptions:
    """How to fit; every field is recorded in the Fit in words or shows in its numbers."""

    objective: str = "auto"
    """`huber`: the plain robust objective, no priors, resampled runs. `map`: weak stated priors, perturbed data.
    `auto`: `laws.loss.choose_objective` decides by the number of distinct scales."""
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

    def __post_init__(self) -> None:
        """Refuses options that have no meaning."""
        if self.objective not in ("auto", "huber", "map"):
            raise ValueError(f"objective must be auto, huber or map; got {self.objective!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, for example 0.9; got {self.level}")
        if self.bootstrap < 50:
            raise ValueError(f"bootstrap must be at least 50 draws to give an interval; got {self.bootstrap}")
        for name in ("huber_delta", "prior_slope_sd"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")


Data = TypeVar("Data")


class Law(ABC, Generic[Data]):
    """A formula with parameters, the runs it may be fitted to, and how it is estimated."""

    reads: ClassVar[type] = Observations
    """What the law is fitted to: a table of finished runs, unless it says otherwise."""
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


class SettingsLaw(Law[Observations]):
    """A law that gives the best settings of a run."""

    @abstractmethod
    def predict_settings(self, fit: Fit, target: Target, rng: np.random.Generator) -> SettingsDraws:
        """Draws of the optimum at a target, with the scatter of a new cell around the law."""
