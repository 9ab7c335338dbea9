"""What a launch leaves on the disk: the states that others may go on from, and nothing else of what is done."""

from __future__ import annotations

from pathlib import Path

from foretune.launching import _sweep_checkpoints
from foretune.ledger import open_ledger
from foretune.records import RunStatus
from ledger_databases import make_record


def test_states_of_ended_runs_go_but_for_those_that_are_named_or_tried_again(tmp_path: Path) -> None:
    records = [make_record(seed) for seed in range(3)]
    lost = {"status": RunStatus.FAILED, "loss": None, "loss_by_domain": {}, "curve": ()}
    failed, passed, running = make_record(3, **lost), make_record(4, **lost), "f" * 16
    named, done, written = (record.run_id for record in records)
    for run_id in (named, done, written, failed.run_id, passed.run_id, running):
        (tmp_path / "runs" / run_id / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run_id / "checkpoints" / "state").write_text("weights")
    (tmp_path / "runs" / written / "log").write_text("of another's trainer")
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        ledger.record_all([*records, failed, passed])
        asked = [(record.run_id, record.scale, record.role) for record in (*records, failed)]
        ledger.enroll(failed.study, asked)
        _sweep_checkpoints(tmp_path, ledger, failed.study, [named])
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {named, written, failed.run_id, running}
    assert {path.parent.name for path in tmp_path.glob("runs/*/checkpoints")} == {named, failed.run_id, running}
