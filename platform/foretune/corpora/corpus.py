"""A prepared corpus: flat token files, one a domain and split, with a manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretune.corpora.documents import SPLITS, Split
from foretune.errors import InputError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class DomainFacts:
    """What one domain holds."""

    train_tokens: int
    """Tokens to train on, end-of-document tokens included."""
    validation_tokens: int
    """Tokens held out."""
    train_documents: int
    """Documents to train on."""
    validation_documents: int
    """Documents held out."""
    duplicates_dropped: int
    """Documents left out because the domain has the same text once already."""
    empty_dropped: int
    """Documents left out because they had no text."""
    bytes_per_token: float | None
    """UTF-8 bytes per held-out token; None for flat token files, whose text is not known."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus on this machine. Equal digests mean equal tokens in every domain and split."""

    folder: Path
    """Where its files are."""
    digest: str
    """SHA-256 over the tokenizer and the tokens of every domain and split."""
    tokenizer: str
    """`bytes`, `ids:VOCAB`, `ids:VOCAB:EOD`, or the SHA-256 of the tokenizer file."""
    vocab_size: int
    """One more than the largest id."""
    end_of_document: int | None
    """Id that ends a document."""
    dtype: str
    """Type of the ids on disk."""
    domains: dict[str, DomainFacts]
    """Facts by domain, sorted by name."""
    notes: tuple[str, ...] = ()
    """What the user ought to know, for example a domain that this machine lacks."""

    @property
    def natural_mixture(self) -> dict[str, float]:
        """Each domain's share of the training tokens."""
        total = sum(facts.train_tokens for facts in self.domains.values())
        return {name: facts.train_tokens / total for name, facts in self.domains.items()}

    def resolve_mixture(self, mixture: dict[str, float]) -> dict[str, float]:
        """A share for every domain, summing to 1: those asked for, or the natural ones where none are."""
        unknown = sorted(set(mixture) - set(self.domains))
        if unknown:
            known = ", ".join(self.domains)
            raise InputError(f"data.mixture.{unknown[0]}: no such domain; domains of this corpus: {known}")
        if not mixture:
            return self.natural_mixture
        total = sum(mixture.values())
        return {name: mixture.get(name, 0.0) / total for name in self.domains}

    def tokens(self, domain: str, split: Split) -> NDArray[np.unsignedinteger]:
        """All ids of one domain and split, in order, memory-mapped and read-only."""
        return np.memmap(self.folder / token_file(domain, split, self.domains), dtype=self.dtype, mode="r")


def token_file(domain: str, split: Split, domains: dict[str, Any]) -> str:
    """Name of a token file; by number, since a domain may be called anything."""
    return f"{sorted(domains).index(domain)}.{split}.bin"


def read_corpus(folder: Path) -> Corpus | None:
    """The corpus prepared in a folder; None where there is none, or where a file has lost or gained bytes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        domains = {name: DomainFacts(**facts) for name, facts in manifest["domains"].items()}
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(sizes[name] != file["bytes"] for name, file in manifest["files"].items()):
        return None
    return Corpus(
        folder=folder,
        digest=manifest["digest"],
        tokenizer=manifest["tokenizer"],
        vocab_size=manifest["vocab_size"],
        end_of_document=manifest["end_of_document"],
        dtype=manifest["dtype"],
        domains=domains,
        notes=tuple(manifest["notes"]),
    )


def check_splits(domains: dict[str, DomainFacts]) -> None:
    """Refuse a corpus in which a domain has nothing to train on, or nothing held out."""
    for name, facts in domains.items():
        documents = facts.train_documents + facts.validation_documents
        if not documents:
            raise InputError(f"data.domains.{name}: no text in it; look at its path, format and field")
        for split in SPLITS:
            if not getattr(facts, f"{split}_documents"):
                raise InputError(
                    f"data.domains.{name}: none of its {documents} documents fell into the {split} split; "
                    f"give it more documents or change data.validation_fraction"
                )
