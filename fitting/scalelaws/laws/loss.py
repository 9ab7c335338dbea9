"""Laws of the loss: a floor plus one power law per scale.

Legend: L loss, E floor, N parameters, D tokens, C training FLOPs, A, B coefficients, alpha, beta exponents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from scalelaws.drift import estimate_drift
from scalelaws.intervals import draw_variances, pool_variance, resample_weights
from scalelaws.laws.base import FitOptions, LossLaw
from scalelaws.observations import BoolArray, FloatArray, Observations, count_levels
from scalelaws.powers import Minima, Objective, Problems, evaluate, minimise, predict_log, project_starts
from scalelaws.repeats import average_repeats
from scalelaws.results import Estimate, Evidence, Fit, Status, Target, find_horizon_path

Variable = Literal["params", "tokens", "compute"]

PRIOR_EXPONENT = 0.3
"""Centre of the weak prior on exponents: published fits lie in .2-.5 (Hoffmann et al. 2022; Besiroglu et al. 2024)."""
PRIOR_EXPONENT_SD = 0.5
"""Its standard deviation in ln: 90 % of the prior lies between .13 and .68 (an assumption, stated in the Fit)."""
PRIOR_NOISE_LOG = 0.003
"""Expected misfit of ln loss around a law, runs' noise included (an assumption; reruns alone differ by .0005)."""
PRIOR_NOISE_DOF = 3.0
"""How many residuals the expectation above is worth (an assumption)."""
WIDE_HUBER = 3.0
"""With priors on, the penalty turns linear at this many standard deviations."""
START_EXPONENTS = np.geomspace(0.05, 1.2, 10)
"""Start of variable projection; covers all published exponents."""
STARTS_KEPT = 8
"""The most promising starts that are polished; on published runs all of them reach one minimum."""
PLAUSIBLE_EXPONENTS = (0.0, 2.0)
"""Outside of these the loss grows with scale, or falls faster than any published curve by a factor of four."""
VANISHED = 1e-6
"""A term below this share of the loss has vanished: its coefficient went to its bound 0 (reruns differ by .0005)."""
SPREAD_NEEDED = 0.05
"""Assumption: ln D must leave the line in ln N by this share of its own spread before N and D can be told apart."""


@dataclass(frozen=True, kw_only=True)
class SumOfPowers(LossLaw):
    """L = E + sum_j A_j / x_j^alpha_j; subclasses name the terms."""

    name: str = ""
    formula: str = ""
    source: str = ""
    scope: str = "loss of well-tuned runs; where a cell holds a sweep, its best run is used"
    terms: tuple[tuple[Variable, str, str], ...] = ()
    """(variable, name of the coefficient, name of the exponent) for each term."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """E, the coefficients, the exponents."""
        return ("E", *(term[1] for term in self.terms), *(term[2] for term in self.terms))

    def predict_loss(self, values: FloatArray, target: Target) -> FloatArray:
        """Loss of the target for each row of parameter values (draws, parameters)."""
        scales = {"params": target.params_non_embedding, "tokens": target.tokens, "compute": target.compute}
        loss = np.array(values[:, 0])
        for j, (variable, _, _) in enumerate(self.terms):
            loss += values[:, 1 + j] * scales[variable] ** -values[:, 1 + len(self.terms) + j]
        return loss

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits the tuned runs; the status says whether the scales sufficed."""
        started = time.perf_counter()
        if observations.diverged.all():
            nothing = (Status.TOO_FEW_SCALES, f"{self.name}: every run diverged")
            return self._unfitted(observations, options, nothing, time.perf_counter() - started)
        tuned = keep_tuned(observations)
        problem = self._refuse(tuned)
        if problem is not None:
            return self._unfitted(tuned, options, problem, time.perf_counter() - started)
        cells, hidden = average_repeats(tuned)
        task = _Task.of(self, cells, options)
        return task.finish(started, Evidence.of(tuned, tuned.excluded), float(hidden.mean()))

    def _refuse(self, tuned: Observations) -> tuple[Status, str] | None:
        """Why these runs cannot hold this law, if they cannot."""
        for variable, _, _ in self.terms:
            levels = count_levels(_scale(tuned, variable))
            if levels < 3:
                return Status.TOO_FEW_SCALES, f"{self.name} needs >= 3 {_LEVEL_NAMES[variable]} (have {levels})"
        cells, needed = len(tuned.cells()), 2 * len(self.terms) + (1 if len(self.terms) == 1 else 2)
        if cells < needed:
            return Status.TOO_FEW_SCALES, f"{self.name} needs >= {needed} cells of distinct (N, D) (have {cells})"
        if self.name in _OTHER and find_horizon_path(tuned.params_non_embedding, tuned.tokens) is None:
            other = _OTHER[self.name]
            if count_levels(_scale(tuned, other)) > 1:
                return Status.NOT_IDENTIFIED, (
                    f"{self.name} sees one scale, and the {_LEVEL_NAMES[other]} of these runs vary on their own: fit "
                    f"chinchilla, or select one of the {_LEVEL_NAMES[other]}"
                )
        if len(self.terms) == 2 and not _spans_plane(tuned):
            return Status.NOT_IDENTIFIED, (
                f"{self.name} cannot tell N from D: tokens moved in step with parameters. Add horizons at one size, "
                "or fit power_law_compute along this path"
            )
        return None

    def _unfitted(self, tuned: Observations, options: FitOptions, problem: tuple[Status, str], seconds: float) -> Fit:
        status, message = problem
        evidence = Evidence.of(tuned, tuned.excluded)
        unknown = {name: Estimate(np.nan) for name in self.parameter_names}
        draws = np.full((0, len(unknown)), np.nan)
        return Fit(
            self.name, self.formula, unknown, draws, "none", np.nan, status, f"{status.value}: {message}", np.nan,
            np.nan, evidence, seconds, options.level, dict(tuned.scope),
        )  # fmt: skip


