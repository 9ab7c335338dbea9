"""A real study on a real Ray Tune: proxies trained on the standard library's source, the driver killed half-way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from foretune.ledger import open_ledger

STUDY = """
[study]
name = "live"
question = "Does the whole spine hold on real training?"
[proxy]
base_width = 16
head_size = 8
[[scales]]
name = "w16"
width = 16
tokens = 122_880
[[scales]]
name = "w24"
width = 24
tokens = 122_880
[[scales]]
name = "w32"
width = 32
tokens = 122_880
[[scales]]
name = "w64"
width = 64
tokens = 122_880
[data]
validation_sequences = 16
[training]
batch_tokens = 1024
[search.space]
parametrization = ["mup", "standard"]
peak_lr = { low = "2^-9", high = "2^-3", factor = 2 }
[verification]
scale = "w64"
"""
RUNS = 2 * 3 * 7


@pytest.mark.live
def test_a_real_study_survives_its_driver_and_answers(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY, encoding="utf-8")
    first = subprocess.Popen(_command(tmp_path), cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(before := _read(tmp_path)) < 8:
        assert first.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline, "no run finished in 400 seconds"
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = _read(tmp_path)
    assert set(before.index) <= set(kept.index)

    done = subprocess.run(_command(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500)
    assert "Traceback" not in done.stderr
    assert f"search: {RUNS - len(kept)} runs to do, {len(kept)} done before" in done.stderr
    assert "was in the ledger already" not in done.stderr

    after = _read(tmp_path)
    pd.testing.assert_frame_equal(after.loc[kept.index], kept)
    search = after[after["role"] == "search"]
    assert len(search) == RUNS
    assert (after["attempts"] == 1).all()
    _check_training(search)
    _check_answer(json.loads((tmp_path / "results/live/answer.json").read_text()), after, done.returncode)


def _check_training(search: pd.DataFrame) -> None:
    """The models learned, wider ones more; at the base width both parametrizations are the same model."""
    tuned = search.groupby(["parametrization", "width"])["loss"].min()
    assert tuned.max() < 3.5, "bytes of source code: ln 257 = 5.55 untrained"
    assert tuned["mup", 32] < tuned["mup", 16]
    base = search[search["width"] == 16].pivot_table(index="peak_lr", columns="parametrization", values="loss")
    assert (base["mup"] == base["standard"]).all()


def _check_answer(answer: dict[str, object], after: pd.DataFrame, code: int) -> None:
    """Small runs are noisy: a branch may refuse to forecast, but what is forecast is checked on runs of its own."""
    assert code == ("peak_lr" not in answer)
    checked = answer.get("verification", {})
    branches = checked["per_parametrization"] if isinstance(checked, dict) and checked else {}
    assert not branches or (isinstance(checked, dict) and checked["registered_before_runs"])
    assert len(after[after["role"] == "verification"]) == 3 * len(branches)
    for branch in branches.values():
        assert 0 <= branch["regret"] < 0.5
        assert len(branch["runs"]) == 3


def _command(folder: Path) -> list[str]:
    words = [sys.executable, "-m", "foretune.cli", "run", "study.toml", "--quiet"]
    return [*words, "--ledger", str(folder / "ledger.db")]


def _read(folder: Path) -> pd.DataFrame:
    if not (folder / "ledger.db").exists():
        return pd.DataFrame()
    with open_ledger(folder / "ledger.db") as ledger:
        if not ledger.studies():
            return pd.DataFrame()
        return ledger.runs("live").set_index("run_id")
