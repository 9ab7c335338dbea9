"""What counts as the end of a range or of a list."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.search.edges import find_edges
from foretune.sections import SearchSection


@pytest.mark.parametrize(
    ("dimension", "value", "end"),
    [
        ({"low": 1e-4, "high": 1e-2}, 1e-2, "upper"),
        ({"low": 1e-4, "high": 1e-2}, 1.1e-4, "lower"),
        ({"low": 1e-4, "high": 1e-2}, 1e-3, ""),
        ({"low": 1e-4, "high": 1e-2}, 5e-4, ""),  # near the lower end of a linear axis only
        ({"low": 1e-4, "high": 1e-2, "scale": "linear"}, 5e-4, "lower"),
        ([1e-3, 1e-2, 0.1], 0.1, "upper"),
        ([0.1, 1e-3, 1e-2], 1e-3, "lower"),
        ([1e-3, 1e-2, 0.1], 1e-2, ""),
        ([1e-3, 1e-2], 1e-2, ""),
    ],
)
def test_ends_are_told_with_their_side(dimension: Any, value: float, end: str) -> None:
    search = SearchSection.model_validate({"space": {"peak_lr": dimension, "seed": [0, 1]}})
    told = list(find_edges(search.leaves()[0], {"peak_lr": value, "branch": ""}))
    assert len(told) == bool(end)
    assert all(f"is at the {end} end of search.space.peak_lr" in item for item in told)


def test_ends_of_a_branch_and_of_whole_numbers_are_told() -> None:
    branch = {"name": "moe", "space": {"experts.count": [4, 8, 16]}}
    search = SearchSection.model_validate(
        {"space": {"batch_tokens": {"low": 1024, "high": 8192}, "optimizer": ["adamw", "sgd"]}, "branches": [branch]}
    )
    point = {"batch_tokens": 8192, "optimizer": "sgd", "experts.count": 16, "branch": "moe"}
    told = list(find_edges(search.leaf_at(point), point))
    assert [item.partition(" ")[0] for item in told] == ["batch_tokens", "experts.count"]
