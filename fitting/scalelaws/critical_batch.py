"""The critical batch size, from how many steps and tokens runs of several batches need to reach one loss.

Legend: B batch (tokens per step), S steps to the loss, T tokens to it (T = B S), S_min, T_min their limits for B to
infinity and B to 0, B_crit = T_min / S_min.
    (S / S_min - 1) (T / T_min - 1) = 1,  which with T = B S is  S = S_min (1 + B_crit / B)
Source: McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162, equation 2.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.engines.nonlinear import PRIOR_DOF, Columns, Noise, Parameter, Solution, solve
from scalelaws.observations import FloatArray, ObservationError, count_levels
from scalelaws.results import Estimate, Status

EXPECTED_NOISE_LOG = 0.05
"""Expected misfit of ln steps to a loss (an assumption: reruns differ by .001 in ln loss, which falls by some .02 per
e-fold of steps)."""
LEVELS_NEEDED = 3
"""Distinct batches; two always lie on some hyperbola."""
STEPS_PRIOR_SD = 6.0
"""Of ln S_min around the fewest steps of a run: all but flat over a factor of 400 (an assumption)."""
BATCH_PRIOR_SD = 6.0
"""Of ln B_crit around the middle of the batches: likewise."""
WIDEST_SD_LOG = 1.0
"""B_crit known no better than within a factor of five either way (at 90 %) is called not identified (an assumption)."""
STARTS_BEYOND = 30.0
"""B_crit is sought from the smallest batch over this to the largest batch times this."""
LIMIT_LEVEL = 0.99
"""B_crit is bounded on a side where the runs contradict the curve without a bend there at this level (an assumption:
what passes by chance is then wrong altogether, so it is stricter than an interval of 90 %)."""
LIMITS_BEYOND = 1e6
"""So far beyond the batches the curve has no bend within them: ln S differs from its limit by less than 1e-6."""
GRID = 2001


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """The exchange between steps and tokens at one loss."""

    steps_min: Estimate
    """Fewest steps that any batch can reach the loss in."""
    tokens_min: Estimate
    """Fewest tokens that any batch can reach the loss with."""
    critical_batch_tokens: Estimate
    """Batch that needs twice the fewest steps and twice the fewest tokens, tokens per step."""
    draws: FloatArray
    """(draws, 3): S_min, T_min, B_crit; none where the batches do not bound B_crit on both sides."""
    noise_log: float
    """Standard deviation of ln steps around the curve."""
    status: Status
    message: str

    def steps_at(self, batch_tokens: ArrayLike) -> FloatArray:
        """Steps to the loss at each batch."""
        batch = np.asarray(batch_tokens, dtype=np.float64)
        return np.asarray(self.steps_min.value * (1 + self.critical_batch_tokens.value / batch))

    def to_dict(self) -> dict[str, object]:
        """The estimates and the status as plain data."""
        named: Mapping[str, Estimate] = {
            "steps_min": self.steps_min,
            "tokens_min": self.tokens_min,
            "critical_batch_tokens": self.critical_batch_tokens,
        }
        return {**{name: item.to_dict(unit=True) for name, item in named.items()}, "status": self.message}


class TradeoffError(RuntimeError):
    """The runs do not determine the critical batch; `partial` carries what there is."""

    def __init__(self, message: str, partial: Tradeoff) -> None:
        """Keeps the partial answer beside the message."""
        super().__init__(message)
        self.partial = partial


@dataclass(frozen=True)
class _Hyperbola:
    """ln S over the batch."""

    parameters: tuple[Parameter, ...]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln S (R, n) and its derivatives by S_min and B_crit (R, n, 2) for R rows of values."""
        steps_min, critical = values[:, :1], values[:, 1:]
        batch = columns["batch_tokens"]
        slopes = [np.broadcast_to(1 / steps_min, (len(values), len(batch))), 1 / (batch + critical)]
        return np.log(steps_min) + np.log1p(critical / batch), np.stack(slopes, axis=-1)


