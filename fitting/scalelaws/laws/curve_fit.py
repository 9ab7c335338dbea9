"""How a law of the curve is fitted, and how far it may be trusted on a schedule that it has not seen.

The objective is the log-Huber penalty of both papers (delta 1e-3) with weak priors. Points of one curve err together:
with tau the integrated autocorrelation of the residuals in points (Sokal 1997, window of 5 tau), a stretch of tau
points counts as one. Every point weighs 1 / tau against the priors, and the draws perturb whole stretches, and the
priors. What the law misses of a whole curve is measured by leaving curves out in turn; what it misses beyond the
longest curve, by fitting the earlier half of the steps and predicting the later half.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from scalelaws.curves.records import Curve, Curves
from scalelaws.curves.schedules import find_drops
from scalelaws.engines.nonlinear import (
    DECIDED_BY_PRIOR,
    PRIOR_DOF,
    WIDE,
    Columns,
    Model,
    Noise,
    Task,
    minimise,
    name_undecided,
    to_coordinates,
    to_values,
)
from scalelaws.intervals import draw_variances, pool_variance
from scalelaws.laws.base import FitOptions
from scalelaws.laws.curve_columns import Units, read_columns
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Evidence, Fit, Status

MISFIT_LOG = 0.002
"""What a law of the curve misses of ln loss, as a standard deviation: mean errors on unseen schedules are .0011 to
.0017 (Luo et al. 2025, their code's table for 25M to 400M). A few curves fitted by seven parameters look better than
that, so the noise is never set lower, which keeps the priors in force; with objective `huber` it is estimated."""
SCATTER_DOF = 3.0
"""How many curves the expected scatter of a law is worth (an assumption)."""
DRIFT_LOG_PER_EFOLD = 0.002
"""Expected drift of ln loss per e-fold of steps beyond the longest curve (an assumption, worth `DRIFT_DOF` origins)."""
DRIFT_DOF = 2.0
MOST_POINTS = 128
"""Points of one curve that are fitted; longer logs are averaged (an assumption: neighbours err together anyway)."""
POINTS_PER_STRETCH = 3.0
"""Points that stand for a stretch in the draws, which differ by one number per stretch."""
END_POINTS = 4
"""The end of a curve is the mean of so many of its fitted points, which evens out the noise of one."""
ROUNDS = 3
KEPT_STARTS = 2
FEWEST_INSIDE = 0.2
"""Share of residuals within delta below which the penalty is all but absolute and its noise is no longer scaled up."""
WINDOW = 5.0
"""Autocorrelations are summed up to this many times their own sum (Sokal 1997, as in emcee)."""
FEWEST_CONVERGED = 0.95


class CurveModel(Model, Protocol):
    """What `estimate_curve` needs of a law."""

    @property
    def name(self) -> str:
        """Name in the list of laws."""

    @property
    def formula(self) -> str:
        """The formula in plain text."""

    @property
    def expected_scatter_log(self) -> float:
        """Expected standard deviation of ln loss of a whole unseen curve around the law."""

    def starts(self, columns: Columns, loss: FloatArray) -> FloatArray:
        """Where the search begins (S, P), in `Units`."""

    def to_published(self, values: FloatArray, units: Units) -> FloatArray:
        """Parameters (B, P) in `Units` as the paper counts them."""


@dataclass(frozen=True)
class CurveEvidence(Evidence):
    """What a fit of curves stands on."""

    steps: tuple[float, float] = (np.nan, np.nan)
    """Shortest and longest schedule."""
    peak_lr: tuple[float, float] = (np.nan, np.nan)
    """Lowest and highest peak learning rate."""
    lowest_lr: float = np.nan
    """Lowest rate that a schedule reached after its warm-up."""
    points: int = 0
    """Logged steps that were fitted."""

    @classmethod
    def of_curves(cls, curves: Curves) -> CurveEvidence:
        """The evidence of the curves that were used; runs and cells both count curves."""
        params = _range(curve.params_non_embedding for curve in curves)
        tokens = _range(curve.schedule.steps * curve.batch_tokens for curve in curves)
        flops = (6 * params[0] * tokens[0], 6 * params[1] * tokens[1])
        return cls(
            runs=len(curves), cells=len(curves), excluded=curves.excluded, params=params, tokens=tokens,
            compute_flops=flops, largest_6nd=flops[1], params_convention="unspecified", compute_convention="6ND",
            steps=_range(curve.schedule.steps for curve in curves),
            peak_lr=_range(curve.schedule.peak_lr for curve in curves),
            lowest_lr=min(_lowest_rate(curve) for curve in curves), points=sum(len(curve) for curve in curves),
        )  # fmt: skip


def estimate_curve(law: CurveModel, curves: Curves, options: FitOptions) -> Fit:
    """Fits the finite losses after the warm-up."""
    started = time.perf_counter()
    usable = curves.usable()
    if usable is None:
        return _unfitted(law, curves, options, (Status.TOO_FEW_POINTS, "no curve has a finite loss"), started)
    used = thin(usable)
    problem = refuse(law, used)
    if problem is not None:
        return _unfitted(law, used, options, problem, started)
    state = _State.of(law, used, options)
    best, converged = state.search()
    draws, share = state.draw(best, options)
    scatter, drift = state.measure_scatter(best), state.measure_drift(best)
    published = law.to_published(to_values(np.concatenate([best.t[None], draws]), law.parameters), state.units)
    broken = [curve.label for curve in curves if not np.isfinite(curve.loss).all()]
    status, message, warnings = _judge(law, state, draws, converged, share, broken)
    residuals = state.residuals(best.t)
    return Fit(
        law=law.name, formula=law.formula,
        parameters={
            item.name: Estimate.from_draws(column, options.level, value=float(column[0]), unit=item.unit)
            for item, column in zip(law.parameters, published.T, strict=True)
        },
        draws=published[1:], objective=state.describe(best), objective_value=best.cost, status=status, message=message,
        rmse_log=float(np.sqrt(np.mean(residuals**2))), scatter_log=scatter,
        evidence=CurveEvidence.of_curves(used), seconds=time.perf_counter() - started, level=options.level,
        scope=dict(used.scope), warnings=warnings, drift_log_per_efold=drift,
    )  # fmt: skip


def refuse(law: CurveModel, curves: Curves) -> tuple[Status, str] | None:
    """Why these curves cannot hold the law, if they cannot."""
    if len(curves) < 2:
        return Status.TOO_FEW_SCALES, f"{law.name} needs >= 2 curves of different schedules (have {len(curves)})"
    points = sum(len(curve) for curve in curves)
    if points < 3 * len(law.parameters):
        return Status.TOO_FEW_POINTS, f"{law.name} needs >= {3 * len(law.parameters)} logged losses (have {points})"
    if not any(len(find_drops(curve.schedule, curve.step).row) for curve in curves):
        return Status.NOT_IDENTIFIED, "the learning rate falls in none of the curves; log one that is annealed"
    return None


def thin(curves: Curves) -> Curves:
    """About `MOST_POINTS` points of each curve: where more are logged, means over neighbours, never across a jump."""
    return replace(curves, curves=tuple(_thin(curve) for curve in curves))


def measure_tau(residuals: list[FloatArray]) -> float:
    """Integrated autocorrelation, in points, of residuals about zero, pooled over curves; at least 1."""
    squares = sum(float(r @ r) for r in residuals)
    tau, lag, longest = 1.0, 0, max(len(r) for r in residuals)
    while lag < min(WINDOW * tau, longest - 1):
        lag += 1
        tau += 2 * sum(float(r[lag:] @ r[:-lag]) for r in residuals if len(r) > lag) / max(squares, 1e-300)
    return float(np.clip(tau, 1.0, longest))


@dataclass(frozen=True, eq=False)
class _Best:
    """The best parameters with the noise around them."""

    t: FloatArray
    cost: float
    sd: float
    dof: float
    tau: float


@dataclass(frozen=True, eq=False)
class _State:
    """Curves as the law reads them."""

    law: CurveModel
    units: Units
    columns: Columns
    y: FloatArray
    """ln loss over the unit."""
    curve: np.ndarray
    """Number of the curve of each point."""
    step: FloatArray
    noise: Noise
    options: FitOptions
    curves: Curves

    @classmethod
    def of(cls, law: CurveModel, curves: Curves, options: FitOptions, units: Units | None = None) -> _State:
        units = Units.of(curves) if units is None else units
        columns = read_columns([(curve.schedule, curve.step) for curve in curves], units)
        y = np.log(np.concatenate([curve.loss for curve in curves]) / units.loss)
        number = np.repeat(np.arange(len(curves)), [len(curve) for curve in curves])
        step = np.concatenate([curve.step for curve in curves])
        return cls(law, units, columns, y, number, step, Noise(MISFIT_LOG, options.huber_delta), options, curves)

    def task(self, tau: float) -> Task:
        return Task(self.law, self.columns, self.y, np.full(len(self.y), 1 / tau), self.noise)

    def residuals(self, t: FloatArray) -> FloatArray:
        return np.asarray(self.law.evaluate(to_values(t[None], self.law.parameters), self.columns)[0][0] - self.y)

    def search(self, start: FloatArray | None = None) -> tuple[_Best, bool]:
        """The best minimum from the starts, with noise and autocorrelation found in turns."""
        if start is None:
            loss = np.exp(self.y)
            start = to_coordinates(self.law.starts(self.columns, loss), self.law.parameters)
        sd, tau, dof = MISFIT_LOG, 1.0, np.inf
        for _ in range(ROUNDS):
            found = minimise(self.task(tau), start, sd)
            order = np.argsort(found.cost, kind="stable")
            winner = order[0]
            start = found.t[order[:KEPT_STARTS]]
            best = _Best(found.t[winner], float(found.cost[winner]), sd, dof, tau)
            sd, dof, tau = self._measure_noise(best.t, sd)
        return best, bool(found.converged[winner])

    def _measure_noise(self, t: FloatArray, sd: float) -> tuple[float, float, float]:
        """Noise, its degrees of freedom, and the autocorrelation of the residuals.

        The noise is the one of which least squares would have the spread of this Huber fit (Huber and Ronchetti 2009,
        section 7.6).
        """
        r, delta = self.residuals(t), self.noise.huber_delta
        clipped = np.clip(r, -WIDE * sd, WIDE * sd)
        tau = measure_tau([clipped[self.curve == number] for number in range(len(self.curves))])
        inside = max(float((np.abs(r) <= delta).mean()), FEWEST_INSIDE)
        squares = float((np.clip(r, -delta, delta) ** 2).sum()) / inside**2
        variance, dof = pool_variance(MISFIT_LOG, PRIOR_DOF, squares / tau, len(r) / tau - len(self.law.parameters))
        floor = 0.0 if self.options.objective == "huber" else MISFIT_LOG
        return max(float(np.sqrt(variance)), floor), dof, tau

    def draw(self, best: _Best, options: FitOptions) -> tuple[FloatArray, float]:
        """Refits around the best fit with perturbed stretches and priors, and the share that converged.

        Every stretch is told by `POINTS_PER_STRETCH` points at most.
        """
        rng, law = np.random.default_rng(options.seed), self.law
        stride = max(int(best.tau / POINTS_PER_STRETCH), 1)
        few = self._with(replace(self.curves, curves=tuple(curve.stride(stride) for curve in self.curves)))
        task, piece = few.task(best.tau / stride), few.cut_pieces(best.tau / stride)
        spread = np.sqrt(draw_variances(best.sd**2, max(best.dof, 1.0), options.bootstrap, rng))[:, None]
        noise = spread * rng.standard_normal((options.bootstrap, piece.max() + 1))[:, piece]
        centres = best.t + task.scale * rng.standard_normal((options.bootstrap, len(best.t)))
        fitted = law.evaluate(to_values(best.t[None], law.parameters), few.columns)[0]
        start = np.repeat(best.t[None], options.bootstrap, axis=0)
        found = minimise(replace(task, y=fitted + noise, noise=Noise(best.sd)), start, best.sd, centres)
        return found.t, float(found.converged.mean())

    def cut_pieces(self, tau: float) -> np.ndarray:
        """Stretches of about tau points of one curve."""
        within = np.concatenate([np.arange((self.curve == number).sum()) for number in range(len(self.curves))])
        return np.asarray(np.unique(np.stack([self.curve, within // tau]), axis=1, return_inverse=True)[1].reshape(-1))

    def measure_scatter(self, best: _Best) -> float:
        """Standard deviation of ln loss of a whole new curve near its end, from leaving curves out in turn."""
        squares = []
        for left_out in self.curves:
            others = replace(self.curves, curves=tuple(curve for curve in self.curves if curve is not left_out))
            if refuse(self.law, others) is None:
                squares.append(self._predict_end(others, left_out, best) ** 2)
        variance, _ = pool_variance(self.law.expected_scatter_log, SCATTER_DOF, sum(squares), len(squares))
        return float(np.sqrt(variance))

    def _predict_end(self, train: Curves, curve: Curve, best: _Best) -> float:
        """Mean error of ln loss at the end of a curve."""
        found, _ = self._with(train).search(best.t[None])
        errors = self._with(replace(train, curves=(curve,))).residuals(found.t)
        return float(errors[-END_POINTS:].mean())

    def measure_drift(self, best: _Best) -> float:
        """Drift per e-fold of steps: the earlier half fitted, the later half predicted."""
        cut = 0.5 * float(self.step.max())
        parts = tuple(curve.keep(curve.step <= cut) for curve in self.curves if curve.step[0] <= cut)
        square, origins = 0.0, 0
        if len(parts) and refuse(self.law, earlier := replace(self.curves, curves=parts)) is None:
            found, _ = self._with(earlier).search(best.t[None])
            later = self.step > cut
            errors, reach = self.residuals(found.t)[later], np.log(self.step[later] / cut)
            square = max(float((errors**2 - best.sd**2).sum() / (reach**2).sum()), 0.0)
            origins = 1
        return float(np.sqrt((DRIFT_DOF * DRIFT_LOG_PER_EFOLD**2 + square) / (DRIFT_DOF + origins)))

    def _with(self, curves: Curves) -> _State:
        return _State.of(self.law, curves, self.options, self.units)

    def describe(self, best: _Best) -> str:
        return (
            f"posterior mode: Huber penalty of ln loss, delta {self.noise.huber_delta:g}, misfit {best.sd:.2g}, "
            f"{best.tau:.3g} neighbouring points counted as one, weak priors; stretches of curves and priors perturbed"
        )


def _judge(
    law: CurveModel, state: _State, draws: FloatArray, converged: bool, share: float, broken: list[str]
) -> tuple[Status, str, tuple[str, ...]]:
    ratio = draws.std(axis=0) / state.task(1.0).scale
    undecided = [item for item, part in zip(law.parameters, ratio, strict=True) if part > DECIDED_BY_PRIOR]
    warnings = name_undecided(undecided, "curves")
    cut = [label for label in broken if label in {curve.label for curve in state.curves}]
    if cut:
        warnings += (f"{', '.join(cut)} diverged on the way: only the finite losses are fitted",)
    rising = [curve.label for curve in state.curves if curve.schedule.rises]
    if rising:
        warnings += (
            f"the rate of {', '.join(rising)} rises after the warm-up; these laws were made for falling rates",
        )
    void = [item.name for item in undecided if item.needed]
    if not converged or share < FEWEST_CONVERGED:
        status, detail = Status.NOT_CONVERGED, f": {100 * share:.0f} % of the draws converged"
    elif void:
        status, detail = Status.NOT_IDENTIFIED, f" ({', '.join(void)} rest on the prior alone)"
    else:
        status, detail = Status.CONVERGED, ""
    return status, status.value + detail, warnings


def _unfitted(law: CurveModel, curves: Curves, options: FitOptions, problem: tuple[Status, str], started: float) -> Fit:
    status, message = problem
    unknown = {item.name: Estimate(np.nan, unit=item.unit) for item in law.parameters}
    return Fit(
        law.name, law.formula, unknown, np.full((0, len(unknown)), np.nan), "none", np.nan, status,
        f"{status.value}: {message}", np.nan, np.nan, CurveEvidence.of_curves(curves), time.perf_counter() - started,
        options.level, dict(curves.scope),
    )  # fmt: skip


def _thin(curve: Curve) -> Curve:
    if len(curve) <= MOST_POINTS:
        return curve
    jumps = curve.schedule.step[:-1][np.diff(curve.schedule.step) == 0]
    even = np.arange(MOST_POINTS) * len(curve) // MOST_POINTS
    first = np.unique(np.append(even, np.searchsorted(curve.step, jumps, side="right")))
    first = first[first < len(curve)]
    count = np.diff(np.append(first, len(curve)))
    step = np.add.reduceat(curve.step, first) / count
    return replace(curve, step=step, loss=np.exp(np.add.reduceat(np.log(curve.loss), first) / count))


def _lowest_rate(curve: Curve) -> float:
    schedule = curve.schedule
    return float(schedule.lr[np.argmax(schedule.lr) :].min())


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest; NaN where one is unknown."""
    listed = list(values)
    return float(np.min(listed)), float(np.max(listed))
