"""The optimum along every axis, on replayed surfaces with a planted one, and what the gates allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretune.cli import main
from foretune.errors import InputError
from foretune.gates.coordinates import fingerprint_proxy
from foretune.gates.licences import TRANSFERRED, grant_licence
from foretune.gates.transferring import fingerprint_runs, measure_transfer
from foretune.ledger import open_ledger
from foretune.study import Study, load_study, read_study

BEST = 2.0**-6.6
"""The optimum under muP, planted at every size."""


def make_raw(across: str = "fit", **proxy: Any) -> dict[str, Any]:
    scales = [{"name": f"w{width}", "width": width, "tokens": "8M"} for width in (128, 256, 512)]
    return {
        "study": {"name": "ladder"},
        "proxy": {"base_width": 128, "head_size": 64, "parametrization": "mup", "across_widths": across, **proxy},
        "scales": [
            *scales,
            {"name": "deep", "width": 256, "depth": 8, "tokens": "8M"},
            {"name": "held", "width": 1024, "tokens": "8M"},
        ],
        "data": {"seq_len": 512, "tokenizer": "bytes"},
        "training": {"batch_tokens": 16_384},
        "search": {
            "space": {
                "parametrization": ["mup", "standard"],
                "peak_lr": {"low": "2^-13", "high": "2^-4", "factor": 2},
            }
        },
        "verification": {"scale": "held"},
        "runner": {
            "kind": "replay",
            "surface": {
                "lr_coefficient": BEST,
                "lr_tokens_exponent": 0.0,
                "lr_params_exponent": {"mup": 0.0, "standard": -0.2},
                "noise": 0.0003,
            },
        },
        "target": {"params": "100M", "tokens": "8M"},
    }


class Bench:
    """A study in a folder, and its verbs."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], across: str = "fit") -> None:
        self.folder, self.capsys = folder, capsys
        self.write(make_raw(across))

    def write(self, raw: dict[str, Any]) -> None:
        (self.folder / "study.toml").write_text(read_study(raw).to_toml(), encoding="utf-8")

    def call(self, verb: str, *words: str) -> tuple[int, str]:
        """The exit code, and what was printed to both streams."""
        results = [] if verb == "predict" else ["--results", str(self.folder / "results")]
        code = main([verb, str(self.folder), "--ledger", str(self.folder / "l.db"), *results, *words])
        captured = self.capsys.readouterr()
        return code, captured.out + captured.err

    def pass_coordinates(self, *, passed: bool = True) -> None:
        """What `foretune coordcheck` leaves in the ledger."""
        with open_ledger(self.folder / "l.db") as ledger:
            details = {"message": "" if passed else "mup: fails at head (+0.41 over width)"}
            details["fingerprint"] = fingerprint_proxy(load_study(self.folder))
            ledger.save_gate("ladder", "mup", "coordcheck", passed=passed, details=details)

    def answer(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "results/ladder/answer.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, pd.DataFrame]:
    """The study and its run table."""
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "study.toml").write_text(read_study(make_raw()).to_toml(), encoding="utf-8")
    words = ["run", str(folder), "--quiet", "--ledger", str(folder / "l.db"), "--results", str(folder / "results")]
    assert main(words) == 0
    with open_ledger(folder / "l.db") as ledger:
        return read_study(make_raw()), ledger.runs("ladder")


