"""The questions: what do the runs say of a large one, and did the forecast hold where it was checked?

Needs neither torch nor ray. Everything that is drawn or printed is computed here or in scalelaws.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

import scalelaws
from foretune.answers import Answer, Branch, Verification, VerificationRun
from foretune.deriving import CorpusFacts, nearest_batch, resolve_horizon
from foretune.errors import InputError
from foretune.evidence import gather_observations, list_parametrizations
from foretune.gates.licences import FITTED, Licence, grant_licence
from foretune.ledger import Ledger
from foretune.records import hash_content
from foretune.resolution import resolve_corpus
from foretune.search import Findings, concludes
from foretune.search.verification import Centre
from foretune.searching import Searching
from foretune.shaping import measure_rung
from foretune.study import Study
from scalelaws import Allocation, Drift, Fit, FitError, Forecast, Observations, Target
from scalelaws.backtesting import HeldOut
from scalelaws.laws import LossLaw, SettingsLaw

if TYPE_CHECKING:
    import pandas as pd

TESTED_LAWS = ("chinchilla", "power_law_compute", "kaplan", "response_surface", "lr_batch", "lr_batch_compute")
"""What a backtest compares unless told otherwise: the laws that need no more than sizes, horizons and settings."""


def answer_study(study: Study, ledger: Ledger) -> Answer:
    """Everything that the ledger says of a study's question."""
    name = study.study.name
    frame = ledger.runs(name)
    if not frame["status"].ne("failed").any():
        raise InputError(f"study {name!r}: no run has finished yet, so there is nothing to answer from")
    target = choose_target(study, frame)
    registered = ledger.forecasts(name)
    nothing: dict[str, Any] = {"scale": "", "branches": {}}
    payload = registered[-1].payload if registered and study.verification else nothing
    gates = ledger.gates(name)
    branches = tuple(_answer_branch(study, frame, gates, branch, target) for branch in list_branches(study, frame))
    return Answer(
        study=name,
        question=study.study.question,
        main=study.proxy.parametrization,
        target=target,
        branches=branches,
        verification=_verify(payload, frame),
        unverified=tuple(
            f"{branch}: {record['problem']}" for branch, record in payload["branches"].items() if not record["centre"]
        ),
        registered_at=str(registered[-1].created_at) if registered and study.verification else "",
        runs=frame,
        diagnoses=ledger.diagnoses(name),
        findings=_conclude(study, ledger),
    )


def _conclude(study: Study, ledger: Ledger) -> Findings | None:
    """What the search found; strategies that only gather runs need no corpus to say nothing."""
    if not concludes(study):
        return None
    return Searching(study, resolve_corpus(study), ledger).conclude()


def predict_target(
    frame: pd.DataFrame,
    target: Target,
    *,
    parametrization: str = "",
    pool: Collection[str] = (),
    seed: int = 0,
    licence: Licence = FITTED,
) -> Forecast:
    """The forecast for a target from a run table; InputError when the runs do not carry it, with the reason."""
    observations = gather_observations(frame, parametrization=parametrization, pool=pool)
    fit = _fit(licence.law or choose_settings_law(observations), observations, seed)
    return licence.mark(scalelaws.forecast(fit, target))


def choose_settings_law(observations: Observations) -> str:
    """The joint surface where the batch was searched, else the two-stage law of the learning rate.

    Of the two, benchmarks/fitting/learning_rates prefers the first where it has batches to learn from; where only the
    learning rate was swept both do equally well, and the second says more of each cell.
    """
    batches = observations.batch_tokens
    searched = batches is not None and any(len(np.unique(batches[rows])) >= 3 for rows in observations.cells())
    return "response_surface" if searched else "lr_batch"


def fit_runs(
    frame: pd.DataFrame, law: str, *, parametrization: str = "", pool: Collection[str] = (), seed: int = 0
) -> Fit:
    """Fit one law to a run table; the error of a refused fit says what is missing."""
    return _fit(law, gather_observations(frame, parametrization=parametrization, pool=pool), seed)


def _fit(law: str, observations: Observations, seed: int) -> Fit:
    try:
        return scalelaws.fit(law, observations, seed=seed)
    except (FitError, ValueError, TypeError) as error:
        raise InputError(str(error)) from None


