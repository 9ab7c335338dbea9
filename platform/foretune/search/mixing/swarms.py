"""A swarm of runs that exists already: which mixture do its losses recommend, at the size and horizon of its runs?

The strategy `mixture` decides which runs to make; here they are made, by whomever, and only the answer is asked for.
It is scalelaws' own (`scalelaws.mixtures`): a fit of every loss over the shares, and the mixture of the lowest expected
weighted mean of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from foretune.errors import InputError
from foretune.evidence import MIXTURE, gather_observations
from foretune.quantities import format_count
from scalelaws import (
    BestMixture,
    DomainFits,
    Estimate,
    Exclusion,
    FitError,
    Observations,
    find_best_mixture,
    fit_domains,
    get_law,
)
from scalelaws.laws.mixture import MixtureLaw
from scalelaws.mixtures.domains import FittedLaw
from scalelaws.mixtures.optimum import bound_shares, order_shares
from scalelaws.observations import MIXTURE_PREFIX

if TYPE_CHECKING:
    import pandas as pd

LOSS_PREFIX = "loss/"
DECIMALS = 4
"""Of shares in a table: a ten-thousandth of the tokens counts as none (`scalelaws.mixtures.process`, ABSENT_SHARE)."""
Regression = Literal["process", "log_linear_mixture", "diminishing_mixture"]
REGRESSIONS: tuple[Regression, ...] = get_args(Regression)
"""What may be fitted to runs of one size and horizon; the first is the most accurate on RegMix's runs
(docs/choosing-a-law.md)."""


@dataclass(frozen=True, eq=False)
class Swarm:
    """Runs of one size and horizon with their mixtures and losses."""

    frame: pd.DataFrame
    """run_id, mix/DOMAIN (0 where a run had none of it) and loss/NAME, a row for each completed run that has all."""
    losses: Mapping[str, Observations]
    """By name; a diverged run counts for none."""
    excluded: tuple[Exclusion, ...]
    """Runs that were left out."""


@dataclass(frozen=True, eq=False)
class SwarmAnswer:
    """The recommended mixture, and what it rests on."""

    best: BestMixture
    fits: DomainFits
    law: Regression
    loss_unit: str
    runs: int
    params: float
    """Parameters of the proxies, as the runs count them."""
    tokens: float
    """Training tokens of the proxies."""
    excluded: tuple[Exclusion, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; parameters of the laws with their intervals."""
        fitted = {name: item for name, item in self.fits.fitted.items() if isinstance(item, FittedLaw)}
        return {
            **self.best.to_dict(),
            "law": self.law,
            "loss_unit": self.loss_unit,
            "runs": self.runs,
            "params": self.params,
            "tokens": self.tokens,
            "scatter_log": {name: item.scatter_log for name, item in self.fits.fitted.items()},
            "fits": {name: item.fit.to_dict() for name, item in fitted.items()},
            "excluded": [{"reason": item.reason, "runs": item.runs} for item in self.excluded],
        }

    def list_shares(self) -> list[dict[str, Any]]:
        """A row for each domain, to DECIMALS decimals."""
        others = {item.name: item.mixture for item in self.best.comparisons}
        return [
            {
                "domain": name,
                "recommended": _shorten(share.value),
                "low": _shorten(share.low),
                "high": _shorten(share.high),
                **{title: _shorten(mixture[name]) for title, mixture in others.items()},
            }
            for name, share in self.best.shares.items()
        ]

    def list_objectives(self) -> list[dict[str, Any]]:
        """The expected objective of a new run on each mixture, and what the recommended one gains on it."""
        rows = [_tell_objective("recommended", self.best.objective)]
        for item in self.best.comparisons:
            row = _tell_objective(item.name, item.objective)
            gain = {"gain": item.gain.value, "gain low": item.gain.low, "gain high": item.gain.high}
            rows.append({**row, **gain, "probability better": item.probability_better})
        return rows

    def list_losses(self) -> list[dict[str, Any]]:
        """What was fitted, its weight in the objective, and how far runs scatter around the fit."""
        weights = self.best.weights
        return [
            {"loss": name, "weight": weights.get(name, 0.0), "scatter, %": 100 * fit.scatter_log}
            for name, fit in self.fits.fitted.items()
        ]


def gather_swarm(
    frame: pd.DataFrame, *, scale: str = "", parametrization: str = "", pool: Collection[str] = ()
) -> Swarm:
    """The runs of a run table that tell of mixtures, at one size and horizon.

    Where no run has losses by domain, its own loss is the only one. Raises InputError where nothing is left, and where
    the runs are of several sizes or horizons and `scale` does not choose.
    """
    frame = _choose_scale(frame, scale)
    names = [str(name) for name in frame if str(name).startswith(LOSS_PREFIX) and frame[name].notna().any()]
    if not names:
        frame, names = frame.assign(**{f"{LOSS_PREFIX}loss": frame["loss"]}), [f"{LOSS_PREFIX}loss"]
    shares = [str(name) for name in frame if str(name).startswith(MIXTURE_PREFIX) and frame[name].notna().any()]
    if len(shares) < 2:
        raise InputError(f"the runs have no mixtures: a column {MIXTURE_PREFIX}DOMAIN each for two domains or more")
    frame, excluded = _drop_gaps(frame, shares, names)
    frame = frame.assign(**{name: frame[name].fillna(0.0) for name in shares})
    pooled = {MIXTURE, *pool}
    runs = {
        name: gather_observations(frame.assign(loss=frame[name]), parametrization=parametrization, pool=pooled)
        for name in names
    }
    first = runs[names[0]]
    _check_cells(first)
    kept = frame[frame["run_id"].isin(first.label or ()) & frame[names].notna().all(axis=1)]
    if diverged := int(first.diverged.sum()):
        excluded = (*excluded, Exclusion("diverged, so that they have no loss", diverged))
    losses = {name.removeprefix(LOSS_PREFIX): item for name, item in runs.items()}
    return Swarm(kept[["run_id", *shares, *names]], losses, (*excluded, *first.excluded))


