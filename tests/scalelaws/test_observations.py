import numpy as np
import pandas as pd
import pytest

from scalelaws import Exclusion, ObservationError, Observations


def make(**changes):
    columns = {"params_non_embedding": [1e6, 2e6], "tokens": [1e8, 1e8], "loss": [4.0, 3.5]}
    return Observations(**{**columns, **changes})


def test_arrays_are_read_only_float64():
    runs = make()
    assert runs.tokens.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        runs.loss[0] = 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": [4.0, -1.0]}, r"loss must be positive .*row 1: -1"),
        ({"tokens": [0.0, 1e8]}, r"tokens must be positive and finite; row 0: 0"),
        ({"peak_lr": [1e-3, np.nan]}, r"peak_lr must be positive and finite; row 1: nan"),
        ({"peak_lr": [1e-3]}, r"loss has 2, but \{'peak_lr': 1\}"),
        ({"params_convention": "all"}, "params_convention must be one of"),
        ({"loss": ["a", 3.0]}, "loss must be numbers"),
        ({"label": ["a"]}, r"'label': 1"),
        ({"params_non_embedding": [], "tokens": [], "loss": []}, "there are no runs"),
    ],
)
def test_unusable_rows_are_refused_by_number(changes, message):
    with pytest.raises(ObservationError, match=message):
        make(**changes)


def test_a_diverged_run_is_kept_and_marked():
    runs = make(loss=[np.inf, np.nan])
    assert runs.diverged.tolist() == [True, True]


def test_cells_group_by_size_and_horizon_within_the_tolerance():
    runs = Observations([1e6, 1e6 * (1 + 1e-12), 1e6, 2e6], [1e8, 1e8, 2e8, 1e8], [4, 4, 3.9, 3.8])
    assert [rows.tolist() for rows in runs.cells()] == [[0, 1], [2], [3]]


def test_select_records_what_it_left_out():
    runs = make().select([True, False], "too large").select([True], "nothing")
    assert len(runs) == 1
    assert runs.excluded == (Exclusion("too large", 1),)


def test_compute_is_6nd_unless_given():
    assert make().compute.tolist() == [6 * 1e6 * 1e8, 6 * 2e6 * 1e8]
    assert make(compute_flops=[1.0, 2.0]).compute.tolist() == [1.0, 2.0]


def test_from_frame_understands_the_aliases():
    frame = pd.DataFrame({"N": [1e6], "D": [1e8], "lr": [1e-3], "bs_seqs": [16], "seq_len": [2048], "loss": [4.0],
                          "C": [6e14], "d_model": [64]})  # fmt: skip
    runs = Observations.from_frame(frame)
    assert runs.peak_lr is not None
    assert (runs.peak_lr[0], runs.batch_tokens[0], runs.compute_flops[0], runs.width[0]) == (1e-3, 32768, 6e14, 64)
    assert runs.params_convention == "unspecified"
    assert runs.scope["seq_len"] == "2048"


def test_a_bare_bs_counts_sequences():
    frame = pd.DataFrame({"N": [1e6], "D": [1e8], "bs": [16], "loss": [4.0]})
    assert Observations.from_frame(frame.assign(seq_len=2048)).batch_tokens.tolist() == [32768]
    assert Observations.from_frame(frame.assign(bs_tokens=4096)).batch_tokens.tolist() == [4096]
    with pytest.raises(ObservationError, match="'bs' counts sequences: add a column seq_len"):
        Observations.from_frame(frame)


def make_run_table():
    return pd.DataFrame({
        "N": [1e6] * 5, "D": [1e8] * 5, "loss": [4.0, None, None, 3.9, None],
        "status": ["completed", "diverged", "failed", "completed", "failed"],
        "role": ["proxy", None, "proxy", "verification", "verification"],
        "optimizer": ["adamw", "adamw", "adamw", "muon", "muon"],
    })  # fmt: skip


@pytest.mark.parametrize("nullable", [False, True])
def test_failed_and_verification_runs_are_left_out_once_each(nullable):
    frame = make_run_table().convert_dtypes() if nullable else make_run_table()
    runs = Observations.from_frame(frame, excluded=[Exclusion("by hand", 4)])
    assert runs.diverged.tolist() == [False, True]
    assert runs.scope["optimizer"] == "adamw"
    assert runs.excluded == (
        Exclusion("by hand", 4),
        Exclusion("failed", 2),
        Exclusion("held out to verify the forecast", 1),
    )


def test_a_table_with_nothing_to_fit_lists_what_was_left_out():
    with pytest.raises(ObservationError, match="no runs to fit: 2 failed; 1 held out to verify the forecast"):
        Observations.from_frame(make_run_table().iloc[2:])


def test_from_frame_reads_nullable_columns():
    frame = pd.DataFrame({"params_non_embedding": [1, 2], "tokens": [3, 4], "loss": [2.0, None]}).convert_dtypes()
    assert Observations.from_frame(frame).diverged.tolist() == [False, True]


def test_sequences_without_their_length_are_refused():
    frame = pd.DataFrame({"N": [1e6], "D": [1e8], "bs_seqs": [16], "loss": [4.0]})
    with pytest.raises(ObservationError, match="add a column seq_len"):
        Observations.from_frame(frame)


def test_different_optimizers_are_pooled_only_on_request():
    frame = pd.DataFrame({"N": [1e6, 1e6], "D": [1e8, 1e8], "loss": [4.0, 4.1], "optimizer": ["adamw", "muon"]})
    with pytest.raises(ObservationError, match=r"differ in optimizer \(adamw, muon\)"):
        Observations.from_frame(frame)
    assert Observations.from_frame(frame, pool=("optimizer",)).scope["optimizer"] == "adamw | muon"


def test_horizons_rounded_to_whole_steps_of_each_batch_are_one_cell():
    """1e9 tokens in steps of 64k, 96k and 112k tokens; a second horizon stays apart."""
    batches = np.array([65_536, 98_304, 114_688])
    tokens = np.concatenate([target // batches * batches for target in (1_000_000_000, 2_000_000_000)])
    frame = pd.DataFrame({"N": 1e8, "D": tokens, "loss": 3.0, "lr": 1e-3, "bs_tokens": np.tile(batches, 2)})
    runs = Observations.from_frame(frame)
    assert [len(rows) for rows in runs.cells()] == [3, 3]
    assert np.abs(runs.tokens / tokens - 1).max() < 2e-4
    apart = Observations.from_frame(frame.drop(columns="bs_tokens"))
    assert len(apart.cells()) == 5, "without a batch there is no step to round to; two horizons agree by chance"
