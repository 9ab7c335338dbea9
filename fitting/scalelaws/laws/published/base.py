"""What every published law says about itself: constants, source, conventions, and the range it was fitted on.

Legend: N parameters, D tokens, C training FLOPs, in the law's own counting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scalelaws.laws.base import LossLaw
from scalelaws.laws.loss import Chinchilla
from scalelaws.observations import FloatArray
from scalelaws.results import TARGET_COVARIATES, Target

Rule = Callable[[Target], float]
"""A setting of a target whose `compute` already counts as the law counts."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What every published law says about itself."""

    name: str
    formula: str
    source: str
    schedule: str
    """Learning-rate schedule of the runs behind it."""
    params_convention: str
    compute_convention: str
    batch_unit: str
    parametrization: str = "standard"
    params_range: tuple[float, float] | None = None
    """Smallest and largest N of the runs behind it; None where this is not recorded here."""
    tokens_range: tuple[float, float] | None = None
    compute_range: tuple[float, float] | None = None
    verified: bool = True
    """Whether the constants were read in the source or in its data; else every forecast says that they were not."""
    caveat: str = ""
    """What a reader must know before using it, as a sentence; every forecast repeats it."""
    needs: tuple[str, ...] = ()
    """What the target must tell beside N and D: names in `TARGET_COVARIATES`, or seq_len."""

    @property
    def scope(self) -> dict[str, str]:
        """The conventions, as the scope of a forecast."""
        return {
            "schedule": self.schedule,
            "parametrization": self.parametrization,
            "params_convention": self.params_convention,
            "compute_convention": self.compute_convention,
            "batch_unit": self.batch_unit,
            "constants": "read in the source or its data" if self.verified else "quoted, not read in the source",
            "source": self.source,
        }

    def lacks(self, target: Target) -> tuple[str, ...]:
        """What the law needs to know of the target and is not told."""
        told = {*target.covariates, *(["seq_len"] if target.seq_len is not None else [])}
        return tuple(name for name in self.needs if name not in told)

    def require(self, target: Target) -> None:
        """Raises ValueError, with what to give, where the target lacks something."""
        lacking = self.lacks(target)
        if lacking:
            told = "; ".join(f"{name} ({_MEANINGS[name]})" for name in lacking)
            raise ValueError(f"{self.name} needs {told} of the target; give it in Target(covariates={{...}})")


_MEANINGS = {**TARGET_COVARIATES, "seq_len": "tokens per sequence, a field of its own"}


@dataclass(frozen=True, kw_only=True)
class PublishedSettings(Published):
    """A published law of settings; a rule that it does not give is None."""

    peak_lr: Rule | None = None
    batch_tokens: Rule | None = None
    weight_decay: Rule | None = None
    critical_batch_tokens: Rule | None = None
    """Batch beyond which more tokens per step save few steps; an upper bound, not an optimum."""
    optional: tuple[str, ...] = ()
    """Covariates without which some of the rules stay silent."""


@dataclass(frozen=True, kw_only=True)
class PublishedLoss(Published):
    """Published constants of a law of the loss."""

    constants: tuple[float, ...] = ()
    law: LossLaw = field(default_factory=Chinchilla)
    """The law that the constants belong to; by default Hoffmann et al. 2022 with (E, A, B, alpha, beta)."""

    @property
    def values(self) -> FloatArray:
        """One row of parameter values, (1, parameters)."""
        return np.array([self.constants])

    def predict_loss(self, target: Target) -> float:
        """Loss at the target."""
        return float(self.law.predict_loss(self.values, target)[0])


@dataclass(frozen=True, kw_only=True)
class PublishedAllocation(Published):
    """A published split of a budget: training FLOPs per token and tokens as powers of the compute."""

    flops_per_token: tuple[float, float] = (np.nan, np.nan)
    """(coefficient, exponent) of C."""
    tokens: tuple[float, float] = (np.nan, np.nan)
    """(coefficient, exponent) of C."""

    def split(self, compute_flops: float) -> tuple[float, float]:
        """Training FLOPs per token and tokens at a budget that counts as the law counts."""
        if not (np.isfinite(compute_flops) and compute_flops > 0):
            raise ValueError(f"{self.name}: compute_flops must be positive and finite; got {compute_flops}")
        model, tokens = self.flops_per_token, self.tokens
        return model[0] * compute_flops ** model[1], tokens[0] * compute_flops ** tokens[1]
