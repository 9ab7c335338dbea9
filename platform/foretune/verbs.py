"""What each verb of the command line does. Torch and ray are imported only by those that train."""

from __future__ import annotations

import json
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scalelaws
from foretune.errors import InputError
from foretune.finding import find_study, find_study_or_none, name_study
from foretune.gates.licences import FITTED, Licence, grant_licence
from foretune.ledger import Ledger, Recorded, open_ledger
from foretune.ledger.opening import DEFAULT_FILE
from foretune.quantities import TokensPerParam
from foretune.rendering import render_record, render_rows
from foretune.study import Study, load_study
from scalelaws import Target

if TYPE_CHECKING:
    import pandas as pd

PAIRS = {
    "--map": ("COLUMN=NAME", "final_loss=loss"),
    "--set": ("NAME=VALUE", "params_non_embedding=1M"),
    "--objective": ("LOSS=WEIGHT", "code=0.5"),
    "--minimum": ("DOMAIN=SHARE", "code=0.05"),
    "--maximum": ("DOMAIN=SHARE", "code=0.3"),
    "--natural": ("DOMAIN=SHARE", "code=0.1"),
    "--domain-tokens": ("DOMAIN=TOKENS", "code=200B"),
}
"""What the pairs of an option are called, and an example."""


def do_check(args: Namespace) -> None:
    """Print every derived number of a study."""
    from foretune.checking import describe_study

    study = load_study(args.study)
    sections = describe_study(study)
    if args.format == "json":
        print(json.dumps(sections, indent=2))
        return
    for title, rows in sections.items():
        print(f"# {title}" if args.format == "csv" else f"\n{title}")
        print(render_rows(rows, args.format))


def do_schema(args: Namespace) -> None:
    """Print the JSON Schema of a study file."""
    print(json.dumps(Study.model_json_schema(), indent=2, allow_nan=False))


def do_plan(args: Namespace) -> None:
    """Print the runs still to do and their cost; refuse a plan over the budget."""
    from foretune.checking import describe_plan

    study = load_study(args.study)
    with _ledger_if_any(args.ledger) as ledger:
        record, rows, refusal = describe_plan(study, ledger, probe=not args.no_probe, results=Path(args.results))
    if args.format == "json":
        print(json.dumps({**record, "runs": rows}, indent=2))
    elif args.format == "csv":
        print(render_rows(rows, "csv"))
    else:
        print(render_rows(rows, "table") + "\n")
        print(render_record(record, "table"))
    if refusal:
        raise refusal


def do_run(args: Namespace) -> int:
    """Launch or resume a study, then print the answer and the report's path."""
    from foretune.launching import launch_study

    study = load_study(args.study)
    with _terminate_like_interrupt(), open_ledger(args.ledger or None, create=True) as ledger:
        failed = launch_study(
            study, ledger, address=args.address, results=Path(args.results), quiet=args.quiet, steal=args.steal
        )
        return _print_answer(study, ledger, Path(args.results), args.format) or int(failed > 0)


def do_report(args: Namespace) -> int:
    """Write the report of what the ledger holds."""
    with open_ledger(args.ledger or None) as ledger:
        return _print_answer(find_study(args.study, ledger), ledger, Path(args.results), "table")


def do_status(args: Namespace) -> None:
    """Print runs by state, failures with reasons, and time left."""
    from foretune.checking import describe_status

    with open_ledger(args.ledger or None) as ledger:
        names = [name_study(args.study)] if args.study else ledger.studies()
        rows = [describe_status(ledger, name) for name in names]
    if args.format != "table":
        print(render_rows(rows, args.format))
        return
    counted = [{**row, "failures": len(row["failures"])} for row in rows]
    print(render_rows([{key: value for key, value in row.items() if key != "note"} for row in counted], "table"))
    for row in [row for row in rows if row["note"]]:
        print(f"study {row['study']}: {row['note']}")
    for failure in [failure for row in rows for failure in row["failures"]]:
        print(f"failed: {failure['run_id']} (attempt {failure['attempt']}): {failure['reason']}")


def do_import(args: Namespace) -> None:
    """Bring a file of runs into the ledger, and say how each column was understood."""
    from foretune.ledger.importing import import_runs

    imported = import_runs(
        Path(args.file),
        study=args.study,
        column_map=read_pairs("--map", args.map),
        constants=read_pairs("--set", args.set),
        format=args.file_format,
        metrics=args.metrics or None,
    )
    with open_ledger(args.ledger or None, create=True) as ledger:
        results = ledger.record_all(imported.records)
    for alias, column in imported.resolved.items():
        print(f"{alias} -> {column}", file=sys.stderr)
    if imported.unused:
        print(f"not read: {', '.join(name or '(no name)' for name in imported.unused)}", file=sys.stderr)
    for note in imported.notes:
        print(note, file=sys.stderr)
    counts = {kind: results.count(kind) for kind in sorted(set(results), key=str)}
    print(", ".join(f"{count} runs {kind}" for kind, count in counts.items()))
    if Recorded.CONFLICT in counts:
        print(
            "conflict: these rows were read before with other results or another mapping, and what was first stands; "
            "to read them anew, import into a fresh ledger",
            file=sys.stderr,
        )


