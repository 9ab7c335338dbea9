"""One law for dense models and for models whose size changes during training: N is the mean over training tokens.

Legend: M mean over training tokens of the parameters in use (a dense model: M = N), D tokens
    L = E + A / M^alpha + B / D^beta
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.smooth import SmoothLaw
from scalelaws.laws.terms import FLOOR, add_terms, coefficient, exponent, refuse_path, start_terms
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Status


@dataclass(frozen=True, kw_only=True)
class AverageParams(SmoothLaw):
    """Chinchilla's law with the parameters averaged over training tokens; dense and pruned runs are pooled."""

    name: str = "average_params"
    formula: str = "L = E + A / M^alpha + B / D^beta, M the token-weighted mean of the parameters in use"
    scope: str = "well-tuned runs, dense, grown or pruned during training; params_average of a dense run is its size"
    source: str = "Jin et al. 2025, The Journey Matters: Average Parameter Count over Pre-training, arXiv 2501.12486"
    parameters: tuple[Parameter, ...] = (
        FLOOR, coefficient("A", 500.0), coefficient("B", 1500.0), exponent("alpha"), exponent("beta"),
    )  # fmt: skip
    needs: tuple[str, ...] = ("params_average", "tokens")
    varied: tuple[str, ...] = ("params_average", "tokens")

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 5)."""
        return add_terms(values, (columns["params_average"], columns["tokens"]))[:2]

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Needs sizes and horizons that vary on their own."""
        path = refuse_path(self.name, observations.column("params_average"), observations.tokens)
        return super().refuse(observations) or path

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """Exponents on a grid."""
        return start_terms((columns["params_average"], columns["tokens"]), measured)


def average_params(stages: Iterable[tuple[float, float]]) -> float:
    """Token-weighted mean of the parameters in use, over stages of (tokens, parameters in use).

    A gradual change is given as many short stages, each with the mean of its parameters.
    """
    table = np.array([tuple(stage) for stage in stages], dtype=np.float64).reshape(-1, 2)
    usable = np.isfinite(table).all() and bool((table > 0).all())
    if len(table) == 0 or not usable:
        raise ValueError(f"average_params needs stages of positive (tokens, parameters); got {table.tolist()}")
    return float(np.average(table[:, 1], weights=table[:, 0]))
