"""The registry of published laws: one line each, behind the same interface as fitted ones."""

from __future__ import annotations

from collections.abc import Mapping

from scalelaws.laws.published.base import Published, PublishedAllocation, PublishedLoss, PublishedSettings
from scalelaws.laws.published.loss import ALLOCATIONS, LOSSES
from scalelaws.laws.published.settings import SETTINGS

PUBLISHED: Mapping[str, PublishedSettings | PublishedLoss] = {
    **{law.name: law for law in SETTINGS},
    **{law.name: law for law in LOSSES},
}
PUBLISHED_ALLOCATIONS: Mapping[str, PublishedAllocation] = {law.name: law for law in ALLOCATIONS}


def get_published(name: str) -> PublishedSettings | PublishedLoss:
    """The published law of that name; raises ValueError with the known ones."""
    if name not in PUBLISHED:
        raise ValueError(f"there is no published law {name!r}; known are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def get_published_allocation(name: str) -> PublishedAllocation:
    """The published split of a budget of that name; raises ValueError with the known ones."""
    if name not in PUBLISHED_ALLOCATIONS:
        raise ValueError(f"there is no published split {name!r}; known are {', '.join(PUBLISHED_ALLOCATIONS)}")
    return PUBLISHED_ALLOCATIONS[name]


__all__ = [
    "PUBLISHED",
    "PUBLISHED_ALLOCATIONS",
    "Published",
    "PublishedAllocation",
    "PublishedLoss",
    "PublishedSettings",
    "get_published",
    "get_published_allocation",
]
