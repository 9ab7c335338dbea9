"""Text sources, tokens and mixtures; no torch in here."""

from foretune.corpora.batches import BatchStream, take_reference_batches, take_validation_batches
from foretune.corpora.corpus import Corpus, DomainFacts
from foretune.corpora.preparation import open_corpus, prepare_corpus

__all__ = [
    "BatchStream",
    "Corpus",
    "DomainFacts",
    "open_corpus",
    "prepare_corpus",
    "take_reference_batches",
    "take_validation_batches",
]
