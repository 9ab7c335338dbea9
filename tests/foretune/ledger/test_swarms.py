"""Swarms in two files: how olmix and RegMix name things, what is refused, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from foretune.cli import main
from foretune.errors import InputError
from foretune.ledger import open_ledger
from foretune.ledger.importing import ImportedRuns, import_runs
from foretune.ledger.swarms import export_swarm
from foretune.records import RunStatus
from scalelaws import read_olmix

SIZE = {"params_non_embedding": "30M", "tokens": "3B"}
# the example of olmix's README
RATIOS = "run,dclm,wikipedia,arxiv\nrun_001,0.45,0.30,0.25\nrun_002,0.60,0.20,0.20\nrun_003,0.33,0.33,0.34\n"
METRICS = (
    "run,arc_challenge_bpb,hellaswag_bpb,mmlu_stem_bpb\n"
    "run_001,1.23,0.87,1.45\nrun_002,1.15,0.91,1.38\nrun_003,1.20,0.89,1.42\n"
)


def load(folder: Path, ratios: str = RATIOS, metrics: str = METRICS, **options: Any) -> ImportedRuns:
    (folder / "ratios.csv").write_text(ratios, encoding="utf-8")
    (folder / "metrics.csv").write_text(metrics, encoding="utf-8")
    given: dict[str, Any] = {"study": "s", "format": "olmix", "constants": SIZE, **options}
    return import_runs(folder / "ratios.csv", **given)


def test_the_example_of_olmix_is_read(tmp_path: Path) -> None:
    imported = load(tmp_path)
    first = imported.records[0]
    assert first.mix == {"dclm": 0.45, "wikipedia": 0.3, "arxiv": 0.25}
    assert first.loss_by_domain == {"arc_challenge_bpb": 1.23, "hellaswag_bpb": 0.87, "mmlu_stem_bpb": 1.45}
    assert (first.params_non_embedding, first.tokens, first.compute_flops) == (30_000_000, 3_000_000_000, 5.4e17)
    assert (first.loss, first.loss_unit, first.status) == (None, "bits_per_byte", RunStatus.COMPLETED)
    assert [record.source.split(" of ")[0] for record in imported.records] == [
        "run run_001",
        "run run_002",
        "run run_003",
    ]
    assert "ratios.csv sha256:" in first.source
    assert "metrics.csv sha256:" in first.source
    assert any("bits_per_byte for 3 metrics; else: --set loss_unit=nats" in note for note in imported.notes)


def test_rows_are_joined_by_name_and_columns_that_tell_nothing_are_left(tmp_path: Path) -> None:
    """As pandas writes a frame of olmix's own: an unnamed index, name and index; the key may be run_id."""
    ratios = "Unnamed: 0,run_id,name,index,code,web\n0,a,first,0,0.25,0.75\n1,b,second,1,1,0\n"
    metrics = ",run_id,name,index,code,loss\n0,b,second,0,0.9,1.2\n1,a,first,1,0.8,1.1\n"
    imported = load(tmp_path, ratios, metrics)
    assert [record.mix for record in imported.records] == [{"code": 0.25, "web": 0.75}, {"code": 1.0, "web": 0.0}]
    assert [record.loss_by_domain for record in imported.records] == [
        {"code": 0.8, "loss": 1.1},
        {"code": 0.9, "loss": 1.2},
    ]
    assert {"name", "index", "Unnamed: 0"} <= set(imported.unused)
    # one domain and one metric are called alike: each is told with its file
    assert imported.resolved["ratios.csv: code"] == "mix/code"
    assert imported.resolved["metrics.csv: code"] == "loss/code"
    assert any("by its name code, loss need not be in bits per byte" in note for note in imported.notes)
    nats = load(tmp_path, ratios, metrics, constants={**SIZE, "loss_unit": "nats_per_token"})
    assert {record.loss_unit for record in nats.records} == {"nats_per_token"}


