"""A verification says what happened, also when it went badly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from foretune.answers import Verification, VerificationRun
from foretune.cli import main
from foretune.deriving import nearest_batch
from foretune.reporting import _describe_verification
from foretune.study import load_study

GRID = Path(__file__).parents[2] / "studies/lr_batch_grid"


def verify(*runs: tuple[float, float | None, str], predicted: float = 0.01) -> Verification:
    made = tuple(VerificationRun(lr, loss, 128, 0, status, "mup") for lr, loss, status in runs)
    return Verification("mup", predicted, {"loss": {"value": 2.0, "low": 1.9, "high": 2.1}}, made)


def test_regret_is_relative_to_the_best_tried() -> None:
    check = verify((0.005, 2.0, "completed"), (0.01, 2.05, "completed"), (0.02, 2.2, "completed"))
    assert check.regret == pytest.approx(0.025)
    assert check.best_lr == 0.005
    assert check.loss_inside
    assert "2.50 % above the best of 3 tried (0.005)" in _describe_verification(check)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([(0.005, 2.0, "completed"), (0.01, None, "diverged")], "diverged; the best of those tried is 0.005"),
        ([(0.005, None, "diverged"), (0.01, None, "diverged")], "diverged; so did all its neighbours"),
        ([(0.005, 2.0, "completed"), (0.01, None, "failed")], "has no finished run (0.005 completed, 0.01 failed)"),
        ([], "has no finished run (none was trained)"),
    ],
)
def test_what_went_badly_is_said(runs: list[tuple[float, float | None, str]], said: str) -> None:
    check = verify(*runs)
    assert said in _describe_verification(check)
    record = check.to_dict()
    assert record["regret"] is None
    assert not any(isinstance(value, float) and math.isinf(value) for value in record.values())


def test_seeds_are_averaged() -> None:
    check = verify((0.01, 2.0, "completed"), (0.01, 2.2, "completed"), (0.02, 2.0, "completed"))
    assert check.loss_by_lr == {0.01: pytest.approx(2.1), 0.02: 2.0}


@pytest.mark.parametrize("predicted", [3e4, 1.1e5, 7e5])
def test_the_verified_batch_divides_the_horizon(predicted: float) -> None:
    study, horizon = load_study(GRID), 3_398_434_816
    batch = nearest_batch(predicted, study, horizon)
    assert horizon % batch == 0
    assert batch % study.data.seq_len == 0
    assert abs(math.log(batch / predicted)) < 0.35


CASES: dict[str, dict[str, str]] = {
    "every optimum at the edge": {"peak_lr": '{ low = "2^-20", high = "2^-16", factor = 2 }'},
    "one learning rate": {"peak_lr": '["2^-9"]'},
    "all diverged": {"divergence": "1.0001", "peak_lr": '["2^-2", "2^-3", "2^-4", "2^-5"]'},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_report_is_written_whatever_came_out(
    case: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (GRID / "study.toml").read_text(encoding="utf-8")
    text = text.replace('{ low = "2^-11", high = "2^-5", factor = 2 }', case["peak_lr"])
    text = text.replace("noise = 0.0005", f"noise = 0.0005\ndivergence_factor = {case.get('divergence', 12)}")
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    words = [
        "run",
        str(tmp_path),
        "--quiet",
        "--ledger",
        str(tmp_path / "l.db"),
        "--results",
        str(tmp_path / "results"),
    ]
    assert main(words) == 1
    assert "No forecast" in capsys.readouterr().out
    assert (tmp_path / "results/lr_batch_grid/report.html").is_file()
