"""Which runs next? One file per strategy; none of them knows how a run is executed."""

from __future__ import annotations

from collections.abc import Callable

from foretune.deriving import CorpusFacts
from foretune.planning import Skipped, check_decays
from foretune.records import RunSpec
from foretune.search.grid import ask_grid
from foretune.search.points import ask_points
from foretune.study import Study

Strategy = Callable[[Study, CorpusFacts], tuple[list[RunSpec], list[Skipped]]]

STRATEGIES: dict[str, Strategy] = {"grid": ask_grid, "points": ask_points}
"""Every strategy by its name in `[search] strategy`."""


def ask_search(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs that the study's search and its single points ask for, each once, and those left out with the reason."""
    found = [ask(study, corpus) for ask in dict.fromkeys((STRATEGIES[study.search.strategy], ask_points))]
    unique = {spec.run_id: spec for specs, _ in found for spec in specs}
    check_decays(study, list(unique.values()))
    return list(unique.values()), [item for _, skipped in found for item in skipped]
