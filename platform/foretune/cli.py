"""The command line: verbs and paths, no knobs. Each verb is one call into `verbs.py`, `gates/verbs.py`
or `search/verbs.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from foretune.errors import ForetuneError, InputError
from foretune.quantities import parse_count, parse_horizon, parse_quantity

Value = TypeVar("Value")
EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; 0 done, 1 the work failed, 2 the input was wrong, 130 interrupted (start it again to go on)."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        return int(_find_verb(args.verb)(args) or EXIT_DONE)
    except InputError as error:
        return _complain(error, EXIT_INPUT)
    except ForetuneError as error:
        return _complain(error, EXIT_FAILED)
    except BrokenPipeError:
        return EXIT_DONE
    except OSError as error:
        if error.filename is None:
            raise
        return _complain(f"{error.filename}: {error.strerror}", EXIT_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted; what had finished is in the ledger: the same command goes on", EXIT_INTERRUPTED)
    finally:
        _flush()


def _find_verb(name: str) -> Callable[[argparse.Namespace], int | None]:
    """What a verb does; found only when it is called, so that `--help` imports nothing."""
    from foretune import verbs
    from foretune.gates import verbs as gate_verbs
    from foretune.search.mixing import verbs as mixing_verbs
    from foretune.search.replaying import verbs as search_verbs

    room = next(room for room in (verbs, gate_verbs, search_verbs, mixing_verbs) if hasattr(room, f"do_{name}"))
    found: Callable[[argparse.Namespace], int | None] = getattr(room, f"do_{name}")
    return found


def _flush() -> None:
    """A reader that has seen enough (`| head`) is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: object, code: int) -> int:
    for line in str(message).splitlines():
        print(f"foretune: {line}", file=sys.stderr)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their arguments."""
    parser = argparse.ArgumentParser(
        prog="foretune", description="Tune small, predict large.", epilog="Numbers: 7e9, 7B, 1.4T, 512k, 2^-7, 20xN."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_study_verbs(verbs)
    _add_gate_verbs(verbs)
    _add_search_verbs(verbs)
    _add_ledger_verbs(verbs)
    _add_query_verbs(verbs)
    return parser


def _add_study_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = verbs.add_parser("check", help="read and resolve a study; print every derived number")
    check.add_argument("study", metavar="STUDY", help="folder or TOML file")
    _add_format(check)

    plan = verbs.add_parser("plan", help="the runs still to do, what they cost, what is skipped and why")
    plan.add_argument("study", metavar="STUDY", help="folder or TOML file")
    plan.add_argument("--no-probe", action="store_true", help="do not measure how fast this machine trains")
    plan.add_argument("--results", default="results", metavar="FOLDER", help="where results/STUDY/ lies")
    _add_ledger(plan)
    _add_format(plan)

    run = verbs.add_parser("run", help="launch or resume; the same command again goes on where it was")
    run.add_argument("study", metavar="STUDY", help="folder or TOML file")
    run.add_argument("--address", default="local", help="Ray cluster: local (default), auto, or HOST:PORT")
    run.add_argument("--steal", action="store_true", help="take the study over from a driver that is gone")
    run.add_argument("--results", default="results", metavar="FOLDER", help="where results/STUDY/ is written")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_ledger(run)
    _add_format(run)

    report = verbs.add_parser("report", help="one self-contained HTML page with figures")
    report.add_argument("study", metavar="STUDY", help="folder, TOML file, or name in the ledger")
    report.add_argument("--results", default="results", metavar="FOLDER", help="where results/STUDY/ is written")
    _add_ledger(report)

    verbs.add_parser("schema", help="the JSON Schema of a study file, for editors")


def _add_gate_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = verbs.add_parser("coordcheck", help="do the changes of each layer keep their size over widths?")
    check.add_argument("study", metavar="STUDY", help="folder or TOML file")
    transfer = verbs.add_parser("transfer", help="does the optimum hold over width, depth, batch, horizon?")
    transfer.add_argument("study", metavar="STUDY", help="folder, TOML file, or name in the ledger")
    for verb in (check, transfer):
        verb.add_argument("--results", default="results", metavar="FOLDER", help="where results/STUDY/ is written")
        _add_ledger(verb)
        _add_format(verb)


def _add_search_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    lineage = verbs.add_parser("lineage", help="how a population or autolrs found its schedule, and that as a file")
    lineage.add_argument("study", metavar="STUDY", help="folder, TOML file, or name in the ledger")
    lineage.add_argument(
        "--to", default="", metavar="FILE", help="write the schedule: .toml or .json to replay, or .csv"
    )
    lineage.add_argument("--results", default="results", metavar="FOLDER", help="where results/STUDY/ is written")
    _add_ledger(lineage)
    _add_format(lineage)


def _add_ledger_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser("status", help="runs by state, failures with reasons, time left")
    status.add_argument(
        "study", metavar="STUDY", nargs="?", default="", help="folder, TOML file, or name in the ledger"
    )
    _add_ledger(status)
    _add_format(status)

    importing = verbs.add_parser("import", help="bring other people's runs into the ledger")
    importing.add_argument("file", metavar="FILE")
    importing.add_argument("--study", required=True, metavar="NAME", help="study that the runs join")
    formats = ("csv", "parquet", "steplaw", "olmix", "regmix")
    importing.add_argument("--format", dest="file_format", choices=formats, default="", help="default: by the suffix")
    importing.add_argument("--metrics", default="", metavar="FILE", help="of olmix, regmix; default: beside FILE")
    _add_map(importing)
    _add_ledger(importing)

    export = verbs.add_parser("export", help="write the run table to CSV, Parquet or JSONL")
    export.add_argument("study", metavar="STUDY", help="folder, TOML file, or name in the ledger")
    export.add_argument("--to", required=True, metavar="FILE", help="ends in .csv, .parquet or .jsonl")
    export.add_argument("--format", dest="file_format", choices=("olmix",), default="", help="default: the run table")
    export.add_argument("--scale", default="", metavar="NAME", help="of olmix: the runs of one scale")
    export.add_argument("--parametrization", default="", help="of olmix: the runs of one branch")
    export.add_argument("--force", action="store_true", help="overwrite the file")
    _add_ledger(export)


def _add_query_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = verbs.add_parser("fit", help="a fitted law with intervals, status and exclusions")
    _add_evidence(fit, published=False)
    fit.add_argument("--law", required=True, metavar="LAW", help="a name from `foretune laws`")

    predict = verbs.add_parser("predict", help="the optimal learning rate, batch size and loss of a large run")
    _add_evidence(predict)
    predict.add_argument("--params", type=_argument(parse_count), help="non-embedding parameters; default: [target]")
    predict.add_argument("--tokens", type=_argument(parse_horizon), help="training tokens, or 20xN; default: [target]")
    predict.add_argument("--seq-len", type=_argument(parse_horizon), help="tokens per sequence of the large run")

    allocate = verbs.add_parser("allocate", help="compute-optimal parameters and tokens")
    _add_evidence(allocate)
    allocate.add_argument("--flops", type=_argument(parse_quantity), required=True, help="training FLOPs")

    _add_mixture(verbs)

    backtest = verbs.add_parser("backtest", help="fit the small runs, predict the large ones: error, coverage, ranking")
    _add_evidence(backtest, published=False)
    backtest.add_argument(
        "--law",
        action="append",
        default=[],
        metavar="LAW",
        help="a law to test, several times; default: the usual ones",
    )

    follow = verbs.add_parser("next", help="the runs that would make the target's forecast surest per FLOP, as a study")
    follow.add_argument("study", metavar="STUDY", help="folder, TOML file, or name in the ledger")
    follow.add_argument("--runs-affordable", type=_argument(parse_count), default=8, metavar="K", help="default: 8")
    follow.add_argument(
        "--to", default="", metavar="FILE", help="where the study goes; default: results/STUDY/next.toml"
    )
    follow.add_argument("--params", type=_argument(parse_count), help="non-embedding parameters; default: [target]")
    follow.add_argument("--tokens", type=_argument(parse_horizon), help="training tokens, or 20xN; default: [target]")
    follow.add_argument("--seq-len", type=_argument(parse_horizon), help="tokens per sequence of the large run")
    follow.add_argument("--parametrization", default="", help="branch of the study; default: that of [proxy]")
    _add_ledger(follow)
    _add_format(follow)

    laws = verbs.add_parser("laws", help="every law: formula, parameters, scope, source")
    _add_format(laws)


def _add_mixture(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mixture = verbs.add_parser("mixture", help="the data mixture that runs which exist already recommend")
    _add_evidence(mixture, published=False)
    laws = ("process", "log_linear_mixture", "diminishing_mixture")
    mixture.add_argument("--law", choices=laws, default="process", help="fitted to every loss; default: process")
    mixture.add_argument("--scale", default="", metavar="NAME", help="the runs of one scale")
    for name, pair, meaning in (
        ("--objective", "LOSS=WEIGHT", "weight of a loss, several times; default: all alike"),
        ("--minimum", "DOMAIN=SHARE", "lowest share, several times"),
        ("--maximum", "DOMAIN=SHARE", "highest share, several times"),
        ("--natural", "DOMAIN=SHARE", "the mixture to compare with, a domain each"),
        ("--domain-tokens", "DOMAIN=TOKENS", "what a domain has for the run to come, several times"),
    ):
        mixture.add_argument(name, action="append", default=[], metavar=pair, help=meaning)
    mixture.add_argument("--tokens", type=_argument(parse_count), help="of the run to come, for the cap on repetition")
    # four epochs are nearly free: Muennighoff et al. 2023, section 6
    mixture.add_argument("--max-epochs", type=_argument(parse_quantity), default=4.0, help="of any domain; default: 4")


def _add_evidence(parser: argparse.ArgumentParser, *, published: bool = True) -> None:
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", default="", help="folder, TOML file, or name in the ledger"
    )
    parser.add_argument("--runs", default="", metavar="FILE", help="a run table (CSV, Parquet) instead of a study")
    if published:
        parser.add_argument("--published", default="", metavar="LAW", help="a published law instead of runs")
    parser.add_argument("--parametrization", default="", help="branch of the study; default: that of [proxy]")
    parser.add_argument(
        "--pool", action="append", default=[], metavar="COLUMN", help="fit rows together that differ in this column"
    )
    _add_map(parser)
    _add_ledger(parser)
    _add_format(parser)


def _add_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--map", action="append", default=[], metavar="COLUMN=NAME", help="read this column of the file as that name"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="what all runs of the file have, as tokens=1B"
    )


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ledger", default="", metavar="URL", help="path or SQLAlchemy URL; default: foretune.db here")


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")


def _argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Turn a ValueError of ours into argparse's own complaint, message and all."""

    def read(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


if __name__ == "__main__":
    sys.exit(main())
