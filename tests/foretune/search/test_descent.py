"""How a search came down: the order, the costs and the best so far, from a search through the main loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search.descent import DESCENT, draw_descent, draw_steps
from foretune.searching import Searching
from foretune.study import read_study

SCALES = [{"name": "w32", "width": 32, "tokens": 102_400}, {"name": "w64", "width": 64, "tokens": 204_800}]


def search(folder: Path, **section: Any) -> tuple[list[dict[str, Any]], Any]:
    """The steps of a search, and its run table."""
    study = read_study(
        {
            "study": {"name": "down"},
            "proxy": {"base_width": 32, "head_size": 16},
            "scales": SCALES,
            "training": {"batch_tokens": 1024},
            "search": {"space": {"peak_lr": {"low": 1e-4, "high": 0.3}, "seed": [0, 1]}, "runs": 9, **section},
            "runner": {"kind": "replay", "surface": {"noise": 0.01}},
        }
    )
    with open_ledger(folder / "ledger.db", create=True) as ledger:
        corpus = resolve_corpus(study)
        execute_study(study, ledger, make_runner(study.runner, workspace=folder), corpus, ProgressBar(quiet=True))
        findings = Searching(study, corpus, ledger).conclude()
        frame = ledger.runs("down")
    assert findings is not None
    return findings.data[DESCENT], frame


@pytest.mark.parametrize("strategy", ["random", "qmc", "tpe", "gp", "halving"])
def test_every_setting_is_a_step_and_all_that_was_spent_is_counted(strategy: str, tmp_path: Path) -> None:
    levels = {"halving": {"min_tokens": 30_720, "reduction": 3}} if strategy == "halving" else {}
    rows, frame = search(tmp_path, strategy=strategy, **({"runs": 4} if strategy == "gp" else {}), **levels)
    for scale, runs in frame.groupby("scale"):
        steps = [row for row in rows if row["scale"] == scale]
        assert len(steps) == len(runs) / 2
        spent = [row["spent_flops"] for row in steps]
        assert spent == sorted(spent)
        rate = runs["compute_flops"].iloc[0] / runs["tokens"].iloc[0]
        assert spent[-1] == pytest.approx(rate * runs.groupby(["peak_lr", "seed"])["tokens"].max().sum())
        whole = runs[runs["tokens"].eq(runs["horizon_tokens"])].groupby("peak_lr")["loss"].mean()
        assert steps[-1]["best_loss"] == pytest.approx(whole.min())
        assert sum(row["is_whole"] for row in steps) == len(whole)
        assert steps[-1]["noise_sd"] > 0
    assert (strategy == "halving") is any(not row["is_whole"] for row in rows)


ROWS = [
    {"scale": "a", "spent_flops": 1.0, "tokens": 5, "is_whole": False, "loss": 2.0, "best_loss": None, "noise_sd": 0.1},
    {"scale": "a", "spent_flops": 2.0, "tokens": 9, "is_whole": True, "loss": 3.0, "best_loss": 3.0, "noise_sd": 0.1},
    {"scale": "a", "spent_flops": 3.0, "tokens": 9, "is_whole": True, "loss": None, "best_loss": 3.0, "noise_sd": 0.1},
    {"scale": "a", "spent_flops": 4.0, "tokens": 9, "is_whole": True, "loss": 2.5, "best_loss": 2.5, "noise_sd": 0.1},
]


def test_the_figure_shows_what_the_rows_say() -> None:
    ax = Figure().subplots()
    assert draw_steps(ROWS, ax) is ax
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert lines["settings at their horizon"] == [[2.0, 3.0], [4.0, 2.5]]
    assert lines["stopped before"] == [[1.0, 2.0]]
    assert [at for at, _ in lines["diverged or failed"]] == [3.0]
    assert lines["best so far"] == [[4.0, 2.5]]
    (band,) = ax.collections
    assert band.get_datalim(ax.transData).y1 == pytest.approx(3.0 * math.exp(0.1))


def test_a_rung_has_a_panel_even_where_all_was_lost() -> None:
    lost = {**ROWS[2], "scale": "b", "best_loss": None, "noise_sd": None}
    assert [ax.get_title() for ax in draw_descent([*ROWS, lost]).axes] == ["a", "b"]