def recommend_from_swarm(
    swarm: Swarm,
    *,
    law: Regression = "process",
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    **bounds: Any,
) -> SwarmAnswer:
    """The mixture of the lowest expected weighted mean of the losses; losses without a weight are not fitted.

    `bounds` are those of `scalelaws.find_best_mixture`. Raises InputError where a law cannot be fitted, and before any
    fit where weights or bounds leave nothing to choose.
    """
    _check_weights(swarm, weights)
    _check_bounds(swarm, **bounds)
    used = {name: runs for name, runs in swarm.losses.items() if weights is None or weights.get(name)}
    try:
        fits = fit_domains(_find_law(law), used, seed=seed)
        best = find_best_mixture(fits, weights=weights, seed=seed, **bounds)
    except (FitError, ValueError) as error:
        raise InputError(str(error)) from None
    runs = next(iter(used.values()))
    return SwarmAnswer(
        best, fits, law, runs.loss_unit, len(swarm.frame), float(runs.params_non_embedding[0]), float(runs.tokens[0]),
        swarm.excluded,
    )  # fmt: skip


def _check_weights(swarm: Swarm, weights: Mapping[str, float] | None) -> None:
    if weights is None:
        return
    unknown = sorted(set(weights) - set(swarm.losses))
    if unknown:
        raise InputError(f"--objective {unknown[0]}: no such loss; the runs have {', '.join(swarm.losses)}")
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise InputError(f"--objective: weights must be >= 0, one at least above 0, got {dict(weights)}")


def _check_bounds(swarm: Swarm, *, natural: Mapping[str, float] | None = None, **bounds: Any) -> None:
    """Refuse bounds that leave no mixture, and a natural one that is none: a fit takes minutes."""
    shares = {str(name): swarm.frame[name] for name in swarm.frame if str(name).startswith(MIXTURE_PREFIX)}
    domains = tuple(name.removeprefix(MIXTURE_PREFIX) for name in shares)
    try:
        bound_shares(domains, np.array([(column > 0).any() for column in shares.values()]), **bounds)
    except ValueError as error:
        raise InputError(str(error)) from None
    try:
        order_shares(domains, natural or {domains[0]: 1.0})
    except ValueError as error:
        raise InputError(f"--natural: {error}") from None


def _find_law(name: Regression) -> MixtureLaw | str:
    law = get_law(name) if name != "process" else name
    assert isinstance(law, MixtureLaw | str)
    return law


def _choose_scale(frame: pd.DataFrame, scale: str) -> pd.DataFrame:
    if not scale:
        return frame
    chosen = frame[frame["scale"] == scale]
    if chosen.empty:
        known = ", ".join(str(name) for name in frame["scale"].unique() if name)
        raise InputError(f"--scale {scale}: no runs of it; {f'there are {known}' if known else 'no run names a scale'}")
    return chosen


def _drop_gaps(frame: pd.DataFrame, shares: list[str], names: list[str]) -> tuple[pd.DataFrame, tuple[Exclusion, ...]]:
    """Without runs that have no mixture, or only some of the losses."""
    unmixed = frame[shares].isna().all(axis=1)
    patchy = ~unmixed & frame[names].isna().any(axis=1) & frame["status"].eq("completed")
    reasons = (("without a mixture", unmixed), ("completed without some of the losses", patchy))
    excluded = tuple(Exclusion(reason, int(mask.sum())) for reason, mask in reasons if mask.any())
    kept = frame[~unmixed & ~patchy]
    if kept.empty:
        raise InputError(f"no runs to fit: {'; '.join(f'{item.runs} {item.reason}' for item in excluded)}")
    return kept, excluded


def _check_cells(runs: Observations) -> None:
    cells = runs.cells()
    if len(cells) < 2:
        return
    told = [
        f"{format_count(int(runs.params_non_embedding[rows[0]]))} on {format_count(int(runs.tokens[rows[0]]))} tokens "
        f"({len(rows)} runs)"
        for rows in cells
    ]
    raise InputError(
        f"the runs are of {len(cells)} sizes or horizons, and losses of several do not compare: {', '.join(told)}; "
        "choose one by --scale NAME (a file's column is read as the scale with --map COLUMN=scale)"
    )


def _tell_objective(name: str, objective: Estimate) -> dict[str, Any]:
    told = {"mixture": name, "objective": objective.value, "low": objective.low, "high": objective.high}
    return {**told, **dict.fromkeys(("gain", "gain low", "gain high", "probability better"))}


def _shorten(share: float | None) -> float | None:
    return None if share is None else round(share, DECIMALS)
