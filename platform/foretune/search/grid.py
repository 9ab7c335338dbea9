"""The grid: every combination of the space's values at every scale that is not held out for verification."""

from __future__ import annotations

import itertools

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, check_counts, find_obstacle
from foretune.search.interface import Asked, History, Strategy
from foretune.search.sampling import count_grid, find_grid_problems, find_mixture_problems, list_grid, list_rungs
from foretune.study import Study


class Grid(Strategy):
    """All runs of the grid at once."""

    def find_problems(self, study: Study, corpus: CorpusFacts) -> list[str]:
        """Dimensions without a grid."""
        return [*find_grid_problems(study.search), *find_mixture_problems(study.search, list(corpus.mixture))]

    def ask(self, study: Study, corpus: CorpusFacts, history: History) -> Asked:
        """All runs of the grid, and those that would be of no use with the reason."""
        rungs = list_rungs(study)
        check_counts(study, len(rungs) * count_grid(study.search))
        specs, skipped = [], []
        for scale, point in itertools.product(rungs, list_grid(study.search, list(corpus.mixture))):
            spec = resolve_run(study, scale, point, corpus)
            if obstacle := find_obstacle(spec, study, corpus):
                skipped.append(Skipped(scale.name, point, obstacle))
            else:
                specs.append(spec)
        return Asked(tuple(specs), tuple(skipped), history.decisions)