def do_export(args: Namespace) -> None:
    """Write a study's run table to a file, or its mixtures and their losses to two."""
    from foretune.ledger.exporting import export_runs

    with open_ledger(args.ledger or None) as ledger:
        frame = ledger.runs(name_study(args.study))
    if args.file_format == "olmix":
        _export_olmix(frame, args)
        return
    if args.scale or args.parametrization:
        raise InputError("--scale, --parametrization: the run table holds all runs; add --format olmix, or leave them")
    export_runs(frame, Path(args.to), force=args.force)
    print(f"{len(frame)} runs written to {args.to}")


def _export_olmix(frame: pd.DataFrame, args: Namespace) -> None:
    from foretune.ledger.swarms import export_swarm
    from foretune.search.mixing.swarms import gather_swarm

    swarm = gather_swarm(frame, scale=args.scale, parametrization=args.parametrization)
    metrics = export_swarm(swarm.frame, Path(args.to), force=args.force)
    unit = next(iter(swarm.losses.values())).loss_unit
    print(f"{len(swarm.frame)} runs written to {args.to} and {metrics}; metrics in {unit}")
    for item in swarm.excluded:
        print(f"left out: {item.runs} runs {item.reason}", file=sys.stderr)


def do_fit(args: Namespace) -> None:
    """Print a fitted law with its intervals."""
    from foretune.query import fit_runs

    frame, branch, study = gather_runs(args)
    fit = fit_runs(frame, args.law, parametrization=branch, pool=args.pool, seed=study.study.seed if study else 0)
    print(fit.summary() if args.format == "table" else render_record(fit.to_dict(), args.format))


def do_predict(args: Namespace) -> None:
    """Print the forecast for a large run, from runs or from a published law."""
    from foretune.query import compare_published, predict_target

    if args.published:
        if args.runs:
            raise InputError("--published answers without runs: leave out --runs, or leave out --published")
        target = _read_target(args, load_study(args.study) if args.study else None)
        print(render_record(_forecast_published(args.published, target).to_dict(), args.format))
        return
    frame, branch, study = gather_runs(args)
    target = _read_target(args, study)
    seed, licence = study.study.seed if study else 0, _find_licence(args, study, frame, branch)
    forecast = predict_target(frame, target, parametrization=branch, pool=args.pool, seed=seed, licence=licence)
    print(render_record(forecast.to_dict(), args.format))
    if args.format == "table":
        print("\npublished laws at the same target, each under its own conventions")
        print(render_rows(compare_published(target), "table"))


def do_allocate(args: Namespace) -> None:
    """Print the compute-optimal parameters and tokens."""
    from foretune.query import allocate_compute

    if args.published:
        allocation = _allocate_published(args.published, args.flops)
    else:
        frame, branch, study = gather_runs(args)
        seed = study.study.seed if study else 0
        allocation = allocate_compute(frame, args.flops, parametrization=branch, pool=args.pool, seed=seed)
    print(render_record(allocation.to_dict(), args.format))


def do_backtest(args: Namespace) -> None:
    """Fit the small runs of a table, forecast the large ones, and print how that went."""
    from foretune.query import backtest_runs

    frame, branch, study = gather_runs(args)
    seed = study.study.seed if study else 0
    record = backtest_runs(frame, args.law, parametrization=branch, pool=args.pool, seed=seed)
    if args.format != "table":
        print(json.dumps(record, indent=2) if args.format == "json" else render_rows(record["cells"], "csv"))
        return
    shown = ("held_out", "law", "fraction", "params", "tokens", "predicted", "low", "high", "actual", "error", "inside")
    print(render_rows([{key: cell[key] for key in shown} for cell in record["cells"]], "table") + "\n")
    print(render_rows(record["summary"], "table"))
    for held_out, names in record["ranking"].items():
        print(f"ranking by {held_out}: {', '.join(names) or 'none could be tested'}")
    for item in record["unfitted"]:
        print(f"not tested: {item['law']} below 1/{item['fraction']:g} of the compute: {item['reason']}")


def do_next(args: Namespace) -> None:
    """Write a study with the runs to do next, and print them with what they are expected to bring."""
    from foretune.proposing import propose_runs
    from foretune.query import list_branches

    with open_ledger(args.ledger or None, create=True) as ledger:
        study = find_study(args.study, ledger)
        name = study.study.name
        frame = ledger.runs(name) if name in ledger.studies() else None
    branch = args.parametrization or (study.proxy.parametrization if frame is None else list_branches(study, frame)[0])
    target = _read_target(args, study)
    proposal = propose_runs(study, frame, target, parametrization=branch, runs=args.runs_affordable)
    place = Path(args.to) if args.to else Path("results") / name / "next.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(proposal.study.to_toml(), encoding="utf-8")
    if args.format != "table":
        record = proposal.to_dict()
        print(json.dumps(record, indent=2) if args.format == "json" else render_rows(proposal.rows(), "csv"))
    else:
        print(render_rows(proposal.rows(), "table"))
        print("\n".join((proposal.design.status, *proposal.design.warnings)))
    launch = f"the study with these runs: {place} (launch: foretune run {place})"
    print(launch, file=sys.stderr if args.format != "table" else sys.stdout)


