"""A search over mixtures through the main loop, to its report."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from foretune.execution import execute_study
from foretune.ledger import Ledger, open_ledger
from foretune.progress import ProgressBar
from foretune.query import answer_study
from foretune.records import RunOutcome, RunSpec
from foretune.reporting import summarize_answer, write_results
from foretune.resolution import resolve_corpus
from foretune.runners import Runner, make_runner
from foretune.runners.interface import More, Note, Observer, ask_nothing, ignore_note
from foretune.search.mixing.drawing import draw_check, draw_costs, draw_shares
from foretune.study import Study, read_study

STUDY = {
    "study": {"name": "mix", "question": "Which mixture?"},
    "proxy": {"base_width": 64, "head_size": 16},
    "scales": [
        {"name": "small", "width": 64, "tokens": "1M"},
        {"name": "medium", "width": 128, "tokens": "4M"},
        {"name": "large", "width": 192, "tokens": "8M"},
    ],
    "data": {"mixture": {"code": 0.8, "docs": 0.2}, "seq_len": 64},
    "target": {"params": "1B", "tokens": "20M", "domain_tokens": {"code": "8M", "docs": "4M"}},
    "training": {"batch_tokens": 4096, "peak_lr": 0.01},
    "search": {
        "strategy": "mixture",
        "runs": 10,
        "batch": 2,
        "space": {"mixture": {}, "seed": [0, 1]},
        "mixture": {"initial": 4, "check_scales": ["large"]},
    },
    "runner": {"kind": "replay", "surface": {"noise": 0.001, "mixing": {"code": {"code": -1}, "docs": {"docs": -1}}}},
}


class Stopped(Exception):
    """The driver dies."""


class DyingRunner:
    """Dies after so many runs, the last of which it does not hand over."""

    def __init__(self, runner: Runner, runs: int) -> None:
        self.runner, self.left = runner, runs

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        for item in self.runner.run(specs, observe, note, more):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            yield item

    def describe(self) -> str:
        return "dies"

    def close(self) -> None:
        """Nothing was started."""


def execute(study: Study, ledger: Ledger, runs: int = 10_000) -> None:
    runner = DyingRunner(make_runner(study.runner, address="local", workspace=Path()), runs)
    execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True), steal=True)


@pytest.fixture(scope="module")
def study() -> Study:
    return read_study(STUDY)


@pytest.fixture(scope="module")
def ledger(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    ledger = open_ledger(str(tmp_path_factory.mktemp("whole") / "ledger.db"), create=True)
    execute(study, ledger)
    return ledger


def test_a_driver_that_dies_again_and_again_ends_with_the_same_runs_and_decisions(
    study: Study, ledger: Ledger, tmp_path: Path
) -> None:
    with open_ledger(str(tmp_path / "ledger.db"), create=True) as other:
        for _ in range(60):
            try:
                execute(study, other, runs=3)
            except Stopped:
                continue
            break
        assert list_ends(other) == list_ends(ledger)
        assert answer_study(study, other).to_dict()["search"] == answer_study(study, ledger).to_dict()["search"]


def list_ends(ledger: Ledger) -> list[tuple[str, float]]:
    frame = ledger.runs("mix")
    return sorted(zip(frame["run_id"], frame["loss"], strict=True))


def test_the_answer_and_the_report_tell_the_mixture(study: Study, ledger: Ledger, tmp_path: Path) -> None:
    answer = answer_study(study, ledger)
    page = write_results(answer, study, tmp_path).read_text(encoding="utf-8")
    record = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))["search"]
    assert abs(record["settings"]["mixture"]["code"] - 0.5) < 0.05
    assert record["tables"]["check at larger scales"][0]["verdict"] == "better"
    for told in ("Use the recommended mixture", "Noise floor", "Cost by scale", "epochs of the target"):
        assert told in page
    assert (tmp_path / "figures" / "mixture.png").stat().st_size > 10_000
    told = summarize_answer(answer)
    assert "Recommended for the mean held-out loss of all domains: code" in told
    assert "nats per token" in told
    assert "beside the natural one's, 95 % intervals: -" in told


def test_figures_show_what_was_found(study: Study, ledger: Ledger) -> None:
    findings = answer_study(study, ledger).findings
    assert findings is not None
    data, ax = findings.data["mixture"], Figure().subplots()
    heights = [bar.get_height() for bar in draw_shares(data["shares"], ax).patches]
    assert heights[:4] == pytest.approx([0.8, 0.2, *findings.settings["mixture"].values()])
    check = draw_check(data["checks"], Figure().subplots())
    natural, recommended = check.lines[:2]
    legend = check.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y0 >= check.get_window_extent().y1  # a marker inside would read as a point
    assert natural.get_ydata() == pytest.approx([0.0, 0.0])
    assert recommended.get_ydata()[0] < -1
    shown = draw_costs(data["costs"], Figure().subplots())
    assert sum(bar.get_height() for bar in shown.patches) == pytest.approx(100, abs=0.1)
    mixtures = {bar.get_facecolor() for bar in ax.patches}
    assert not mixtures & {bar.get_facecolor() for bar in shown.patches}
