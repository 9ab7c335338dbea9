"""What a launch leaves on the disk: the states that others may go on from, and nothing else of what is done."""

from __future__ import annotations

from pathlib import Path

from foretune.launching import _sweep_checkpoints
from foretune.ledger import open_ledger
from foretune.records import RunStatus
from ledger_databases import make_record


def test_states_of_ended_runs_go_but_for_those_that_are_named(tmp_path: Path) -> None:
    records = [make_record(seed) for seed in range(3)]
    lost = {"status": RunStatus.FAILED, "loss": None, "loss_by_domain": {}, "curve": ()}
    named, done, written, failed, running = [
        *(record.run_id for record in records),
        make_record(3, **lost).run_id,
        "f" * 16,
    ]
    for run_id in (named, done, written, failed, running):
        (tmp_path / "runs" / run_id / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run_id / "checkpoints" / "state").write_text("weights")
    (tmp_path / "runs" / written / "log").write_text("of another's trainer")
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        ledger.record_all([*records, make_record(3, **lost)])
        _sweep_checkpoints(tmp_path, ledger, [named])
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {named, written, failed, running}
    assert {path.parent.name for path in tmp_path.glob("runs/*/checkpoints")} == {named, failed, running}
