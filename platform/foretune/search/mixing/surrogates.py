"""Regressions of losses on mixtures at one size, behind one interface: log-linear law, boosted trees, process.

Legend: n runs, m mixtures asked for, d domains, k validation losses
    fitted = SURROGATES["log_linear"].fit(shares, losses); mean, sd = fitted.predict(others)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.errors import InputError
from foretune.search.mixing.multifidelity import MixtureSurface, fit_surface
from foretune.search.mixing.problem import Fidelity, MixingProblem, Observed
from foretune.search.mixing.simplex import FloatArray
from scalelaws.engines.nonlinear import Noise, solve
from scalelaws.laws.mixture import LogLinearMixture
from scalelaws.observations import MIXTURE_PREFIX

DRAWS = 200
"""Of the log-linear law's parameters."""
LAW_NOISE = 0.01
"""Scatter around the law in ln loss with which its fit begins."""
TREES, LEARNING_RATE, PATIENCE = 1000, 0.01, 3
"""Most trees, their learning rate, and rounds without gain after which one stops. RegMix, regression notebook."""
FOLDS = 5
"""Folds that the number of trees is found in: RegMix's notebook stops on its test runs."""
BEST_AVERAGED = 128
"""Best candidates that are averaged. RegMix, regression notebook."""


class FittedSurrogate(ABC):
    """What a regression says of new mixtures."""

    @abstractmethod
    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation (m,) of the loss of mixtures (m, d), in the unit of the loss."""


class Surrogate(ABC):
    """A kind of regression."""

    name: str

    @abstractmethod
    def fit(self, shares: FloatArray, losses: FloatArray, noise_sd: float = 0.0) -> FittedSurrogate:
        """Fits losses (n,), finite and > 0, of mixtures (n, d); `noise_sd` over seeds in their unit, 0: unknown."""


@dataclass(frozen=True, eq=False)
class FittedLogLinear(FittedSurrogate):
    """A law with draws of its parameters."""

    law: LogLinearMixture
    values: FloatArray
    """(P,) best."""
    draws: FloatArray
    """(S, P)."""

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The best fit's losses, and the draws' spread."""
        columns = _name_columns(shares)
        best = np.exp(self.law.evaluate(self.values[None], columns)[0][0])
        return best, np.exp(self.law.evaluate(self.draws, columns)[0]).std(axis=0)


class LogLinearSurrogate(Surrogate):
    """The log-linear mixing law (Ye et al. 2024, 2403.16952): few parameters, best from few runs."""

    name = "log_linear"

    def fit(self, shares: FloatArray, losses: FloatArray, noise_sd: float = 0.0) -> FittedLogLinear:
        """By robust least squares in ln loss, with the law's own priors."""
        _check_runs(shares, losses)
        columns = _name_columns(shares)
        law = LogLinearMixture().bind({name.removeprefix(MIXTURE_PREFIX): 0 for name in columns}, losses)
        noise = Noise(noise_sd / float(np.median(losses)) if noise_sd > 0 else LAW_NOISE)
        found = solve(law, columns, np.log(losses), law.starts(columns, losses), noise, draws=DRAWS)
        return FittedLogLinear(law, found.values, found.draws)


@dataclass(frozen=True, eq=False)
class FittedTrees(FittedSurrogate):
    """Boosted trees."""

    booster: Any
    """A lightgbm.Booster."""
    error: float
    """Root mean square error on held-out folds, in the unit of the loss."""

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The trees' losses; their spread is the held-out error, the same for all mixtures."""
        return np.asarray(self.booster.predict(shares, num_threads=1)), np.full(len(shares), self.error)


