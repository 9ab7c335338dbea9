"""Prepare a corpus once a machine: read, drop repetitions, split by content, tokenize, write flat files.

Prepared corpora lie in `$FORETUNE_CACHE` (default `~/.cache/foretune`), under a key of what was asked for and of the
path, size and time of every source file, so that a second opening reads one small manifest. They are written to a
temporary folder and renamed, so two processes may prepare the same corpus at once and neither sees half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from foretune.corpora.corpus import MANIFEST, Corpus, DomainFacts, check_splits, read_corpus, token_file
from foretune.corpora.documents import BLOCK_TOKENS, SPLITS, Document, DomainSource, Split, Splitter, TokenCutter
from foretune.corpora.files import find_file_sources
from foretune.corpora.stdlib import find_stdlib_sources
from foretune.corpora.tokenization import BATCH_DOCUMENTS, Tokenizer, make_tokenizer
from foretune.errors import InputError
from foretune.sections import DataSection

LAYOUT = 2
"""Grows when the same sources would be prepared differently."""
STALE_SECONDS = 24 * 3600
"""Age at which a draft has no writer any more (assumption: no corpus takes a day)."""


def prepare_corpus(section: DataSection, *, cache: Path | None = None) -> Corpus:
    """The corpus of a study, from the cache or prepared now. Raises InputError for a source that cannot be read."""
    sources, notes = find_sources(section)
    root = (cache or find_cache()) / "corpora"
    folder = root / _key(section, sources)
    return read_corpus(folder) or _prepare(section, sources, notes, folder)


def open_corpus(section: DataSection, digest: str, *, cache: Path | None = None) -> Corpus:
    """The corpus of a planned run; InputError if this machine's text is not the text that the run was planned with."""
    corpus = prepare_corpus(section, cache=cache)
    if corpus.digest != digest:
        raise InputError(
            f"data: the corpus on this machine has digest {corpus.digest[:16]}, the run was planned with "
            f"{digest[:16]}; give every machine the same files{_python_hint(section)}, or plan the study again"
        )
    return corpus


def find_cache() -> Path:
    """`$FORETUNE_CACHE`, or `~/.cache/foretune`."""
    return Path(os.environ.get("FORETUNE_CACHE") or Path.home() / ".cache" / "foretune")


def find_sources(section: DataSection) -> tuple[list[DomainSource], tuple[str, ...]]:
    """The sources of every domain, sorted by name, and notes for the user."""
    if section.corpus == "python":
        return find_stdlib_sources()
    domains = sorted(section.domains.items())
    return [find_file_sources(name, domain) for name, domain in domains], ()


def _python_hint(section: DataSection) -> str:
    return " (here: the same Python version)" if section.corpus == "python" else ""


def _key(section: DataSection, sources: list[DomainSource]) -> str:
    asked = section.model_dump(mode="json", include={"corpus", "domains", "tokenizer", "validation_fraction"})
    tokenizer = Path(section.tokenizer)
    if tokenizer.is_file():
        facts = tokenizer.stat()
        asked["tokenizer_file"] = [facts.st_size, facts.st_mtime_ns]
    content = [LAYOUT, asked, [[source.name, source.listing] for source in sources]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _prepare(section: DataSection, sources: list[DomainSource], notes: tuple[str, ...], folder: Path) -> Corpus:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_drafts(folder.parent)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder.parent))
    try:
        _write_corpus(section, sources, notes, draft)
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    corpus = read_corpus(folder)
    if corpus is None:
        raise InputError(f"data: the prepared corpus in {folder} changed while it was written; is the disk full?")
    return corpus


