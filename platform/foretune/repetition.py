"""How often a run goes through each domain: what the large run will do, and what small ones must do to tell of it.

Legend: U_d tokens that domain d holds for the large run, T its training tokens, t those of a small run, s_d a share

The large run goes s_d T / U_d times through a domain, a small one on the same text only s_d t / U_d times, so that the
best mixture of small runs has too much of what is scarce (Zhou et al. 2026, arXiv 2606.07597). A small run that may see
U_d t / T tokens of every domain repeats each as often as the large one, at any share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from foretune.errors import InputError
from foretune.quantities import format_count

if TYPE_CHECKING:
    from foretune.study import Study


def count_domain_tokens(study: Study, train_tokens: Mapping[str, int]) -> dict[str, int]:
    """U_d: what `[target] domain_tokens` says, else what the corpus holds of a domain (`train_tokens`).

    Raises InputError for a domain that the corpus does not have; a replay has no corpus, and takes what is named.
    """
    named = study.target.domain_tokens if study.target else {}
    unknown = sorted(set(named) - set(train_tokens))
    if unknown and train_tokens:
        raise InputError(
            f"target.domain_tokens.{unknown[0]}: no such domain; domains of this corpus: {', '.join(train_tokens)}"
        )
    return {**train_tokens, **named}


def match_repetition(study: Study, tokens: int, train_tokens: Mapping[str, int]) -> dict[str, int]:
    """The tokens of each domain that a run on `tokens` tokens may see; empty where it may see all of them.

    Raises InputError where the corpus holds less of a domain than that, or where it is not even two sequences.
    """
    if not study.data.repetition_matched or study.target is None or not train_tokens:
        return {}
    ratio = tokens / study.target.tokens_resolved
    matched = {name: round(held * ratio) for name, held in count_domain_tokens(study, train_tokens).items()}
    for name, unique in matched.items():
        if unique > train_tokens[name]:
            raise InputError(
                f"data.repetition_matched: a run on {format_count(tokens)} tokens must see {format_count(unique)} "
                f"distinct tokens of domain {name} to repeat it as rarely as the target, and the corpus holds "
                f"{format_count(train_tokens[name])}; prepare more text, or shorten the rung"
            )
        if unique < 2 * study.data.seq_len:
            raise InputError(
                f"data.repetition_matched: a run on {format_count(tokens)} tokens may see {unique} tokens of domain "
                f"{name} to repeat it as often as the target, fewer than two sequences of {study.data.seq_len}; "
                "lengthen the rung, or shorten the sequences"
            )
    return {name: unique for name, unique in matched.items() if unique < train_tokens[name]}
