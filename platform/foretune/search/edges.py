"""Settings at the end of what was searched: there the best one is a bound, and the optimum may lie beyond it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from foretune.sections import Leaf
from foretune.sections.spaces import is_number, is_whole
from foretune.space import LinearRange, LogRange

NEAR = 0.05
"""Share of a range within which a setting counts as at its end (assumption)."""
FEWEST_VALUES = 3
"""Values in a list below which each of them is an end, and says nothing."""


def find_edges(leaf: Leaf, point: Mapping[str, Any]) -> Iterator[str]:
    """What to know of every number of a point that lies at an end of its range or list; mixtures are left out."""
    for key in point:
        if key in leaf.space and is_number(key) and (end := _find_end(leaf, key, point[key])):
            yield (
                f"{key} {point[key]:.4g} is at the {end} end of {leaf.places[key]}: a bound, not an optimum; widen it"
            )


def _find_end(leaf: Leaf, key: str, value: float) -> str:
    """`lower`, `upper`, or nothing."""
    values, dimension = leaf.extremes(key), leaf.space[key]
    if not values:
        return ""
    if isinstance(dimension, LogRange | LinearRange) and not is_whole(key):
        share = _measure_share(dimension, value)
        return "lower" if share <= NEAR else "upper" if share >= 1 - NEAR else ""
    if len(values) < FEWEST_VALUES:
        return ""
    return "lower" if value == min(values) else "upper" if value == max(values) else ""


def _measure_share(dimension: LogRange | LinearRange, value: float) -> float:
    """How far along its axis a value lies, 0 at the low end."""
    if isinstance(dimension, LogRange):
        return math.log(value / dimension.low) / math.log(dimension.high / dimension.low)
    return (value - dimension.low) / (dimension.high - dimension.low)