def _remove_stale_drafts(root: Path) -> None:
    """Clear what killed processes left; a draft that is still written to is younger."""
    for draft in root.glob("draft-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    """Rename into place. A folder that is there and whole was written by another process, and is as good."""
    if folder.exists() and read_corpus(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        draft.rename(folder)
    except OSError:
        if read_corpus(folder) is None:
            raise


def _write_corpus(section: DataSection, sources: list[DomainSource], notes: tuple[str, ...], draft: Path) -> None:
    fraction = section.validation_fraction
    tokenizer = make_tokenizer(section.tokenizer, lambda: _read_train_texts(sources, fraction))
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    names = {source.name: source for source in sources}
    files: dict[str, dict[str, Any]] = {}
    domains = {}
    cutter = TokenCutter(tokenizer.end_of_document)
    for name, source in names.items():
        writers = {split: _TokenWriter(draft / token_file(name, split, names), dtype) for split in SPLITS}
        domains[name] = _write_domain(source, tokenizer, cutter, Splitter(fraction), writers)
        files |= {writer.path.name: writer.close() for writer in writers.values()}
    check_splits(domains)
    tokenizer.save(draft)
    manifest = {
        "digest": _digest(tokenizer, names, files),
        "tokenizer": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "end_of_document": tokenizer.end_of_document,
        "dtype": dtype,
        "domains": {name: asdict(facts) for name, facts in domains.items()},
        "files": files,
        "notes": (*notes, *_describe_uncut(cutter)),
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _describe_uncut(cutter: TokenCutter) -> Iterator[str]:
    files = cutter.files_without_ends
    if files:
        yield (
            f"{len(files)} token files, for example {files[0]}, have no end-of-document id that is known: they are "
            f"split in blocks of {BLOCK_TOKENS} tokens, and text that repeats is not detected, so it may be in train "
            f"and validation; name the id, with ids:VOCAB:EOD or the tokenizer.json that wrote them"
        )


def _digest(tokenizer: Tokenizer, names: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    hashes = {
        name: {split: files[token_file(name, split, names)]["sha256"] for split in SPLITS} for name in sorted(names)
    }
    content = {"tokenizer": tokenizer.digest, "vocab_size": tokenizer.vocab_size, "tokens": hashes}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_train_texts(sources: list[DomainSource], validation_fraction: float) -> Iterator[str]:
    for source in sources:
        texts = (document for document in source.read() if isinstance(document.content, str))
        for split, document in Splitter(validation_fraction).split(texts):
            if split == "train":
                yield str(document.content)


class _TokenWriter:
    """Appends ids to a file and keeps its length and hash."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self._dtype = dtype
        self._file: BinaryIO = path.open("wb")
        self._hash = hashlib.sha256()
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0

    def append(self, ids: NDArray[np.integer]) -> None:
        content = ids.astype(self._dtype).tobytes()
        self._file.write(content)
        self._hash.update(content)
        self.tokens += len(ids)

    def close(self) -> dict[str, Any]:
        self._file.close()
        return {"bytes": self.path.stat().st_size, "sha256": self._hash.hexdigest()}


def _write_domain(
    source: DomainSource,
    tokenizer: Tokenizer,
    cutter: TokenCutter,
    splitter: Splitter,
    writers: dict[Split, _TokenWriter],
) -> DomainFacts:
    kept = splitter.split(cutter.cut(source.read()))
    while batch := list(itertools.islice(kept, BATCH_DOCUMENTS)):
        for (split, document), ids in zip(batch, _encode(source.name, batch, tokenizer), strict=True):
            _append_document(document, ids, tokenizer.end_of_document, writers[split])
    train, validation = writers["train"], writers["validation"]
    return DomainFacts(
        train_tokens=train.tokens,
        validation_tokens=validation.tokens,
        train_documents=train.documents,
        validation_documents=validation.documents,
        duplicates_dropped=splitter.duplicates_dropped,
        empty_dropped=splitter.empty_dropped,
        bytes_per_token=validation.text_bytes / validation.tokens if validation.text_bytes else None,
    )


def _encode(name: str, batch: list[tuple[Split, Document]], tokenizer: Tokenizer) -> list[NDArray[np.integer]]:
    """The ids of each document; those of token files are checked against the vocabulary."""
    texts = [document.content for _, document in batch if isinstance(document.content, str)]
    encoded = iter(tokenizer.encode(texts)) if texts else iter(())
    return [
        next(encoded) if isinstance(document.content, str) else _check_ids(name, document, tokenizer)
        for _, document in batch
    ]


def _check_ids(name: str, document: Document, tokenizer: Tokenizer) -> NDArray[np.integer]:
    ids = document.content
    assert not isinstance(ids, str)
    if (largest := int(ids.max())) >= tokenizer.vocab_size:
        first = int(np.argmax(ids >= tokenizer.vocab_size))
        raise InputError(
            f"data.domains.{name}: token id {int(ids[first])} at token {document.offset + first} of {document.origin} "
            f"is not below the vocabulary of {tokenizer.vocab_size} (largest near it: {largest}); name the tokenizer "
            f"that wrote the file in data.tokenizer, as a tokenizer.json or as ids:VOCAB, and look at the format"
        )
    return ids


def _append_document(
    document: Document, ids: NDArray[np.integer], end_of_document: int | None, writer: _TokenWriter
) -> None:
    writer.append(ids)
    writer.documents += 1
    if isinstance(document.content, str):
        writer.text_bytes += len(document.as_bytes())
    if document.ends and end_of_document is not None:
        writer.append(np.array([end_of_document]))
