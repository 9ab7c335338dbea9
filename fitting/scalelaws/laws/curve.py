"""Laws of the loss along a run whose learning rate follows a schedule; each holds for one model size and batch.

Legend (step s of a run):
    L loss, nats   eta learning rate   S1 = sum of eta up to s, warm-up included   L0, A, alpha: loss at a constant rate
    k a fall of the rate after the warm-up, d_k its size, eta_k the rate after it, S_k = S1(s) - S1(fall), m_k its age
    L(s) = L0 + A S1^-alpha - sum_k d_k K(eta_k, S_k, m_k)
    annealing (Tissue et al. 2024, 2408.11029): K = C (1 - lambda^m_k) / (1 - lambda), lambda = exp(-1 / h)
    multi_power (Luo et al. 2025, 2503.12811):    K = B (1 - (1 + C eta_k^-gamma S_k)^-beta)
The sum runs over the blocks of `schedules.find_drops`: exact where the rate is constant between jumps. The rise of the
warm-up is left out of it (with it, as in the code of Luo et al., L0 is smaller by about B x peak rate).

A new law of this kind is one subclass: `parameters`, `respond`, `kernel_starts`, `to_published`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scalelaws.curves.records import Curves
from scalelaws.curves.schedules import Schedule
from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.base import FitOptions, Law
from scalelaws.laws.curve_columns import Units, add_up, read_columns
from scalelaws.laws.curve_fit import CurveEvidence, estimate_curve
from scalelaws.observations import FloatArray
from scalelaws.results import Fit

ROWS_AT_ONCE = 8
"""Rows of parameters evaluated together: their blocks fit into the processor's cache."""


@dataclass(frozen=True)
class Response:
    """How much a fall of the rate lowers the loss, per unit of the fall: K of the legend, by (B, pairs)."""

    value: FloatArray
    by_parameter: tuple[FloatArray, ...]
    """Derivatives by the parameters of K, in their order."""
    by_lr: FloatArray
    by_area: FloatArray


@dataclass(frozen=True, kw_only=True)
class CurveLaw(Law[Curves]):
    """Loss at a constant rate, less what every fall of the rate has brought by now."""

    reads: ClassVar[type] = Curves
    asked_with: ClassVar[str] = "predict_curve(fit, schedule)"
    name: str = ""
    formula: str = ""
    scope: str = ""
    source: str = ""
    parameters: tuple[Parameter, ...] = ()
    """L0, A, alpha, then those of K; their priors count in `Units`, the parameters of a Fit in nats and rates."""

    expected_scatter_log: float = np.nan
    """Expected standard deviation of ln loss of a whole unseen curve around the law, before curves are left out."""

    @abstractmethod
    def respond(self, values: FloatArray, drops: Columns) -> Response:
        """K for each row of its parameters (B, P - 3) and each fall."""

    @abstractmethod
    def kernel_starts(self) -> FloatArray:
        """Where the search begins for the parameters of K, in `Units`: (S, P - 3), their size first."""

    @abstractmethod
    def to_published(self, values: FloatArray, units: Units) -> FloatArray:
        """Parameters (B, P) in `Units` as the paper counts them: nats, and learning rates as they are."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the columns of the draws."""
        return tuple(item.name for item in self.parameters)

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) for each row of parameters (B, P), and its derivatives by them (B, n, P)."""
        parts = [values[i : i + ROWS_AT_ONCE] for i in range(0, len(values), ROWS_AT_ONCE)]
        found = [self._evaluate(part, columns) for part in parts]
        return np.concatenate([item[0] for item in found]), np.concatenate([item[1] for item in found])

    def predict(self, values: FloatArray, schedule: Schedule, step: FloatArray) -> FloatArray:
        """Loss (B, n) at steps of a schedule for each row of published parameters (B, P)."""
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # derivatives, at a rate of 0
            ln_loss, _ = self.evaluate(values, read_columns([(schedule, step)], Units()))
        return np.asarray(np.exp(ln_loss))

    def estimate(self, observations: Curves, options: FitOptions) -> Fit:
        """Fits the finite losses after the warm-up; see `curve_fit`."""
        return estimate_curve(self, observations, options)

    def starts(self, columns: Columns, loss: FloatArray) -> FloatArray:
        """Where the search begins (S, P), in `Units`: a grid of slopes, and the linear parameters that fit best."""
        made = [
            self._solve_linear(alpha, kernel, columns, loss) for alpha in (0.3, 0.6) for kernel in self.kernel_starts()
        ]
        return np.array(made)

    def _solve_linear(self, alpha: float, kernel: FloatArray, columns: Columns, loss: FloatArray) -> FloatArray:
        """L0, A and the size of K by least squares; where one comes out negative, its prior's centre."""
        response = self.respond(kernel[None], columns).value
        annealed = add_up(response * columns["fall"], columns, loss.shape[-1])[0]
        design = np.stack([np.ones_like(annealed), columns["progress"] ** -alpha, -annealed], axis=1)
        level, rise, size = np.linalg.lstsq(design, loss, rcond=None)[0]
        centres = [item.centre for item in self.parameters]
        level, rise = (value if value > 0 else centre for value, centre in zip((level, rise), centres, strict=False))
        return np.array([level, rise, alpha, kernel[0] * (size if size > 0 else 1.0), *kernel[1:]])

    def _evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        level, rise, alpha = (values[:, j, None] for j in range(3))
        log_progress = np.log(columns["progress"])
        decay = np.exp(-alpha * log_progress)
        response = self.respond(values[:, 3:], columns)
        weighed = [add_up(part * columns["fall"], columns, len(log_progress)) for part in response.by_parameter]
        loss = level + rise * decay - add_up(response.value * columns["fall"], columns, len(log_progress))
        slopes = [np.ones_like(decay), decay, -rise * decay * log_progress, *(-part for part in weighed)]
        return np.log(loss), np.stack(slopes, axis=2) / loss[..., None]


