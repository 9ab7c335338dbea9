"""The next runs as a study, and backtests from the command line, on a replayed surface."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foretune.cli import main
from foretune.proposing import list_candidates
from foretune.resolution import resolve_corpus
from foretune.study import load_study, read_study

WIDTHS = (128, 192, 256)


def make_raw() -> dict[str, Any]:
    scales = [
        {"name": f"w{width}-{ratio}x", "width": width, "tokens": f"{ratio}xN"} for width in WIDTHS for ratio in (20, 80)
    ]
    return {
        "study": {"name": "small_grid"},
        "proxy": {"base_width": 128, "head_size": 64, "depth": 4, "parametrization": "standard"},
        "scales": [*scales, {"name": "held", "width": 320, "tokens": "20xN"}],
        "data": {"seq_len": 512, "tokenizer": "bytes"},
        "training": {"batch_tokens": 16_384},
        "search": {
            "space": {
                "peak_lr": {"low": "2^-9", "high": "2^-4", "factor": 2},
                "batch_tokens": {"low": 8192, "high": 65_536, "factor": 2},
            }
        },
        "verification": {"scale": "held"},
        "runner": {"kind": "replay", "surface": {}},
        "target": {"params": "1B", "tokens": "20B"},
    }


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study, its ledger and its results."""
    folder = tmp_path_factory.mktemp("proposing")
    (folder / "study.toml").write_text(read_study(make_raw()).to_toml())
    words = ["run", str(folder), "--quiet", "--ledger", str(folder / "l.db"), "--results", str(folder / "results")]
    assert main(words) == 0
    return folder


def test_a_written_study_reads_back_as_the_same_study(launched: Path) -> None:
    assert load_study(launched).snapshot() == read_study(make_raw()).snapshot()


def test_the_next_runs_are_a_study_that_trains_only_them(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = launched / "next.toml"
    ledger = ["--ledger", str(launched / "l.db")]
    words = ["next", str(launched), "--runs-affordable", "4", "--to", str(place), *ledger, "--format", "json"]
    capsys.readouterr()
    assert main(words) == 0
    proposal = json.loads(capsys.readouterr().out)
    points = load_study(place).search.points
    assert len(points) == len(proposal["points"]) == 4
    assert all(point.scale != "held" for point in points)
    assert main(["plan", str(place), *ledger, "--no-probe", "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["runs_to_do"], plan["runs_done"]) == (4, 144)
    assert main(["run", str(place), "--quiet", *ledger, "--results", str(launched / "results")]) == 0
    assert "search: 4 runs to do, 144 done before" in capsys.readouterr().err


def test_candidates_reach_between_and_beyond_the_grid() -> None:
    study = read_study(make_raw())
    specs = list_candidates(study, resolve_corpus(study), "standard")
    rates = sorted({spec.training.peak_lr for spec in specs})
    assert rates[0] == pytest.approx(2**-10, rel=1e-3)
    assert rates[-1] == pytest.approx(2**-3, rel=1e-3)
    assert len(rates) == 15
    assert {spec.scale for spec in specs} == {f"w{width}-{ratio}x" for width in WIDTHS for ratio in (20, 80)}
    assert len({spec.run_id for spec in specs}) == len(specs)
    cells = {(spec.scale, spec.training.tokens) for spec in specs}
    assert len(cells) == 6, "every candidate of a rung sees the same tokens"


def test_before_any_run_a_start_design_is_laid_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.toml").write_text(read_study(make_raw()).to_toml())
    place = tmp_path / "next.toml"
    words = ["next", str(tmp_path), "--runs-affordable", "12", "--to", str(place), "--ledger", str(tmp_path / "l.db")]
    assert main(words) == 0
    points = load_study(place).search.points
    assert len(points) == 12
    assert len({point.scale for point in points}) >= 3
    assert "no run is done yet" in capsys.readouterr().out
    assert main(["plan", str(place), "--ledger", str(tmp_path / "l.db"), "--no-probe", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs_to_do"] == 12, "the grid itself is not asked for"


def test_backtest_ranks_laws_of_both_kinds(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = ["backtest", "small_grid", "--ledger", str(launched / "l.db"), "--format", "json"]
    assert main([*words, "--law", "power_law_compute", "--law", "response_surface"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {cell["held_out"] for cell in found["cells"]} == {"loss", "settings"}
    assert {"predicted", "actual", "error", "inside"} <= set(found["cells"][0])
    assert {"mean", "percentile_90", "coverage"} <= set(found["summary"][0])
    assert found["ranking"] == {"loss": ["power_law_compute"], "settings": ["response_surface"]}
    assert all(row["mean"] < 0.01 for row in found["summary"] if row["held_out"] == "settings")


def test_backtest_of_an_unknown_law_is_wrong_input(launched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backtest", "small_grid", "--ledger", str(launched / "l.db"), "--law", "nothing"]) == 2
    assert "--law: there is no law 'nothing'" in capsys.readouterr().err
