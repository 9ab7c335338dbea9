"""Looking runs up in a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretune.errors import InputError
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus, trainer_of
from foretune.runners import make_runner
from foretune.sections import RunnerSection
from foretune_factories import make_spec

PARAMS = make_spec().model.shape.params_non_embedding
ROW = {"params_non_embedding": PARAMS, "tokens": 40960, "peak_lr": 2**-7, "batch_tokens": 1024, "loss": 3.25}


def look_up(rows: list[dict[str, Any]], folder: Path, suffix: str = ".csv", **overrides: Any) -> RunOutcome:
    table = folder / f"runs{suffix}"
    frame = pd.DataFrame(rows)
    if suffix == ".csv":
        frame.to_csv(table, index=False)
    else:
        frame.to_parquet(table)
    section = RunnerSection(kind="replay", table=str(table))
    runner = make_runner(section, workspace=folder)
    ((_, outcome),) = runner.run([make_spec(trainer=trainer_of("", section), **overrides)], ignore)
    return outcome


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_is_found_by_its_settings(tmp_path: Path, suffix: str) -> None:
    rows = [ROW | {"peak_lr": 2**-6, "loss": 3.5}, ROW | {"peak_lr": 2**-7 * (1 + 1e-7)}, ROW | {"tokens": 81920}]
    outcome = look_up(rows, tmp_path, suffix)
    assert (outcome.status, outcome.loss, outcome.tokens) == (RunStatus.COMPLETED, 3.25, 40960)


def test_seed_and_parametrization_decide_where_the_table_has_them(tmp_path: Path) -> None:
    rows = [
        ROW | {"seed": 0, "parametrization": "mup", "loss": 3.0},
        ROW | {"seed": 1, "parametrization": "mup", "loss": 3.1},
        ROW | {"seed": 1, "parametrization": "standard", "loss": 3.2},
    ]
    assert look_up(rows, tmp_path, seed=1).loss == 3.1
    assert look_up(rows, tmp_path, seed=1, parametrization="standard").loss == 3.2
    assert "no row is of that parametrization and seed" in look_up(rows, tmp_path, seed=2).reason


def test_a_run_that_is_not_there_fails_and_names_the_nearest(tmp_path: Path) -> None:
    rows = [ROW | {"peak_lr": 0.01}, ROW | {"peak_lr": 0.1}]
    outcome = look_up(rows, tmp_path)
    assert outcome.status is RunStatus.FAILED
    assert "no row with" in outcome.reason
    assert f"nearest: params_non_embedding {PARAMS}, tokens 40960, peak_lr 0.01" in outcome.reason


def test_rows_that_disagree_are_not_chosen_from(tmp_path: Path) -> None:
    outcome = look_up([ROW, ROW | {"loss": 3.26}], tmp_path)
    assert outcome.status is RunStatus.FAILED
    assert "2 rows" in outcome.reason
    assert look_up([ROW, ROW], tmp_path).loss == 3.25


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"loss": float("nan")}, RunStatus.DIVERGED),
        ({"loss": float("nan"), "status": "failed", "reason": "disk"}, RunStatus.FAILED),
        ({"status": "diverged", "reason": "loss not finite at step 7"}, RunStatus.DIVERGED),
    ],
)
def test_runs_without_a_loss_keep_their_status(tmp_path: Path, row: dict[str, Any], status: RunStatus) -> None:
    outcome = look_up([ROW | row], tmp_path)
    assert outcome.status is status
    assert outcome.loss is None
    assert row.get("reason", "loss nan") in outcome.reason


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"N": 1, "loss": 2.0}], r"missing \['params_non_embedding', 'tokens', 'peak_lr'\]"),
        ([ROW | {"loss_unit": "bits_per_byte"}], "loss_unit must be nats_per_token"),
    ],
)
def test_tables_that_say_something_else_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        look_up(rows, tmp_path)


def test_a_missing_or_garbled_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        make_runner(RunnerSection(kind="replay", table=str(tmp_path / "none.csv")), workspace=tmp_path)
    (tmp_path / "runs.parquet").write_bytes(b"garbage")
    with pytest.raises(InputError, match="not a CSV or Parquet file"):
        make_runner(RunnerSection(kind="replay", table=str(tmp_path / "runs.parquet")), workspace=tmp_path)