def test_the_files_of_regmix_are_read(tmp_path: Path) -> None:
    """Names of columns as their scripts write them."""
    (tmp_path / "train_mixture_1m.csv").write_text(
        "index,train_the_pile_arxiv,train_the_pile_pile_cc\n1,0.08,0.92\n2,0.5,0.5\n"
    )
    losses = tmp_path / "train_pile_loss_1m.csv"
    losses.write_text("index,metric/the_pile_pile_cc_val_loss,metric/train_loss\n1,4.25,3\n2,4.5,3\n")
    file = tmp_path / "train_mixture_1m.csv"
    imported = import_runs(file, study="s", format="regmix", constants=SIZE)
    assert imported.records[1].mix == {"the_pile_arxiv": 0.5, "the_pile_pile_cc": 0.5}
    assert imported.records[1].loss_by_domain == {"the_pile_pile_cc": 4.5}
    assert imported.records[1].loss_unit == "nats_per_token"
    assert "metric/train_loss" in imported.unused
    with pytest.raises(InputError, match=r"--metrics: .*train_mixture_1m.csv is the file of the shares"):
        import_runs(file, study="s", format="regmix", constants=SIZE, metrics=file)
    losses.rename(tmp_path / "losses.csv")
    with pytest.raises(InputError, match=r"looked at .*train_pile_loss_1m.csv\).*--metrics FILE"):
        import_runs(file, study="s", format="regmix", constants=SIZE)
    named = import_runs(file, study="s", format="regmix", constants=SIZE, metrics=tmp_path / "losses.csv")
    assert [record.run_id for record in named.records] == [record.run_id for record in imported.records]


