"""Laws of the loss: a floor plus one power law per scale.

Legend: L loss, E floor, N parameters, D tokens, C training FLOPs, A, B coefficients, alpha, beta exponents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from scalelaws.engines.drift import estimate_drift
from scalelaws.engines.powerfits import REWEIGHTINGS, PointFit, PowerFit
from scalelaws.engines.powers import Minima, predict_log
from scalelaws.engines.repeats import average_repeats
from scalelaws.engines.weighting import trim
from scalelaws.laws.base import FitOptions, LossLaw
from scalelaws.observations import BoolArray, FloatArray, Observations, count_levels
from scalelaws.results import Estimate, Evidence, Fit, Status, Target, find_horizon_path

Variable = Literal["params", "tokens", "compute"]

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
        kept = trim(tuned, options.trim_excess)
        problem = self._refuse(kept)
        if problem is not None:
            return self._unfitted(kept, options, problem, time.perf_counter() - started)
        return self._finish(tuned, kept, options, started)

    def pose(self, cells: Observations, options: FitOptions) -> PowerFit:
        """The problem of fitting this law to the means of tuned cells."""
        plane = tuple(term[0] for term in self.terms) == ("params", "tokens")
        return PowerFit.of(cells, [_scale(cells, term[0]) for term in self.terms], options, plane)

    def _finish(self, tuned: Observations, kept: Observations, options: FitOptions, started: float) -> Fit:
        cells, hidden = average_repeats(kept)
        task = self.pose(cells, options)
        point = task.solve()
        draws, converged = task.draw(point)
        values = task.to_natural(point.minima.t)[0]
        status, message = self._judge(values, point.minima, task, converged)
        scatter = task.measure_scatter(point)
        known = np.hypot(scatter, point.scales[1] * point.off)
        drift, _ = estimate_drift(cells.compute, known, lambda train: self._backcast(cells, train, options))
        names, level = self.parameter_names, options.level
        parameters = {
            name: Estimate.from_draws(draws[:, i], level, value=values[i], unit="nats" if name == "E" else "")
            for i, name in enumerate(names)
        }
        residuals = predict_log(point.minima.t, task.u)[0] - task.y
        return Fit(
            law=self.name, formula=self.formula, parameters=parameters, draws=draws,
            objective=task.describe(point) + self._compare_untrimmed(tuned, kept, values, options),
            objective_value=float(point.minima.value[0]), status=status, message=message,
            rmse_log=float(np.sqrt(np.mean(residuals**2))),
            scatter_log=float(np.hypot(scatter, np.sqrt(hidden.mean()))), drift_log_per_efold=drift,
            evidence=Evidence.of(kept, kept.excluded), seconds=time.perf_counter() - started, level=level,
            scope=dict(cells.scope), warnings=self._warn(point),
        )  # fmt: skip

    def _compare_untrimmed(
        self, tuned: Observations, kept: Observations, values: FloatArray, options: FitOptions
    ) -> str:
        """What the loss at the largest run would be without trimming, in words."""
        if len(kept) == len(tuned):
            return ""
        task = self.pose(average_repeats(tuned)[0], options)
        row = int(np.argmax(kept.compute))
        largest = Target(kept.params_non_embedding[row], kept.tokens[row], compute_flops=kept.compute[row])
        both = np.stack([values, task.to_natural(task.solve().minima.t)[0]])
        now, untrimmed = self.predict_loss(both, largest)
        moved = 100 * (untrimmed / now - 1)
        return f"; without trimming {len(tuned) - len(kept)} runs the loss at the largest run would be {moved:+.2g} %"

    def _backcast(self, cells: Observations, train: BoolArray, options: FitOptions) -> FloatArray | None:
        """Errors of ln loss of the later cells, from a fit of the earlier ones."""
        earlier = cells.rows(np.flatnonzero(train))
        if self._refuse(earlier) is not None:
            return None
        task, later = self.pose(earlier, options), self.pose(cells.rows(np.flatnonzero(~train)), options)
        place = later.u + later.centre - task.centre
        return np.asarray(predict_log(task.solve().minima.t, place)[0] - later.y)

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

    def _judge(self, values: FloatArray, best: Minima, task: PowerFit, share: float) -> tuple[Status, str]:
        low, high = PLAUSIBLE_EXPONENTS
        exponents = values[1 + task.terms :]
        if not best.converged[0] or share < 0.95:
            return Status.NOT_CONVERGED, f"{Status.NOT_CONVERGED.value}: {100 * share:.0f} % of the draws converged"
        if not ((exponents > low) & (exponents < high)).all():
            listed = ", ".join(f"{value:.3g}" for value in exponents)
            return Status.IMPLAUSIBLE, f"{Status.IMPLAUSIBLE.value} (exponents {listed}; expected {low:g} to {high:g})"
        shares = np.exp(best.t[0, 1 : 1 + task.terms] - task.y.mean())
        gone = [name for (_, name, _), share in zip(self.terms, shares, strict=True) if share < VANISHED]
        if gone:
            listed = ", ".join(gone)
            return Status.BOUND_HIT, f"{Status.BOUND_HIT.value} ({listed} = 0: the loss does not fall with that scale)"
        return Status.CONVERGED, Status.CONVERGED.value

    def _warn(self, point: PointFit) -> tuple[str, ...]:
        warnings = []
        if self.name == "power_law_compute":
            warnings.append("power_law_compute holds for targets that split compute between N and D as these runs do")
        if point.unsettled:
            warnings.append(
                f"the weights of the runs did not settle: after {REWEIGHTINGS} rounds variances still differ by "
                f"{100 * np.expm1(point.unsettled):.2g} % from what the fit implies; objective='map' gives all runs "
                "the same weight"
            )
        return tuple(warnings)

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


def fit_minima(minima: Observations, options: FitOptions) -> Fit | None:
    """The law of the loss that the minima of swept cells can hold, if any: in N and D, else in the one that varied."""
    candidates: tuple[SumOfPowers, ...] = (Chinchilla(), PowerLaw(variable="params"), PowerLaw(variable="tokens"))
    if find_horizon_path(minima.params_non_embedding, minima.tokens) is None:
        candidates = candidates[:1]
    fits = (law.estimate(minima, replace(options, objective="map")) for law in candidates)
    return next((fit for fit in fits if fit.status.ok), None)


def keep_tuned(observations: Observations, apart: FloatArray | None = None) -> Observations:
    """The runs that a law of the loss may see: finite losses, and of a cell's sweep only the best run.

    A cell is swept when its runs differ in learning rate or batch; repeats of the best setting are all kept. Runs with
    another number in `apart` (n,) are no sweep of each other: their distinct tokens differ, say, or their mixture.
    """
    finite = observations.select(~observations.diverged, "diverged (the loss is not finite)")
    keep = np.ones(len(finite), dtype=bool)
    for rows in finite.cells() if apart is None else _split_cells(finite, apart[~observations.diverged]):
        settings = _settings(finite, rows)
        if settings is not None and len(np.unique(settings, axis=0)) > 1:
            best = settings[np.argmin(finite.loss[rows])]
            keep[rows] = (settings == best).all(axis=1)
    return finite.select(keep, "not the best setting of a swept cell")


def _split_cells(observations: Observations, apart: FloatArray) -> list[np.ndarray]:
    return [rows[apart[rows] == number] for rows in observations.cells() for number in np.unique(apart[rows])]


def _settings(observations: Observations, rows: np.ndarray) -> FloatArray | None:
    columns = [values[rows] for values in (observations.peak_lr, observations.batch_tokens) if values is not None]
    return np.stack(columns, axis=1) if columns else None


def _scale(observations: Observations, variable: Variable) -> FloatArray:
    if variable == "compute":
        return observations.compute
    return observations.params_non_embedding if variable == "params" else observations.tokens


def _spans_plane(tuned: Observations) -> bool:
    x, y = np.log(tuned.params_non_embedding), np.log(tuned.tokens)
    correlation = np.corrcoef(x, y)[0, 1]
    return bool(np.sqrt(max(1 - correlation**2, 0)) >= SPREAD_NEEDED)
