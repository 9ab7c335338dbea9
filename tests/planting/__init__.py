"""Planted truths for the contract suite: for each law, runs that hold it and what was planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scalelaws import Target


@dataclass(frozen=True)
class Planted:
    """Runs made from a law with known parameters."""

    runs: Callable[[float, int], Any]
    """(noise of ln loss, seed) -> what the law reads; noise 0 gives exact losses."""
    truth: Mapping[str, float]
    """Planted parameters by name; those that the runs cannot determine are left out."""
    noise: float
    """Noise of ln loss at which the contract suite fits."""
    target: Target | None = None
    """A run inside the range of the planted ones, where the law predicts one."""
    response: float | None = None
    """What the law says of that target under the planted parameters: loss, or score."""
