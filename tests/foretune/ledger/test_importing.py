"""Other people's tables: what is understood, what is derived, what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pandas as pd
import pytest

from foretune.errors import InputError
from foretune.ledger import Recorded, open_ledger
from foretune.ledger.importing import ImportedRuns, import_runs, read_runs
from foretune.records import RunStatus


def write(tmp_path: Path, *lines: str, name: str = "runs.csv") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(tmp_path: Path, *lines: str, **options: object) -> ImportedRuns:
    return import_runs(write(tmp_path, *lines), study="s", **options)  # type: ignore[arg-type]


def noted(imported: ImportedRuns, text: str) -> bool:
    return any(text in note for note in imported.notes)


def test_the_aliases_of_the_field_are_understood_and_told_with_their_units(tmp_path: Path) -> None:
    imported = load(
        tmp_path, "N,D,C,lr,bs_tokens,bs,seq_len,d_model,n_layers,loss", "7e9,1.4T,6e22,3e-4,4M,2048,2048,4096,32,1.9"
    )
    (record,) = imported.records
    assert imported.resolved == {
        "N": "params_non_embedding",
        "D": "tokens",
        "C": "compute_flops",
        "lr": "peak_lr",
        "bs_tokens": "batch_tokens",
        "bs": "batch_sequences",
        "seq_len": "seq_len",
        "d_model": "width",
        "n_layers": "depth",
        "loss": "loss",
    }
    assert (record.params_non_embedding, record.tokens, record.compute_flops) == (
        7_000_000_000,
        1_400_000_000_000,
        6e22,
    )
    assert (record.batch_tokens, record.batch_sequences, record.width, record.depth) == (4_000_000, 2048.0, 4096, 32)
    assert noted(imported, "N is read as params_non_embedding: parameters without input embedding and output head")
    assert noted(imported, "if bs counts tokens, say so: --map bs=batch_tokens")


def test_tokens_and_sequences_per_step_follow_from_each_other(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "N,D,bs_seqs,seq_len,loss", "1e6,1e9,32,128,3").records
    assert record.batch_tokens == 32 * 128
    (record,) = load(tmp_path, "N,D,bs_tokens,seq_len,loss", "1e6,1e9,4096,128,3").records
    assert record.batch_sequences == 32.0
    (record,) = load(tmp_path, "N,D,bs_seqs,loss", "1e6,1e9,32,3").records
    assert record.batch_tokens is None


def test_flops_are_derived_only_where_they_are_missing(tmp_path: Path) -> None:
    imported = load(tmp_path, "N,D,C,loss", "70e9,1.4e12,,1.9", "70e9,1.4e12,7e23,2.0")
    assert [record.compute_flops for record in imported.records] == [6 * 70e9 * 1.4e12, 7e23]  # 5.9e23 overflows int64
    assert noted(imported, "compute_flops of 1 rows is derived: 6 x parameters x tokens")
    assert noted(imported, "compute_flops as given is 1.19 x (6 x parameters x tokens)")


def test_active_parameters_decide_the_flops_of_a_mixture_of_experts(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "N,N_active,D,loss", "2e9,2e8,1e9,3").records
    assert record.compute_flops == 6 * 2e8 * 1e9


def test_a_map_comes_first_and_may_leave_a_column_out(tmp_path: Path) -> None:
    lines = ("N,D,loss,paloma,step", "1e6,1e9,3.5,3.25,17")
    imported = load(tmp_path, *lines, column_map={"paloma": "loss", "step": "ignore"})
    (record,) = imported.records
    assert (record.loss, record.steps) == (3.25, None)
    assert imported.unused == ("loss", "step")
    assert noted(imported, "loss is left: paloma is read as loss")


@pytest.mark.parametrize(
    ("column_map", "message"),
    [
        ({"paloma_losss": "loss"}, r"no column 'paloma_losss'; did you mean paloma_loss\?"),
        ({"paloma_loss": "losss"}, r"no column of the run table; did you mean loss"),
        ({"paloma_loss": "loss", "N": "loss"}, "loss is mapped already, from paloma_loss"),
    ],
)
def test_bad_maps_are_refused(tmp_path: Path, column_map: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, "N,D,paloma_loss", "1e6,1e9,3", column_map=column_map)


def test_a_table_without_what_a_fit_needs_is_refused_with_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, "model,loss_pile,loss_c4", "a,3,4")
    message = str(caught.value)
    assert "no loss column; map one of loss_pile, loss_c4, for example --map loss_pile=loss" in message
    assert "no parameter count" in message
    assert "no training tokens" in message


def test_single_letters_keep_their_case(tmp_path: Path) -> None:
    assert "n" in load(tmp_path, "N,D,n,loss", "1e6,1e9,5,3").unused


def test_a_loss_that_is_not_finite_stays_as_diverged(tmp_path: Path) -> None:
    imported = load(tmp_path, "N,D,lr,loss", "1e6,1e9,0.1,nan", "1e6,1e9,0.2,inf", "1e6,1e9,0.3,", "1e6,1e9,0.4,3")
    assert [record.status.value for record in imported.records] == ["diverged"] * 3 + ["completed"]
    assert [record.loss for record in imported.records] == [None, None, None, 3.0]
    assert imported.records[1].reason == "loss is inf in line 3"
    assert imported.records[2].reason == "loss is empty in line 4"
    assert noted(imported, "3 rows diverged")


def test_bad_values_are_all_listed_with_their_lines_and_nothing_is_read(tmp_path: Path) -> None:
    bad = [
        "-1e6,1e9,1e-3,3",
        "1e6,many,1e-3,3",
        "1e6,1e9,0,3",
        "1e6,1e9,1e-3,-3",
        "1e6,,1e-3,3",
        "inf,1e9,1e-3,3",
        "1e6,1e9,9,3",
    ]
    with pytest.raises(InputError) as caught:
        load(tmp_path, "N,D,lr,loss", *bad)
    lines = str(caught.value).splitlines()
    assert [line.split(": ", 1)[1] for line in lines[:6]] == [
        "line 2, column N: params_non_embedding must be above 0, got -1000000.0",
        "line 3, column D: must be a number, got 'many'; write a number (7e9), a suffix (7B, 1.4T, 512k) or a power "
        "(2^-7)",
        "line 4, column lr: peak_lr must be above 0, got 0",
        "line 5, column loss: loss must be above 0, got -3",
        "line 6: no training tokens",
        "line 7, column N: must be finite, got 'inf'",
    ]
    assert len(lines) == 7
    assert "nothing was read" in lines[-1]


def test_a_long_list_of_bad_values_is_cut(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and 15 more"):
        load(tmp_path, "N,D,loss", *["x,1e9,3"] * 25)


def test_a_batch_in_the_wrong_unit_is_noticed_when_it_exceeds_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 2000000000 tokens exceeds the run of 1000000000; check the units"):
        load(tmp_path, "N,D,bs_tokens,loss", "1e6,1e9,2e9,3")


def test_fractions_of_counts_are_rounded_and_counted(tmp_path: Path) -> None:
    imported = load(tmp_path, "N,D,loss", "6795600349.289497,245105957.9245427,5.0")
    (record,) = imported.records
    assert (record.params_non_embedding, record.tokens) == (6_795_600_349, 245_105_958)
    assert noted(imported, "N: 1 values were rounded to whole numbers")


def test_whole_numbers_above_the_precision_of_floats_are_exact(tmp_path: Path) -> None:
    (record,) = load(tmp_path, "N,D,loss", f"1e6,{2**53 + 1},3").records
    assert record.tokens == 2**53 + 1
    with pytest.raises(InputError, match="must fit in 64 bits"):
        load(tmp_path, "N,D,loss", f"1e6,{2**63},3")


def test_the_same_row_is_the_same_run_in_every_kind_of_file(tmp_path: Path) -> None:
    lines = ["N,D,lr,corpus,loss", "1000000,1000000000,0.001,c4,3.25", "1000000,2000000000,0.001,c4,3.125"]
    ids = [record.run_id for record in load(tmp_path, *lines).records]
    frame = pd.read_csv(write(tmp_path, *lines))
    frame.to_parquet(tmp_path / "runs.parquet")
    frame.to_json(tmp_path / "runs.jsonl", orient="records", lines=True)
    for name in ("runs.parquet", "runs.jsonl"):
        assert [record.run_id for record in import_runs(tmp_path / name, study="s").records] == ids
    shuffled = load(tmp_path, lines[0], lines[2], lines[1])
    assert [record.run_id for record in shuffled.records] == ids[::-1]


def test_an_import_twice_adds_nothing(tmp_path: Path) -> None:
    records = load(tmp_path, "N,D,loss", "1e6,1e9,3", "1e6,2e9,nan").records
    with open_ledger(tmp_path / "runs.db", create=True) as ledger:
        assert ledger.record_all(records) == [Recorded.INSERTED] * 2
        assert ledger.record_all(records) == [Recorded.UNCHANGED] * 2


def test_rows_that_repeat_count_once_and_replicates_are_numbered(tmp_path: Path) -> None:
    imported = load(
        tmp_path,
        "N,D,corpus,loss",
        "1e6,1e9,c4,3",
        "1e6,1e9,c4,3",
        "1e6,1e9,c4,3.1",
        "1e6,1e9,pile,3.2",
        "1e6,2e9,c4,2",
    )
    assert [(record.loss, record.seed) for record in imported.records] == [(3.0, 0), (3.1, 1), (3.2, 2), (2.0, None)]
    assert noted(imported, "1 rows repeat another row cell by cell and count once")
    assert noted(imported, "3 rows share their settings with another: `seed` numbers them; but they differ in corpus")


def test_seeds_of_the_table_are_kept(tmp_path: Path) -> None:
    imported = load(tmp_path, "N,D,seed,loss", "1e6,1e9,7,3", "1e6,1e9,0,3.1")
    assert [record.seed for record in imported.records] == [7, 0]
    assert not noted(imported, "share their settings")


def test_mixtures_and_domain_losses_are_understood_together(tmp_path: Path) -> None:
    (record,) = load(
        tmp_path, "N,D,w_code,w_web,loss_code,web_loss,weight_decay", "1e6,1e9,0.25,0.75,2.5,3.5,0.1"
    ).records
    assert (record.mix, record.loss_by_domain) == ({"code": 0.25, "web": 0.75}, {"code": 2.5, "web": 3.5})
    assert (record.loss, record.status, record.weight_decay) == (None, RunStatus.COMPLETED, 0.1)


def test_the_kind_of_loss_follows_the_name_of_its_column(tmp_path: Path) -> None:
    assert load(tmp_path, "N,D,train_loss", "1e6,1e9,3").records[0].loss_kind == "train"
    assert load(tmp_path, "N,D,val_loss", "1e6,1e9,3").records[0].loss_kind == "held_out"


def test_a_status_column_is_believed_or_refused(tmp_path: Path) -> None:
    imported = load(tmp_path, "N,D,status,reason,loss", "1e6,1e9,failed,oom,", "1e6,2e9,completed,,3")
    assert [(record.status.value, record.reason) for record in imported.records] == [
        ("failed", "oom"),
        ("completed", ""),
    ]
    lines = ("N,D,status,loss", "1e6,1e9,finished,3")
    with pytest.raises(
        InputError, match=r"must be one of completed, diverged, failed, got 'finished'.*--map status=ignore"
    ):
        load(tmp_path, *lines)
    assert load(tmp_path, *lines, column_map={"status": "ignore"}).records[0].status is RunStatus.COMPLETED


def test_the_source_names_file_and_content(tmp_path: Path) -> None:
    first = load(tmp_path, "N,D,loss", "1e6,1e9,3").records[0].source
    assert first.startswith("runs.csv sha256:")
    assert load(tmp_path, "N,D,loss", "1e6,1e9,3.5").records[0].source != first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows"),
        (b"N,D,loss\n", "no rows"),
        (b"N;D;loss\n1;2;3\n", "must be separated by commas"),
        (b"N,D,N,loss\n1,2,3,4\n", "column names must differ, got 'N' twice"),
        (b"N,D,loss\n1e6,1e9\n", "line 2: must have 3 cells like the header"),
        (b"N,D,loss\n1e6,1e9,\xff\n", "must be UTF-8 text"),
    ],
)
def test_files_that_are_no_csv(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "runs.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_runs(tmp_path / "runs.csv", study="s")


def test_files_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        import_runs(tmp_path / "absent.csv", study="s")
    with pytest.raises(InputError, match="no Parquet file, or a damaged one"):
        import_runs(write(tmp_path, "N,D,loss", name="runs.parquet"), study="s")
    with pytest.raises(InputError, match="line 1: no JSON"):
        import_runs(write(tmp_path, "N,D,loss", name="runs.jsonl"), study="s")
    with pytest.raises(InputError, match="line 1: must be an object, got list"):
        import_runs(write(tmp_path, "[1]", name="runs.jsonl"), study="s")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_bytes("\ufeffN,D,loss\r\n1e6,1e9,3\r\n".encode())
    assert import_runs(tmp_path / "runs.csv", study="s").records[0].params_non_embedding == 1_000_000


def test_the_name_of_a_study_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study: must be lower-case letters.*got '\.\./up'"):
        import_runs(write(tmp_path, "N,D,loss", "1e6,1e9,3"), study="../up")


def test_a_run_table_needs_no_ledger(tmp_path: Path) -> None:
    frame = read_runs(write(tmp_path, "size,D,loss", "1e6,1e9,3", "2e6,1e9,nan"), {"size": "N"})
    assert frame["params_non_embedding"].tolist() == [1_000_000, 2_000_000]
    assert frame["status"].tolist() == ["completed", "diverged"]
    assert math.isnan(frame["loss"][1])
    assert frame.attrs["resolved"]["size"] == "params_non_embedding"
    assert str(frame["tokens"].dtype) == "Int64"


def public(name: str) -> Path:
    folder = Path(os.environ.get("FORETUNE_PUBLIC_DATA") or Path(__file__).parents[3] / ".." / "shared" / "data")
    if not (folder / name).exists():
        pytest.skip(f"the public data is not here: no {folder / name}; set FORETUNE_PUBLIC_DATA")
    return folder / name


def test_the_step_law_runs(tmp_path: Path) -> None:
    path = public("steplaw_dense.csv")
    imported = import_runs(path, study="steplaw", format="steplaw")
    rows = pd.read_csv(path, dtype=str)
    assert len(imported.records) == len(rows) == 1506
    frame = read_runs(path)
    names = {"N": "params_non_embedding", "D": "tokens", "C": "compute_flops", "lr": "peak_lr", "loss": "loss"}
    for column, name in (names | {"bs_tokens": "batch_tokens", "bs_seqs": "batch_sequences"}).items():
        assert (frame[name].astype(float) == rows[column].astype(float)).all(), name
    assert {(r.optimizer, r.schedule, r.loss_kind) for r in imported.records} == {("adamw", "cosine", "train")}
    with open_ledger(tmp_path / "runs.db", create=True) as ledger:
        assert set(ledger.record_all(imported.records)) == {Recorded.INSERTED}
        assert ledger.runs("steplaw")["loss"].min() == rows["loss"].astype(float).min()


def test_the_chinchilla_points() -> None:
    path = public("chinchilla_epoch.csv")
    imported = import_runs(path, study="chinchilla")
    rows = pd.read_csv(path, dtype=str)
    assert [record.params_non_embedding for record in imported.records] == [round(float(text)) for text in rows["N"]]
    assert [record.loss for record in imported.records] == rows["loss"].astype(float).tolist()
    assert noted(imported, "N: 245 values were rounded to whole numbers")


def test_the_mixtures_of_regmix() -> None:
    records = import_runs(public("regmix.csv"), study="regmix").records
    assert len(records) == 1024
    assert {len(record.mix) for record in records} == {17}
    assert {len(record.loss_by_domain) for record in records} == {13}
    assert all(abs(sum(record.mix.values()) - 1) < 0.01 for record in records)
