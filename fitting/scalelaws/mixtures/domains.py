"""Fits of every validation loss over the mixtures that were tried, and what they say of a weighted mean of the losses.

    fits = fit_domains("process", read_domains(frame, {"pile_cc": "loss_pile_cc", "github": "loss_github"}))

The optimum is found by `optimal_mixture.find_best_mixture`.

Legend: S draws, m mixtures, d training domains, V validation losses
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scalelaws.estimation import fit
from scalelaws.laws.mixture import BiMix, MixtureLaw
from scalelaws.mixtures.process import fit_process
from scalelaws.observations import MIXTURE_PREFIX, FloatArray, ObservationError, Observations
from scalelaws.results import Fit, FitError, Target

if TYPE_CHECKING:
    import pandas as pd

ID_COLUMNS = ("run", "run_id")


class FittedMixture(Protocol):
    """A fitted law, or process, of one validation loss."""

    @property
    def scatter_log(self) -> float:
        """Standard deviation of a run around the fit, in ln loss."""

    @property
    def drift_log(self) -> float:
        """Standard deviation by which ln loss leaves the fit at the size and horizon asked for, all mixtures alike."""

    def draw(self, shares: FloatArray, rows: slice = slice(None)) -> tuple[FloatArray, FloatArray]:
        """ln loss (S, m) of mixtures (m, d) under the draws `rows`, and its derivatives by the shares (S, m, d)."""


@dataclass(frozen=True, eq=False)
class FittedLaw:
    """A mixture law with the draws of its fit, for one size and horizon."""

    law: MixtureLaw
    """Bound to the domains of the runs."""
    fit: Fit
    domains: tuple[str, ...]
    target: Target | None

    @property
    def scatter_log(self) -> float:
        """Standard deviation of a run around the law, in ln loss."""
        return self.fit.scatter_log

    @property
    def drift_log(self) -> float:
        """Drift beyond the largest run; 0 for laws of one size and horizon."""
        if self.law.one_scale or self.target is None:
            return 0.0
        reach = max(float(np.log(self.fit.evidence.compare_compute(self.target))), 0.0)
        return self.fit.drift_log_per_efold * reach

    def draw(self, shares: FloatArray, rows: slice = slice(None)) -> tuple[FloatArray, FloatArray]:
        """ln loss of mixtures and its derivatives by the shares; 0 for domains that the law does not read."""
        columns = {MIXTURE_PREFIX + name: shares[:, j] for j, name in enumerate(self.domains)}
        for name in self.law.needs:
            if name != "mixture" and self.target is not None:
                columns[name] = np.full(len(shares), float(getattr(self.target, name)))
        values = self.fit.draws[rows]
        slopes = np.zeros((len(values), *shares.shape))
        slopes[:, :, [self.domains.index(name) for name in self.law.domains]] = self.law.differentiate(values, columns)
        return self.law.evaluate(values, columns)[0], slopes


@dataclass(frozen=True, eq=False)
class DomainFits:
    """One fit per validation loss, over the same training domains."""

    domains: tuple[str, ...]
    """The training domains, in the order of the columns of `shares`."""
    fitted: Mapping[str, FittedMixture]
    """By validation loss."""
    runs: Mapping[str, Observations]
    """What each was fitted to."""

    @property
    def shares(self) -> FloatArray:
        """(n, d) the distinct mixtures that were tried for every loss."""
        tried = [stack_shares(runs, self.domains) for runs in self.runs.values()]
        return np.asarray(np.unique(np.round(np.concatenate(tried), 9), axis=0))

    @property
    def draws(self) -> int:
        """Number of draws."""
        return len(next(iter(self.fitted.values())).draw(self.shares[:1])[0])

    def weigh(self, weights: Mapping[str, float] | None) -> dict[str, float]:
        """Weights of the losses, normalised; equal ones by default."""
        given = dict.fromkeys(self.fitted, 1.0) if weights is None else dict(weights)
        unknown = sorted(set(given) - set(self.fitted))
        usable = bool(given) and all(np.isfinite(item) and item >= 0 for item in given.values())
        if unknown or not usable or sum(given.values()) <= 0:
            raise ValueError(f"weights must be >= 0 and name losses among {', '.join(self.fitted)}; got {given}")
        return {name: weight / sum(given.values()) for name, weight in given.items() if weight > 0}

    def draw_objective(
        self, shares: FloatArray, weights: Mapping[str, float] | None = None, rows: slice = slice(None)
    ) -> tuple[FloatArray, FloatArray]:
        """Weighted mean loss (S, m) in the losses' unit, of mixtures (m, d), and its derivatives (S, m, d)."""
        losses, slopes = [], []
        for name, weight in self.weigh(weights).items():
            ln_loss, by_share = self.fitted[name].draw(shares, rows)
            losses.append(weight * np.exp(ln_loss))
            slopes.append(losses[-1][..., None] * by_share)
        return np.sum(losses, axis=0), np.sum(slopes, axis=0)


