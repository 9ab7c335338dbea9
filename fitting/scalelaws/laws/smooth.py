"""Laws of the loss that are no plain sums of powers: they give formula, exact derivatives and starts; the fit is here.

A new law of this kind is one subclass: `parameters`, `needs`, `evaluate`, `starts`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scalelaws.engines.drift import estimate_drift
from scalelaws.engines.nonlinear import Columns, Noise, Parameter, Solution, Task, find_best, name_undecided, solve
from scalelaws.laws.base import FitOptions, Law, LossLaw
from scalelaws.laws.loss import keep_tuned
from scalelaws.observations import BoolArray, FloatArray, ObservationError, Observations, count_levels
from scalelaws.results import Estimate, Evidence, Fit, Status, Target

EXPECTED_NOISE_LOG = 0.003
"""Expected misfit of ln loss around a law, runs' noise included (an assumption; reruns alone differ by .0005)."""
FEWEST_CONVERGED = 0.95


@dataclass(frozen=True, kw_only=True)
class Smooth(Law[Observations]):
    """A response as a smooth function of a few columns, with priors that are weak and stated."""

    name: str = ""
    formula: str = ""
    scope: str = ""
    source: str = ""
    parameters: tuple[Parameter, ...] = ()
    needs: tuple[str, ...] = ()
    """Columns of the runs (fields, covariates or `compute`) that the formula reads; `mixture` stands for all shares."""
    varied: tuple[str, ...] = ()
    """Columns of which the runs must hold at least three levels."""
    rows_needed: int = 0
    """Fewest runs; the number of parameters plus one where this is smaller."""
    response: str = "ln loss"
    """What is fitted, in words."""

    @abstractmethod
    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """The response (B, n) for each row of parameters (B, P), and its derivatives by them (B, n, P)."""

    @abstractmethod
    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """Where the search begins: (S, P), natural units; from the columns and the losses (or scores)."""

    @abstractmethod
    def measured(self, observations: Observations) -> FloatArray:
        """What was measured of every run, in its own unit: the loss, or the score."""

    @abstractmethod
    def respond(self, observations: Observations) -> FloatArray:
        """The measured responses, in the coordinate that is fitted."""

    @abstractmethod
    def estimate_drift(self, runs: Observations, noise: float, options: FitOptions) -> float:
        """Standard deviation by which the response leaves the law per e-fold of compute beyond the runs."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the columns of the draws."""
        return tuple(item.name for item in self.parameters)

    def weigh(self, observations: Observations) -> FloatArray:
        """Weights of the runs: how much less than the expected noise each of them has, as a ratio of variances."""
        return np.ones(len(observations))

    def expect_noise(self, options: FitOptions) -> Noise:
        """The plain robust penalty where it is asked for; else the noise is estimated."""
        if options.objective == "huber":
            return Noise(EXPECTED_NOISE_LOG, options.huber_delta)
        return Noise(EXPECTED_NOISE_LOG)

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Why these runs cannot hold this law, if they cannot; a law adds its own reasons."""
        for name in self.varied:
            levels = count_levels(observations.column(name))
            if levels < 3:
                return Status.TOO_FEW_SCALES, f"{self.name} needs >= 3 levels of {name} (have {levels})"
        needed = max(self.rows_needed, len(self.parameters) + 1)
        if len(observations) < needed:
            return Status.TOO_FEW_POINTS, f"{self.name} needs >= {needed} runs (have {len(observations)})"
        return None

    def admit(self, observations: Observations) -> Observations:
        """The runs that are fitted, of which one at least is finite; what is left out is recorded."""
        return observations.select(~observations.diverged, "diverged (the loss is not finite)")

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits the runs that `admit` lets in; raises ObservationError where a column is missing or not positive."""
        started = time.perf_counter()
        if observations.diverged.all():
            return self._unfitted(observations, options, (Status.TOO_FEW_POINTS, "every run diverged"), started)
        runs = self.admit(observations)
        problem = self.refuse(runs)
        if problem is not None:
            return self._unfitted(runs, options, problem, started)
        columns, noise = self._read(runs), self.expect_noise(options)
        solution = solve(
            self, columns, self.respond(runs), self.starts(columns, self.measured(runs)), noise,
            weights=self.weigh(runs), groups=self.group(runs), draws=options.bootstrap, seed=options.seed,
        )  # fmt: skip
        return self._finish(runs, options, solution, started)

    def pose(self, observations: Observations, options: FitOptions) -> Task:
        """The problem of fitting this law to runs of which none diverged."""
        columns = self._read(observations)
        return Task(self, columns, self.respond(observations), self.weigh(observations), self.expect_noise(options))

    def group(self, observations: Observations) -> FloatArray:
        """Runs with equal numbers are resampled together: the seeds of one setting err together."""
        columns = [np.round(np.log(np.maximum(values, 1e-300)), 9) for values in self._read(observations).values()]
        return np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)

    def _read(self, observations: Observations) -> dict[str, FloatArray]:
        columns = {name: observations.column(name) for name in self.needs if name != "mixture"}
        for name, values in columns.items():
            if (values <= 0).any():
                row = int(np.argmax(values <= 0))
                raise ObservationError(
                    f"{self.name} needs {name} above 0; row {row} has {values[row]:g}. Mend the column"
                )
        if "mixture" in self.needs:
            if not observations.mixture:
                raise ObservationError(f"{self.name} needs the shares of the mixture; add columns mix/DOMAIN")
            columns |= {f"mix/{name}": values for name, values in observations.mixture.items()}
        return columns

    def _read_target(self, target: Target) -> dict[str, FloatArray]:
        known = {
            "params_non_embedding": target.params_non_embedding, "tokens": target.tokens, "compute": target.compute,
            **target.covariates,
        }  # fmt: skip
        missing = [name for name in self.needs if name not in known and name != "mixture"]
        if missing or ("mixture" in self.needs and not target.mixture):
            lacking = missing[0] if missing else "mixture"
            where = "mixture" if lacking == "mixture" else "covariates"
            raise ValueError(f"{self.name} needs {lacking} of the target; give it in Target({where}={{...}})")
        columns = {name: np.array([known[name]]) for name in self.needs if name != "mixture"}
        return columns | {f"mix/{name}": np.array([share]) for name, share in target.mixture.items()}

    def _finish(self, runs: Observations, options: FitOptions, solution: Solution, started: float) -> Fit:
        status, message = self._judge(solution)
        evidence = Evidence.of(runs, runs.excluded)
        drift = self.estimate_drift(runs, solution.noise, options)
        warnings = name_undecided(solution.undecided(self.parameters), "runs")
        parameters = {
            item.name: Estimate.from_draws(column, options.level, value=float(value), unit=item.unit)
            for item, column, value in zip(self.parameters, solution.draws.T, solution.values, strict=True)
        }
        return Fit(
            law=self.name, formula=self.formula, parameters=parameters, draws=solution.draws,
            objective=f"{describe_noise(self.expect_noise(options), solution.noise, self.response)}; {solution.method}",
            objective_value=solution.cost, status=status, message=message,
            rmse_log=float(np.sqrt(np.mean(solution.residuals**2))), scatter_log=solution.noise, evidence=evidence,
            seconds=time.perf_counter() - started, level=options.level, scope=dict(runs.scope),
            warnings=(*warnings, *self.warn(runs)), drift_log_per_efold=drift,
        )  # fmt: skip

    def warn(self, observations: Observations) -> tuple[str, ...]:
        """Warnings that a law adds for these runs."""
        return ()

    def _judge(self, solution: Solution) -> tuple[Status, str]:
        if not solution.converged or solution.share_converged < FEWEST_CONVERGED:
            share = f"{100 * solution.share_converged:.0f} % of the draws converged"
            return Status.NOT_CONVERGED, f"{Status.NOT_CONVERGED.value}: {share}"
        void = [item.name for item in solution.undecided(self.parameters) if item.needed]
        if void:
            listed = ", ".join(void)
            return Status.NOT_IDENTIFIED, f"{Status.NOT_IDENTIFIED.value} ({listed} rest on the prior alone)"
        return Status.CONVERGED, Status.CONVERGED.value

    def _backcast(self, runs: Observations, train: BoolArray, options: FitOptions) -> FloatArray | None:
        """Errors of the response of the later runs, from a fit of the earlier ones."""
        earlier, later = runs.rows(np.flatnonzero(train)), runs.rows(np.flatnonzero(~train))
        if self.refuse(earlier) is not None:
            return None
        task = self.pose(earlier, options)
        values = find_best(task, self.starts(task.columns, self.measured(earlier)))
        return np.asarray(self.evaluate(values[None], self._read(later))[0][0] - self.respond(later))

    def _unfitted(self, runs: Observations, options: FitOptions, problem: tuple[Status, str], started: float) -> Fit:
        status, message = problem
        unknown = {item.name: Estimate(np.nan, unit=item.unit) for item in self.parameters}
        return Fit(
            self.name, self.formula, unknown, np.full((0, len(unknown)), np.nan), "none", np.nan, status,
            f"{status.value}: {message}", np.nan, np.nan, Evidence.of(runs, runs.excluded),
            time.perf_counter() - started, options.level, dict(runs.scope),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SmoothLaw(Smooth, LossLaw):
    """ln loss as a smooth function of a few columns, with priors that are weak and stated."""

    tuned: ClassVar[bool] = True
    """Whether the law is of tuned runs: of runs that agree in all that it reads and differ in learning rate or batch,
    only the best are fitted. Not for the points of training curves, of which each would come from another run."""

    def admit(self, observations: Observations) -> Observations:
        """The finite runs, and where the law is of tuned runs, of a sweep only the best."""
        return keep_tuned(observations, Smooth.group(self, observations)) if self.tuned else super().admit(observations)

    def predict_loss(self, values: FloatArray, target: Target) -> FloatArray:
        """Loss of the target for each row of parameter values (draws, parameters)."""
        return np.asarray(np.exp(self.evaluate(values, self._read_target(target))[0][:, 0]))

    def measured(self, observations: Observations) -> FloatArray:
        """The losses."""
        return observations.loss

    def respond(self, observations: Observations) -> FloatArray:
        """ln loss."""
        return np.asarray(np.log(observations.loss))

    def estimate_drift(self, runs: Observations, noise: float, options: FitOptions) -> float:
        """Standard deviation by which ln loss leaves the law per e-fold of compute beyond the runs."""
        return estimate_drift(runs.compute, noise, lambda train: self._backcast(runs, train, options))[0]


def describe_noise(noise: Noise, found: float, response: str = "ln loss") -> str:
    """The objective in words."""
    if np.isfinite(noise.huber_delta):
        return f"sum of Huber penalties of {response}, delta {noise.huber_delta:g}, weak priors"
    return f"posterior mode: Huber penalty at three times the noise of {response}, {found:.2g}; weak priors"
