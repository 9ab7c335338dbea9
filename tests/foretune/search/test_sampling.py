"""Points of a space: within bounds, distinct, prolonged by more of them, and the grid of every branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.stats import qmc

from foretune.search.sampling import (
    Placed,
    count_coordinates,
    count_grid,
    count_points,
    draw_points,
    find_grid_problems,
    list_grid,
    list_mixtures,
)
from foretune.sections import SearchSection
from foretune.space import Simplex
from foretune.study import read_study

DOMAINS = ["code", "docs", "web"]
REAL = {
    "peak_lr": {"low": 1e-4, "high": 0.1},
    "beta2": {"low": 0.9, "high": 0.99, "scale": "linear"},
    "batch_tokens": {"low": 1024, "high": 8192},
}
TREE = [
    {"name": "dense", "space": {"ffn_ratio": [2, 4]}},
    {
        "name": "moe",
        "space": {"experts.count": [4, 8]},
        "branches": [
            {"name": "few", "set": {"experts.active": 1}},
            {"name": "many", "space": {"experts.active": [2, 3]}},
        ],
    },
]


def read_search(space: dict[str, Any], branches: list[dict[str, Any]] | None = None, **search: Any) -> SearchSection:
    return read_study(
        {
            "study": {"name": "space"},
            "proxy": {"base_width": 64, "head_size": 16},
            "scales": [{"name": "w64", "width": 64, "tokens": 102_400}],
            "training": {"batch_tokens": 1024, "peak_lr": 0.01},
            "search": {"space": space, "branches": branches or [], **search},
        }
    ).search


def draw(search: SearchSection, count: int, method: Any, seed: int = 0) -> list[Placed]:
    return draw_points(search, DOMAINS, np.random.default_rng(seed), count, method)


@pytest.mark.parametrize("method", ["random", "qmc"])
@pytest.mark.parametrize("seed", range(3))
def test_points_lie_in_the_space_and_take_the_settings_of_their_branch(method: str, seed: int) -> None:
    search = read_search({**REAL, "seed": [0, 1], "mixture": {"minimum": {"web": 0.3}}}, TREE)
    for placed in draw(search, 50, method, seed):
        point = placed.point
        assert 1e-4 <= point["peak_lr"] <= 0.1
        assert 0.9 <= point["beta2"] <= 0.99
        assert point["batch_tokens"] in (1024, 2048, 4096, 8192)
        assert point["mixture"]["web"] >= 0.3
        assert "seed" not in point
        taken = {"dense": ["ffn_ratio"], "moe/few": ["experts.count", "experts.active"]}
        taken["moe/many"] = taken["moe/few"]
        assert set(point) == {*REAL, "mixture", "branch", *taken[point["branch"]]}
        assert point.get("experts.active", 1) in ((1,) if point["branch"] != "moe/many" else (2, 3))


@pytest.mark.parametrize("method", ["random", "qmc"])
def test_more_points_prolong_the_sequence(method: str) -> None:
    search = read_search(REAL, TREE)
    assert draw(search, 40, method)[:13] == draw(search, 13, method)
    assert draw(search, 13, method, seed=1) != draw(search, 13, method)


def test_random_points_are_uniform_on_their_axes() -> None:
    points = [placed.point for placed in draw(read_search(REAL), 600, "random")]
    rates = np.log([point["peak_lr"] for point in points])
    assert stats.kstest(rates, stats.uniform(np.log(1e-4), np.log(1e3)).cdf).pvalue > 0.01
    assert stats.kstest([point["beta2"] for point in points], stats.uniform(0.9, 0.09).cdf).pvalue > 0.01
    batches = [point["batch_tokens"] for point in points]
    assert stats.chisquare([batches.count(1024 * 2**step) for step in range(4)]).pvalue > 0.01


def test_quasi_random_points_fill_the_space_more_evenly() -> None:
    search = read_search({"peak_lr": REAL["peak_lr"], "beta2": REAL["beta2"]})
    spread = {
        method: np.mean(
            [
                qmc.discrepancy(np.array([list(item.choices.values()) for item in draw(search, 32, method, seed)]))
                for seed in range(10)
            ]
        )
        for method in ("random", "qmc")
    }
    assert spread["qmc"] < 0.3 * spread["random"]


def test_a_finite_space_gives_each_point_once_and_no_more_than_it_has() -> None:
    search = read_search({"peak_lr": [0.001, 0.01], "optimizer": ["adamw", "lion"]}, TREE)
    assert count_points(search) == 4 * (2 + 2 * (1 + 2))
    found = draw(search, 100, "random")
    assert len(found) == count_points(search)
    assert all(first.point != second.point for place, first in enumerate(found) for second in found[:place])
    assert count_points(read_search(REAL)) == float("inf")


def test_coordinates_are_those_of_the_longest_way() -> None:
    assert count_coordinates(read_search(REAL), DOMAINS) == 3
    assert count_coordinates(read_search({**REAL, "mixture": {}, "seed": [0, 1]}), DOMAINS) == 5
    assert count_coordinates(read_search({"peak_lr": [0.01]}), DOMAINS) == 0
    assert count_coordinates(read_search({"peak_lr": [0.01]}, TREE), DOMAINS) == 4  # branch, count, branch, active


def test_the_grid_is_the_union_over_branches() -> None:
    search = read_search({"peak_lr": [0.001, 0.01], "seed": [0, 1]}, TREE)
    points = list(list_grid(search, DOMAINS))
    assert len(points) == count_grid(search) == 4 * (2 + 2 * (1 + 2))
    assert [point["branch"] for point in points[:8]] == ["dense"] * 8
    few = [point for point in points if point["branch"] == "moe/few"]
    assert {point["experts.active"] for point in few} == {1}


def test_a_grid_of_mixtures_is_prolonged_by_more_points() -> None:
    few, many = (list_mixtures(Simplex(minimum={"web": 0.2}, points=points), DOMAINS) for points in (5, 12))
    assert many[:5] == few
    assert all(mixture["web"] >= 0.2 for mixture in many)
    search = read_search({"mixture": {"points": 6}, "peak_lr": [0.01, 0.1]})
    assert len(list(list_grid(search, DOMAINS))) == count_grid(search) == 12


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"beta2": REAL["beta2"]}, "search.space.beta2: a grid needs a step"),
        ({"mixture": {}}, "search.space.mixture: a grid needs points"),
    ],
)
def test_a_dimension_without_a_grid_is_told(space: dict[str, Any], said: str) -> None:
    assert find_grid_problems(read_search(space))[0].startswith(said)
    assert find_grid_problems(read_search({"beta2": {**REAL["beta2"], "step": 0.01}})) == []
