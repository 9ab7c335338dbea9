"""A fitted law of a score and a target -> the score to expect, with its interval; in two steps where a loss law leads.

Uncertainty that is carried: the parameters of both laws, the scatter of a new run's loss and its drift beyond the
largest run (both pass through the sigmoid), and the scatter and drift of the score around the sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelaws.forecasting import measure_extrapolation
from scalelaws.laws import LossLaw, get_law
from scalelaws.laws.downstream import ScoreFit, ScoreLaw
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Fit, FitError, Target

SAME_SCOPE = ("loss_kind", "loss_unit")
"""What the loss law and the sigmoid must agree in, where both say it."""
FAR = 10.0
"""Beyond ten times the largest run a forecast carries a warning."""


@dataclass(frozen=True)
class ScoreForecast:
    """The score that one new run at the target should reach."""

    target: Target
    score: Estimate
    """A share, 0 to 1; the interval is for one new run."""
    loss: Estimate | None
    """The task loss on the way, where there are two steps."""
    level: float
    extrapolation: dict[str, float | None]
    """Target over the largest observed, in params, tokens and compute."""
    law: str
    loss_law: str | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The forecast as plain data."""
        return {
            "target": self.target.to_dict(), "score": self.score.to_dict(),
            "loss": None if self.loss is None else self.loss.to_dict(), "level": self.level,
            "extrapolation": dict(self.extrapolation), "law": self.law, "loss_law": self.loss_law,
            "warnings": list(self.warnings),
        }  # fmt: skip


def predict_score(
    fit: Fit, target: Target, *, loss_fit: Fit | None = None, level: float | None = None, seed: int = 0
) -> ScoreForecast:
    """The score at the target, clipped to 0 and 1.

    A law of the loss (`score_sigmoid`) needs `loss_fit`: a law of the same task's loss.
    Raises FitError for a fit whose status is not ok, ValueError where the two steps do not belong together.
    """
    family = get_law(fit.law)
    if not isinstance(family, ScoreLaw) or not isinstance(fit, ScoreFit):
        raise ValueError(f"predict_score needs a fit of a law of a score, for example score_sigmoid; got {fit.law}")
    _require_ok(fit)
    level, rng = fit.level if level is None else level, np.random.default_rng(seed)
    loss, losses = _forecast_loss(family, fit, loss_fit, target, level, rng)
    values = fit.draws[rng.permutation(len(fit.draws))]  # equal seeds must not tie the noise of the two steps together
    values = values[np.arange(len(values) if losses is None else len(losses)) % len(values)]
    draws = family.predict_score(values, target, losses)
    draws = np.clip(draws + _spread(fit, target) * rng.standard_normal(len(draws)), 0.0, 1.0)
    point = family.predict_score(fit.values[None], target, None if loss is None else np.array([loss.value]))
    leading = None if loss is None else loss_fit
    return ScoreForecast(
        target, Estimate.from_draws(draws, level, value=float(point[0]), unit="share"), loss, level,
        measure_extrapolation(fit.evidence, target), fit.law, None if leading is None else leading.law,
        (*fit.warnings, *(() if leading is None else leading.warnings), *_warn(fit, target, loss)),
    )  # fmt: skip


def _forecast_loss(
    family: ScoreLaw, fit: Fit, loss_fit: Fit | None, target: Target, level: float, rng: np.random.Generator
) -> tuple[Estimate | None, FloatArray | None]:
    """The loss of one new run at the target, and its draws; nothing for a law that reads no loss."""
    if "loss" not in family.needs:
        return None, None
    if loss_fit is None:
        raise ValueError(f"{fit.law} reads the task loss: give loss_fit=, a law of this task's loss fitted to the runs")
    law = get_law(loss_fit.law)
    if not isinstance(law, LossLaw):
        raise ValueError(f"loss_fit must be a fit of a law of the loss; got {loss_fit.law}")
    _require_ok(loss_fit)
    _require_same_loss(fit, loss_fit)
    draws = law.predict_loss(loss_fit.draws, target)
    draws = draws * np.exp(_spread(loss_fit, target) * rng.standard_normal(len(draws)))
    value = float(law.predict_loss(loss_fit.values[None], target)[0])
    return Estimate.from_draws(draws, level, value=value), draws


def _spread(fit: Fit, target: Target) -> float:
    """Standard deviation of one new run around the law: scatter of runs, and drift beyond the largest."""
    reach = max(float(np.log(fit.evidence.compare_compute(target))), 0.0)
    return float(np.hypot(fit.scatter_log, fit.drift_log_per_efold * reach))


def _require_ok(fit: Fit) -> None:
    if not fit.status.ok:
        raise FitError(fit.status, f"this fit of {fit.law} must not be used to forecast: {fit.message}", fit)


def _require_same_loss(fit: Fit, loss_fit: Fit) -> None:
    for name in SAME_SCOPE:
        pair = fit.scope.get(name), loss_fit.scope.get(name)
        if None not in pair and pair[0] != pair[1]:
            raise ValueError(
                f"the two steps must speak of one loss: {name} is {pair[0]} in {fit.law} and {pair[1]} in "
                f"{loss_fit.law}. Fit both to the same column"
            )


def _warn(fit: ScoreFit, target: Target, loss: Estimate | None) -> list[str]:
    found = []
    reach = fit.evidence.compare_compute(target)
    if reach > FAR:
        found.append(f"the target has {reach:.3g} times the compute of the largest run")
    if loss is not None and fit.loss_seen is not None:
        low, high = fit.loss_seen
        distance = max(low - loss.value, loss.value - high)
        if distance > 0:
            found.append(
                f"the predicted loss {loss.value:.4g} lies {distance:.3g} outside of what {fit.law} has seen, "
                f"{low:.4g} to {high:.4g} ({distance / (high - low):.2f} of that range): the sigmoid is extrapolated"
            )
    return found
