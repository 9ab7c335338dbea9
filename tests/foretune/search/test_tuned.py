"""Runs that tune themselves say what they came to, in the ledger, in the findings and in what a fit leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foretune.evidence import gather_observations
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.query import answer_study
from foretune.records import Result, RunStatus, SelfTuningSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search.interface import Findings
from foretune.search.tuned import tell_tuned
from foretune.study import read_study
from foretune_factories import make_spec
from scalelaws import Exclusion

TUNING = SelfTuningSpec(
    objective={"code": 1.0},
    reference_share=1.0,
    reference_sequences=8,
    start={"dropout": 0.1},
    train_steps=2,
    tune_steps=1,
    warmup_steps=0,
    lr=0.003,
    width=0.5,
    entropy=1e-3,
)


def finish(run_id: str, **learned: float) -> Result:
    return Result(
        run_id=run_id,
        status=RunStatus.COMPLETED if learned else RunStatus.DIVERGED,
        loss=2.0,
        loss_by_domain={},
        tokens=1,
        spent_flops=1.0,
        curve=(),
        learned=learned,
    )


def test_runs_of_a_scale_are_told_together_beside_what_was_found() -> None:
    specs = [make_spec(self_tuning=TUNING, seed=seed) for seed in range(4)] + [make_spec()]
    values = zip(specs[:3], (0.2, 0.25, 0.3), strict=True)
    results = {spec.run_id: finish(spec.run_id, dropout=value) for spec, value in values}
    results[specs[3].run_id] = finish(specs[3].run_id)  # lost
    findings = tell_tuned(Findings("Found.", tables={"other": []}), specs, results)
    assert findings is not None
    assert findings.sentence == "Found. At w32 dropout was tuned from 0.1 to 0.25 (3 runs, sd 0.05)."
    (row,) = findings.tables["Tuned along the runs"]
    assert (row["lowest"], row["highest"], row["runs"]) == (0.2, 0.3, 3)
    assert "other" in findings.tables
    assert set(findings.data["tuned"]) == {spec.run_id for spec in specs[:3]}


def test_nothing_is_told_where_nothing_was_tuned() -> None:
    spec = make_spec()
    assert tell_tuned(None, [spec], {spec.run_id: finish(spec.run_id)}) is None
    tuning = make_spec(self_tuning=TUNING)
    assert tell_tuned(None, [tuning], {}) is None


def test_a_real_study_tunes_itself_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    (tmp_path / "docs").mkdir()
    for number in range(60):
        (tmp_path / "docs" / f"{number}.txt").write_text("".join(generator.choice(["alpha ", "beta ", "gamma "], 100)))
    data = {"corpus": "files", "domains": {"docs": {"path": str(tmp_path / "docs")}}, "seq_len": 32}
    study = read_study(
        {
            "study": {"name": "tuned"},
            "proxy": {"base_width": 16, "head_size": 8, "depth": 1},
            "scales": [{"name": "w16", "width": 16, "tokens": 24 * 256}],
            "data": {**data, "validation_sequences": 4, "validation_fraction": 0.2, "max_epochs": 50},
            "training": {"batch_tokens": 256, "peak_lr": 0.01, "diagnoses": 0, "self_tuning": {"lr": 0.03}},
            "search": {"space": {"seed": [0, 1]}},
            "runner": {"kind": "inline", "pack": 1},
        }
    )
    assert read_study(study.snapshot()) == study
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=tmp_path)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        frame = ledger.runs("tuned")
        results = list(ledger.results(frame["run_id"]))
        answer = answer_study(study, ledger)
    assert frame["learned/dropout"].between(0.01, 0.5).all()
    assert sorted(frame["learned/dropout"]) == sorted(result.learned["dropout"] for result in results)
    assert all(result.learned_path[-1].step == 24 for result in results)
    assert answer.findings is not None
    assert "dropout was tuned from 0.1 to" in answer.findings.sentence
    plain = frame.copy()
    plain.loc[0, "learned/dropout"] = np.nan  # as a run that tuned nothing
    assert Exclusion("that learned settings or their mixture along the run", 1) in gather_observations(plain).excluded
