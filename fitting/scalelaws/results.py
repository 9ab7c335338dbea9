"""Results: frozen records with what was used, what was left out and why. A status is a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from scalelaws.observations import COVARIATES, FLOPS_PER_PARAM_TOKEN, Exclusion, FloatArray, Observations


class Status(Enum):
    """How a fit or a search for an optimum ended."""

    CONVERGED = "the optimiser converged"
    PUBLISHED = "constants as published; nothing was fitted here"
    NOT_CONVERGED = "the optimiser did not converge"
    TOO_FEW_SCALES = "too few scales for this law"
    TOO_FEW_POINTS = "too few points for a basin"
    NOT_IDENTIFIED = "not identified: the runs cannot tell the parameters apart"
    BOUND_HIT = "a parameter ended on its bound"
    IMPLAUSIBLE = "the fitted law is implausible: a loss that does not fall with scale"
    EDGE_LOW = "the optimum lies at the low edge of the grid: this is only an upper bound"
    EDGE_HIGH = "the optimum lies at the high edge of the grid: this is only a lower bound"
    FLAT = "flat: the basin cannot be told from noise"
    UPSIDE_DOWN = "upside down: the losses have no minimum inside the grid"

    @property
    def ok(self) -> bool:
        """Whether the numbers may be used."""
        return self in (Status.CONVERGED, Status.PUBLISHED)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; a missing bound is None, never a made-up number."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @classmethod
    def from_draws(cls, draws: FloatArray, level: float, *, value: float | None = None, unit: str = "") -> Estimate:
        """The central interval of the draws at `level`; the value is the median unless given."""
        low, middle, high = np.quantile(draws, [(1 - level) / 2, 0.5, (1 + level) / 2])
        return cls(float(middle if value is None else value), float(low), float(high), unit)

    def scaled(self, factor: float, unit: str = "") -> Estimate:
        """The same quantity in another unit: value and bounds times `factor`; a missing bound stays missing."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Estimate(self.value * factor, low, high, unit)

    def to_dict(self, *, unit: bool = False) -> dict[str, Any]:
        """Value, low, high (and unit) as plain data; what is not finite becomes null."""
        record: dict[str, Any] = {"value": _finite(self.value), "low": _finite(self.low), "high": _finite(self.high)}
        return {**record, "unit": self.unit} if unit else record


@dataclass(frozen=True)
class Evidence:
    """What a fit stands on: counts, exclusions, and the range that it has seen."""

    runs: int
    cells: int
    excluded: tuple[Exclusion, ...]
    params: tuple[float, float]
    """Smallest and largest number of parameters."""
    tokens: tuple[float, float]
    """Shortest and longest horizon, tokens."""
    compute_flops: tuple[float, float]
    """Smallest and largest training compute, FLOPs."""
    largest_6nd: float
    """Largest 6 x parameters x tokens of a run: what a target without FLOPs of its own is compared with."""
    params_convention: str
    compute_convention: str
    horizon_path: tuple[float, float] | None = None
    """(p, q) of ln tokens = p + q ln params where every cell lies on one such line, else None."""
    batch_tokens: tuple[float, float] | None = None
    """Smallest and largest batch, tokens per step."""

    @classmethod
    def of(cls, used: Observations, excluded: tuple[Exclusion, ...], runs: int | None = None) -> Evidence:
        """The evidence of the rows that were used."""
        return cls(
            runs=len(used) if runs is None else runs,
            cells=len(used.cells()),
            excluded=excluded,
            params=_span(used.params_non_embedding),
            tokens=_span(used.tokens),
            compute_flops=_span(used.compute),
            largest_6nd=float((FLOPS_PER_PARAM_TOKEN * used.params_non_embedding * used.tokens).max()),
            params_convention=used.params_convention,
            compute_convention=used.compute_convention,
            horizon_path=find_horizon_path(used.params_non_embedding, used.tokens),
            batch_tokens=None if used.batch_tokens is None else _span(used.batch_tokens),
        )

    def compare_compute(self, target: Target) -> float:
        """Compute of the target over that of the largest run, both counted in the same way."""
        largest = self.largest_6nd if target.compute_flops is None else self.compute_flops[1]
        return target.compute / largest

    def to_dict(self) -> dict[str, Any]:
        """Runs, cells and exclusions, as plain data."""
        return {"runs": self.runs, "cells": self.cells, "excluded": [item.to_dict() for item in self.excluded]}


ON_PATH_TOLERANCE = 0.02
"""Assumption: cells within 2 % of one line ln D = p + q ln N lie on it (rounding of steps moves D by less)."""