def read_domains(frame: pd.DataFrame, losses: Mapping[str, str], **options: Any) -> dict[str, Observations]:
    """One table of runs per validation loss: {loss: column}; shares in columns mix/DOMAIN.

    `options` go to Observations.from_frame. A run without one of the losses still counts for the others.
    """
    return {name: Observations.from_frame(frame, loss=column, **options) for name, column in losses.items()}


def read_olmix(
    ratios: str | PathLike[str], metrics: str | PathLike[str], *, params: float, tokens: float
) -> dict[str, Observations]:
    """The two tables that olmix fits (github.com/allenai/olmix, README): shares and metrics, joined on run or run_id.

    `params` and `tokens` are those of the proxies. Losses are in bits per byte. Raises ObservationError where the two
    have no common column, or no common runs.
    """
    import pandas as pd

    left, right = (pd.read_csv(path).drop(columns="name", errors="ignore") for path in (ratios, metrics))
    key = next((name for name in ID_COLUMNS if name in left.columns and name in right.columns), None)
    if key is None:
        raise ObservationError(f"{ratios} and {metrics} must share a column {' or '.join(ID_COLUMNS)}")
    domains, losses = ([str(name) for name in table.columns if name not in ID_COLUMNS] for table in (left, right))
    shares = left.rename(columns={name: MIXTURE_PREFIX + name for name in domains})
    frame = shares.merge(right, on=key, validate="one_to_one").assign(params_non_embedding=params, tokens=tokens)
    if frame.empty:
        raise ObservationError(f"{ratios} and {metrics} have no {key} in common")
    return read_domains(frame, dict(zip(losses, losses, strict=True)), scope={"loss_unit": "bits_per_byte"})


def fit_domains(
    law: MixtureLaw | str,
    runs: Mapping[str, Observations],
    *,
    target: Target | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> DomainFits:
    """Fits a mixture law, or "process" (`mixture_process`: the most accurate at one size), to each validation loss.

    `target` gives size and horizon to laws that read them; a BiMix reads the training domain of the same name as the
    loss. Raises FitError, with the loss in front, when one fit must not be used.
    """
    if not runs:
        raise ObservationError("fit_domains needs the runs of at least one validation loss")
    domains = tuple(sorted(next(iter(runs.values())).mixture))
    fitted = {name: _fit_one(law, name, table, domains, target, bootstrap, seed) for name, table in runs.items()}
    return DomainFits(domains, fitted, dict(runs))


def _fit_one(
    law: MixtureLaw | str, name: str, runs: Observations, domains: tuple[str, ...], target: Target | None, draws: int,
    seed: int,
) -> FittedMixture:  # fmt: skip
    if law == "process":
        finite = runs.select(~runs.diverged, "diverged (the loss is not finite)")
        if len(finite.cells()) > 1:
            raise ObservationError(f"{name}: a process over mixtures holds at one size and horizon; select one")
        return fit_process(stack_shares(finite, domains), finite.loss, draws=draws, seed=seed)
    if isinstance(law, str):
        raise ValueError(f"fit_domains takes a mixture law or 'process'; got {law!r}")
    chosen = replace(law, domain=name) if isinstance(law, BiMix) else law
    scales = [item for item in chosen.needs if item != "mixture"]
    if scales and target is None:
        raise ValueError(f"{chosen.name} needs {' and '.join(scales)} of the run to come: give target=Target(...)")
    try:
        found = fit(chosen, runs, bootstrap=draws, seed=seed)
    except FitError as error:
        raise FitError(error.status, f"{name}: {error.message}", error.partial) from error
    return FittedLaw(chosen.bind(runs.mixture, runs.loss), found, domains, target)


def stack_shares(runs: Observations, domains: tuple[str, ...]) -> FloatArray:
    """Shares (n, d) of the runs in the order of `domains`; raises ObservationError where they have other domains."""
    if tuple(sorted(runs.mixture)) != domains:
        raise ObservationError(f"all losses need the same domains ({', '.join(domains)}); got {sorted(runs.mixture)}")
    return np.stack([runs.mixture[name] for name in domains], axis=1)
