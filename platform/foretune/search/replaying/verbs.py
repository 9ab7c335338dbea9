"""The verb of schedules on the command line: how the one that a search found came to be."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.errors import InputError
from foretune.finding import find_study
from foretune.ledger import Ledger, open_ledger
from foretune.records import Decision, Result
from foretune.rendering import render_rows
from foretune.resolution import resolve_corpus
from foretune.search import check_search
from foretune.search.autolrs.strategy import AutoLRS
from foretune.search.interface import Findings, History, fingerprint_search
from foretune.search.population.findings import describe_population
from foretune.search.replaying.files import write_schedule
from foretune.search.replaying.replays import FINDERS
from foretune.search.replaying.schedule import Schedule
from foretune.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = {"pbt": "lineage of the best member", "autolrs": "Schedules found"}
"""The table of the findings that is written as CSV, by what found the schedule."""
ENDED = {"pbt": "a population", "autolrs": "a model of autolrs"}
"""Of what something must have ended, by strategy."""


def do_lineage(args: Namespace) -> None:
    """Print how a schedule was found, draw it, and write it to a file."""
    from foretune.drawing import DOTS_PER_INCH

    with open_ledger(args.ledger or None) as ledger:
        study = find_study(args.study, ledger)
        findings = _describe(study, ledger)
    if args.format == "table":
        for title, rows in findings.tables.items():
            print(f"{title}\n{render_rows(rows, 'table')}\n")
        print(findings.sentence)
    else:
        rows = findings.tables[ROWS[_find_kind(study)]]
        print(json.dumps(findings.data, indent=2) if args.format == "json" else render_rows(rows, "csv"))
    out = sys.stdout if args.format == "table" else sys.stderr
    if args.to:
        write_schedule(Schedule.model_validate(findings.data["schedule"]), Path(args.to))
        print(f"schedule: {args.to} (replay it: [search.replay] file)", file=out)
    place = Path(args.results) / study.study.name / "lineage.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    _draw(findings).savefig(place, dpi=DOTS_PER_INCH)
    print(f"figure: {place}", file=out)


def _find_kind(study: Study) -> str:
    return "autolrs" if study.search.strategy == "autolrs" else "pbt"


def _describe(study: Study, ledger: Ledger) -> Findings:
    """The findings of the study's search; InputError where it has found no schedule."""
    name, corpus = study.study.name, resolve_corpus(study)
    decisions = ledger.decisions(name, fingerprint_search(study, corpus))
    if _find_kind(study) == "autolrs":
        check_search(study, corpus)
        findings = AutoLRS().conclude(study, corpus, History(_find_results(ledger, decisions), tuple(decisions)))
    else:
        # of the study as it is; else of the search that was asked last, before it was edited
        decisions = decisions or ledger.decisions(name)
        findings = describe_population(name, decisions, _find_results(ledger, decisions), study.search.objective)
    if findings is None or not findings.data:
        raise InputError(f"study {name!r}: no lineage: {findings.sentence if findings else _tell_lack(study)}")
    return findings


def _tell_lack(study: Study) -> str:
    """Why there is nothing to tell of."""
    strategy = study.search.strategy
    if strategy not in FINDERS:
        return f"search.strategy = {strategy!r} finds no schedule; those that do: {', '.join(FINDERS)}"
    return f"nothing of {ENDED[strategy]} has ended in this ledger"


def _find_results(ledger: Ledger, decisions: Sequence[Decision]) -> dict[str, Result]:
    return {item.run_id: item for item in ledger.results([item.run_id for item in decisions if item.run_id])}


def _draw(findings: Findings) -> Figure:
    from foretune.search.autolrs.drawing import draw_rates
    from foretune.search.population.drawing import draw_population

    if "schedules" in findings.data:
        return draw_rates(findings.data["schedules"])
    return draw_population(findings.data["lineage"])
