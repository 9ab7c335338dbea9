"""The verbs end to end on a replayed study: pure JSON on stdout, exit codes, and the forecast against the truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from foretune.cli import main
from foretune.runners import Surface
from foretune.study import load_study

ROOT = Path(__file__).parents[2]
GRID = ROOT / "studies/lr_batch_grid"
VERBS = {
    "check", "plan", "run", "report", "schema", "status", "import", "export", "fit", "predict", "allocate", "laws",
    "backtest", "next", "coordcheck", "transfer", "mixture",
}  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ledger and results of the replayed grid."""
    folder = tmp_path_factory.mktemp("grid")
    code = main(["run", str(GRID), "--quiet", "--ledger", str(folder / "l.db"), "--results", str(folder / "results")])
    assert code == 0
    return folder


def ask(launched: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """The JSON that a query prints."""
    capsys.readouterr()
    assert main([*words, "--ledger", str(launched / "l.db"), "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_forecast_covers_the_planted_optimum(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(
        launched, capsys, "predict", "lr_batch_grid", "--params", "7B", "--tokens", "1.4T", "--seq-len", "4096"
    )
    surface = load_study(GRID).runner.surface
    assert surface is not None
    truth = Surface(surface)
    for key, planted in (
        ("peak_lr", truth.best_lr(7e9, 1.4e12, "standard")),
        ("batch_tokens", truth.best_batch(1.4e12)),
        ("loss", truth.best_loss(7e9, 1.4e12)),
    ):
        assert answer[key]["low"] < planted < answer[key]["high"], key
        assert answer[key]["value"] == pytest.approx(planted, rel=0.15), key
    assert answer["batch_sequences"]["value"] == pytest.approx(answer["batch_tokens"]["value"] / 4096)
    assert answer["extrapolation"]["tokens"] == pytest.approx(1.4e12 / 13_593_214_976)


def test_predict_prints_the_whole_contract(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(launched, capsys, "predict", str(GRID))
    assert set(answer) == {
        "target", "peak_lr", "batch_tokens", "batch_sequences", "loss", "regret", "level", "extrapolation", "law",
        "status", "evidence", "scope", "warnings",
    }  # fmt: skip
    assert answer["target"]["params_non_embedding"] == 7e9
    assert sum(item["runs"] for item in answer["evidence"]["excluded"]) + answer["evidence"]["runs"] == 336


def test_results_folder_holds_study_answer_figures_and_page(launched: Path) -> None:
    folder = launched / "results/lr_batch_grid"
    answer = json.loads((folder / "answer.json").read_text())
    assert answer["peak_lr"]["value"] > 0
    assert load_study(folder / "study.toml").study.name == "lr_batch_grid"
    page = (folder / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert 'src="http' not in page
    assert "<script" not in page
    assert (folder / "figures/basins.png").read_bytes().startswith(b"\x89PNG")


def test_run_again_does_nothing(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = ask(launched, capsys, "status")
    words = ["run", str(GRID), "--quiet", "--ledger", str(launched / "l.db"), "--results", str(launched / "results")]
    assert main(words) == 0
    assert "search: 0 runs to do, 336 done before" in capsys.readouterr().err
    assert ask(launched, capsys, "status") == before


def test_plan_counts_what_is_done(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ask(launched, capsys, "plan", str(GRID))
    assert (plan["runs_to_do"], plan["runs_done"], plan["runs_skipped"]) == (0, 336, 0)


def test_export_and_reading_it_back_give_the_same_forecast(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    direct = ask(launched, capsys, "predict", "lr_batch_grid")
    for suffix in ("csv", "parquet"):
        file = tmp_path / f"runs.{suffix}"
        assert main(["export", "lr_batch_grid", "--to", str(file), "--ledger", str(launched / "l.db")]) == 0
        words = ["predict", "--params", "7B", "--tokens", "1.4T", "--seq-len", "4096"]
        read = ask(launched, capsys, *words, "--runs", str(file))
        assert read["peak_lr"] == direct["peak_lr"]
        assert read["loss"] == direct["loss"]


def test_import_joins_a_ledger(launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "sweep.csv"
    frame = pd.DataFrame({"N": [1e6, 2e6], "D": [1e8, 1e8], "final": [3.5, 3.3], "lr": [1e-3, 1e-3]})
    frame.to_csv(table, index=False)
    ledger = str(tmp_path / "other.db")
    words = ["import", str(table), "--study", "theirs", "--map", "final=loss", "--ledger", ledger]
    assert main(words) == 0
    assert "2 runs inserted" in capsys.readouterr().out
    assert main(words) == 0
    assert "2 runs unchanged" in capsys.readouterr().out


def test_fit_and_allocate(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ask(launched, capsys, "fit", "lr_batch_grid", "--law", "chinchilla")
    assert {"law", "formula", "parameters", "objective", "status", "residuals", "evidence", "seconds"} <= set(fit)
    allocation = ask(launched, capsys, "allocate", "lr_batch_grid", "--flops", "1e21")
    product = 6 * allocation["params_non_embedding"]["value"] * allocation["tokens"]["value"]
    assert product == pytest.approx(1e21, rel=1e-6)


def test_allocate_says_which_procedure_answered(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """IsoFLOP curves of a planted law are read by approaches 2 and 3; runs without them by the law alone."""
    budgets = np.repeat(np.geomspace(1e18, 1e20, 4), 9)
    size = np.sqrt(budgets / 120) * np.tile(np.geomspace(0.2, 5, 9), 4)
    tokens = budgets / 6 / size
    loss = 1.8 + 480 * size**-0.348 + 2085 * tokens**-0.366
    table = tmp_path / "isoflops.csv"
    pd.DataFrame({"N": size, "D": tokens, "loss": loss}).to_csv(table, index=False)
    found = ask(launched, capsys, "allocate", "--runs", str(table), "--flops", "1e21")
    assert found["law"] == "compare_approaches: isoflop profile and law"
    best = (0.348 * 480 / (0.366 * 2085)) ** (1 / 0.714) * (1e21 / 6) ** (0.366 / 0.714)
    assert found["params_non_embedding"]["low"] < best < found["params_non_embedding"]["high"]
    assert found["params_non_embedding"]["value"] == pytest.approx(best, rel=0.05)
    assert ask(launched, capsys, "allocate", "lr_batch_grid", "--flops", "1e21")["law"] == "chinchilla"


def test_a_published_split_answers_without_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", "--published", "greater_leverage_dense", "--flops", "1e20", "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["tokens"]["value"] == pytest.approx(15.2582 * 1e20**0.4578)
    assert answer["loss"]["value"] is None


def test_published_laws_answer_without_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--published", "step_law", "--params", "7B", "--tokens", "1.4T", "--seq-len", "2048"]
    assert main([*words, "--format", "json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["peak_lr"]["value"] == pytest.approx(9.166e-4, rel=1e-3)
    assert answer["batch_tokens"]["value"] == pytest.approx(4.999e6, rel=1e-3)


@pytest.mark.parametrize("kind", ["table", "json", "csv"])
def test_laws_print_in_every_format(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laws", "--format", kind]) == 0
    out = capsys.readouterr().out
    assert "chinchilla" in out
    assert "step_law" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nowhere"], "study file 'nowhere' not found"),
        (["predict", "--params", "7B", "--tokens", "1T"], "name a study or give --runs FILE"),
        (["predict", "--published", "stepp", "--params", "7B", "--tokens", "1T"], "there is no published law 'stepp'"),
        (["allocate", "--published", "step_law", "--flops", "1e21"], "allocate needs a law of the loss in N and D"),
        (["predict", "lr_batch_gird", "--params", "7B", "--tokens", "1T"], "lr_batch_grid"),
        (["predict", "lr_batch_grid", "--params", "0", "--tokens", "1T"], "must be positive"),
        (["fit", "lr_batch_grid", "--law", "chinchila"], "there is no law 'chinchila'"),
        (["fit", "lr_batch_grid", "--law", "chinchilla", "--parametrization", "mup"], "no runs to fit"),
        (["export", "lr_batch_grid", "--to", "runs.xls"], ".xls"),
        (["import", "nothing.csv", "--study", "x"], "nothing.csv"),
        (["import", "nothing.csv", "--study", "x", "--map", "loss"], "must read COLUMN=NAME"),
    ],
)
def test_wrong_input_exits_2_without_a_traceback(
    launched: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = [] if "--published" in words else ["--ledger", str(launched / "l.db")]
    assert main([*words, *ledger]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_number_that_is_none_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--params", "7Q", "--tokens", "1T"])
    assert stop.value.code == 2
    assert "must be a number, got '7Q'" in capsys.readouterr().err


def test_reading_never_makes_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert main(["plan", str(GRID)]) == 0
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"    {verb}" in out for verb in VERBS)


def test_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["proxy"]
    assert schema["additionalProperties"] is False


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m foretune.cli laws --format json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
