"""Efficiency leverage: how much less compute a mixture of experts needs than a dense model of the same loss.

Legend: A activation ratio (activated over all experts, shared ones in both), G granularity (2 width / expert width),
C training FLOPs, E floor, K, g coefficient and exponent of dense models
    A' = A + A_s,  EL = A'^(a + d log10 C + beta log2 G + gamma (log2 G)^2),  L = E + K / (EL C)^g
The paper's A' has a second constant A_m (1 / A' = 1 / (A + 1 / (1 / A_s - 1 / A_m)) + 1 / A_m); its value, 5.28e16,
makes it A + A_s to machine precision, so it is left out. The paper does not state the bases of its logarithms: 10 for C
and 2 for G reproduce its published figures (EL = 7 at 3.1 %, G = 12, 1e22 FLOPs), e for both does not.
Source: Tian et al. 2025, Towards Greater Leverage, arXiv 2507.17702, equations 6 to 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.smooth import SmoothLaw
from scalelaws.laws.terms import FLOOR, add_terms, coefficient, exponent, start_terms
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.results import Status

PUBLISHED_LEVERAGE = (1.23, -7.61e-2, -1.17e-1, 1.67e-2, 1.63e-2)
"""(a, d, beta, gamma, A_s) of Tian et al. 2025: A .8 to 100 %, G 2 to 16, C 3e17 to 3e20 FLOPs counted as M D."""
DENSE = 1.0
"""Activation ratio of a dense model."""


@dataclass(frozen=True, kw_only=True)
class EfficiencyLeverage(SmoothLaw):
    """The loss of dense models at leverage times the compute; priors of the leverage are centred as published."""

    name: str = "efficiency_leverage"
    formula: str = "L = E + K / (EL C)^g, EL = (A + A_s)^(a + d log10 C + beta log2 G + gamma log2(G)^2)"
    scope: str = "compute-optimal, well-tuned dense (A = 1) and mixture-of-experts runs; compute counted in one way"
    source: str = "Tian et al. 2025, Towards Greater Leverage, arXiv 2507.17702, equations 6 to 8"
    parameters: tuple[Parameter, ...] = (
        FLOOR, coefficient("K", 1000.0), exponent("g", 0.15),
        Parameter("a", PUBLISHED_LEVERAGE[0], 2.0, kind="real"),
        Parameter("d", PUBLISHED_LEVERAGE[1], 0.1, "per decade of FLOPs", kind="real"),
        Parameter("beta", PUBLISHED_LEVERAGE[2], 0.3, kind="real", needed=False),
        Parameter("gamma", PUBLISHED_LEVERAGE[3], 0.05, kind="real", needed=False),
        Parameter("A_s", PUBLISHED_LEVERAGE[4], 1.0, needed=False),
    )  # fmt: skip
    needs: tuple[str, ...] = ("compute", "activation_ratio", "granularity")
    varied: tuple[str, ...] = ("compute", "activation_ratio")

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 8)."""
        ratio, decades, octaves = (
            columns["activation_ratio"],
            np.log10(columns["compute"]),
            np.log2(columns["granularity"]),
        )
        power = _raise(values, decades, octaves)
        ln_ratio = np.log(ratio + values[:, 7:8])
        ln_loss, slopes, (by_scale,) = add_terms(values[:, :3], (np.exp(power * ln_ratio) * columns["compute"],))
        through = [ln_ratio * item for item in (np.ones_like(decades), decades, octaves, octaves**2)]
        through.append(power / (ratio + values[:, 7:8]))
        return ln_loss, np.concatenate([slopes, np.stack([by_scale * item for item in through], axis=-1)], axis=-1)

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Beside the usual reasons: activation ratios that are no shares."""
        largest = float(observations.column("activation_ratio").max())
        if largest > DENSE:
            return Status.NOT_IDENTIFIED, f"{self.name}: activation_ratio is a share, 1 for dense runs; got {largest:g}"
        return super().refuse(observations)

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """The published leverage, with dense curves through the leveraged compute."""
        published = np.array(PUBLISHED_LEVERAGE)
        lifted = leverage(published[None], columns["activation_ratio"], columns["granularity"], columns["compute"])[0]
        dense = start_terms((lifted * columns["compute"],), measured)
        return np.hstack([dense, np.tile(published, (len(dense), 1))])

    def warn(self, observations: Observations) -> tuple[str, ...]:
        """Says what the runs do not compare."""
        warnings = []
        if not (observations.column("activation_ratio") >= DENSE).any():
            warnings.append("no dense runs: the leverage is against an extrapolated dense curve")
        if count_levels(observations.column("granularity")) < 3:
            warnings.append(
                "granularity has fewer than three levels: its effect (beta, gamma) rests on the published one"
            )
        if observations.compute_flops is None:
            warnings.append(
                "compute was not given: 6ND of these parameters stands in, which for experts must be active ones"
            )
        return tuple(warnings)


def _raise(values: FloatArray, decades: FloatArray, octaves: FloatArray) -> FloatArray:
    """The power of A' (B, n); the last five columns of the values are read."""
    a, d, beta, gamma = (values[:, j, None] for j in range(values.shape[1] - 5, values.shape[1] - 1))
    return np.asarray(a + d * decades + beta * octaves + gamma * octaves**2)


def leverage(values: FloatArray, activation_ratio: ArrayLike, granularity: ArrayLike, compute: ArrayLike) -> FloatArray:
    """EL (B, n): dense compute of the same loss over the compute spent, for each row of parameters (B, P).

    The last five columns of `values` are a, d, beta, gamma, A_s, so that draws of a fit and `PUBLISHED_LEVERAGE` serve.
    """
    ratio, g, c = (
        np.atleast_1d(np.asarray(item, dtype=np.float64)) for item in (activation_ratio, granularity, compute)
    )
    return np.asarray((ratio + values[:, -1:]) ** _raise(values, np.log10(c), np.log2(g)))


def best_granularity(values: FloatArray) -> FloatArray:
    """G of the largest leverage (B,), 2^(-beta / (2 gamma)); NaN in rows with gamma <= 0, where no G is best."""
    beta, gamma = values[:, -3], values[:, -2]
    bent = gamma > 0
    return np.where(bent, 2.0 ** (-beta / (2 * np.where(bent, gamma, 1.0))), np.nan)
