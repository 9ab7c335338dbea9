"""What is drawn of the diagnoses is the best run of every rung."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from foretune.answers import Answer, Branch
from foretune.drawing import DIAGNOSED, draw_diagnosis_panels
from foretune.reporting import _describe_stability
from scalelaws import Target

RUNS = (
    # run_id, scale, role, parametrization, peak_lr, loss, instability
    ("a", "w32", "search", "mup", 0.01, 2.5, None),
    ("b", "w32", "search", "mup", 0.02, 2.4, None),
    ("c", "w32", "search", "standard", 0.02, 2.0, None),
    ("d", "w64", "search", "mup", 0.01, 2.2, "loss spike 5 over a level of 2.5 at step 7"),
    ("e", "w64", "search", "mup", 0.04, None, "attention logits reached 2e+04 at step 40"),
    ("f", "w128", "verification", "mup", 0.01, 2.1, None),
    ("g", "w256", "search", "mup", 0.01, 2.0, None),  # of another trainer: never diagnosed
)


def make_answer(diagnosed: str) -> Answer:
    columns = ["run_id", "scale", "role", "parametrization", "peak_lr", "loss", "instability"]
    frame = pd.DataFrame(RUNS, columns=columns).assign(steps=100, batch_tokens=1024, status="completed")
    series: list[dict[str, Any]] = [
        {"run_id": run_id, "step": step, **{name: ord(run_id) + step for name in DIAGNOSED}}
        for run_id in diagnosed
        for step in (50, 100)
    ]
    diagnoses = pd.DataFrame(series, columns=["run_id", "step", *DIAGNOSED])
    target = Target(params_non_embedding=1e6, tokens=1e8)
    return Answer("s", "", "mup", target, (Branch("mup"),), (), (), "", frame, diagnoses)


def test_the_best_search_run_of_every_rung_is_drawn() -> None:
    figure = draw_diagnosis_panels(make_answer("abcdef"))
    assert figure is not None
    assert [ax.get_ylabel() for ax in figure.axes] == list(DIAGNOSED.values())
    for ax in figure.axes:
        lines = [line for line in ax.get_lines() if line.get_marker() == "."]
        assert [line.get_label() for line in lines] == ["w32, learning rate 0.02", "w64, learning rate 0.01"]
        for line, run_id in zip(lines, "bd", strict=True):
            assert line.get_xydata().tolist() == [[0.5, ord(run_id) + 50], [1.0, ord(run_id) + 100]]


def test_runs_without_diagnoses_are_no_figure() -> None:
    assert draw_diagnosis_panels(make_answer("")) is None


@pytest.mark.parametrize(("diagnosed", "told"), [("abcdef", "In 4 of 6 runs"), ("", "In 0 of 2 runs")])
def test_the_report_lists_what_was_seen(diagnosed: str, told: str) -> None:
    (section,) = _describe_stability(make_answer(diagnosed), [])
    assert section.paragraphs[0].startswith(told)
    (table,) = section.tables
    assert [row["cells"][-1] for row in table.rows] == [run[-1] for run in RUNS if run[-1]]
