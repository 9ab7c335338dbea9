"""The verb of swarms on the command line: the mixture that runs which exist already recommend."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from foretune.errors import InputError
from foretune.quantities import parse_quantity
from foretune.rendering import format_number, render_record, render_rows
from foretune.search.mixing.swarms import SwarmAnswer, gather_swarm, recommend_from_swarm
from foretune.verbs import gather_runs, read_pairs


def do_mixture(args: Namespace) -> None:
    """Print the recommended mixture, beside the natural and the best tried one, with what was fitted."""
    frame, branch, study = gather_runs(args)
    swarm = gather_swarm(frame, scale=args.scale, parametrization=branch, pool=args.pool)
    held = _read_numbers("--domain-tokens", args.domain_tokens)
    if (args.tokens is None) != (not held):
        raise InputError("a cap on repetition needs both: --tokens of the run, --domain-tokens of what a domain has")
    answer = recommend_from_swarm(
        swarm,
        law=args.law,
        weights=_read_numbers("--objective", args.objective) or None,
        minimum=_read_numbers("--minimum", args.minimum),
        maximum=_read_numbers("--maximum", args.maximum),
        natural=_read_numbers("--natural", args.natural) or None,
        tokens=float(args.tokens) if args.tokens is not None else None,
        domain_tokens=held or None,
        epochs=args.max_epochs,
        seed=study.study.seed if study else 0,
    )
    if args.format == "json":
        print(render_record(answer.to_dict(), "json"))
    elif args.format == "csv":
        print(render_rows(answer.list_shares(), "csv"))
    else:
        _print_answer(answer)


def _print_answer(answer: SwarmAnswer) -> None:
    size = f"{format_number(answer.params)} parameters on {format_number(answer.tokens)} tokens"
    print(f"{answer.law} of {answer.runs} runs of {size}; losses in {answer.loss_unit}\n")
    print(render_rows(answer.list_shares(), "table") + "\n")
    print(render_rows(answer.list_objectives(), "table") + "\n")
    print(render_rows(answer.list_losses(), "table"))
    print(f"{100 * answer.best.level:g} % intervals: of a share, where single draws of the fit have their optimum;")
    print("of an objective and of a gain, what new runs measure, which scatter around the fit")
    for warning in answer.best.warnings:
        print(f"mind: {warning}")
    for item in answer.excluded:
        print(f"left out: {item.runs} runs {item.reason}")
    print("It holds at the size of these runs: train it beside the natural mixture at a larger one before it is used.")


def _read_numbers(option: str, pairs: Sequence[str]) -> dict[str, float]:
    found = {}
    for name, text in read_pairs(option, pairs).items():
        try:
            found[name] = float(parse_quantity(text))
        except ValueError as error:
            raise InputError(f"{option} {name}: {error}") from None
    return found
