"""The grid: every combination of the space's values at every scale that is not held out for verification."""

from __future__ import annotations

import itertools
import math

from foretune.deriving import CorpusFacts, resolve_run
from foretune.planning import Skipped, check_counts, find_obstacle
from foretune.records import RunSpec
from foretune.study import Study


def ask_grid(study: Study, corpus: CorpusFacts) -> tuple[list[RunSpec], list[Skipped]]:
    """All runs of the grid, and those that would be of no use with the reason."""
    held_out = study.verification.scale if study.verification else ""
    scales = [scale for scale in study.scales if scale.name != held_out]
    axes = {key: study.search.axis(key) for key in study.search.space}
    check_counts(study, len(scales) * math.prod(len(values) for values in axes.values()))
    specs, skipped = [], []
    for scale, values in itertools.product(scales, itertools.product(*axes.values())):
        point = dict(zip(axes, values, strict=True))
        spec = resolve_run(study, scale, point, corpus)
        if obstacle := find_obstacle(spec, study, corpus):
            skipped.append(Skipped(scale.name, point, obstacle))
        else:
            specs.append(spec)
    return specs, skipped