LEVEL = Parameter("L0", 0.9, 0.2, "nats")
"""Assumption: endless training at the peak rate ends a tenth below the lowest loss seen, give or take a fifth."""
RISE = Parameter("A", 0.1, 1.0, "nats x summed rate^alpha")
"""Assumption: at the end of the longest run a tenth of the loss, within a factor e, is still to be trained away."""
ALPHA = Parameter("alpha", 0.5, 0.5)
"""Assumption, about the middle of published fits: .43 to .51 (Luo et al. 2025, their code's table for 25M to 400M)."""


@dataclass(frozen=True, kw_only=True)
class Annealing(CurveLaw):
    """Every fall of the rate lowers the loss by its size, with a memory that saturates after h steps."""

    name: str = "annealing"
    formula: str = "L = L0 + A S1^-alpha - C sum_k d_k (1 - lambda^m_k) / (1 - lambda), lambda = exp(-1 / memory_steps)"
    scope: str = "one model size and batch; schedules that do not rise after the warm-up; logged losses after it"
    source: str = "Tissue et al. 2024 (arXiv 2408.11029)"
    parameters: tuple[Parameter, ...] = (
        LEVEL,
        RISE,
        ALPHA,
        # Assumption: annealing from the peak to 0 lowers the loss by 3 %, within a factor of about five.
        Parameter("C", 0.03 / 316, 1.5, "nats per rate and step"),
        # Tissue et al. take lambda from .99 to .999, memories of 100 to 1000 steps: plus or minus one sd.
        Parameter("memory_steps", 316.0, 1.15, "steps", needed=False),
    )
    # With lambda = .999 it misses the final loss of a cosine three times as long by .003 to .005 (25M to 400M).
    expected_scatter_log: float = 0.003

    def respond(self, values: FloatArray, drops: Columns) -> Response:
        """C (1 - lambda^m) / (1 - lambda)."""
        size, memory = values[:, 0, None], values[:, 1, None]
        age = drops["age"]
        left, whole = np.exp(-age / memory), -np.expm1(-1 / memory)
        share = (1 - left) / whole
        by_memory = size * (-left * age + share * np.exp(-1 / memory)) / (whole * memory**2)
        zero = np.zeros_like(share)
        return Response(size * share, (share, by_memory), zero, zero)

    def kernel_starts(self) -> FloatArray:
        """Memories of 100, 300 and 1000 steps."""
        return np.array([[0.03 / memory, memory] for memory in (100.0, 300.0, 1000.0)])

    def to_published(self, values: FloatArray, units: Units) -> FloatArray:
        """Parameters as the paper counts them."""
        level, rise, alpha, size, memory = values.T
        return np.stack(
            [level * units.loss, rise * units.loss * units.area**alpha, alpha, size * units.loss / units.lr, memory],
            axis=1,
        )


@dataclass(frozen=True, kw_only=True)
class MultiPower(CurveLaw):
    """Every fall of the rate lowers the loss by a power law in the rate summed since, faster at a low rate."""

    name: str = "multi_power"
    formula: str = "L = L0 + A S1^-alpha - B sum_k d_k (1 - (1 + C eta_k^-gamma S_k)^-beta)"
    scope: str = "one model size and batch; schedules that do not rise after the warm-up; logged losses after it"
    source: str = "Luo et al. 2025 (arXiv 2503.12811)"
    parameters: tuple[Parameter, ...] = (
        LEVEL,
        RISE,
        ALPHA,
        # Assumption: annealing from the peak to 0 lowers the loss by 3 %, within a factor e.
        Parameter("B", 0.03, 1.0, "nats per rate"),
        # C, beta and gamma: the code of Luo et al. starts at C = 1, beta = gamma = .5, with a peak rate of 3e-4.
        Parameter("C", 0.0173, 1.5, "rate^(gamma - 1)", needed=False),
        Parameter("beta", 0.5, 0.5, needed=False),
        Parameter("gamma", 0.5, 0.5, needed=False),
    )
    # Mean errors on unseen schedules are .0011 to .0017 (Luo et al., their code's table for 25M to 400M).
    expected_scatter_log: float = 0.002

    def respond(self, values: FloatArray, drops: Columns) -> Response:
        """B (1 - (1 + x)^-beta), x = C eta^-gamma S."""
        size, speed, beta, gamma = (values[:, j, None] for j in range(4))
        x = np.exp(np.log(speed) - gamma * drops["log_lr"] + drops["log_area"])
        log_more = np.log1p(x)
        left = np.exp(-beta * log_more)
        by_log_x = size * beta * left * (x / (1 + x))
        by_parameter = (1 - left, by_log_x / speed, size * left * log_more, -by_log_x * drops["log_lr"])
        return Response(size * (1 - left), by_parameter, -gamma * by_log_x / drops["lr"], by_log_x / drops["area"])

    def kernel_starts(self) -> FloatArray:
        """The authors' start, and a faster one."""
        return np.array([[0.03, speed, 0.5, 0.5] for speed in (0.0173, 0.1)])

    def to_published(self, values: FloatArray, units: Units) -> FloatArray:
        """Parameters as the paper counts them."""
        level, rise, alpha, size, speed, beta, gamma = values.T
        return np.stack(
            [
                level * units.loss, rise * units.loss * units.area**alpha, alpha, size * units.loss / units.lr,
                speed * units.lr ** (gamma - 1), beta, gamma,
            ],
            axis=1,
        )  # fmt: skip


__all__ = ["Annealing", "CurveEvidence", "CurveLaw", "MultiPower", "Response", "Units", "read_columns"]