def allocate_compute(
    frame: pd.DataFrame, flops: float, *, parametrization: str = "", pool: Collection[str] = (), seed: int = 0
) -> Allocation:
    """The compute-optimal parameters and tokens; `law` of the answer says which procedure gave it.

    Where the runs hold isoFLOP curves it is the mean of Hoffmann's approaches 2 and 3 (benchmarks/fitting/allocation),
    else the law of the loss in N and D alone.
    """
    observations = gather_observations(frame, parametrization=parametrization, pool=pool)
    fit = _fit("chinchilla", observations, seed)
    try:
        approaches = scalelaws.compare_approaches(observations, seed=seed)
        return approaches.allocate(flops, fit) if approaches.holds_profiles else scalelaws.allocate(fit, flops)
    except ValueError as error:
        raise InputError(f"--flops: {error}") from None


def backtest_runs(
    frame: pd.DataFrame,
    laws: Collection[str] = (),
    *,
    parametrization: str = "",
    pool: Collection[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """How forecasts of the larger runs from the smaller ones would have gone: cells, summary and ranking by law.

    Laws of the loss are scored by the loss of each cell's tuned run, laws of settings by the regret of their
    recommendation on the cell's own sweep. Raises InputError for a law that does not exist.
    """
    observations = gather_observations(frame, parametrization=parametrization, pool=pool)
    try:
        chosen = [scalelaws.get_law(name) for name in laws or TESTED_LAWS]
    except ValueError as error:
        raise InputError(f"--law: {error}") from None
    record: dict[str, Any] = {"cells": [], "summary": [], "ranking": {}, "unfitted": []}
    kinds: tuple[tuple[HeldOut, type[scalelaws.Law[Any]]], ...] = (("loss", LossLaw), ("settings", SettingsLaw))
    for held_out, kind in kinds:
        tested = [law for law in chosen if isinstance(law, kind)]
        if not tested or (held_out == "settings" and observations.peak_lr is None):
            continue
        try:
            found = scalelaws.backtest(observations, tested, held_out=held_out, seed=seed).to_dict()
        except ValueError as error:
            raise InputError(str(error)) from None
        for key in ("cells", "summary"):
            record[key] += [{"held_out": held_out, **row} for row in found[key]]
        record["unfitted"] += found["unfitted"]
        record["ranking"][held_out] = found["ranking"]
    return record


def compare_published(target: Target) -> list[dict[str, Any]]:
    """What each published law that the target tells enough for says of it, with the reach beyond its runs."""
    rows = []
    for name, law in scalelaws.PUBLISHED.items():
        if law.lacks(target):
            continue
        forecast = scalelaws.forecast(law, target)
        reach = [value for value in forecast.extrapolation.values() if value is not None]
        rows.append(
            {
                "law": name,
                "peak_lr": forecast.peak_lr.value if forecast.peak_lr else None,
                "batch_tokens": forecast.batch_tokens.value if forecast.batch_tokens else None,
                "loss": forecast.loss.value if forecast.loss else None,
                "schedule": law.schedule,
                "beyond_its_runs": f"{max(reach):.3g} x" if reach and max(reach) > 1 else "-" if reach else "unknown",
            }
        )
    return rows


def list_branches(study: Study, frame: pd.DataFrame) -> list[str]:
    """The parametrizations that were searched, the main one first; they are never fitted together."""
    found = list_parametrizations(frame)
    return sorted(found, key=lambda name: (name != study.proxy.parametrization, found.index(name)))


def choose_target(study: Study, frame: pd.DataFrame) -> Target:
    """The study's `[target]`; without one, the rung that verifies the forecast, else the largest rung that was run."""
    if study.target:
        seq_len = study.target.seq_len or study.data.seq_len
        return Target(float(study.target.params), float(study.target.tokens_resolved), seq_len)
    rung = frame[frame["scale"] == study.verification.scale] if study.verification else frame
    if study.verification and rung.empty:
        return _rung_target(study)
    largest = rung.sort_values("compute_flops").iloc[-1]
    return Target(
        float(largest["params_non_embedding"]),
        float(largest["tokens"]),
        int(largest["seq_len"]),
        float(largest["compute_flops"]),
    )


def register_forecasts(study: Study, ledger: Ledger) -> list[Centre]:
    """Freeze the forecast for the verification rung before any of its runs starts, and say where to train.

    The first forecast from the same evidence stands for ever, so a restarted driver trains at the same settings. While
    a gate that the study asks for is missing nothing is frozen and nowhere trained; the answer says which one.
    """
    assert study.verification is not None
    name = study.study.name
    frame = ledger.runs(name)
    frame, gates = frame[frame["role"] == "search"], ledger.gates(name)
    try:
        licences = {branch: grant_licence(study, gates, frame, branch) for branch in list_branches(study, frame)}
    except InputError:
        return []
    target = _rung_target(study)
    payload = {
        "scale": study.verification.scale,
        "target": target.to_dict(),
        "branches": {
            branch: _forecast_branch(study, frame, licence, branch, target) for branch, licence in licences.items()
        },
    }
    registered = ledger.register_forecast(name, _fingerprint(study, frame), payload)
    return [
        Centre(branch, record["centre"]["peak_lr"], record["centre"]["batch_tokens"])
        for branch, record in registered.payload["branches"].items()
        if record["centre"]
    ]


def _forecast_branch(
    study: Study, frame: pd.DataFrame, licence: Licence, branch: str, target: Target
) -> dict[str, Any]:
    try:
        forecast = predict_target(frame, target, parametrization=branch, seed=study.study.seed, licence=licence)
    except InputError as error:
        return {"forecast": None, "centre": None, "problem": str(error)}
    if forecast.peak_lr is None:
        return {"forecast": forecast.to_dict(), "centre": None, "problem": forecast.message}
    batch_tokens = study.training.batch_tokens
    if forecast.batch_tokens is not None:
        batch_tokens = nearest_batch(forecast.batch_tokens.value, study, round(target.tokens))
    centre = {"peak_lr": float(f"{forecast.peak_lr.value:.4g}"), "batch_tokens": batch_tokens}
    return {"forecast": forecast.to_dict(), "centre": centre, "problem": ""}


def _fingerprint(study: Study, frame: pd.DataFrame) -> str:
    """Of the evidence, and of how the study carries it to other sizes where it does not fit that."""
    losses = frame["loss"].astype(object).where(frame["loss"].notna(), None)
    rows = sorted([str(a), str(b), c] for a, b, c in zip(frame["run_id"], frame["status"], losses, strict=True))
    assert study.verification is not None
    carried = [] if study.proxy.across_widths == "fit" else [study.proxy.across_widths]
    return hash_content([rows, study.verification.scale, *carried])


def _rung_target(study: Study) -> Target:
    """The verification rung as a target, without preparing a corpus: non-embedding counts need no vocabulary."""
    assert study.verification is not None
    scale = study.scale_named(study.verification.scale)
    shape = measure_rung(study, scale, vocab_size=1)
    tokens = resolve_horizon(study, scale, CorpusFacts("", 1, {}, {}))
    return Target(float(shape.params_non_embedding), float(tokens), study.data.seq_len)


def _answer_branch(study: Study, frame: pd.DataFrame, gates: pd.DataFrame, branch: str, target: Target) -> Branch:
    try:
        observations = gather_observations(frame, parametrization=branch)
    except InputError as error:
        return Branch(branch, problem=str(error))
    try:
        cells = scalelaws.find_cell_optima(observations, seed=study.study.seed)
    except ValueError as error:
        return Branch(branch, observations, problem=str(error))
    drift = _measure_drift(observations, study.study.seed)
    try:
        licence = grant_licence(study, gates, frame, branch)
        fit = _fit(licence.law or choose_settings_law(observations), observations, study.study.seed)
    except InputError as error:
        return Branch(branch, observations, cells, drift=drift, problem=str(error))
    return Branch(branch, observations, cells, fit, licence.mark(scalelaws.forecast(fit, target)), drift)


def _measure_drift(observations: Observations, seed: int) -> Drift | None:
    """The drift over widths, where learning rates were searched at several of them, one horizon, batch and depth."""
    varied = (observations.width, observations.peak_lr)
    if any(values is None or len(np.unique(values)) < 2 for values in varied):
        return None
    try:
        return scalelaws.measure_observed_drift(observations, seed=seed)
    except ValueError:  # something else varied with it: `foretune transfer` looks along every ladder
        return None


def _verify(payload: dict[str, Any], frame: pd.DataFrame) -> tuple[Verification, ...]:
    """Each branch's larger runs beside what had been forecast for them, where there was a forecast."""
    held = frame[(frame["role"] == "verification") & (frame["scale"] == payload["scale"])]
    checks = []
    for branch, record in payload["branches"].items():
        if record["centre"] is None:
            continue
        runs = _verification_runs(held[held["parametrization"] == branch])
        predicted_lr = record["centre"]["peak_lr"]
        checks.append(Verification(branch, predicted_lr, record["forecast"], runs))
    return tuple(checks)


def _verification_runs(rows: pd.DataFrame) -> tuple[VerificationRun, ...]:
    return tuple(
        VerificationRun(
            peak_lr=float(row["peak_lr"]),
            loss=None if row["loss"] != row["loss"] else float(row["loss"]),
            width=int(row["width"]),
            seed=int(row["seed"]),
            status=str(row["status"]),
            parametrization=str(row["parametrization"]),
        )
        for _, row in rows.sort_values(["peak_lr", "seed"]).iterrows()
    )
