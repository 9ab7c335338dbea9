"""The runs that the speed of the trainer is measured on, resolved from a study like any other."""

from __future__ import annotations

from dataclasses import dataclass

from foretune.records import RunSpec
from foretune.resolution import resolve_corpus
from foretune.search import ask_search
from foretune.study import read_study


@dataclass(frozen=True)
class Workload:
    """Sizes of a measurement."""

    widths: tuple[int, ...]
    depth: int
    seq_len: int
    batch_tokens: int
    precision: str


def resolve_members(workload: Workload, width: int, members: int) -> list[RunSpec]:
    """So many runs of one shape that differ in their learning rate only."""
    rates = [2.0**-8 * 2 ** (-member / 64) for member in range(members)]
    study = read_study(
        {
            "study": {"name": f"speed-w{width}"},
            "proxy": {"base_width": min(workload.widths), "head_size": 32, "depth": workload.depth},
            "scales": [{"name": f"w{width}", "width": width, "tokens": 100 * workload.batch_tokens}],
            "data": {"seq_len": workload.seq_len},
            "training": {
                "batch_tokens": workload.batch_tokens,
                "precision": workload.precision,
                "diagnoses": 0,
            },
            "search": {"space": {"peak_lr": rates}},
        }
    )
    return list(ask_search(study, resolve_corpus(study)).specs)