def find_horizon_path(params: FloatArray, tokens: FloatArray) -> tuple[float, float] | None:
    """The line ln tokens = p + q ln params on which all cells lie, or None: then N and D vary independently."""
    x, y = np.log(params), np.log(tokens)
    if np.ptp(x) == 0:
        return (float(y[0]), 0.0) if np.ptp(y) <= ON_PATH_TOLERANCE else None
    slope, intercept = np.polyfit(x, y, 1)
    off = np.abs(y - intercept - slope * x).max()
    return (float(intercept), float(slope)) if off <= ON_PATH_TOLERANCE else None


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law with everything that a forecast needs."""

    law: str
    formula: str
    parameters: Mapping[str, Estimate]
    draws: FloatArray
    """(draws, parameters), seeded; whatever is derived takes its quantiles from these."""
    objective: str
    """What was minimised, in words, with its priors where it had any."""
    objective_value: float
    status: Status
    message: str
    """The status with the numbers of this fit."""
    rmse_log: float
    """Root mean square of the residuals of ln loss (or of ln optimum, for a law of settings)."""
    scatter_log: float
    """Standard deviation of a new run around the law, in ln (for a law of settings: of a new cell's learning rate)."""
    evidence: Evidence
    seconds: float
    level: float = 0.9
    scope: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    drift_log_per_efold: float = 0.0
    """Laws of the loss: standard deviation by which ln loss leaves the law per e-fold of compute beyond the runs."""
    loss_fit: Fit | None = None
    """The loss law that was fitted to the same cells' tuned runs, where one could be."""

    @property
    def values(self) -> FloatArray:
        """Point values of the parameters, in the order of the columns of `draws`."""
        return np.array([estimate.value for estimate in self.parameters.values()])

    def to_dict(self) -> dict[str, Any]:
        """The `fit` object that the command line prints."""
        return {
            "law": self.law,
            "formula": self.formula,
            "parameters": {name: item.to_dict(unit=True) for name, item in self.parameters.items()},
            "objective": {"name": self.objective, "value": _finite(self.objective_value)},
            "status": self.message,
            "residuals": {"rmse_log": _finite(self.rmse_log)},
            "scatter_log": _finite(self.scatter_log),
            "drift_log_per_efold": _finite(self.drift_log_per_efold),
            "evidence": self.evidence.to_dict(),
            "seconds": self.seconds,
            "level": self.level,
            "scope": dict(self.scope),
            "warnings": list(self.warnings),
        }

    def summary(self) -> str:
        """A text table of the parameters with their intervals."""
        width = max(len(name) for name in (*self.parameters, "parameter"))
        head = f"{self.law}: {self.formula}\n{self.message}\n"
        bounds = f"{100 * (1 - self.level) / 2:.4g} %", f"{100 * (1 + self.level) / 2:.4g} %"
        lines = [f"{'parameter':<{width}}  {'value':>12}  {bounds[0]:>12}  {bounds[1]:>12}  unit"]
        for name, item in self.parameters.items():
            lines.append(f"{name:<{width}}  {_show(item.value)}  {_show(item.low)}  {_show(item.high)}  {item.unit}")
        tail = [f"{self.evidence.runs} runs in {self.evidence.cells} cells, rmse of ln {self.rmse_log:.2g}"]
        tail += [f"left out: {item.runs} runs, {item.reason}" for item in self.evidence.excluded]
        tail += [f"warning: {text}" for text in self.warnings]
        return head + "\n".join([*lines, *tail])


class FitError(RuntimeError):
    """A fit whose numbers must not be used; `partial` carries what there is."""

    def __init__(self, status: Status, message: str, partial: Fit | None = None) -> None:
        """Keeps the status and the partial fit beside the message."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.partial = partial


COMPUTE_CONVENTIONS = ("6ND", "M D")
"""`M D`: M training FLOPs per token with attention and without embeddings (see `conventions`)."""
TARGET_COVARIATES: Mapping[str, str] = {
    **COVARIATES,
    "width": "model width (d_model)",
    "batch_tokens": "tokens per optimizer step, where the batch is given",
    "peak_lr": "peak learning rate, where it is given",
    "loss": "loss that the run shall reach, nats per token",
    "anchor_tokens": "horizon of a tuned run of the same model and batch",
    "anchor_peak_lr": "best peak learning rate of that run",
    "anchor_critical_batch_tokens": "critical batch of that run, tokens per step",
}


@dataclass(frozen=True)
class Target:
    """The large run that the small ones are for."""

    params_non_embedding: float
    tokens: float
    seq_len: int | None = None
    """Tokens per sequence; needed only to give the batch in sequences."""
    compute_flops: float | None = None
    """Training FLOPs; 6ND when not given."""
    covariates: Mapping[str, float] = field(default_factory=dict)
    """What else the law needs to know of the run, by the names in `TARGET_COVARIATES`."""
    mixture: Mapping[str, float] = field(default_factory=dict)
    """Share of the training tokens by domain."""
    compute_convention: str = "6ND"
    """How `compute_flops` was counted; one of `COMPUTE_CONVENTIONS`."""

    def __post_init__(self) -> None:
        """Refuses what is not positive."""
        unknown = sorted(set(self.covariates) - set(TARGET_COVARIATES))
        if unknown:
            raise ValueError(f"target has no covariate {unknown[0]!r}; known are {', '.join(TARGET_COVARIATES)}")
        if self.compute_convention not in COMPUTE_CONVENTIONS:
            known = " or ".join(COMPUTE_CONVENTIONS)
            raise ValueError(f"target compute_convention must be {known}; got {self.compute_convention!r}")
        if self.compute_convention != "6ND" and self.compute_flops is None:
            raise ValueError(f"a target whose compute counts {self.compute_convention} needs compute_flops")
        for name in ("params_non_embedding", "tokens", "seq_len", "compute_flops"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"target {name} must be positive and finite; got {value}")

    @property
    def compute(self) -> float:
        """Training FLOPs as given, else 6ND."""
        return self.compute_flops if self.compute_flops is not None else 6.0 * self.params_non_embedding * self.tokens

    def to_dict(self) -> dict[str, Any]:
        """The target as plain data, with its compute resolved."""
        record: dict[str, Any] = {
            "params_non_embedding": self.params_non_embedding,
            "tokens": self.tokens,
            "seq_len": self.seq_len,
            "compute_flops": self.compute,
        }
        if self.compute_convention != "6ND":
            record["compute_convention"] = self.compute_convention
        mixture = {f"mix/{name}": share for name, share in self.mixture.items()}
        return {**record, **self.covariates, **mixture}


@dataclass(frozen=True)
class Forecast:
    """What to train the target with, and what to expect of it."""

    target: Target
    peak_lr: Estimate | None
    batch_tokens: Estimate | None
    batch_sequences: Estimate | None
    loss: Estimate | None
    regret: Estimate | None
    """Relative loss above the best reachable, if one trains at the recommendation."""
    level: float
    extrapolation: Mapping[str, float | None]
    """Target over the largest observed, in params, tokens and compute."""
    law: str
    status: Status
    message: str
    evidence: Evidence | None
    scope: Mapping[str, str]
    warnings: tuple[str, ...]
    weight_decay: Estimate | None = None
    """Decoupled weight decay, where the law gives one."""
    critical_batch_tokens: Estimate | None = None
    """Batch beyond which more tokens per step save few steps, where the law gives one."""

    def to_dict(self) -> dict[str, Any]:
        """The `predict` object that the command line prints; what only some laws give is there when they do."""
        empty = {"runs": 0, "cells": 0, "excluded": []}
        further = {"weight_decay": self.weight_decay, "critical_batch_tokens": self.critical_batch_tokens}
        return {
            **{name: item.to_dict() for name, item in further.items() if item is not None},
            "target": self.target.to_dict(),
            "peak_lr": _optional(self.peak_lr),
            "batch_tokens": _optional(self.batch_tokens),
            "batch_sequences": _optional(self.batch_sequences),
            "loss": _optional(self.loss),
            "regret": _optional(self.regret),
            "level": self.level,
            "extrapolation": dict(self.extrapolation),
            "law": self.law,
            "status": self.message,
            "evidence": empty if self.evidence is None else self.evidence.to_dict(),
            "scope": dict(self.scope),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Allocation:
    """How a compute budget is best split between parameters and tokens."""

    compute_flops: float
    params_non_embedding: Estimate
    tokens: Estimate
    tokens_per_param: Estimate
    loss: Estimate
    level: float
    extrapolation: Mapping[str, float | None]
    law: str
    status: Status
    message: str
    scope: Mapping[str, str]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The `allocate` object that the command line prints."""
        return {
            "compute_flops": self.compute_flops,
            "params_non_embedding": self.params_non_embedding.to_dict(),
            "tokens": self.tokens.to_dict(),
            "tokens_per_param": self.tokens_per_param.to_dict(),
            "loss": self.loss.to_dict(),
            "level": self.level,
            "extrapolation": dict(self.extrapolation),
            "law": self.law,
            "status": self.message,
            "scope": dict(self.scope),
            "warnings": list(self.warnings),
        }


def _optional(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _show(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.6g'):>12}"


def _span(values: FloatArray) -> tuple[float, float]:
    return float(values.min()), float(values.max())