def do_laws(args: Namespace) -> None:
    """Print every law."""
    print(render_rows([law.to_dict() for law in scalelaws.list_laws()], args.format))


def _print_answer(study: Study, ledger: Ledger, results: Path, kind: str) -> int:
    """Print the answer and write the report; 1 when there is neither a forecast nor a finding."""
    from foretune.query import answer_study
    from foretune.reporting import summarize_answer, write_results

    answer = answer_study(study, ledger)
    page = write_results(answer, study, results / study.study.name)
    print(summarize_answer(answer) if kind == "table" else render_record(answer.to_dict(), kind))  # type: ignore[arg-type]
    print(f"report: {page}", file=sys.stderr if kind != "table" else sys.stdout)
    return int(not answer.is_answered)


def _forecast_published(name: str, target: scalelaws.Target) -> scalelaws.Forecast:
    law = _get_published(name)
    try:
        return scalelaws.forecast(law, target)
    except ValueError as error:
        raise InputError(f"--published: {error}") from None


def _allocate_published(name: str, flops: float) -> scalelaws.Allocation:
    """By a published law of the loss, or a published split of the compute."""
    from scalelaws.laws.published import PUBLISHED_ALLOCATIONS

    try:
        return scalelaws.allocate(PUBLISHED_ALLOCATIONS.get(name) or _get_published(name), flops)
    except ValueError as error:
        raise InputError(f"--published: {error}") from None


def _get_published(name: str) -> Any:
    try:
        return scalelaws.get_published(name)
    except ValueError as error:
        raise InputError(f"--published: {error}") from None


def gather_runs(args: Namespace) -> tuple[pd.DataFrame, str, Study | None]:
    """The run table that a query speaks of, the branch of it, and the study where there is one."""
    if bool(args.study) == bool(args.runs):
        raise InputError("name a study or give --runs FILE, and only one of them")
    if args.runs:
        from foretune.ledger.importing import read_runs

        frame = read_runs(Path(args.runs), read_pairs("--map", args.map), read_pairs("--set", args.set))
        for note in frame.attrs["notes"]:
            print(note, file=sys.stderr)
        return frame, args.parametrization, None
    from foretune.query import list_branches

    with open_ledger(args.ledger or None) as ledger:
        frame = ledger.runs(name_study(args.study))
        study = find_study_or_none(args.study, ledger)
    branches = list_branches(study, frame) if study else []
    return frame, args.parametrization or (branches[0] if branches else ""), study


def _find_licence(args: Namespace, study: Study | None, frame: pd.DataFrame, branch: str) -> Licence:
    """What the study and its gates allow of the optimum across sizes."""
    if study is None:
        return FITTED
    with open_ledger(args.ledger or None) as ledger:
        return grant_licence(study, ledger.gates(study.study.name), frame, branch)


def _read_target(args: Namespace, study: Study | None) -> Target:
    target = study.target if study else None
    params = args.params if args.params is not None else (target.params if target else None)
    tokens = args.tokens if args.tokens is not None else (target.tokens if target else None)
    if params is None or tokens is None:
        raise InputError("give --params and --tokens, or a [target] in the study")
    if isinstance(tokens, TokensPerParam):
        tokens = round(tokens.ratio * params)
    default_seq_len = (target.seq_len or study.data.seq_len) if target and study else 0
    seq_len = args.seq_len or default_seq_len or (study.data.seq_len if study else None)
    if params <= 0 or tokens <= 0:
        raise InputError(f"--params and --tokens must be positive, got {params} and {tokens}")
    return Target(float(params), float(tokens), seq_len)


def read_pairs(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """What was given as NAME=VALUE, an option each; the last `=` parts them, for names may hold one."""
    bad = [pair for pair in pairs if "=" not in pair]
    if bad:
        name, example = PAIRS[option]
        raise InputError(f"{option}: must read {name}, got {bad[0]!r}; for example {option} {example}")
    found: dict[str, str] = {}
    for name, value in (pair.rsplit("=", 1) for pair in pairs):
        if name in found:
            raise InputError(f"{option}: {name} is given twice, {found[name]!r} and {value!r}")
        found[name] = value
    return found


@contextmanager
def _ledger_if_any(url: str) -> Iterator[Ledger | None]:
    """A plan may be asked for before there is a ledger."""
    place = url or os.environ.get("FORETUNE_LEDGER") or DEFAULT_FILE
    if "://" not in place and not Path(place).exists():
        yield None
        return
    with open_ledger(place) as ledger:
        yield ledger


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Take SIGTERM (Kubernetes, batch systems) as Ctrl-C: stop the workers, keep the ledger, say how to go on."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
