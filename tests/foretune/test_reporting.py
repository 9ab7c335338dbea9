"""The page of an answer: what it costs, and what stands where."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest

from foretune.answers import Answer
from foretune.execution import execute_study
from foretune.ledger import open_ledger
from foretune.progress import ProgressBar
from foretune.query import answer_study
from foretune.reporting import _list_costs, write_results
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.study import read_study

SEARCHES: dict[str, dict[str, Any]] = {
    "pbt": {
        "space": {"peak_lr": {"low": 1e-4, "high": 0.1}},
        "population": {"size": 4, "ready_tokens": 20_480},
        "baselines": ["calibrated_nadamw"],
    },
    "random": {"space": {"peak_lr": {"low": 1e-4, "high": 0.1}}, "runs": 3, "baselines": ["calibrated_nadamw"]},
    "grid": {"space": {"peak_lr": [0.01]}},
}


def answer(strategy: str, folder: Path) -> tuple[Answer, str]:
    """The answer of a small search, and the text of its page."""
    study = read_study(
        {
            "study": {"name": "page", "question": "Which?"},
            "proxy": {"base_width": 32, "head_size": 16},
            "scales": [{"name": "w32", "width": 32, "tokens": 102_400}],
            "training": {"batch_tokens": 1024},
            "target": {"params": "1B", "tokens": "20B"},
            "search": {"strategy": strategy, **SEARCHES[strategy]},
            "runner": {"kind": "replay", "surface": {}},
        }
    )
    with open_ledger(folder / "ledger.db", create=True) as ledger:
        runner = make_runner(study.runner, workspace=folder)
        execute_study(study, ledger, runner, resolve_corpus(study), ProgressBar(quiet=True))
        found = answer_study(study, ledger)
    page = write_results(found, study, folder / "results").read_text(encoding="utf-8")
    return found, html.unescape(page)


def test_tokens_that_a_member_went_on_from_are_counted_once(tmp_path: Path) -> None:
    found, _ = answer("pbt", tmp_path)
    stops = {tokens: number * 20_480 for number, tokens in enumerate(sorted(set(found.runs["tokens"])))}
    own = found.runs["tokens"] - found.runs["tokens"].map(stops) * found.runs["role"].eq("search")
    spent = found.runs["compute_flops"] * own / found.runs["tokens"]
    trained = Answer(**{**vars(found), "runs": found.runs.assign(spent_flops=spent)})
    costs = {row["runs"]: row for row in _list_costs(trained)}
    assert costs["search"]["tokens trained"] == pytest.approx(4 * 102_400)
    assert costs["baseline"]["tokens trained"] == pytest.approx(102_400)


def test_a_soup_that_trained_nothing_has_no_tokens(tmp_path: Path) -> None:
    found, _ = answer("grid", tmp_path)
    for spent, status in ((0.0, "completed"), (None, "failed")):
        soup = found.runs.assign(role="soup", spent_flops=spent, tokens_trained=None, status=status)
        (row,) = _list_costs(Answer(**{**vars(found), "runs": soup}))
        assert (row["tokens trained"], row["training FLOPs"]) == (0.0, 0.0)


@pytest.mark.parametrize("strategy", ["pbt", "random"])
def test_a_page_says_a_finding_once_under_headings_of_one_kind(strategy: str, tmp_path: Path) -> None:
    found, page = answer(strategy, tmp_path)
    assert found.findings is not None
    assert page.count(found.findings.sentence) == 1
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert "What the search found" in headings
    assert [title for title in headings if title[0].islower()] == []
    columns = re.findall(r"<th[^>]*>(.*?)</th>", page)
    assert "training FLOPs" in columns
    assert [name for name in columns if "_" in name] == []
    assert re.search(r"<td>standard</td>\s*<td[^>]*>1</td>\s*<td>baselines of a search</td>", page)


def test_a_page_without_a_forecast_has_no_empty_heading(tmp_path: Path) -> None:
    found, page = answer("grid", tmp_path)
    assert found.findings is None
    assert found.branch.forecast is None
    sections = re.findall(r"<h2>(.*?)</h2>(.*?)</section>", page, re.S)
    assert sections
    assert [title for title, body in sections if not body.strip()] == []
