"""Where settings go: inside their bounds always, and along their axes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from foretune.search.population.exploring import Axes, draw_settings, explore_settings, perturb_value
from foretune.sections import PopulationSection
from foretune.space import Choice, LinearRange, LogRange, Simplex

DOMAINS = ("code", "docs", "web")
FACTORS = (1.2, 0.8)
AXES: Axes = {
    "peak_lr": LogRange(low=1e-4, high=1e-2),
    "beta2": LogRange(low=0.9, high=0.999),
    "weight_decay": LinearRange(low=0.0, high=0.3, scale="linear"),
    "clip_norm": Choice(values=(0.5, 1.0, 2.0)),
    "mixture": Simplex(minimum={"code": 0.2}, maximum={"web": 0.5}),
}


def rules(resample_probability: float) -> PopulationSection:
    return PopulationSection(size=4, ready_tokens=1, resample_probability=resample_probability)


def holds(settings: dict[str, Any]) -> bool:
    mixture = settings["mixture"]
    return (
        1e-4 <= settings["peak_lr"] <= 1e-2
        and 0.9 <= settings["beta2"] <= 0.999
        and 0.0 <= settings["weight_decay"] <= 0.3
        and settings["clip_norm"] in (0.5, 1.0, 2.0)
        and math.isclose(math.fsum(mixture.values()), 1, abs_tol=1e-9)
        and mixture["code"] >= 0.2 - 1e-9
        and mixture["web"] <= 0.5 + 1e-9
        and min(mixture.values()) >= 0
    )


@pytest.mark.parametrize("resample_probability", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("factors", [(1.2, 0.8), (10.0, 0.01)])
def test_no_walk_leaves_the_bounds(resample_probability: float, factors: tuple[float, float]) -> None:
    section = rules(resample_probability).model_copy(update={"factors": factors})
    for seed in range(8):
        rng = np.random.default_rng(seed)
        settings = draw_settings(AXES, DOMAINS, rng)
        for _ in range(25):
            assert holds(settings), settings
            settings = explore_settings(settings, AXES, DOMAINS, section, rng)


def test_perturbations_go_both_ways_along_the_axis() -> None:
    rng = np.random.default_rng(0)

    def reach(key: str, value: Any) -> set[float]:
        return {round(perturb_value(key, value, AXES[key], FACTORS, rng), 12) for _ in range(60)}

    assert reach("peak_lr", 1e-3) == {1.2e-3, 0.8e-3}
    assert reach("weight_decay", 0.1) == {0.16, 0.04}  # a fifth of the range of 0.3
    assert reach("beta2", 0.95) == {0.94, 0.96}  # 1 - beta2 times 1.2 and 0.8
    assert reach("clip_norm", 1.0) == {0.5, 2.0}
    assert reach("clip_norm", 2.0) == {1.0, 2.0}
    assert reach("peak_lr", 1e-2) == {1e-2, 0.8e-2}
    assert reach("weight_decay", 0.0) == {0.06, 0.0}, "zero is left on a linear axis"


def test_a_mixture_moves_by_the_ratio_of_the_factors() -> None:
    """Away from the bounds, the log-ratio of two shares changes by log(1.2 / 0.8), its negative, or not at all."""
    free, before = Simplex(), {"code": 0.5, "docs": 0.3, "web": 0.2}
    rng, seen = np.random.default_rng(0), Counter[int]()
    for _ in range(200):
        after = perturb_value("mixture", before, free, FACTORS, rng)
        ratio = math.log(after["code"] / after["docs"]) - math.log(before["code"] / before["docs"])
        step = ratio / math.log(1.2 / 0.8)
        assert step == pytest.approx(round(step), abs=1e-6)
        seen[round(step)] += 1
    assert set(seen) == {-1, 0, 1}
    assert 70 <= seen[0] <= 130  # half of 200, four standard deviations


def test_draws_are_even_along_the_axes() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_settings(AXES, DOMAINS, rng) for _ in range(400)]
    below = sum(item["peak_lr"] < 1e-3 for item in drawn)
    assert 160 <= below <= 240, "the middle of a logarithmic axis is its geometric mean"
    assert 160 <= sum(item["weight_decay"] < 0.15 for item in drawn) <= 240
    assert min(Counter(item["clip_norm"] for item in drawn).values()) >= 95  # a third, four standard deviations


def test_settings_are_drawn_anew_as_often_as_asked() -> None:
    rng, axes = np.random.default_rng(2), {"peak_lr": AXES["peak_lr"]}
    near = {1.2e-3, 0.8e-3}
    kept = sum(
        round(explore_settings({"peak_lr": 1e-3}, axes, (), rules(0.25), rng)["peak_lr"], 12) in near
        for _ in range(400)
    )
    assert 265 <= kept <= 335  # three quarters of 400, four standard deviations
