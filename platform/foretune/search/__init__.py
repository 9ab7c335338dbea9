"""Which runs next? One file per strategy; none of them knows how a run is executed."""

from __future__ import annotations

from collections.abc import Callable

from foretune.planning import CorpusFacts, Skipped
from foretune.records import RunSpec
from foretune.search.grid import ask_grid
from foretune.study import Study

Strategy = Callable[[Study, CorpusFacts], tuple[list[RunSpec], list[Skipped]]]

STRATEGIES: dict[str, Strategy] = {"grid": ask_grid}
"""Every strategy by its name in `[search] strategy`."""


def ask_search(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """The runs that the study's search asks for, and those that it leaves out with the reason."""
    return STRATEGIES[study.search.strategy](study, corpus)
