"""The facts of a study's corpus and its plan against a ledger: what `check`, `plan` and `run` share."""

from __future__ import annotations

from foretune.corpora import prepare_corpus
from foretune.deriving import CorpusFacts
from foretune.errors import InputError
from foretune.ledger import Ledger
from foretune.planning import Plan, plan_runs
from foretune.searching import Searching
from foretune.study import Study

BYTES_VOCAB = 257
"""256 bytes and the end of a document."""


def resolve_corpus(study: Study) -> CorpusFacts:
    """Prepare (once) and describe the corpus; a replay reads no text, so it needs none."""
    if study.runner.kind == "replay":
        return CorpusFacts(
            "replay", _nominal_vocab_size(study.data.tokenizer), study.data.mixture or {"replay": 1.0}, {}
        )
    corpus = prepare_corpus(study.data)
    return CorpusFacts(
        digest=corpus.digest,
        vocab_size=corpus.vocab_size,
        mixture=corpus.resolve_mixture(study.data.mixture),
        train_tokens={name: facts.train_tokens for name, facts in corpus.domains.items()},
        notes=tuple(corpus.notes),
    )


def plan_study(study: Study, corpus: CorpusFacts, ledger: Ledger | None) -> Plan:
    """The search's runs, sorted by what the ledger holds; refuses a search that has nothing useful in it."""
    searching = Searching(study, corpus, ledger)
    asked = searching.ask()
    if not asked.specs:
        reasons = "; ".join(sorted({item.reason for item in asked.skipped}))
        raise InputError(f"nothing to run: every run of the space is skipped ({reasons})")
    statuses = ledger.statuses([spec.run_id for spec in asked.specs]) if ledger else {}
    return plan_runs(study, asked.specs, asked.skipped, statuses, searching.expect_rest(asked))


def _nominal_vocab_size(tokenizer: str) -> int:
    """The vocabulary that the tokenizer's name promises, for counting parameters where no text is read."""
    kind, _, rest = tokenizer.partition(":")
    size = rest.partition(":")[0]
    if kind == "bytes":
        return BYTES_VOCAB
    if kind in ("bpe", "ids") and size.isdigit():
        return int(size)
    raise InputError(
        f"data.tokenizer: a replay reads no tokenizer file; give 'bytes', 'bpe:VOCAB' or 'ids:VOCAB', got {tokenizer!r}"
    )
