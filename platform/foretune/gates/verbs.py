"""The two gates on the command line: do coordinates keep their size, and does the optimum stay where it is?"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from foretune.finding import find_study_or_none, name_study
from foretune.gates.coordinates import CoordinateAnswer, check_coordinates, fingerprint_proxy
from foretune.gates.transferring import TransferAnswer, measure_transfer
from foretune.ledger import open_ledger
from foretune.rendering import render_rows
from foretune.study import load_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def do_coordcheck(args: Namespace) -> int:
    """Train a few steps at growing widths, print what each layer's updates change; 1 unless the study's own passes."""
    from foretune.gates.drawing import draw_coordinates
    from foretune.proxies.coordinates import measure_coordinates
    from foretune.resolution import resolve_corpus
    from foretune.runners.isolation import isolate
    from foretune.runners.memory import count_cpus

    study = load_study(args.study)
    with isolate(threads=count_cpus()):
        answer = check_coordinates(study, resolve_corpus(study), measure_coordinates)
    name, verdicts, fingerprint = study.study.name, answer.to_dict()["verdicts"], fingerprint_proxy(study)
    with open_ledger(args.ledger or None, create=True) as ledger:
        for branch, verdict in verdicts.items():
            details = {**verdict, "peak_lr": answer.peak_lr, "rows": answer.rows(branch), "fingerprint": fingerprint}
            ledger.save_gate(name, branch, "coordcheck", passed=verdict["passed"], details=details)
    _print_gate(answer, map(answer.describe, answer.parametrizations), args.format)
    _save_figure(draw_coordinates(answer), Path(args.results) / name / "coordcheck.png", args.format)
    return int(not answer.passes(study.proxy.parametrization))


def do_transfer(args: Namespace) -> int:
    """Print the optimum along every axis with the verdicts, and write them down; 1 unless the first branch passes."""
    from foretune.drawing import draw_transfer_panels

    with open_ledger(args.ledger or None) as ledger:
        name = name_study(args.study)
        answer = measure_transfer(name, ledger.runs(name), find_study_or_none(args.study, ledger))
        for branch in answer.branches:
            ledger.save_gate(name, branch.parametrization, "transfer", passed=branch.passed, details=branch.to_dict())
    _print_gate(answer, answer.describe(), args.format)
    figure = draw_transfer_panels(answer)
    if figure is not None:
        _save_figure(figure, Path(args.results) / name / "transfer.png", args.format)
    return int(not answer.branches[0].passed)


def _print_gate(answer: CoordinateAnswer | TransferAnswer, sentences: Iterable[str], kind: str) -> None:
    if kind == "json":
        print(json.dumps(answer.to_dict(), indent=2, allow_nan=False))
    elif kind == "csv":
        print(render_rows(answer.rows(), "csv"))
    else:
        print(render_rows(answer.rows(), "table") + "\n")
        print("\n".join(sentences))


def _save_figure(figure: Figure, place: Path, kind: str) -> None:
    """Write a gate's figure and say where; beside a table on stdout, else on stderr."""
    from foretune.drawing import DOTS_PER_INCH

    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=DOTS_PER_INCH)
    print(f"figure: {place}", file=sys.stdout if kind == "table" else sys.stderr)