@pytest.mark.parametrize(
    ("ratios", "metrics", "said"),
    [
        (RATIOS + "run_004,0.5,0.25,0.25\n", METRICS, r"metrics.csv: no row for 1 runs of ratios.csv: run_004"),
        (RATIOS, METRICS + "run_009,1,1,1\n", r"ratios.csv: no row for 1 runs of metrics.csv: run_009"),
        (RATIOS + "run_001,1,0,0\n", METRICS, r"ratios.csv: line 5: run run_001 again, as in line 2"),
        (RATIOS, METRICS + "run_003,1,1,1\n", r"metrics.csv: line 5: run run_003 again, as in line 4"),
        (RATIOS.replace("0.45", "0.40"), METRICS, r"run run_001: shares .* add up to 1 within 0.01, got 0.95"),
        (RATIOS.replace("0.45,0.30", "1.25,-0.5"), METRICS, r"run run_001: shares must lie between 0 and 1"),
        (
            "run,a,b\nrun_001,40,60\nrun_002,50,50\nrun_003,0.5,99.5\n",
            METRICS,
            r"run run_003: .* got b 99.5\n.*divide them by 100",
        ),
        (METRICS, RATIOS, r"got arc_challenge_bpb 1.23, mmlu_stem_bpb 1.45\n(.*\n)*.*is this the file of the shares"),
        (RATIOS, METRICS.replace("0.91", "nan"), r"run run_002: no finite value of hellaswag_bpb; .*=ignore"),
        (
            RATIOS,
            METRICS.replace("0.91", "low"),
            r"run run_002, column loss/hellaswag_bpb: must be a number",
        ),
        (RATIOS, METRICS.replace("0.91", "low"), r"no domain and no metric: --map COLUMN=ignore"),
        (RATIOS.replace("run,", "mixture,"), METRICS, r"ratios.csv: must have a column run or run_id"),
        (RATIOS, "run\nrun_001\nrun_002\nrun_003\n", r"metrics.csv: no columns of metrics"),
        (RATIOS.replace("run_002", ""), METRICS, r"ratios.csv: line 3: no name of a run in column run"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_its_place(
    tmp_path: Path, ratios: str, metrics: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, ratios, metrics)


def test_names_with_slashes_and_colons_are_kept(tmp_path: Path) -> None:
    """Leaf domains and metrics of olmix's launches are called `dclm:software` and `eval/downstream/task (BPB v2)`."""
    metric = "eval/downstream/arc (BPB v2)"
    imported = load(tmp_path, RATIOS.replace("dclm", "dclm:web/code"), METRICS.replace("arc_challenge_bpb", metric))
    assert imported.records[0].mix["dclm:web/code"] == 0.45
    assert imported.records[0].loss_by_domain[metric] == 1.23
    assert any("bits_per_byte for 3 metrics; else" in note for note in imported.notes)


def test_a_metric_may_be_left_out_or_renamed_by_the_name_in_its_file(tmp_path: Path) -> None:
    metrics = METRICS.replace("0.91", "nan")
    imported = load(tmp_path, RATIOS, metrics, column_map={"hellaswag_bpb": "ignore", "mmlu_stem_bpb": "loss/stem"})
    assert imported.unused == ("metrics.csv: hellaswag_bpb",)
    assert imported.records[1].loss_by_domain == {"arc_challenge_bpb": 1.15, "stem": 1.38}
    both = load(tmp_path, RATIOS, METRICS.replace("hellaswag_bpb", "arxiv"), column_map={"loss/arxiv": "ignore"})
    assert set(both.records[0].loss_by_domain) == {"arc_challenge_bpb", "mmlu_stem_bpb"}
    with pytest.raises(InputError, match="a domain and a metric; say which: mix/arxiv or loss/arxiv"):
        load(tmp_path, RATIOS, METRICS.replace("hellaswag_bpb", "arxiv"), column_map={"arxiv": "ignore"})


def test_a_run_without_any_metric_stays_as_diverged(tmp_path: Path) -> None:
    imported = load(tmp_path, RATIOS, METRICS.replace("run_002,1.15,0.91,1.38", "run_002,nan,,inf"))
    assert [record.status.value for record in imported.records] == ["completed", "diverged", "completed"]


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({}, r"no parameter count; .*--set params_non_embedding=1M"),
        ({**SIZE, "tokenz": "3B"}, r"--set tokenz=3B: no column of the run table; did you mean tokens"),
        ({**SIZE, "run_id": "x"}, r"--set run_id=x: says which run a row is"),
        ({**SIZE, "tokens": "many"}, r"column tokens: must be a number, got 'many'"),
        ({**SIZE, "mix/dclm": "1"}, r"--set mix/dclm=1: the file has a column mix/dclm"),
    ],
)
def test_what_all_runs_share_must_be_a_column_of_the_run_table(
    tmp_path: Path, constants: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        load(tmp_path, constants=constants)


def test_runs_of_another_size_are_other_runs(tmp_path: Path) -> None:
    ids = [
        {record.run_id for record in load(tmp_path, constants=size).records} for size in (SIZE, SIZE | {"tokens": "6B"})
    ]
    assert not ids[0] & ids[1]


def test_a_swarm_goes_out_as_it_came_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ratios.csv").write_text(RATIOS)
    (tmp_path / "metrics.csv").write_text(METRICS + "run_004,nan,nan,nan\n")
    with (tmp_path / "ratios.csv").open("a") as file:
        file.write("run_004,1,0,0\n")
    ledger, out = ["--ledger", str(tmp_path / "l.db")], tmp_path / "out_ratios.csv"
    size = [word for name, value in SIZE.items() for word in ("--set", f"{name}={value}")]
    words = ["import", str(tmp_path / "ratios.csv"), "--format", "olmix", "--study", "theirs", *size]
    assert main([*words, *ledger]) == 0
    assert main(["export", "theirs", "--to", str(out), "--format", "olmix", *ledger]) == 0
    told = capsys.readouterr()
    assert "3 runs written to" in told.out
    assert "left out: 1 runs diverged" in told.err
    key = ["arc_challenge_bpb"]
    sent, back = pd.read_csv(tmp_path / "metrics.csv").dropna(), pd.read_csv(tmp_path / "out_metrics.csv")
    names = [name for name in sent if name != "run"]
    assert back.sort_values(key)[names].to_numpy().tolist() == sent.sort_values(key)[names].to_numpy().tolist()
    runs = read_olmix(out, tmp_path / "out_metrics.csv", params=3e7, tokens=3e9)["arc_challenge_bpb"]
    theirs = dict(
        zip(runs.loss, zip(*(runs.mixture[name] for name in ("dclm", "wikipedia", "arxiv")), strict=True), strict=True)
    )
    assert theirs == {1.23: (0.45, 0.3, 0.25), 1.15: (0.6, 0.2, 0.2), 1.2: (0.33, 0.33, 0.34)}
    again = import_runs(out, study="again", format="olmix", constants=SIZE).records
    with open_ledger(tmp_path / "l.db") as opened:
        first = opened.runs("theirs")
    assert sorted(record.loss_by_domain["mmlu_stem_bpb"] for record in again) == sorted(
        first["loss/mmlu_stem_bpb"].dropna()
    )
    assert main(["export", "theirs", "--to", str(out), "--format", "olmix", *ledger]) == 2
    assert "exists already" in capsys.readouterr().err


def test_no_file_is_written_where_one_of_both_cannot_be(tmp_path: Path) -> None:
    frame = pd.DataFrame({"run_id": ["a"], "mix/code": [1.0], "loss/code": [2.0]})
    (tmp_path / "metrics.csv").write_text("mine")
    with pytest.raises(InputError, match=r"metrics.csv: exists already"):
        export_swarm(frame, tmp_path / "ratios.csv")
    assert not (tmp_path / "ratios.csv").exists()
    with pytest.raises(InputError, match=r"must contain 'ratios' and end in \.csv"):
        export_swarm(frame, tmp_path / "swarm.csv")