def test_what_was_planted_is_found_along_every_axis(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    mup, standard = measure_transfer("ladder", frame, study).branches
    assert (mup.parametrization, standard.parametrization) == ("mup", "standard")
    for drift in mup.drifts.values():
        assert drift.slope is not None
        assert drift.slope.low is not None
        assert drift.slope.high is not None
        assert drift.slope.low < 0 < drift.slope.high
    widths = mup.drifts["width"]
    assert [optimum.value for optimum in widths.ladders[0].drift.optima] == pytest.approx([BEST] * 3, rel=0.05)
    over_width = standard.drifts["width"]
    assert over_width.slope is not None
    assert over_width.slope.value == pytest.approx(-0.4, abs=0.1)  # N grows with the square of the width
    assert over_width.verdict == "drifts"
    assert "fails: over width it drifts" in standard.message
    assert standard.wanted == ""
    assert mup.needed == ("width", "depth")
    assert set(mup.unmeasured) == {"batch", "horizon"}
    assert "no two batches were searched" in mup.unmeasured["batch"]


def test_runs_of_one_depth_need_the_width_only(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    branch = measure_transfer("ladder", frame[frame["scale"] != "deep"], study).branches[0]
    assert branch.needed == ("width",)
    assert branch.passed
    assert branch.message.startswith("passes: over width it holds")


def test_two_depths_are_too_few_to_hold(table: tuple[Study, pd.DataFrame]) -> None:
    """Undecided is not passed, and the message names the runs that would decide it."""
    study, frame = table
    noisy = frame.assign(loss=frame["loss"] * (1 + 0.004 * (frame["width"] == 512) * (frame["peak_lr"] > BEST)))
    rows = noisy[noisy["scale"].isin(("w256", "w512", "deep")) & (noisy["peak_lr"] < 4 * BEST)]
    branch = measure_transfer("ladder", rows, study).branches[0]
    assert not branch.passed
    assert branch.message.startswith("not shown")
    assert "two more seeds at" in branch.wanted


def test_without_a_study_the_table_alone_answers(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    with_study, without = measure_transfer("ladder", frame, study), measure_transfer("ladder", frame)
    assert [branch.message for branch in with_study.branches] == [branch.message for branch in without.branches]


def test_runs_that_check_a_forecast_are_not_judged(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    assert "verification" in set(frame["role"])
    kept = frame[frame["role"] == "search"]
    assert fingerprint_runs(frame, "mup") == fingerprint_runs(kept, "mup")
    assert measure_transfer("ladder", frame, study).branches[0].runs == len(kept[kept["parametrization"] == "mup"])


def test_a_space_of_more_dimensions_is_refused(table: tuple[Study, pd.DataFrame]) -> None:
    raw = make_raw()
    raw["search"]["space"]["beta2"] = [0.95, 0.99]
    with pytest.raises(InputError, match=r"search.space.beta2: transfer compares optima that differ in one scale"):
        measure_transfer("ladder", table[1], read_study(raw))


def test_no_ladder_is_no_gate(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    branch = measure_transfer("ladder", frame[frame["scale"] == "w128"], study).branches[0]
    assert not branch.passed
    assert "no two widths were searched at one tokens, batch_tokens, depth" in branch.message
    lost = frame.assign(status="failed")
    assert "no runs to fit" in measure_transfer("ladder", lost, study).branches[0].message


def test_a_decay_that_was_searched_is_set_apart(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = table
    again = frame.assign(weight_decay=0.2, run_id=frame["run_id"] + "-2", loss=frame["loss"] * 1.02)
    both = measure_transfer("ladder", pd.concat([frame, again], ignore_index=True), study).branches[0]
    assert [ladder.fixed["weight_decay"] for ladder in both.drifts["width"].ladders] == [0.1, 0.2]
    tied = frame.assign(weight_decay=0.001 / frame["peak_lr"])
    assert len(measure_transfer("ladder", tied, study).branches[0].drifts["width"].ladders) == 1


def test_the_verb_prints_draws_and_writes_the_verdict_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path, capsys)
    raw = make_raw()
    raw["scales"] = [scale for scale in raw["scales"] if scale["name"] != "deep"]
    bench.write(raw)
    assert bench.call("run", "--quiet")[0] == 0
    code, said = bench.call("transfer")
    assert code == 0
    assert "mup, over width: holds" in said
    assert "standard: the gate is NOT passed" in said
    assert (tmp_path / "results/ladder/transfer.png").read_bytes().startswith(b"\x89PNG")
    with open_ledger(tmp_path / "l.db") as ledger:
        gates = ledger.gates("ladder").set_index("parametrization")
    assert list(gates["kind"]) == ["transfer", "transfer"]
    assert gates["passed"].to_dict() == {"mup": True, "standard": False}
    assert "passes: over width it holds" in gates.loc["mup", "details"]["message"]
    main(
        ["transfer", str(tmp_path), "--ledger", str(tmp_path / "l.db"), "--results", str(tmp_path), "--format", "json"]
    )
    record = json.loads(capsys.readouterr().out)
    assert record["parametrizations"]["standard"]["axes"]["width"]["verdict"] == "drifts"


def test_the_gates_open_the_law_and_the_forecast_is_then_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused with what to do, refused with the numbers of a failed gate, then answered, registered and checked."""
    bench = Bench(tmp_path, capsys, "transfer")
    raw = make_raw("transfer")
    raw["scales"] = [scale for scale in raw["scales"] if scale["name"] != "deep"]
    bench.write(raw)
    code, said = bench.call("run", "--quiet")
    assert code == 1
    assert "coordcheck was never run (run `foretune coordcheck ladder`); transfer was never run" in said
    assert "verification" not in bench.answer()
    assert bench.call("transfer")[0] == 0
    bench.pass_coordinates(passed=False)
    code, said = bench.call("predict")
    assert code == 2
    assert "coordcheck did not pass: mup: fails at head (+0.41 over width)" in said
    bench.pass_coordinates()
    code, said = bench.call("run", "--quiet")
    assert code == 0
    answer = bench.answer()
    assert answer["law"] == TRANSFERRED
    assert answer["peak_lr"]["low"] < BEST < answer["peak_lr"]["high"]
    assert not any("ASSUMED" in warning for warning in answer["warnings"])
    held = answer["verification"]
    assert held["registered_before_runs"]
    assert held["per_parametrization"]["mup"]["predicted_lr"] == pytest.approx(BEST, rel=0.05)
    assert set(held["per_parametrization"]) == {"mup", "standard"}


def test_an_assumption_is_said_in_every_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path, capsys, "assume_transfer")
    assert bench.call("run", "--quiet")[0] == 0
    answer = bench.answer()
    assert answer["law"] == TRANSFERRED
    assert "ASSUMED" in answer["warnings"][-1]
    assert "coordcheck was never run" in answer["warnings"][-1]
    page = (tmp_path / "results/ladder/report.html").read_text(encoding="utf-8")
    assert "ASSUMED" in page
    code, said = bench.call("predict", "--format", "json")
    assert code == 0
    assert "ASSUMED" in said
    code, said = bench.call("predict", "--parametrization", "standard", "--format", "json")
    assert '"law": "lr_batch"' in said


def test_a_verdict_on_other_runs_does_not_count(table: tuple[Study, pd.DataFrame]) -> None:
    study, frame = read_study(make_raw("transfer")), table[1]
    judged = {"fingerprint": fingerprint_runs(frame, "mup")}
    checked = {"fingerprint": fingerprint_proxy(study)}
    rows = [("mup", "coordcheck", True, checked, "2026"), ("mup", "transfer", True, judged, "2026")]
    gates = pd.DataFrame(rows, columns=["parametrization", "kind", "passed", "details", "created_at"])
    assert grant_licence(study, gates, frame, "mup").law == TRANSFERRED
    assert grant_licence(study, gates, frame, "standard").law == ""
    with pytest.raises(InputError, match="transfer judged other runs than the study has now"):
        grant_licence(study, gates, frame[frame["scale"] != "w128"], "mup")
    raw = make_raw("transfer")
    raw["proxy"]["qk_norm"] = True
    with pytest.raises(InputError, match=r"coordcheck judged another \[proxy\]"):
        grant_licence(read_study(raw), gates, frame, "mup")
    with pytest.raises(InputError, match="coordcheck was never run"):
        grant_licence(study, gates[gates["kind"] == "transfer"], frame, "mup")


def test_transfer_under_standard_is_refused_by_the_study() -> None:
    with pytest.raises(InputError, match=r"proxy\.across_widths: 'transfer' needs a parametrization under which"):
        read_study(make_raw("transfer", parametrization="standard"))
