"""Which runs next? One file per strategy; none of them knows how a run is executed."""

from __future__ import annotations

from collections.abc import Callable

from foretune.planning import CorpusFacts, Skipped
from foretune.records import RunSpec
from foretune.search.grid import ask_grid
from foretune.search.points import ask_points
from foretune.study import Study

Strategy = Callable[[Study, CorpusFacts], tuple[list[RunSpec], list[Skipped]]]

STRATEGIES: dict[str, Strategy] = {"grid": ask_grid}
"""Every strategy by its name in `[search] strategy`."""


def ask_search(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs that the study's search and its single points ask for, each once, and those left out with the reason."""
    searched, points = STRATEGIES[study.search.strategy](study, corpus), ask_points(study, corpus)
    unique = {spec.run_id: spec for spec in (*searched[0], *points[0])}
    return list(unique.values()), [*searched[1], *points[1]]
