"""Which runs a soup is made of: pure decisions, apart from the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

Soup = Literal["greedy", "uniform"]
"""Runs are added as long as the loss falls, or all are."""


def choose_members(losses: Sequence[float], kind: Soup, judge: Callable[[Sequence[int]], float]) -> list[int]:
    """The members of a soup by number, best first; `judge` gives the loss of the mean of some of them.

    Greedy: from the best on, each is added whose addition lowers the loss (Wortsman et al. 2022, arXiv 2203.05482,
    recipe 1, which keeps also those that leave it as it is). So it never ends worse than its best member.
    """
    order = sorted(range(len(losses)), key=lambda number: (losses[number], number))
    if kind == "uniform":
        return order
    kept, best = order[:1], losses[order[0]]
    for number in order[1:]:
        loss = judge([*kept, number])
        if loss < best:
            kept, best = [*kept, number], loss
    return kept
