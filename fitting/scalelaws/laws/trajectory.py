"""The whole training curve at any batch size, from the critical batch size.

Legend: N parameters, S steps, B batch (tokens per step), T = S B tokens, L loss after S steps
    L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S,  S_min = S / (1 + B_crit / B),  B_crit = B_star / L^(1 / alpha_B)
L stands on both sides. In x = ln L:  phi(x) = x - ln( (N_c / N)^alpha_N + (S_c (1 + B_crit(x) / B) / S)^alpha_S ) = 0;
phi is concave and rises with a slope of at least 1, so Newton's steps from the left climb to the one solution.
    p share of the second term, q = 1 / (1 + B / B_crit), k = 1 / alpha_B:  phi' = 1 + p alpha_S k q
Source: Su et al. 2024, Unraveling the Mystery of Scaling Laws: Part I, arXiv 2403.06563; Kaplan et al. 2020, sections 5
and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.smooth import SmoothLaw
from scalelaws.observations import FloatArray, Observations

NEWTON_ROUNDS = 100
NEWTON_TOLERANCE = 1e-12
"""Of ln loss."""


@dataclass(frozen=True, kw_only=True)
class Trajectory(SmoothLaw):
    """Loss against size, steps and batch; fitted to points of training curves after the warm-up.

    The points of one run share a label, and are resampled together. Priors are centred on the constants of Kaplan et
    al. 2020, table 3 (N_c 6.5e13, alpha_N .077, S_c 2.1e3, alpha_S .76, B_star 2e8, alpha_B .21); their widths are
    assumptions: every constant depends on data, tokenizer and context.
    """

    tuned: ClassVar[bool] = False
    name: str = "trajectory"
    formula: str = "L = (N_c / N)^alpha_N + (S_c (1 + B_star L^(-1 / alpha_B) / B) / S)^alpha_S"
    scope: str = "points after the warm-up of runs at a constant, well-tuned learning rate; one data set, one context"
    source: str = "Su et al. 2024, Unraveling the Mystery of Scaling Laws: Part I, arXiv 2403.06563"
    parameters: tuple[Parameter, ...] = (
        Parameter("N_c", 6.5e13, 6.0, "parameters"), Parameter("alpha_N", 0.077, 0.7),
        Parameter("S_c", 2.1e3, 3.0, "steps"), Parameter("alpha_S", 0.76, 0.5),
        Parameter("B_star", 2e8, 3.0, "tokens"), Parameter("alpha_B", 0.21, 0.5),
    )  # fmt: skip
    needs: tuple[str, ...] = ("params_non_embedding", "batch_tokens", "steps")
    varied: tuple[str, ...] = ("params_non_embedding", "batch_tokens", "steps")

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 6), by the implicit function theorem."""
        n_c, alpha_n, s_c, alpha_s, b_star, alpha_b = (values[:, j : j + 1] for j in range(6))
        ln_n = np.log(n_c) - np.log(columns["params_non_embedding"])
        x = _solve(values, alpha_n * ln_n, np.log(columns["steps"]), np.log(columns["batch_tokens"]))
        log_term, q = _follow(values, x, np.log(columns["steps"]), np.log(columns["batch_tokens"]))
        p = np.exp(log_term - x)
        slopes = [
            (1 - p) * alpha_n / n_c, (1 - p) * ln_n, p * alpha_s / s_c, p * log_term / alpha_s,
            p * alpha_s * q / b_star, p * alpha_s * q * x / alpha_b**2,
        ]  # fmt: skip
        return x, np.stack(slopes, axis=-1) / (1 + p * alpha_s * q / alpha_b)[..., None]

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """The second term a tenth, or half of the lowest loss; critical batches below, amid and above the batches."""
        low, size = float(measured.min()), columns["params_non_embedding"].max()
        steps, batch = columns["steps"].max(), columns["batch_tokens"]
        found = []
        for share in (0.1, 0.5):
            for alpha_n in (0.05, 0.15):
                for critical in (batch.min(), np.sqrt(batch.min() * batch.max()), batch.max()):
                    n_c = size * ((1 - share) * low) ** (1 / alpha_n)
                    s_c = steps * (share * low) ** (1 / 0.7) / (1 + critical / batch[np.argmin(measured)])
                    found.append((n_c, alpha_n, s_c, 0.7, critical * low ** (1 / 0.25), 0.25))
        return np.array(found)

    def group(self, observations: Observations) -> FloatArray:
        """Points of one run err together."""
        if observations.label is None:
            columns = [observations.params_non_embedding, observations.column("batch_tokens")]
            return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1).astype(np.float64)
        return np.unique(np.array(observations.label), return_inverse=True)[1].astype(np.float64)