class TreeSurrogate(Surrogate):
    """LightGBM with RegMix's settings (2407.01492); needs the extra `bench` and about a hundred runs."""

    name = "lightgbm"

    def fit(self, shares: FloatArray, losses: FloatArray, noise_sd: float = 0.0) -> FittedTrees:
        """The number of trees comes from cross-validation; raises InputError where LightGBM is not installed."""
        _check_runs(shares, losses)
        try:
            import lightgbm
        except ImportError as error:
            raise InputError(
                "surrogate 'lightgbm' needs LightGBM, which is not installed; run: pip install 'foretune[bench]', or "
                "use 'log_linear' or 'gp'"
            ) from error
        settings: dict[str, Any] = {
            "objective": "regression",
            "metric": "l2",
            "learning_rate": LEARNING_RATE,
            "seed": 42,
        }
        settings |= {"num_threads": 1, "deterministic": True, "verbose": -1}
        data = lightgbm.Dataset(shares, losses, free_raw_data=False)
        stop: list[Any] = [lightgbm.early_stopping(PATIENCE, verbose=False)]
        folds = min(FOLDS, len(losses))
        scores: Any = lightgbm.cv(settings, data, TREES, nfold=folds, stratified=False, seed=42, callbacks=stop)
        held_out = scores["valid l2-mean"]
        return FittedTrees(lightgbm.train(settings, data, len(held_out)), float(np.sqrt(held_out[-1])))


@dataclass(frozen=True, eq=False)
class FittedProcess(FittedSurrogate):
    """A process at one fidelity."""

    surface: MixtureSurface

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The posterior's losses and their spread."""
        mean, sd = self.surface.predict(shares, np.zeros(len(shares), dtype=np.int64))
        return np.exp(mean), np.exp(mean) * sd


class ProcessSurrogate(Surrogate):
    """The process around a mixing law that searches go by (`multifidelity`)."""

    name = "gp"

    def fit(self, shares: FloatArray, losses: FloatArray, noise_sd: float = 0.0) -> FittedProcess:
        """At one fidelity."""
        _check_runs(shares, losses)
        domains = tuple(f"{j:04d}" for j in range(shares.shape[1]))
        problem = MixingProblem(domains, (Fidelity("only", 1.0, 1.0, 1.0),), noise_sd=noise_sd)
        return FittedProcess(fit_surface(problem, Observed(shares, np.zeros(len(losses), dtype=np.int64), losses)))


SURROGATES: Mapping[str, Surrogate] = {
    item.name: item for item in (ProcessSurrogate(), LogLinearSurrogate(), TreeSurrogate())
}
"""By the name that a study calls them."""


@dataclass(frozen=True, eq=False)
class FittedObjective(FittedSurrogate):
    """A weighted sum of validation losses, each with a regression of its own."""

    parts: tuple[FittedSurrogate, ...]
    weights: FloatArray
    """(k,) of the losses."""

    def predict(self, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The weighted sum, and its spread where the parts err independently."""
        means, spreads = zip(*(part.predict(shares) for part in self.parts), strict=True)
        variance = self.weights**2 @ np.array(spreads) ** 2
        return self.weights @ np.array(means), np.sqrt(variance)


def fit_objective(
    surrogate: Surrogate, shares: FloatArray, losses: FloatArray, weights: FloatArray, noise_sd: float = 0.0
) -> FittedObjective:
    """A regression for each of the losses (n, k) that has a weight (k,) other than 0."""
    used = np.flatnonzero(weights)
    parts = tuple(surrogate.fit(shares, losses[:, j], noise_sd) for j in used)
    return FittedObjective(parts, np.asarray(weights)[used])


def average_best(fitted: FittedSurrogate, candidates: FloatArray, top: int = BEST_AVERAGED) -> FloatArray:
    """RegMix's recommendation (d,): the mean of the candidates (m, d) that are predicted best.

    RegMix draws 100,000 candidates; a mean of few best ones evens out what trees make of single points.
    """
    order = np.argsort(fitted.predict(candidates)[0], kind="stable")
    return np.asarray(candidates[order[:top]].mean(axis=0))


def _check_runs(shares: FloatArray, losses: FloatArray) -> None:
    if len(shares) != len(losses) or not (np.isfinite(losses) & (losses > 0)).all():
        raise InputError(f"a regression over mixtures needs one finite loss > 0 for each mixture; got {losses}")


def _name_columns(shares: FloatArray) -> dict[str, FloatArray]:
    return {f"{MIXTURE_PREFIX}{j:04d}": shares[:, j] for j in range(shares.shape[1])}
