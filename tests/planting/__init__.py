"""Planted truths for the contract suite: for each law, runs that hold it and what was planted."""

from __future__ import annotations

import importlib
import pkgutil
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
    recovers: float = 0.01
    """Relative error allowed for a parameter that was planted without noise; weak priors pull on the last per cent."""


def list_planted() -> dict[str, Planted]:
    """Every planted truth by the name of its law, from all modules of this folder."""
    modules = [importlib.import_module(f"planting.{item.name}") for item in pkgutil.iter_modules(__path__)]
    return {name: planted for module in modules for name, planted in module.PLANTED.items()}
