"""`[data]`: text, tokens and the mixture."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from foretune.quantities import Count, Quantity
from foretune.sections.base import Section


class DomainSection(Section):
    """`[data.domains.NAME]`: where the text of one domain is read from."""

    path: str = ""
    """File, folder or glob; relative paths start at the study file."""
    dataset: str = ""
    """Name of a Hugging Face dataset instead of a path (extra `datasets`), as `owner/name` or `owner/name:config`."""
    split: str = "train"
    """Split of the dataset."""
    format: Literal["text", "jsonl", "parquet", "tokens_uint16", "tokens_uint32"] = "text"
    """`text` one document a file; `jsonl`, `parquet` one a row; `tokens_*` flat token ids (nanoGPT, Megatron)."""
    field: str = "text"
    """Column or key that holds the text."""

    @model_validator(mode="after")
    def _check_source(self) -> DomainSection:
        if bool(self.path) == bool(self.dataset):
            raise ValueError("give either path or dataset, and only one of them")
        return self


class DataSection(Section):
    """`[data]`: text, tokens and the mixture."""

    corpus: Literal["python", "files"] = "python"
    """`python`: the standard library's own source on this machine (code, tests, docs); `files`: `[data.domains]`."""
    domains: dict[str, DomainSection] = Field(default_factory=dict)
    """The domains when corpus is `files`."""
    tokenizer: str = "bytes"
    """`bytes`; `bpe:VOCAB`, trained on the corpus (`bpe:4096`); the path of a Hugging Face `tokenizer.json`; or
    `ids:VOCAB` or `ids:VOCAB:EOD` (the id that ends a document) where every domain holds token ids already."""
    seq_len: Count = Field(default=128, ge=8)
    """Tokens per training sequence."""
    validation_fraction: Quantity = Field(default=0.05, gt=0, lt=0.5)
    """Share of documents held out, chosen by content hash."""
    validation_sequences: Count = Field(default=32, ge=1)
    """Held-out sequences per domain on which the loss is measured; always the same ones."""
    mixture: dict[str, Quantity] = Field(default_factory=dict)
    """Share of training tokens per domain, summing to 1; empty takes each domain's share of the corpus."""
    max_epochs: Quantity = Field(default=4.0, gt=0)
    """Most often that a domain may be repeated in one run (4 is nearly free: Muennighoff et al. 2023); a search over
    mixtures allows none by which `[target]` would repeat one more often."""
    repetition_matched: bool = False
    """Hold every run to so few tokens of each domain that it repeats them as often as `[target]` will, on all."""

    @model_validator(mode="after")
    def _check_domains(self) -> DataSection:
        if (self.corpus == "files") != bool(self.domains):
            raise ValueError('[data.domains.NAME] tables are needed with corpus = "files", and only then')
        bad = {name: share for name, share in self.mixture.items() if share < 0}
        if bad:
            raise ValueError(f"mixture shares must not be negative, got {bad}")
        total = math.fsum(self.mixture.values())
        if self.mixture and abs(total - 1) > 1e-6:
            fixed = ", ".join(f"{name} = {share / total:.6g}" for name, share in self.mixture.items()) if total else "?"
            raise ValueError(f"mixture shares must sum to 1, got {total:g}; normalised: {fixed}")
        return self