def _follow(
    values: FloatArray, x: FloatArray, ln_steps: FloatArray, ln_batch: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """ln of the second term, and q, at ln loss x (B, n)."""
    _, _, s_c, alpha_s, b_star, alpha_b = (values[:, j : j + 1] for j in range(6))
    ratio = np.log(b_star) - x / alpha_b - ln_batch
    slowed = np.logaddexp(0.0, ratio)
    return alpha_s * (np.log(s_c) - ln_steps + slowed), np.exp(ratio - slowed)


def _solve(values: FloatArray, ln_floor: FloatArray, ln_steps: FloatArray, ln_batch: FloatArray) -> FloatArray:
    """ln loss (B, n) by Newton's steps from the floor of the size, which lies to the left of the solution."""
    alpha_s, alpha_b = values[:, 3:4], values[:, 5:6]
    x = ln_floor + 0 * ln_steps
    for _ in range(NEWTON_ROUNDS):
        log_term, q = _follow(values, x, ln_steps, ln_batch)
        total = np.logaddexp(ln_floor, log_term)
        step = (total - x) / (1 + np.exp(log_term - total) * alpha_s * q / alpha_b)
        x = x + step
        if not (np.abs(step) > NEWTON_TOLERANCE).any():
            break
    return np.asarray(x)


def minimum_loss(values: FloatArray, params: float) -> FloatArray:
    """Loss (B,) that no amount of training goes below at this size, for each row of parameters (B, 6)."""
    return np.asarray((values[:, 0] / params) ** values[:, 1])


def find_critical_batch(values: FloatArray, loss: ArrayLike) -> FloatArray:
    """B_crit (B, n), tokens per step, at each loss (n,)."""
    return np.asarray(values[:, 4:5] * np.atleast_1d(np.asarray(loss, np.float64)) ** (-1 / values[:, 5:6]))


def steps_to_loss(values: FloatArray, params: float, batch_tokens: float, loss: ArrayLike) -> FloatArray:
    """Steps (B, n) until each loss (n,); inf where the size never reaches it."""
    wanted = np.atleast_1d(np.asarray(loss, np.float64))
    excess = wanted - minimum_loss(values, params)[:, None]
    reached = excess > 0
    least = values[:, 2:3] * np.where(reached, excess, 1.0) ** (-1 / values[:, 3:4])
    steps = least * (1 + find_critical_batch(values, wanted) / batch_tokens)
    return np.where(reached, steps, np.inf)


def tokens_to_loss(values: FloatArray, params: float, batch_tokens: float, loss: ArrayLike) -> FloatArray:
    """Tokens (B, n) until each loss (n,); inf where the size never reaches it."""
    return steps_to_loss(values, params, batch_tokens, loss) * batch_tokens


def predict_curve(values: FloatArray, params: float, batch_tokens: float, steps: ArrayLike) -> FloatArray:
    """Loss (B, n) after each number of steps (n,) of one run, for each row of parameters (B, 6)."""
    after = np.atleast_1d(np.asarray(steps, np.float64))
    columns = {"params_non_embedding": np.full(len(after), params), "batch_tokens": np.full(len(after), batch_tokens)}
    return np.asarray(np.exp(Trajectory().evaluate(values, columns | {"steps": after})[0]))
