"""Where settings go next: drawn from the space, or perturbed along its axes (Jaderberg et al. 2017).

A perturbation acts on the axis of its dimension: on a logarithmic axis a value is multiplied by a factor, on a linear
one it moves by (factor - 1) of the range, in a list it goes to a neighbour, and of a mixture every share is multiplied.
No value leaves the bounds of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from foretune.search.mixing.simplex import ShareRegion, build_region
from foretune.sections import PopulationSection
from foretune.space import Choice, Dimension, LinearRange, LogRange, Simplex

Axis = Choice | LogRange | LinearRange | Simplex
Axes = Mapping[str, Axis]
"""The dimensions of a space that may change along a run, by key."""
DECAYS = ("beta1", "beta2", "momentum")
"""Decays of running averages: on a logarithmic axis their distance from 1, one over the steps that they average over,
is multiplied (assumption: 1.2 times .95 is no decay)."""


def draw_settings(axes: Axes, domains: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """A point of the space, drawn evenly along its axes; `domains` are those of a mixture."""
    return {key: _draw_value(axes[key], domains, rng) for key in sorted(axes)}


def find_bounded(space: Mapping[str, Dimension]) -> dict[str, LogRange | LinearRange]:
    """The dimensions that are numbers between bounds, in the order of their keys."""
    return {key: axis for key, axis in sorted(space.items()) if isinstance(axis, LogRange | LinearRange)}


def explore_settings(
    settings: Mapping[str, Any],
    axes: Axes,
    domains: Sequence[str],
    rules: PopulationSection,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """New settings near the old ones; each is drawn anew with `resample_probability`."""
    return {
        key: _draw_value(axes[key], domains, rng)
        if rng.random() < rules.resample_probability
        else perturb_value(key, settings[key], axes[key], rules.factors, rng)
        for key in sorted(axes)
    }


def perturb_value(key: str, value: Any, axis: Axis, factors: tuple[float, float], rng: np.random.Generator) -> Any:
    """The value moved one way or the other, inside its bounds."""
    if isinstance(axis, Choice):
        place = axis.values.index(value) + (1 if rng.random() < 0.5 else -1)
        return axis.values[min(max(place, 0), len(axis.values) - 1)]
    if isinstance(axis, Simplex):
        return _perturb_mixture(value, axis, factors, rng)
    factor = factors[int(rng.integers(2))]
    if isinstance(axis, LinearRange):
        moved = value + (factor - 1) * (axis.high - axis.low)
    else:
        moved = 1 - factor * (1 - value) if key in DECAYS else factor * value
    return min(max(moved, axis.low), axis.high)


def _draw_value(axis: Axis, domains: Sequence[str], rng: np.random.Generator) -> Any:
    if isinstance(axis, Choice):
        return axis.values[int(rng.integers(len(axis.values)))]
    if isinstance(axis, Simplex):
        return axis.place(list(rng.random(len(domains) - 1)), domains)
    return axis.place(float(rng.random()))


def _perturb_mixture(
    mixture: Mapping[str, float], axis: Simplex, factors: tuple[float, float], rng: np.random.Generator
) -> dict[str, float]:
    """Every share multiplied by one factor or the other, made to sum to 1, and brought to the nearest allowed ones."""
    shares = np.array(list(mixture.values())) * rng.choice(factors, size=len(mixture))
    region = _find_region(tuple(mixture), tuple(axis.minimum.items()), tuple(axis.maximum.items()))
    moved = region.project(shares[None] / shares.sum())[0]
    return dict(zip(mixture, map(float, moved), strict=True))


@cache  # it is found by a linear program
def _find_region(
    domains: tuple[str, ...], minimum: tuple[tuple[str, float], ...], maximum: tuple[tuple[str, float], ...]
) -> ShareRegion:
    return build_region(domains, dict(minimum), dict(maximum))
