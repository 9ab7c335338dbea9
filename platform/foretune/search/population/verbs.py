"""The verb of populations on the command line: who copied whom, and the schedule that came of it."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from foretune.errors import InputError
from foretune.finding import find_study
from foretune.ledger import open_ledger
from foretune.rendering import render_rows
from foretune.resolution import resolve_corpus
from foretune.search.interface import fingerprint_search
from foretune.search.population.findings import describe_population
from foretune.search.population.replaying import Schedule, write_schedule


def do_lineage(args: Namespace) -> None:
    """Print a population's lineage and its schedule, draw it, and write the schedule to a file."""
    from foretune.drawing import DOTS_PER_INCH
    from foretune.search.population.drawing import draw_population

    with open_ledger(args.ledger or None) as ledger:
        study = find_study(args.study, ledger)
        name = study.study.name
        fingerprint = fingerprint_search(study, resolve_corpus(study))
        # of the study as it is; else of the search that was asked last, before it was edited
        decisions = ledger.decisions(name, fingerprint) or ledger.decisions(name)
        results = {item.run_id: item for item in ledger.results([item.run_id for item in decisions if item.run_id])}
    findings = describe_population(name, decisions, results, study.search.objective)
    if findings is None or not findings.data:
        reason = findings.sentence if findings else "nothing of a population has ended in this ledger"
        raise InputError(f"study {name!r}: no lineage: {reason}")
    if args.format == "table":
        for title, rows in findings.tables.items():
            print(f"{title}\n{render_rows(rows, 'table')}\n")
        print(findings.sentence)
    else:
        rows = findings.tables["lineage of the best member"]
        print(json.dumps(findings.data, indent=2) if args.format == "json" else render_rows(rows, "csv"))
    out = sys.stdout if args.format == "table" else sys.stderr
    if args.to:
        write_schedule(Schedule.model_validate(findings.data["schedule"]), Path(args.to))
        print(f"schedule: {args.to} (replay it: [search.replay] file)", file=out)
    place = Path(args.results) / name / "lineage.png"
    place.parent.mkdir(parents=True, exist_ok=True)
    draw_population(findings.data["lineage"]).savefig(place, dpi=DOTS_PER_INCH)
    print(f"figure: {place}", file=out)
