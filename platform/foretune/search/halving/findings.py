"""What successive halving has found: the best of those that came to the end, the levels, and what stopping saved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from foretune.quantities import format_count
from foretune.search.comparing import rank_settings
from foretune.search.halving.levels import Bracket, Contender
from foretune.search.interface import Findings

Field = tuple[Bracket, Sequence[Contender]]
"""A rung of the study with the settings that were tried there."""


def describe_brackets(fields: Sequence[Field]) -> Findings | None:
    """The findings so far; None before anything has ended."""
    tables: dict[str, list[dict[str, Any]]] = {}
    sentences, best, saved = [], None, {}
    for bracket, contenders in sorted(fields, key=lambda item: item[0].stop_tokens[-1]):
        tried = [item for item in contenders if not item.now.obstacle]
        if not any(item.levels[0].has_ended for item in tried):
            continue
        name = bracket.scale.name
        tables[f"levels at {name}"] = [_describe_level(bracket, tried, level) for level in range(bracket.last + 1)]
        tables[f"settings at {name}"] = [_describe_setting(bracket, item) for item in sorted(tried, key=_standing)]
        whole = [bracket.train(item.placed, {}, levels=bracket.last + 1) for item in tried]
        saved[name] = 1 - _sum_cost(tried) / _sum_cost(whole)
        survivors = _list_survivors(bracket, tried)
        best = survivors[0] if survivors else best
        sentences.append(f"{_tell(bracket, tried, survivors)} {_tell_cost(len(tried), saved[name])}")
    if not sentences:
        return None
    return Findings(" ".join(sentences), best.placed.point if best else {}, tables, {"saved_share": saved})


def _list_survivors(bracket: Bracket, contenders: Sequence[Contender]) -> list[Contender]:
    """Those that came to the end with a loss, the lowest first."""
    return sorted((item for item in contenders if item.level == bracket.last and _has_loss(item)), key=_standing)


def _has_loss(contender: Contender) -> bool:
    return contender.now.has_ended and math.isfinite(contender.now.mean)


def _standing(contender: Contender) -> tuple[int, float]:
    """Those that came further first, then those with the lower loss."""
    reached = [setting for setting in contender.levels if setting.has_ended]
    return -len(reached), reached[-1].mean if reached else math.inf


def _sum_cost(contenders: Sequence[Contender]) -> float:
    """Training FLOPs, those of what was gone on with once."""
    return float(sum(spec.own_flops for item in contenders for setting in item.levels for spec in setting.specs))


def _describe_level(bracket: Bracket, contenders: Sequence[Contender], level: int) -> dict[str, Any]:
    there = [item.levels[level] for item in contenders if item.level >= level]
    means = sorted(setting.mean for setting in there if setting.has_ended and math.isfinite(setting.mean))
    return {
        "level": level,
        "tokens": bracket.stop_tokens[level],
        "settings": len(there),
        "gone on with": sum(item.level > level for item in contenders),
        "best loss": means[0] if means else None,
        "median loss": statistics.median(means) if means else None,
        "lost": sum(setting.has_ended for setting in there) - len(means),
    }


def _describe_setting(bracket: Bracket, contender: Contender) -> dict[str, Any]:
    reached = [level for level, setting in enumerate(contender.levels) if setting.has_ended]
    mean = contender.levels[reached[-1]].mean if reached else math.inf
    point = {key: value for key, value in contender.placed.point.items() if key != "mixture"}
    mixture = {f"mixture.{key}": share for key, share in contender.placed.point.get("mixture", {}).items()}
    return {
        **point,
        **mixture,
        "tokens": bracket.stop_tokens[reached[-1]] if reached else 0,
        "loss": mean if math.isfinite(mean) else None,
    }


def _tell(bracket: Bracket, contenders: Sequence[Contender], survivors: Sequence[Contender]) -> str:
    horizon = f"{bracket.scale.name} ({format_count(bracket.stop_tokens[-1])} tokens)"
    if not survivors:
        return f"None of {len(contenders)} settings has come to the end of {horizon} yet, or none with a loss."
    best, others = survivors[0], len(survivors) - 1
    ranking = rank_settings({str(place): item.now.losses for place, item in enumerate(survivors)})
    settings = ", ".join(f"{key} {_render(value)}" for key, value in best.placed.point.items())
    told = f"At {horizon} the lowest loss of those that came to the end, {best.now.mean:.4f}, is at {settings}; "
    if ranking.noise is None:
        return told + "without replicates nothing says how much of it is noise: give search.space.seed several seeds."
    return told + f"{len(ranking.rivals)} of the {others} others there are within noise ({ranking.noise.describe()})."


def _tell_cost(settings: int, saved: float) -> str:
    return f"Stopping early took {1 - saved:.0%} of the FLOPs of training all {settings} settings to the end."


def _render(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{name} {share:.3g}" for name, share in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
