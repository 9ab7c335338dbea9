"""Run tables as files: exact, whole, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretune.errors import ForetuneError, InputError
from foretune.ledger import Ledger, Recorded, exporting, open_ledger
from foretune.ledger.exporting import export_runs, guard_text, unguard_text
from foretune.ledger.importing import import_runs, read_runs
from foretune.records import RunStatus
from ledger_databases import make_record

SUFFIXES = (".csv", ".parquet", ".jsonl")
FLOATS = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.pi, 2.2778836983119093, 1e-7, 3.0]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Odd floats, a diverged and a failed run, text that looks like formulas."""
    ledger = open_ledger(tmp_path / "runs.db", create=True)
    for seed, value in enumerate(FLOATS):
        ledger.record(make_record(seed, loss=value, peak_lr=value, loss_by_domain={"code": value}, device="=cmd()"))
    lost: dict[str, Any] = {"loss": None, "loss_by_domain": {}}
    ledger.record(make_record(90, status=RunStatus.DIVERGED, reason="-inf at step 3", **lost))
    ledger.record(
        make_record(91, status=RunStatus.FAILED, reason='+1, "quoted"\nsecond line', role="verification", **lost)
    )
    return ledger


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_comes_back_to_the_last_bit(ledger: Ledger, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    frame = ledger.runs("test")
    export_runs(frame, path)
    back = read_runs(path).assign(study=frame["study"])
    pd.testing.assert_frame_equal(back, frame, check_exact=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_imported_into_another_ledger_is_the_same_runs(ledger: Ledger, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    export_runs(ledger.runs("test"), path)
    with open_ledger(tmp_path / "second.db", create=True) as second:
        records = import_runs(path, study="copy").records
        assert set(second.record_all(records)) == {Recorded.INSERTED}
        assert second.studies() == ["copy"]
        assert set(ledger.record_all(records)) == {Recorded.UNCHANGED}


def test_cells_that_a_spreadsheet_would_run_are_guarded(ledger: Ledger, tmp_path: Path) -> None:
    export_runs(ledger.runs(), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["device"] for row in rows if row["status"] == "completed"} == {"'=cmd()"}
    assert [row["reason"][0] for row in rows if row["status"] != "completed"] == ["'", "'"]
    assert {row["loss"][:1] for row in rows} <= set("0123456789") | {""}


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@a", "\ta", "\ra", "'=1", "''=1", "'quoted'", "plain", "", "a=b"]
)
def test_guarding_is_undone_exactly(text: str) -> None:
    assert unguard_text(guard_text(text)) == text
    assert not guard_text(text).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_an_existing_file_is_kept_unless_forced(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("precious")
    with pytest.raises(InputError, match=r"exists already; give another name, or --force"):
        export_runs(ledger.runs(), path)
    assert path.read_text() == "precious"
    export_runs(ledger.runs(), path, force=True)
    assert path.read_text().startswith("run_id,study,source,status")


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(frame: pd.DataFrame, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "table.csv"
    path.write_text("precious")
    monkeypatch.setattr(exporting, "_write_csv", break_off)
    with pytest.raises(ForetuneError, match="not written: No space left on device"):
        export_runs(ledger.runs(), path, force=True)
    assert [file.read_text() for file in path.parent.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", ["table.xlsx", "table", "table.CSV.gz"])
def test_other_suffixes_are_refused(ledger: Ledger, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must end in \.csv, \.parquet, \.jsonl"):
        export_runs(ledger.runs(), tmp_path / name)


def test_an_absent_folder_is_told(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(ForetuneError, match="not written: No such file or directory"):
        export_runs(ledger.runs(), tmp_path / "absent" / "table.csv")