def fit_tradeoff(
    steps: ArrayLike,
    tokens: ArrayLike,
    *,
    level: float = 0.9,
    draws: int = 400,
    seed: int = 0,
    throw: bool = True,
) -> Tradeoff:
    """S_min, T_min and B_crit from the steps and tokens that runs of several batches needed to reach one loss.

    `steps` and `tokens` (n,) are of one loss, model size and data; tokens / steps is the batch. The error of a run is
    one and the same in ln steps and ln tokens, since its batch is known. Raises ObservationError where the pairs are
    unusable, and TradeoffError where the batches do not bend the curve: its `partial` then holds the one bound that
    they give, by profile likelihood, and no value; with `throw=False` it is returned, and its status says so.
    """
    s, t = _check(steps, tokens)
    batch = t / s
    if count_levels(batch) < LEVELS_NEEDED:
        message = f"the critical batch needs >= {LEVELS_NEEDED} distinct batches (have {count_levels(batch)})"
        return _end(_unknown(Status.TOO_FEW_SCALES, message), throw)
    middle = float(np.exp(np.log(batch).mean()))
    model = _Hyperbola(
        (
            Parameter("steps_min", float(s.min()), STEPS_PRIOR_SD, "steps"),
            Parameter("critical_batch_tokens", middle, BATCH_PRIOR_SD, "tokens"),
        )
    )
    guesses = np.geomspace(batch.min() / STARTS_BEYOND, batch.max() * STARTS_BEYOND, 9)
    starts = np.stack([np.exp(np.log(s / (1 + guesses[:, None] / batch)).mean(axis=1)), guesses], axis=1)
    solution = solve(
        model, {"batch_tokens": batch}, np.log(s), starts, Noise(EXPECTED_NOISE_LOG), draws=draws, seed=seed
    )
    profile = _Profile.of(s, batch, solution)
    if solution.converged and not profile.is_bent:
        return _end(_report_open(profile, solution, level), throw)
    return _end(_report(solution, batch, level), throw)