@dataclass(frozen=True)
class PowerLaw(SumOfPowers):
    """L = E + A / x^alpha in one scale: params, tokens or compute."""

    variable: Variable = "params"
    source: str = "Hestness et al. 2017; Kaplan et al. 2020; with a floor as in Henighan et al. 2020"
    terms: tuple[tuple[Variable, str, str], ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Names the law after its variable."""
        if self.variable not in _SYMBOLS:
            raise ValueError(f"PowerLaw variable must be one of {', '.join(_SYMBOLS)}; got {self.variable!r}")
        object.__setattr__(self, "name", f"power_law_{self.variable}")
        object.__setattr__(self, "formula", f"L = E + A / {_SYMBOLS[self.variable]}^alpha")
        object.__setattr__(self, "terms", ((self.variable, "A", "alpha"),))


@dataclass(frozen=True)
class Chinchilla(SumOfPowers):
    """L = E + A / N^alpha + B / D^beta."""

    name: str = "chinchilla"
    formula: str = "L = E + A / N^alpha + B / D^beta"
    source: str = "Hoffmann et al. 2022, equation 2; objective as in Besiroglu et al. 2024"
    terms: tuple[tuple[Variable, str, str], ...] = (("params", "A", "alpha"), ("tokens", "B", "beta"))


_SYMBOLS: Mapping[str, str] = {"params": "N", "tokens": "D", "compute": "C"}
_OTHER: Mapping[str, Variable] = {"power_law_params": "tokens", "power_law_tokens": "params"}
_LEVEL_NAMES: Mapping[str, str] = {"params": "sizes", "tokens": "horizons", "compute": "compute budgets"}


def keep_tuned(observations: Observations) -> Observations:
    """The runs that a law of the loss may see: finite losses, and of a cell's sweep only the best run.

    A cell is swept when its runs differ in learning rate or batch; repeats of the best setting are all kept.
    """
    finite = observations.select(~observations.diverged, "diverged (the loss is not finite)")
    keep = np.ones(len(finite), dtype=bool)
    for rows in finite.cells():
        settings = _settings(finite, rows)
        if settings is not None and len(np.unique(settings, axis=0)) > 1:
            best = settings[np.argmin(finite.loss[rows])]
            keep[rows] = (settings == best).all(axis=1)
    return finite.select(keep, "not the best setting of a swept cell")


def _settings(observations: Observations, rows: np.ndarray) -> FloatArray | None:
    columns = [values[rows] for values in (observations.peak_lr, observations.batch_tokens) if values is not None]
    return np.stack(columns, axis=1) if columns else None


CELLS_PER_TERM = 20
"""Assumption: from 20 cells per power term on, resampled runs speak for themselves and no prior is needed."""


def choose_objective(cells: int, terms: int) -> str:
    """`huber` where there are `CELLS_PER_TERM` distinct cells for each power term, else `map`."""
    return "huber" if cells >= CELLS_PER_TERM * terms else "map"


def _scale(observations: Observations, variable: Variable) -> FloatArray:
    if variable == "compute":
        return observations.compute
    return observations.params_non_embedding if variable == "params" else observations.tokens


def _spans_plane(tuned: Observations) -> bool:
    x, y = np.log(tuned.params_non_embedding), np.log(tuned.tokens)
    correlation = np.corrcoef(x, y)[0, 1]
    return bool(np.sqrt(max(1 - correlation**2, 0)) >= SPREAD_NEEDED)


@dataclass(frozen=True, eq=False)
class _Task:
    """One law on the means of tuned cells, in logs."""

    law: SumOfPowers
    cells: Observations
    options: FitOptions
    kind: str
    u: FloatArray
    centre: FloatArray
    y: FloatArray
    w: FloatArray

    @classmethod
    def of(cls, law: SumOfPowers, cells: Observations, options: FitOptions) -> _Task:
        logs = np.log(np.stack([_scale(cells, term[0]) for term in law.terms], axis=1))
        kind = options.objective
        if kind == "auto":
            kind = choose_objective(len(cells.cells()), len(law.terms))
        return cls(law, cells, options, kind, logs - logs.mean(axis=0), logs.mean(axis=0), np.log(cells.loss),
                   _weights(cells, kind))  # fmt: skip

    def finish(self, started: float, evidence: Evidence, hidden: float) -> Fit:
        """The Fit; `hidden` is the variance of ln loss that the means of repeats lack and a single run has."""
        objective, best, noise_dof = self._solve()
        draws, converged = self._draw(objective, best, noise_dof)
        values = self._natural(best.t)[0]
        status, message = self._judge(values, best, converged)
        residuals = predict_log(best.t, self.u)[0] - self.y
        scatter = self._scatter(objective, residuals)
        drift, _ = estimate_drift(self.cells.compute, scatter, self._backcast)
        names, level = self.law.parameter_names, self.options.level
        parameters = {
            name: Estimate.from_draws(draws[:, i], level, value=values[i], unit="nats" if name == "E" else "")
            for i, name in enumerate(names)
        }
        return Fit(
            law=self.law.name, formula=self.law.formula, parameters=parameters, draws=draws,
            objective=self._describe(objective), objective_value=float(best.value[0]), status=status, message=message,
            rmse_log=float(np.sqrt(np.mean(residuals**2))), scatter_log=float(np.hypot(scatter, np.sqrt(hidden))),
            drift_log_per_efold=drift,
            evidence=evidence, seconds=time.perf_counter() - started, level=level, scope=dict(self.cells.scope),
            warnings=self._warn(),
        )  # fmt: skip

    def _problems(self, y: FloatArray, w: FloatArray, prior_mean: FloatArray | None = None) -> Problems:
        if prior_mean is None:
            prior_mean = np.full((len(y), len(self.law.terms)), np.log(PRIOR_EXPONENT))
        return Problems(self.u, y, w, prior_mean)

    def _best(self, objective: Objective) -> Minima:
        """The best of several starts, found by variable projection; deterministic."""
        starts = project_starts(self.u, self.y, self.w, START_EXPONENTS)
        shape = (len(starts), len(self.y))
        everywhere = self._problems(np.broadcast_to(self.y, shape), np.broadcast_to(self.w, shape))
        order = np.argsort(evaluate(starts, everywhere, objective), kind="stable")[:STARTS_KEPT]
        found = minimise(starts[order], everywhere.take(slice(0, len(order))), objective)
        winner = [int(np.argmin(found.value))]
        return Minima(found.t[winner], found.value[winner], found.converged[winner])

    def _solve(self) -> tuple[Objective, Minima, float]:
        """The point fit; with priors on, the noise is estimated from the residuals and its own prior."""
        if self.kind == "huber":
            objective = Objective(self.options.huber_delta)
            return objective, self._best(objective), np.inf
        noise, dof = PRIOR_NOISE_LOG, PRIOR_NOISE_DOF
        for _ in range(3):
            objective = Objective(WIDE_HUBER * noise, noise, PRIOR_EXPONENT_SD)
            best = self._best(objective)
            squares = float((self.w * (predict_log(best.t, self.u)[0] - self.y) ** 2).sum())
            spare = len(self.y) - 1 - len(self.law.terms)
            variance, dof = pool_variance(PRIOR_NOISE_LOG, PRIOR_NOISE_DOF, squares, spare)
            noise = float(np.sqrt(variance))
        return objective, best, dof

    def _draw(self, objective: Objective, best: Minima, dof: float) -> tuple[FloatArray, float]:
        """Draws in natural units, and the share of them that converged."""
        rng, count, cells = np.random.default_rng(self.options.seed), self.options.bootstrap, len(self.y)
        y, w = np.broadcast_to(self.y, (count, cells)), np.broadcast_to(self.w, (count, cells))
        means = None
        if self.kind == "huber":
            w = w * resample_weights(cells, count, rng)
        else:
            noise = np.sqrt(draw_variances(objective.noise_log**2, dof, count, rng))
            y = y + noise[:, None] * rng.standard_normal((count, cells)) / np.sqrt(self.w)
            means = rng.normal(np.log(PRIOR_EXPONENT), PRIOR_EXPONENT_SD, (count, len(self.law.terms)))
        found = minimise(np.repeat(best.t, count, axis=0), self._problems(y, w, means), objective)
        return self._natural(found.t), float(found.converged.mean())

    def _natural(self, t: FloatArray) -> FloatArray:
        """Coefficients of the centred logs, (B, P), in natural units: E, A_j, alpha_j."""
        terms = self.u.shape[1]
        exponents = t[:, 1 + terms :]
        return np.concatenate([np.exp(t[:, :1]), np.exp(t[:, 1 : 1 + terms] + exponents * self.centre), exponents], 1)

    def _judge(self, values: FloatArray, best: Minima, share: float) -> tuple[Status, str]:
        low, high = PLAUSIBLE_EXPONENTS
        exponents = values[1 + self.u.shape[1] :]
        if not best.converged[0] or share < 0.95:
            return Status.NOT_CONVERGED, f"{Status.NOT_CONVERGED.value}: {100 * share:.0f} % of the draws converged"
        if not ((exponents > low) & (exponents < high)).all():
            listed = ", ".join(f"{value:.3g}" for value in exponents)
            return Status.IMPLAUSIBLE, f"{Status.IMPLAUSIBLE.value} (exponents {listed}; expected {low:g} to {high:g})"
        shares = np.exp(best.t[0, 1 : 1 + self.u.shape[1]] - self.y.mean())
        gone = [name for (_, name, _), share in zip(self.law.terms, shares, strict=True) if share < VANISHED]
        if gone:
            listed = ", ".join(gone)
            return Status.BOUND_HIT, f"{Status.BOUND_HIT.value} ({listed} = 0: the loss does not fall with that scale)"
        return Status.CONVERGED, Status.CONVERGED.value

    def _warn(self) -> tuple[str, ...]:
        if self.law.name != "power_law_compute":
            return ()
        return ("power_law_compute holds for targets that split compute between N and D as these runs do",)

    def _scatter(self, objective: Objective, residuals: FloatArray) -> float:
        """Scatter of a cell's mean: the estimated noise, or what puts 90 % of the residuals within 1.645 of it."""
        if self.kind == "map":
            return objective.noise_log
        spare = max(len(residuals) - 1 - 2 * self.u.shape[1], 1)
        return float(np.quantile(np.abs(residuals), 0.9) / 1.645 * np.sqrt(len(residuals) / spare))

    def _backcast(self, train: BoolArray) -> FloatArray | None:
        """Errors of ln loss of the later cells, from a fit of the earlier ones."""
        earlier = self.cells.rows(np.flatnonzero(train))
        if self.law._refuse(earlier) is not None:
            return None
        task = _Task.of(self.law, earlier, self.options)
        _, best, _ = task._solve()
        later = self.u[~train] + self.centre - task.centre
        return np.asarray(predict_log(best.t, later)[0] - self.y[~train])

    def _describe(self, objective: Objective) -> str:
        if self.kind == "huber":
            return f"sum of Huber penalties of ln loss, delta {objective.huber_delta:g}; intervals from resampled cells"
        return (
            f"posterior mode: noise of ln loss {objective.noise_log:.2g}, priors ln exponent ~ normal(ln "
            f"{PRIOR_EXPONENT:g}, {PRIOR_EXPONENT_SD:g}) and E >= 0; intervals from perturbed data and priors"
        )


def _weights(cells: Observations, kind: str) -> FloatArray:
    """Equal weights, or less for a cell whose known standard error exceeds the expected misfit."""
    if cells.loss_se_log is None or kind == "huber":
        return np.ones(len(cells))
    return np.asarray(PRIOR_NOISE_LOG**2 / (PRIOR_NOISE_LOG**2 + cells.loss_se_log**2))
