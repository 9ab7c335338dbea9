"""What a ledger promises, on every database that it runs on."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from foretune.errors import InputError
from foretune.ledger import Ledger, Recorded, open_ledger
from foretune.records import CurvePoint, Diagnosis, LearnedPoint, RunRecord, RunStatus, result_of
from ledger_databases import make_record

CONTRACT_COLUMNS = (
    "run_id study source status reason parent_run_id params_total params_non_embedding params_active width depth "
    "tokens compute_flops seq_len batch_tokens batch_sequences steps peak_lr weight_decay optimizer schedule "
    "parametrization seed loss loss_unit loss_kind wall_seconds device created_at"
)


def bits(value: float) -> bytes:
    return struct.pack("d", value)


def failed(seed: int = 0, reason: str = "worker died") -> RunRecord:
    return make_record(seed, status=RunStatus.FAILED, reason=reason, loss=None, loss_by_domain={}, curve=())


def test_frame_has_the_columns_of_the_run_table_in_their_order(ledger: Ledger) -> None:
    ledger.record(make_record())
    frame = ledger.runs()
    columns = [
        *CONTRACT_COLUMNS.split(),
        "scale",
        "role",
        "bits_per_byte",
        "tokens_trained",
        "attempts",
        "activation_ratio",
        "spent_flops",
        "pack_size",
        "instability",
        "horizon_tokens",
        "setting_changes",
        "mix/code",
        "loss/code",
    ]
    assert list(frame.columns) == columns
    assert str(frame["tokens"].dtype) == "Int64"
    assert str(frame["loss"].dtype) == "float64"


def test_empty_ledger_has_the_same_columns(ledger: Ledger) -> None:
    frame = ledger.runs()
    assert len(frame) == 0
    assert list(frame.columns)[: len(CONTRACT_COLUMNS.split())] == CONTRACT_COLUMNS.split()
    assert list(ledger.curves().columns) == ["run_id", "step", "tokens", "loss", "held_out", "lr"]
    assert list(ledger.diagnoses().columns) == ["run_id", *Diagnosis.model_fields]


def test_every_field_of_a_record_comes_back(ledger: Ledger) -> None:
    record = make_record(parent_run_id="feed" * 4, scale="w32", role="verification", device="cpu", wall_seconds=1.25)
    record = record.model_copy(update={"spent_flops": 1e12, "pack_size": 3, "instability": "3 spikes from step 7"})
    path = tuple(LearnedPoint(step=step, values={"code": 1 / step, "dropout": 0.1}) for step in (10, 5))
    record = record.model_copy(update={"learned": {"code": 0.15, "dropout": 0.1}, "learned_path": path[::-1]})
    ledger.record(record)
    row = ledger.runs().iloc[0]
    beside = {"mix", "loss_by_domain", "curve", "diagnoses", "learned", "learned_path", "spec"}
    apart = beside | {"bits_per_byte", "tokens_trained"}
    for name in record.model_fields_set - apart:
        assert row[name] == getattr(record, name), name
    assert row["mix/code"] == record.mix["code"]
    assert (row["learned/code"], row["learned/dropout"]) == (0.15, 0.1)
    assert ledger.results([record.run_id]) == [result_of(record)]
    assert ledger.spec(record.run_id) == record.spec


@pytest.mark.parametrize("value", [0.1 + 0.2, 5e-324, 1.7976931348623157e308, math.pi, 2.2778836983119093])
def test_floats_come_back_to_the_last_bit(ledger: Ledger, value: float) -> None:
    point = CurvePoint(step=1, tokens=2, lr=value, loss=value, held_out=value)
    ledger.record(make_record(loss=value, peak_lr=value, loss_by_domain={"code": value}, curve=(point,)))
    row, curve = ledger.runs().iloc[0], ledger.curves().iloc[0]
    assert {bits(row[name]) for name in ("loss", "peak_lr", "loss/code")} == {bits(value)}
    assert {bits(curve[name]) for name in ("lr", "loss", "held_out")} == {bits(value)}


def test_largest_counts_come_back_and_larger_ones_are_refused(ledger: Ledger) -> None:
    ledger.record(make_record(tokens=2**63 - 1))
    assert ledger.runs()["tokens"].tolist() == [2**63 - 1]
    with pytest.raises(InputError, match="tokens must fit in 64 bits, got 9223372036854775808"):
        ledger.record(make_record(1, tokens=2**63))


TEXTS = {
    "empty": "",
    "nul": "NUL \0 inside",
    "surrogate": "lone \udc80 surrogate",
    "emoji": "\U0001f600",
    "quotes": "a'b\"c;--",
    "long": "x" * 99_999,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_taken(ledger: Ledger, text: str) -> None:
    ledger.record(make_record(reason=text, mix={text or "d": 1.0}))
    stored = ledger.runs()["reason"][0]
    assert stored == text.replace("\0", "\\x00").replace("\udc80", "\\udc80")


def test_a_result_is_written_once(ledger: Ledger) -> None:
    first = make_record()
    assert ledger.record(first) is Recorded.INSERTED
    assert ledger.record(first.model_copy(update={"wall_seconds": 99.0, "device": "other"})) is Recorded.UNCHANGED
    assert len(ledger.runs()) == 1
    assert len(ledger.curves()) == len(first.curve)


def test_a_different_result_is_kept_aside_and_the_first_stands(ledger: Ledger) -> None:
    first = make_record()
    ledger.record(first)
    other = first.model_copy(update={"loss": math.nextafter(first.loss or 0.0, 9.0)})
    assert [ledger.record(other), ledger.record(other)] == [Recorded.CONFLICT] * 2
    assert ledger.runs()["loss"].tolist() == [first.loss]
    (conflict,) = ledger.conflicts("test")
    assert (conflict.run_id, conflict.record["loss"]) == (first.run_id, other.loss)


def test_a_domain_loss_that_differs_is_a_conflict_too(ledger: Ledger) -> None:
    first = make_record()
    ledger.record(first)
    assert ledger.record(first.model_copy(update={"loss_by_domain": {"code": 9.0}})) is Recorded.CONFLICT


def test_a_failed_run_is_replaced_and_its_history_kept(ledger: Ledger) -> None:
    assert ledger.record(failed(reason="first")) is Recorded.INSERTED
    assert ledger.record(failed(reason="second")) is Recorded.REPLACED_FAILED
    (standing,) = ledger.failures("test")
    assert (standing.attempt, standing.reason) == (2, "second")
    assert ledger.record(make_record()) is Recorded.REPLACED_FAILED
    assert ledger.failures("test") == []
    assert [attempt.reason for attempt in ledger.failed_attempts(make_record().run_id)] == ["first", "second"]
    assert ledger.runs()["attempts"].tolist() == [3]
    assert len(ledger.curves()) == 8


def test_a_failed_attempt_written_twice_counts_once(ledger: Ledger) -> None:
    """As on a server that is lost between the commit and its answer: the write is done again."""
    attempt = failed()
    assert [ledger.record(attempt), ledger.record(attempt)] == [Recorded.INSERTED, Recorded.UNCHANGED]
    assert [failure.attempt for failure in ledger.failed_attempts(attempt.run_id)] == [1]
    later = attempt.model_copy(update={"created_at": "2030-01-01T00:00:00.000+00:00"})
    assert [ledger.record(later), ledger.record(later)] == [Recorded.REPLACED_FAILED, Recorded.UNCHANGED]
    assert ledger.runs()["attempts"].tolist() == [2]


def test_a_late_failure_does_not_undo_a_finished_run(ledger: Ledger) -> None:
    ledger.record(make_record())
    assert ledger.record(failed()) is Recorded.UNCHANGED
    assert ledger.statuses([make_record().run_id]) == {make_record().run_id: RunStatus.COMPLETED}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_completed_run_needs_a_finite_loss(ledger: Ledger, loss: float) -> None:
    with pytest.raises(InputError, match=r"loss must be finite.*report status diverged"):
        ledger.record(make_record(loss=loss))
    with pytest.raises(InputError, match="loss/code must be finite"):
        ledger.record(make_record(loss_by_domain={"code": loss}))
    with pytest.raises(InputError, match="needs a loss"):
        ledger.record(make_record(loss=None, loss_by_domain={}))
    assert len(ledger.runs()) == 0


def test_a_diverged_run_stays_without_a_loss_and_with_its_curve(ledger: Ledger) -> None:
    curve = (CurvePoint(step=1, tokens=9, lr=0.1, loss=3.0), CurvePoint(step=2, tokens=18, lr=0.1, loss=math.nan))
    ledger.record(
        make_record(status=RunStatus.DIVERGED, reason="at step 2", loss=math.inf, loss_by_domain={}, curve=curve)
    )
    row = ledger.runs().iloc[0]
    assert (row["status"], row["reason"], math.isnan(row["loss"])) == ("diverged", "at step 2", True)
    losses = ledger.curves()["loss"]
    assert losses[0] == 3.0
    assert math.isnan(losses[1])


@pytest.mark.parametrize(
    ("field", "value"), [("peak_lr", math.nan), ("compute_flops", math.inf), ("mix", {"d": math.nan})]
)
def test_settings_must_be_finite_whatever_the_status(ledger: Ledger, field: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"run {make_record().run_id}: {field}.* must be finite"):
        ledger.record(make_record(status=RunStatus.DIVERGED, **{field: value}))


def test_many_records_are_written_all_or_none(ledger: Ledger) -> None:
    with pytest.raises(InputError):
        ledger.record_all([make_record(1), make_record(2, loss=math.nan)])
    assert len(ledger.runs()) == 0
    assert ledger.record_all([make_record(1), make_record(1), make_record(2)]) == [
        Recorded.INSERTED,
        Recorded.UNCHANGED,
        Recorded.INSERTED,
    ]


def test_a_repeated_step_of_a_curve_is_kept(ledger: Ledger) -> None:
    points = tuple(
        CurvePoint(step=step, tokens=step, lr=0.1, loss=float(loss)) for step, loss in ((1, 5), (2, 4), (2, 3))
    )
    ledger.record(make_record(curve=points))
    assert ledger.curves()["loss"].tolist() == [5.0, 4.0, 3.0]


MEASURED = {"gradient_norm": 1.5, "update_norm": 0.25, "update_cosine": -0.5, "saturated_share": 0.1}


def test_diagnoses_come_back_with_what_was_not_measured_missing(ledger: Ledger) -> None:
    missing = dict.fromkeys(Diagnosis.model_fields.keys() - {"step", "noise_scale_tokens", *MEASURED})
    series = tuple(Diagnosis(step=step, noise_scale_tokens=math.inf, **MEASURED, **missing) for step in (2, 4))
    ledger.record(make_record(diagnoses=series))
    ledger.record(make_record(1))
    frame = ledger.diagnoses("test")
    assert list(frame.columns) == ["run_id", *Diagnosis.model_fields]
    assert frame["run_id"].tolist() == [make_record().run_id] * 2
    assert frame["step"].tolist() == [2, 4]
    assert frame[list(MEASURED)].to_numpy().tolist() == [list(MEASURED.values())] * 2
    assert frame[["noise_scale_tokens", *missing]].isna().all(axis=None)
    assert len(ledger.diagnoses()) == 2


def test_the_newest_verdict_of_a_kind_is_valid(ledger: Ledger) -> None:
    assert list(ledger.gates("s").columns) == ["parametrization", "kind", "passed", "details", "created_at"]
    ledger.save_gate("s", "mup", "transfer", passed=True, details={"shift": math.inf})
    ledger.save_gate("s", "mup", "coordcheck", passed=False, details={"slopes": {"head": 0.4}})
    ledger.save_gate("s", "mup", "coordcheck", passed=True, details={"slopes": {"head": 0.1 + 0.2}})
    ledger.save_gate("s", "standard", "coordcheck", passed=False, details={})
    ledger.save_gate("t", "mup", "coordcheck", passed=False, details={})
    frame = ledger.gates("s")
    assert frame[["parametrization", "kind", "passed"]].to_numpy().tolist() == [
        ["mup", "coordcheck", True],
        ["mup", "transfer", True],
        ["standard", "coordcheck", False],
    ]
    assert frame["details"].tolist() == [{"slopes": {"head": 0.1 + 0.2}}, {"shift": math.inf}, {}]
    assert frame["passed"].dtype == bool


def test_one_run_serves_two_studies_under_their_own_labels(ledger: Ledger) -> None:
    record = make_record(study="first", scale="small", role="search")
    ledger.record(record)
    ledger.enroll("second", [(record.run_id, "large", "verification"), ("f" * 16, "large", "verification")])
    assert ledger.studies() == ["first", "second"]
    (row,) = ledger.runs("second").to_dict("records")
    assert (row["study"], row["scale"], row["role"]) == ("second", "large", "verification")
    (row,) = ledger.runs("first").to_dict("records")
    assert (row["study"], row["scale"], row["role"]) == ("first", "small", "search")
    assert [ledger.count_enrolled(name) for name in ("first", "second")] == [1, 2]
    assert ledger.curves("second")["run_id"].unique().tolist() == [record.run_id]
    ledger.enroll("second", [(record.run_id, "large", "search")])
    assert ledger.runs("second")["role"].tolist() == ["search"]


def test_recording_does_not_change_how_a_run_was_enrolled(ledger: Ledger) -> None:
    record = make_record(study="s", scale="a", role="search")
    ledger.enroll("s", [(record.run_id, "b", "verification")])
    ledger.record(record)
    assert ledger.runs("s")[["scale", "role"]].to_numpy().tolist() == [["b", "verification"]]


def test_an_unknown_study_is_refused_with_the_nearest_names(ledger: Ledger) -> None:
    ledger.save_study("lr-width", {})
    with pytest.raises(InputError, match=r"study 'lr-widht' is not in the ledger; did you mean lr-width\?"):
        ledger.runs("lr-widht")
    for ask in (ledger.failures, ledger.count_enrolled, ledger.curves, ledger.conflicts):
        with pytest.raises(InputError, match="it holds lr-width"):
            ask("zzz")
    assert len(ledger.runs("lr-width")) == 0


def test_statuses_of_more_runs_than_one_query_takes(ledger: Ledger) -> None:
    ledger.record_all([make_record(seed, curve=()) for seed in range(3)])
    known = {make_record(seed).run_id for seed in range(3)}
    asked = [f"{number:016x}" for number in range(2000)] + sorted(known)
    assert ledger.statuses(asked) == dict.fromkeys(known, RunStatus.COMPLETED)
    ledger.enroll("big", [(run_id, "a", "search") for run_id in asked])
    assert ledger.count_enrolled("big") == len(asked)
    assert set(ledger.curves(run_ids=asked)["run_id"]) == set()


def test_results_of_more_runs_than_one_query_takes_are_oldest_first(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.ledger.store.IDS_PER_QUERY", 1)
    times = {seed: f"2026-01-0{3 - seed}T00:00:00.000+00:00" for seed in range(3)}
    records = [make_record(seed, created_at=time) for seed, time in times.items()]
    ledger.record_all(records)
    ids = [record.run_id for record in records]
    assert [result.run_id for result in ledger.results(ids)] == ids[::-1]


def test_a_failed_run_that_is_not_asked_for_any_more_is_no_failure_of_the_study(ledger: Ledger) -> None:
    record = failed().model_copy(update={"study": "s"})
    ledger.enroll("s", [(record.run_id, "a", "search")])
    ledger.record(record)
    assert [failure.run_id for failure in ledger.failures("s")] == [record.run_id]
    ledger.enroll("s", [("d" * 16, "a", "search")])
    assert ledger.failures("s") == []
    assert [failure.run_id for failure in ledger.failed_attempts(record.run_id)] == [record.run_id]


def test_snapshots_of_a_study_are_appended_when_they_differ(ledger: Ledger) -> None:
    assert ledger.study_snapshot("s") is None
    for snapshot in ({"a": 1}, {"a": 1}, {"a": 2, "budget": math.inf}):
        ledger.save_study("s", snapshot)
        assert ledger.study_snapshot("s") == snapshot
    assert ledger.studies() == ["s"]


def test_a_forecast_is_frozen_by_its_first_registration(ledger: Ledger) -> None:
    first = ledger.register_forecast("s", "print", {"peak_lr": 0.1 + 0.2, "high": math.inf})
    again = ledger.register_forecast("s", "print", {"peak_lr": 1.0})
    assert again == first
    assert again.payload == {"peak_lr": 0.1 + 0.2, "high": math.inf}
    other = ledger.register_forecast("s", "other", {"peak_lr": 1.0})
    assert ledger.forecasts("s") == [first, other]
    assert ledger.forecasts("t") == []


def test_what_was_written_is_there_after_closing(ledger_url: str) -> None:
    with open_ledger(ledger_url, create=True) as ledger:
        ledger.record(make_record())
    with open_ledger(ledger_url) as ledger:
        assert len(ledger.runs()) == 1
        assert ledger.notes == ()
        assert ledger.quick_check() == []


def test_planned_runs_that_are_not_asked_for_any_more_leave_the_study(ledger: Ledger) -> None:
    record = make_record()
    ledger.enroll("s", [(record.run_id, "a", "search"), ("e" * 16, "a", "search"), ("f" * 16, "a", "verification")])
    ledger.record(record.model_copy(update={"study": "s"}))
    ledger.enroll("s", [("d" * 16, "a", "search")])
    assert ledger.count_enrolled("s") == 3  # the one that ran, the one asked for, the other stage's


def test_runs_beside_a_search_leave_the_study_with_what_asked_for_them(ledger: Ledger) -> None:
    known = [("a" * 16, "a", "search"), ("b" * 16, "a", "verification")]
    ledger.enroll("s", [*known[:1], ("c" * 16, "a", "baseline"), ("d" * 16, "a", "soup")])
    ledger.enroll("s", known[1:])
    assert ledger.count_enrolled("s") == 4
    ledger.enroll("s", known[:1])
    assert ledger.count_enrolled("s") == 2


def test_the_same_row_under_another_mapping_is_a_conflict(ledger: Ledger) -> None:
    record = make_record()
    assert ledger.record(record) is Recorded.INSERTED
    other = record.model_copy(update={"batch_tokens": 2 * (record.batch_tokens or 1)})
    assert ledger.record(other) is Recorded.CONFLICT
