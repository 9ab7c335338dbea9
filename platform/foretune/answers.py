"""The answer of a study: frozen records of what was fitted, forecast and checked. Nothing is drawn here."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from foretune.search.interface import Findings
from scalelaws import CellOptimum, Drift, Fit, Forecast, Observations, Target

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Branch:
    """What the runs of one parametrization say."""

    parametrization: str
    observations: Observations | None = None
    cells: tuple[CellOptimum, ...] = ()
    """The optimum of every cell of (N, D), or why there is none."""
    fit: Fit | None = None
    forecast: Forecast | None = None
    drift: Drift | None = None
    """How the optimum moves with width; None where only one width was searched."""
    problem: str = ""
    """Why there is no forecast; empty when there is one."""


@dataclass(frozen=True)
class VerificationRun:
    """One of the larger runs that the fit had not seen."""

    peak_lr: float
    loss: float | None
    width: int
    seed: int
    status: str
    parametrization: str

    def to_dict(self) -> dict[str, Any]:
        """The run, as plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Verification:
    """A frozen forecast beside the larger runs that were trained after it had been written down."""

    parametrization: str
    predicted_lr: float
    """Peak learning rate at which the middle run trained."""
    forecast: dict[str, Any]
    """The forecast as it was registered."""
    runs: tuple[VerificationRun, ...]

    @cached_property
    def loss_by_lr(self) -> dict[float, float]:
        """Mean loss over seeds per learning rate; infinite where a run diverged."""
        losses: dict[float, list[float]] = defaultdict(list)
        for run in self.runs:
            if run.status != "failed":
                losses[run.peak_lr].append(math.inf if run.loss is None else run.loss)
        return {rate: math.fsum(values) / len(values) for rate, values in sorted(losses.items())}

    @property
    def measured_loss(self) -> float | None:
        """Loss at the predicted learning rate; None until it is trained."""
        return next((loss for rate, loss in self.loss_by_lr.items() if _same(rate, self.predicted_lr)), None)

    @property
    def best_lr(self) -> float | None:
        """The best learning rate that was tried."""
        losses = self.loss_by_lr
        return min(losses, key=losses.__getitem__) if losses and math.isfinite(min(losses.values())) else None

    @property
    def regret(self) -> float | None:
        """Relative loss of the predicted learning rate above the best of the runs; infinite when it diverged."""
        if self.measured_loss is None or self.best_lr is None:
            return None
        return self.measured_loss / self.loss_by_lr[self.best_lr] - 1.0

    @property
    def loss_inside(self) -> bool | None:
        """Whether the measured loss lies in the forecast's interval."""
        interval = self.forecast.get("loss")
        if self.measured_loss is None or not interval or interval["low"] is None or interval["high"] is None:
            return None
        return bool(interval["low"] <= self.measured_loss <= interval["high"])

    def to_dict(self) -> dict[str, Any]:
        """The verification of one branch, as plain data."""
        return {
            "predicted_lr": self.predicted_lr,
            "predicted_loss": self.forecast.get("loss"),
            "measured_loss": _finite(self.measured_loss),
            "loss_inside_interval": self.loss_inside,
            "best_lr": self.best_lr,
            "regret": _finite(self.regret),
            "runs": [run.to_dict() for run in self.runs],
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """The whole answer of a study."""

    study: str
    question: str
    main: str
    """The parametrization whose forecast answers the question."""
    target: Target
    branches: tuple[Branch, ...]
    verification: tuple[Verification, ...]
    unverified: tuple[str, ...]
    """Branches whose forecast could not be checked, with the reason."""
    registered_at: str
    """When the forecast that the verification checks was written down, UTC."""
    runs: pd.DataFrame
    """The run table of the study."""
    diagnoses: pd.DataFrame
    """What was measured along its runs beside their losses: run_id, and the fields of `foretune.records.Diagnosis`."""
    findings: Findings | None = None
    """What the search itself found, beside what the laws say; None where it only gathers runs for them."""

    @property
    def registered_before_runs(self) -> bool | None:
        """Whether the forecast was written down before any run that checks it was recorded; None without such runs."""
        checked = self.runs.loc[self.runs["role"] == "verification", "created_at"]
        return bool(self.registered_at <= checked.min()) if len(checked) else None

    @property
    def branch(self) -> Branch:
        """The main branch, else the first."""
        return next((branch for branch in self.branches if branch.parametrization == self.main), self.branches[0])

    def verification_of(self, parametrization: str) -> Verification | None:
        """The check of one branch's forecast."""
        return next((check for check in self.verification if check.parametrization == parametrization), None)

    @property
    def is_answered(self) -> bool:
        """Whether there is a forecast or a finding."""
        return self.branch.forecast is not None or self.findings is not None

    def to_dict(self) -> dict[str, Any]:
        """`answer.json`: the `predict` object, `search` where the search found something, and the verification."""
        branch = self.branch
        record: dict[str, Any] = branch.forecast.to_dict() if branch.forecast else {"status": branch.problem}
        record |= {"study": self.study, "question": self.question, "parametrization": branch.parametrization}
        if self.findings:
            record["search"] = self.findings.to_dict()
        if self.verification:
            record["verification"] = self._verification_to_dict()
        return record

    def _verification_to_dict(self) -> dict[str, Any]:
        main = self.verification_of(self.branch.parametrization)
        return {
            "registered_at": self.registered_at,
            "registered_before_runs": self.registered_before_runs,
            "unverified": list(self.unverified),
            "predicted_lr": main.predicted_lr if main else None,
            "regret": _finite(main.regret) if main else None,
            "runs": [run.to_dict() for check in self.verification for run in check.runs],
            "per_parametrization": {check.parametrization: check.to_dict() for check in self.verification},
        }


def title_parametrization(name: str) -> str:
    """A parametrization as people write it.

    >>> title_parametrization("mup")
    'muP'
    """
    return {"mup": "muP"}.get(name, name)


def _same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
