"""The law of Kaplan et al. 2020: one power of a sum, without a floor.

Legend: N non-embedding parameters, D tokens, C training FLOPs
    L = ( (N_c / N)^(alpha_N / alpha_D) + D_c / D )^alpha_D
    k = alpha_N / alpha_D,  u = k ln(N_c / N),  v = ln(D_c / D),  p = e^u / (e^u + e^v)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.smooth import SmoothLaw
from scalelaws.laws.terms import refuse_path
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, FloatArray, Observations
from scalelaws.results import Status

PUBLISHED_KAPLAN = (6.4e13, 1.8e13, 0.076, 0.103)
"""(N_c, D_c, alpha_N, alpha_D) of Kaplan et al. 2020, arXiv 2001.08361, table 2; N without embeddings."""
SCALE_SD, EXPONENT_SD = 6.0, 0.7
"""Of ln N_c and ln D_c, and of ln exponent: 90 % of an exponent's prior lies within a factor of three (assumptions)."""
START_EXPONENTS = (0.05, 0.1, 0.2)


@dataclass(frozen=True, kw_only=True)
class Kaplan(SmoothLaw):
    """L(N, D) of Kaplan et al.; it has no floor, so it falls without end."""

    name: str = "kaplan"
    formula: str = "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D"
    scope: str = "loss of well-tuned runs over sizes and horizons, far above the floor of the data (the law has none)"
    source: str = "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5"
    parameters: tuple[Parameter, ...] = (
        Parameter("N_c", PUBLISHED_KAPLAN[0], SCALE_SD, "parameters"),
        Parameter("D_c", PUBLISHED_KAPLAN[1], SCALE_SD, "tokens"),
        Parameter("alpha_N", PUBLISHED_KAPLAN[2], EXPONENT_SD),
        Parameter("alpha_D", PUBLISHED_KAPLAN[3], EXPONENT_SD),
    )
    needs: tuple[str, ...] = ("params_non_embedding", "tokens")
    varied: tuple[str, ...] = ("params_non_embedding", "tokens")

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 4)."""
        n_c, d_c, alpha_n, alpha_d = (values[:, j : j + 1] for j in range(4))
        x = np.log(n_c) - np.log(columns["params_non_embedding"])
        u, v = alpha_n / alpha_d * x, np.log(d_c) - np.log(columns["tokens"])
        total = np.logaddexp(u, v)
        p = np.exp(u - total)
        slopes = [p * alpha_n / n_c, (1 - p) * alpha_d / d_c, p * x, total - p * u]
        return alpha_d * total, np.stack(slopes, axis=-1)

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Needs sizes and horizons that vary on their own."""
        path = refuse_path(self.name, observations.column("params_non_embedding"), observations.tokens)
        return super().refuse(observations) or path

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """Exponents on a grid; each scale alone would give the loss of its largest runs."""
        n, d = columns["params_non_embedding"].max(), columns["tokens"].max()
        ln_loss = float(np.log(measured.min())) - 0.1
        grid = [(a, b) for a in START_EXPONENTS for b in START_EXPONENTS]
        return np.array([(n * np.exp(ln_loss / a), d * np.exp(ln_loss / b), a, b) for a, b in grid])


def split_kaplan(values: FloatArray, compute_flops: float) -> tuple[FloatArray, FloatArray]:
    """N and D (B,) of least loss with 6 N D = C, for each row (N_c, D_c, alpha_N, alpha_D).

    Closed form: the derivative of (N_c / N)^k + 6 N D_c / C by N vanishes at N = (k N_c^k C / (6 D_c))^(1 / (1 + k)).
    """
    n_c, d_c, alpha_n, alpha_d = values.T
    k = alpha_n / alpha_d
    budget = compute_flops / FLOPS_PER_PARAM_TOKEN
    ln_n = (np.log(k) + k * np.log(n_c) + np.log(budget / d_c)) / (1 + k)
    return np.exp(ln_n), budget / np.exp(ln_n)
