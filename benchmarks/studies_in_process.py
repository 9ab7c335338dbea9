"""Searches of real proxies in this process, each in a ledger of its own that is thrown away."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.proxies.train import train_runs
from foretune.records import Result, RunSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search import Findings
from foretune.search.interface import score
from foretune.searching import Searching
from foretune.study import Study, read_study

PROBLEM: dict[str, dict[str, Any]] = {
    "proxy": {"base_width": 32, "head_size": 8, "depth": 2},
    "data": {"seq_len": 64, "validation_sequences": 64},
    "training": {"batch_tokens": 512, "warmup": 0.1, "diagnoses": 0, "evaluations": 1},
    "runner": {"kind": "inline", "pack": 8},
}
"""Two blocks of width 32 on the text of the standard library's documentation and code."""


class Quiet(ProgressBar):
    """Says nothing: a table is being printed."""

    def __init__(self) -> None:
        super().__init__(quiet=True)

    def note(self, message: str) -> None:
        """Notes are for whoever waits for a study."""


@dataclass(frozen=True)
class Searched:
    """What a search came to."""

    specs: Sequence[RunSpec]
    """All runs that it asked for."""
    results: Mapping[str, Result]
    """What came of them."""
    findings: Findings | None
    """What the strategy says itself."""

    @property
    def spent_flops(self) -> float:
        """Training FLOPs of all runs of the search, lost ones included; not those of its baselines."""
        return sum(self.results[spec.run_id].spent_flops for spec in self.specs if spec.role == "search")

    @property
    def lost(self) -> int:
        """Runs that diverged or failed."""
        return sum(math.isinf(self.score_of(spec)) for spec in self.specs)

    def score_of(self, spec: RunSpec) -> float:
        """The loss of a run; infinite where it was lost."""
        return score(self.results[spec.run_id], {})

    def find_best(self) -> RunSpec:
        """The run of the search with the lowest loss among those that came to the end of their schedule."""
        return min((spec for spec in self.specs if spec.role == "search" and not spec.is_partial), key=self.score_of)


def make_study(steps: int, seed: int, **tables: Mapping[str, Any]) -> Study:
    """The problem at so many steps; `tables` update those of the study."""
    merged = {name: {**PROBLEM.get(name, {}), **tables.get(name, {})} for name in {**PROBLEM, **tables}}
    scales = [{"name": "w32", "width": 32, "tokens": steps * merged["training"]["batch_tokens"]}]
    return read_study({"study": {"name": "benchmark", "seed": seed}, "scales": scales, **merged})


def search_study(study: Study) -> Searched:
    """Everything that the search asks for, run as `foretune run` does."""
    corpus = resolve_corpus(study)
    with tempfile.TemporaryDirectory() as folder, open_ledger(Path(folder) / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=Path(folder))
        execute_study(study, ledger, runner, corpus, Quiet())
        searching = Searching(study, corpus, ledger)
        asked = searching.ask()
        results = {result.run_id: result for result in ledger.results([spec.run_id for spec in asked.specs])}
        return Searched(asked.specs, results, searching.conclude())


def measure_again(spec: RunSpec, seeds: Sequence[int]) -> list[float]:
    """The held-out losses of the same settings, schedule and phases from scratch under other seeds; inf if lost."""
    fresh = {"stop_step": 0, "parent_run_id": "", "parent_step": 0, "keep_state": False}
    copies = [spec.model_copy(update={**fresh, "seed": seed}) for seed in seeds]
    with tempfile.TemporaryDirectory() as folder:
        losses = []
        for copy in copies:
            ((_, outcome),) = train_runs([copy], [Path(folder) / copy.run_id], lambda *_: None)
            losses.append(math.inf if outcome.loss is None else outcome.loss)
    return losses