def _check(steps: ArrayLike, tokens: ArrayLike) -> tuple[FloatArray, FloatArray]:
    s, t = np.asarray(steps, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if s.ndim != 1 or s.shape != t.shape or len(s) == 0:
        raise ObservationError(
            f"fit_tradeoff: steps and tokens must pair up, one of each per run; got {s.shape}, {t.shape}"
        )
    bad = ~(np.isfinite(s) & np.isfinite(t) & (s > 0) & (t > 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ObservationError(
            f"fit_tradeoff: steps and tokens must be positive and finite; row {row} has {s[row]:g} and {t[row]:g}. "
            "Leave out the runs that never reached the loss"
        )
    return s, t


def _report(solution: Solution, batch: FloatArray, level: float) -> Tradeoff:
    def estimate(value: float, column: FloatArray, unit: str) -> Estimate:
        return Estimate.from_draws(column, level, value=float(value), unit=unit)

    steps, critical = solution.values
    drawn = np.stack([solution.draws[:, 0], solution.draws.prod(axis=1), solution.draws[:, 1]], axis=1)
    status, message = _judge(solution, batch)
    return Tradeoff(
        steps_min=estimate(steps, drawn[:, 0], "steps"),
        tokens_min=estimate(steps * critical, drawn[:, 1], "tokens"),
        critical_batch_tokens=estimate(critical, drawn[:, 2], "tokens per step"),
        draws=drawn,
        noise_log=solution.noise,
        status=status,
        message=message,
    )


def _judge(solution: Solution, batch: FloatArray) -> tuple[Status, str]:
    if not solution.converged:
        return Status.NOT_CONVERGED, Status.NOT_CONVERGED.value
    sd = float(np.std(np.log(solution.draws[:, 1])))
    if sd > WIDEST_SD_LOG:
        return Status.NOT_IDENTIFIED, (
            f"{Status.NOT_IDENTIFIED.value}: the batches ({batch.min():.4g} to {batch.max():.4g} tokens) tell B_crit "
            f"within a factor of {np.exp(sd):.3g} (one standard deviation) only; add batches on both sides of it"
        )
    return Status.CONVERGED, Status.CONVERGED.value


@dataclass(frozen=True, eq=False)
class _Profile:
    """How well each B_crit explains the steps, without priors; its ends stand for curves without a bend.

    Towards the low end S is the same for all batches, towards the high end T is.
    """

    ln_steps: FloatArray
    """(n,)."""
    ln_batch: FloatArray
    """(n,)."""
    ln_critical: FloatArray
    """(g,)."""
    excess: FloatArray
    """(g,) sum of squares above the least one, in variances of a run."""
    noise: float
    dof: float

    @classmethod
    def of(cls, steps: FloatArray, batch: FloatArray, solution: Solution) -> _Profile:
        """The profile under the noise that was found."""
        ends = np.log(batch.min() / LIMITS_BEYOND), np.log(batch.max() * LIMITS_BEYOND)
        grid, ln_steps, ln_batch = np.linspace(*ends, GRID), np.log(steps), np.log(batch)
        squares = (ln_steps - np.logaddexp(0.0, grid[:, None] - ln_batch)).var(axis=1) * len(batch)
        dof = PRIOR_DOF + len(batch) - 2
        return cls(ln_steps, ln_batch, grid, (squares - squares.min()) / solution.noise**2, solution.noise, dof)

    @property
    def is_bent(self) -> bool:
        """Whether the runs contradict both curves without a bend."""
        return bool(min(self.excess[[0, -1]]) > self.reach(LIMIT_LEVEL) ** 2)

    def reach(self, level: float) -> float:
        """Standard deviations to either side that hold this share of Student's t."""
        from scipy.special import stdtrit

        return float(stdtrit(self.dof, (1 + level) / 2))

    def bound(self, level: float) -> tuple[Estimate, Estimate, Estimate]:
        """S_min, T_min and B_crit with what bounds there are; a value is there where both bounds are."""
        inside = np.flatnonzero(self.excess <= self.reach(level) ** 2)
        is_open = [bool(self.excess[end] <= self.reach(max(level, LIMIT_LEVEL)) ** 2) for end in (0, -1)]
        critical, best = self.ln_critical[inside], int(np.argmin(self.excess[inside]))
        ratio = critical[:, None] - self.ln_batch
        ln_steps = (self.ln_steps - np.logaddexp(0.0, ratio)).mean(axis=1)
        ln_tokens = (self.ln_steps + self.ln_batch - np.logaddexp(0.0, -ratio)).mean(axis=1)
        of_mean = self.reach(level) * self.noise / np.sqrt(len(self.ln_batch))
        return (
            _enclose(ln_steps, best, of_mean, (is_open[1], False), "steps"),
            _enclose(ln_tokens, best, of_mean, (is_open[0], False), "tokens"),
            _enclose(critical, best, 0.0, (is_open[0], is_open[1]), "tokens per step"),
        )


def _enclose(ln_values: FloatArray, best: int, margin: float, is_open: tuple[bool, bool], unit: str) -> Estimate:
    """The range of these values with a margin; no bound on an open side, and no value beside an open side."""
    low = None if is_open[0] else float(np.exp(ln_values.min() - margin))
    high = None if is_open[1] else float(np.exp(ln_values.max() + margin))
    return Estimate(np.nan if None in (low, high) else float(np.exp(ln_values[best])), low, high, unit)


def _report_open(profile: _Profile, solution: Solution, level: float) -> Tradeoff:
    """What can be said where no bend is seen: bounds on the closed sides, no draws."""
    steps, tokens, critical = profile.bound(level)
    low, high = np.exp(profile.ln_batch.min()), np.exp(profile.ln_batch.max())
    seen = f"the batches ({low:.4g} to {high:.4g} tokens)"
    if critical.low is not None:
        said = f"B_crit lies beyond {seen}, above {critical.low:.3g}, and nothing bounds it upwards; add larger batches"
    elif critical.high is not None:
        said = (
            f"B_crit lies beyond {seen}, below {critical.high:.3g}, and nothing bounds it from below; add smaller ones"
        )
    else:
        said = f"{seen} do not tell on which side of them B_crit lies; add batches on both sides, or repeat runs"
    return Tradeoff(
        steps, tokens, critical, np.full((0, 3), np.nan), solution.noise, Status.NOT_IDENTIFIED,
        f"{Status.NOT_IDENTIFIED.value}: {said}",
    )  # fmt: skip


def _unknown(status: Status, message: str) -> Tradeoff:
    nothing = Estimate(np.nan)
    return Tradeoff(nothing, nothing, nothing, np.full((0, 3), np.nan), np.nan, status, f"{status.value}: {message}")


def _end(found: Tradeoff, throw: bool) -> Tradeoff:
    if throw and not found.status.ok:
        raise TradeoffError(f"fit_tradeoff: {found.message}", found)
    return found
