from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from foretune.training.souping import choose_members

CENTRE = np.array([1.0, -2.0, 0.5])
POINTS = CENTRE + np.array([[0.1, 0, 0], [-0.2, 0, 0], [3.0, 3.0, 0], [0, 0, 0.3], [0.12, 0, 0]])
"""Models of a quadratic loss; the first two lie on both sides of its minimum, the third far off."""


def judge(numbers: Sequence[int]) -> float:
    return float(np.square(POINTS[list(numbers)].mean(axis=0) - CENTRE).sum())


LOSSES = [judge([number]) for number in range(len(POINTS))]


def test_a_greedy_soup_takes_what_lowers_the_loss() -> None:
    """Worked out by hand: 4 lies on the side of 0, so the mean is worse; 1 on the other side; then 3 and 2 do harm."""
    assert choose_members(LOSSES, "greedy", judge) == [0, 1]
    assert judge([0, 1]) < min(LOSSES)


def test_a_greedy_soup_is_never_worse_than_its_best_member() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        points = generator.normal(size=(6, 3)) * generator.choice([0.1, 1.0, 5.0], size=(6, 1))

        def measure(numbers: Sequence[int], points: np.ndarray = points) -> float:
            return float(np.abs(points[list(numbers)].mean(axis=0)).sum())

        losses = [measure([number]) for number in range(6)]
        kept = choose_members(losses, "greedy", measure)
        assert kept[0] == int(np.argmin(losses))
        assert measure(kept) <= min(losses)


def test_what_leaves_the_loss_as_it_is_stays_out() -> None:
    assert choose_members([1.0, 1.0], "greedy", lambda numbers: 1.0) == [0]


def test_a_uniform_soup_takes_all_and_asks_nobody() -> None:
    def refuse(numbers: Sequence[int]) -> float:
        raise AssertionError(numbers)

    assert choose_members(LOSSES, "uniform", refuse) == [0, 4, 1, 3, 2]


@pytest.mark.parametrize("kind", ["greedy", "uniform"])
def test_a_soup_of_one_is_that_one(kind: str) -> None:
    assert choose_members([2.0], kind, judge) == [0]
