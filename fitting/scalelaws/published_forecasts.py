"""A published law and a target -> a forecast in the law's own conventions, with what must be known before using it.

Legend: N parameters, D tokens, C training FLOPs, M training FLOPs per token with attention (see `conventions`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scalelaws.conventions import count_compute, count_plain
from scalelaws.laws.published import Published, PublishedLoss, PublishedSettings
from scalelaws.laws.published.base import Rule
from scalelaws.results import Estimate, Forecast, Status, Target

PUBLISHED_MESSAGE = Status.PUBLISHED.value


def forecast_published(law: PublishedSettings | PublishedLoss, target: Target, level: float) -> Forecast:
    """What the law says of the target; ValueError where the target does not say what the law needs.

    A law that counts its compute as M D is given M D: the target's own, or 6ND converted at the target's shape; where
    the shape is unknown, usual ones bound it and a warning gives the spread that this leaves in every setting.
    """
    law.require(target)
    counted = _recount(law, target)
    settings, silent = _apply_rules(law, counted) if isinstance(law, PublishedSettings) else ({}, [])
    batch = settings.get("batch_tokens")
    loss = Estimate(law.predict_loss(counted), unit="nats") if isinstance(law, PublishedLoss) else None
    in_sequences = None if batch is None or target.seq_len is None else batch.scaled(1 / target.seq_len, "sequences")
    return Forecast(
        target=target, peak_lr=settings.get("peak_lr"), batch_tokens=batch, batch_sequences=in_sequences, loss=loss,
        regret=None, level=level, extrapolation=reach_published(law, target), law=law.name, status=Status.PUBLISHED,
        message=PUBLISHED_MESSAGE, evidence=None, scope=law.scope,
        warnings=(*warn_published(law, target), *silent), weight_decay=settings.get("weight_decay"),
        critical_batch_tokens=settings.get("critical_batch_tokens"),
    )  # fmt: skip


def reach_published(law: Published, target: Target) -> dict[str, float | None]:
    """Target over the largest run behind a published law; None where its range is not recorded."""
    return {name: None if span is None else at / span[1] for name, (at, span) in _place(law, target).items()}


def warn_published(law: Published, target: Target) -> list[str]:
    """Warnings about the origin, the range and the conventions of a published law."""
    warnings = ["published without an interval that can be carried to a target"]
    if not law.verified:
        warnings.append("the constants are quoted, not read in the source: check them before a run depends on them")
    if law.caveat:
        warnings.append(law.caveat)
    if law.params_convention not in ("non_embedding", "not used"):
        warnings.append(f"the law counts parameters as {law.params_convention}; the target's N is taken to be that")
    known = {name: (at, span) for name, (at, span) in _place(law, target).items() if span is not None}
    if not known:
        warnings.append("the range of the runs behind this law is not recorded: treat any target as extrapolation")
    for name, (at, span) in known.items():
        if not span[0] <= at <= span[1]:
            warnings.append(f"{name} {at:.3g} lies outside of the fitted range, {span[0]:.3g} to {span[1]:.3g}")
    return [*warnings, *_warn_recount(law, target)]


def _place(law: Published, target: Target) -> dict[str, tuple[float, tuple[float, float] | None]]:
    """Where the target stands in each scale, counted as the law counts, and the law's range."""
    return {
        "params": (target.params_non_embedding, law.params_range),
        "tokens": (target.tokens, law.tokens_range),
        "compute": (_recount(law, target).compute, law.compute_range),
    }


def _recount(law: Published, target: Target) -> Target:
    """The target with its compute counted as the law counts."""
    if law.compute_convention == target.compute_convention or law.compute_convention not in ("6ND", "M D"):
        return target
    flops = count_compute(target, law.compute_convention).value
    return replace(target, compute_flops=flops, compute_convention=law.compute_convention)


def _apply_rules(law: PublishedSettings, target: Target) -> tuple[dict[str, Estimate], list[str]]:
    """The settings that the law gives, and a sentence for each that it cannot give here."""
    units = {"peak_lr": "", "batch_tokens": "tokens", "weight_decay": "", "critical_batch_tokens": "tokens"}
    given, silent = {}, []
    for name, unit in units.items():
        rule: Rule | None = getattr(law, name)
        if rule is None:
            continue
        try:
            value = rule(target)
        except KeyError as error:
            silent.append(f"{name} is not given: it needs {error.args[0]} of the target, in Target(covariates={{...}})")
            continue
        if np.isfinite(value) and value > 0:
            given[name] = Estimate(value, unit=unit)
        else:
            silent.append(f"{name} is not given: the formula yields {value:.3g} at this target")
    return given, silent


def _warn_recount(law: Published, target: Target) -> list[str]:
    """What the conversion of 6ND to M D assumed, and how much of each setting hangs on it."""
    if law.compute_convention != "M D" or target.compute_convention == "M D":
        return []
    counted, plain = count_compute(target, "M D"), count_plain(target)
    ratio, ignored = counted.value / plain, "" if target.compute_flops is None else "; compute_flops was not used"
    if counted.low is None or counted.high is None:
        return [f"the law counts compute as M D with attention: {ratio:.3g} times 6ND at this shape{ignored}"]
    return [
        f"the law counts compute as M D with attention, the target as 6ND: at usual shapes M D is "
        f"{counted.low / plain:.3g} to {counted.high / plain:.3g} times 6ND{_say_spread(law, target, counted)}; "
        f"{ratio:.3g} was used{ignored}. Give width, depth and seq_len, or compute_flops with "
        "compute_convention='M D', to be exact"
    ]


def _say_spread(law: Published, target: Target, counted: Estimate) -> str:
    """By how much the settings move between the bounds of the compute."""
    if not isinstance(law, PublishedSettings) or counted.low is None or counted.high is None:
        return ""
    at = _recount(law, target)
    low, high = (_apply_rules(law, replace(at, compute_flops=end))[0] for end in (counted.low, counted.high))
    moved = [f"{name} by {100 * abs(high[name].value / low[name].value - 1):.2g} %" for name in low]
    return ", which moves " + " and ".join(moved)
