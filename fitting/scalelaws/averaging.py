"""One forecast from several laws, weighted by how they did in a backtest: the interval holds the choice of the law.

Legend: K laws, O origins, w weights (K,), p_ik predictive density of law k for held-out cell i.

Weights are those of stacked predictive distributions (Yao et al. 2018, Bayesian Analysis 13, equation 4): they maximise
sum_i ln sum_k w_k p_ik. Cells of one origin err together, so each origin counts as one witness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelaws.backtesting import Backtest
from scalelaws.forecasting import draw_loss, forecast
from scalelaws.laws import LossLaw, get_law
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Fit, Target

DRAWS = 4000
"""Draws of the mixture: the quantiles of a 90 % interval are then good to 1 % of its width."""
EQUAL_WITNESS = 0.25
"""Assumption: equal weights count as a quarter of an origin, so no law falls to nothing on a few origins."""
ROUNDS = 500
"""Steps of expectation and maximisation; the likelihood is concave in the weights."""


@dataclass(frozen=True)
class Average:
    """The loss at a target under several laws."""

    target: Target
    loss: Estimate
    """Of one new run; the value is the median of the mixture."""
    weights: Mapping[str, float]
    members: Mapping[str, Estimate]
    """Each law's own forecast."""
    level: float
    left_out: Mapping[str, str]
    """Laws without a weight, and why."""

    @property
    def law(self) -> str:
        """The laws with their weights."""
        return " + ".join(f"{weight:.2f} {name}" for name, weight in self.weights.items())

    def to_dict(self) -> dict[str, Any]:
        """The average as plain data."""
        return {
            "target": self.target.to_dict(),
            "loss": self.loss.to_dict(),
            "weights": dict(self.weights),
            "members": {name: item.to_dict() for name, item in self.members.items()},
            "level": self.level,
            "left_out": dict(self.left_out),
        }


def average_laws(fits: Sequence[Fit], evidence: Backtest, target: Target, *, seed: int = 0) -> Average:
    """The mixture of the laws' forecasts of the loss at a target, with weights from a backtest of losses.

    A law that the backtest could not score on the cells that the others forecast, or that does not hold at the target,
    is left out with the reason. Raises ValueError where none remains, and FitError for a fit whose status is not ok.
    """
    if evidence.held_out != "loss":
        raise ValueError("average_laws needs a backtest of losses: backtest(..., held_out='loss')")
    scored = {item.law for item in evidence.ranking}
    usable: dict[str, Fit] = {}
    members: dict[str, Estimate] = {}
    left_out: dict[str, str] = {}
    for fit in fits:
        said = forecast(fit, target, seed=seed)
        if fit.law not in scored:
            left_out[fit.law] = "not scored in the backtest"
        elif said.loss is None:
            left_out[fit.law] = "; ".join(said.warnings)
        else:
            usable[fit.law], members[fit.law] = fit, said.loss
    if not usable:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ValueError(f"average_laws: no law can be averaged ({reasons or 'no fits given'})")
    weights = stack_weights(evidence, tuple(usable))
    level = min(fit.level for fit in usable.values())
    draws = _mix(usable, weights, target, seed)
    return Average(target, Estimate.from_draws(draws, level, unit="nats"), weights, members, level, left_out)


def stack_weights(evidence: Backtest, laws: Sequence[str]) -> dict[str, float]:
    """The weights of the laws, over the cells that all of them forecast."""
    tables = [
        {(cell.fraction, cell.params, cell.tokens): cell.log_density for cell in evidence.cells if cell.law == law}
        for law in laws
    ]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    if not shared:
        return dict.fromkeys(laws, 1 / len(laws))
    density = np.array([[table[cell] for table in tables] for cell in shared])
    origins, counts = np.unique([cell[0] for cell in shared], return_counts=True)
    witness = dict(zip(origins, 1 / counts, strict=True))
    weights = _stack(density, np.array([witness[cell[0]] for cell in shared]))
    return {law: float(weight) for law, weight in zip(laws, weights, strict=True)}


def _stack(log_density: FloatArray, witness: FloatArray) -> FloatArray:
    """Expectation and maximisation for log densities (cells, K) of cells that weigh `witness`."""
    laws = log_density.shape[1]
    density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    weights = np.full(laws, 1 / laws)
    for _ in range(ROUNDS):
        share = weights * density
        share /= share.sum(axis=1, keepdims=True)
        weights = (witness @ share + EQUAL_WITNESS / laws) / (witness.sum() + EQUAL_WITNESS)
    return np.asarray(weights)


def _mix(fits: Mapping[str, Fit], weights: Mapping[str, float], target: Target, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(fits), size=DRAWS, p=np.array([weights[name] for name in fits]))
    parts = []
    for place, fit in enumerate(fits.values()):
        law = get_law(fit.law)
        assert isinstance(law, LossLaw)
        parts.append(draw_loss(law, fit, target, rng, int((chosen == place).sum())))
    return np.concatenate(parts)
