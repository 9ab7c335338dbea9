"""What a source yields: documents, each with the content that decides its split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")

BLOCK_TOKENS = 2**13
"""Longer documents of token ids are cut into blocks of this size, so that some can be held out (assumption: longer
than any context)."""
SCANNED_TOKENS = 2**24
"""Token ids that are searched for ends at a time."""

Listing = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and modification time in ns of every file of a source: cheap to read, and changes with it."""


@dataclass(frozen=True)
class Document:
    """A piece of text, or of token ids, that goes into one split as a whole."""

    content: str | NDArray[np.integer]
    """Text, or the ids of a flat token file."""
    split_content: bytes = b""
    """What is hashed to choose the split; empty takes the content. Documents made of one original share it."""
    ends: bool = True
    """Whether an end-of-document token follows; False for all but the last piece of a longer text."""
    origin: str = ""
    """The file it is from, for messages."""
    offset: int = 0
    """Where it starts in a file of token ids, in tokens."""

    def as_bytes(self) -> bytes:
        """The content as bytes: UTF-8, or ids as little-endian 32 bit."""
        if isinstance(self.content, str):
            return self.content.encode()
        return self.content.astype("<u4").tobytes()


@dataclass(frozen=True)
class DomainSource:
    """Where one domain comes from."""

    name: str
    """Name of the domain."""
    listing: Listing
    """The files behind it."""
    read: Callable[[], Iterator[Document]]
    """Reads its documents, in an order that depends on nothing but the listing; may be called more than once."""


class TokenCutter:
    """Cuts flat token files into their documents at the end-of-document id; lets text through.

    Without that id, a file is one document, cut into blocks by position: repeated text is then not recognised.
    """

    def __init__(self, end_of_document: int | None) -> None:
        """`end_of_document` is None where it is not known."""
        self._end_of_document = end_of_document
        self.files_without_ends: list[str] = []

    def cut(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Yield texts as they are, and the documents of every token file, without the ids that end them."""
        for document in documents:
            if isinstance(document.content, str):
                yield document
            else:
                yield from self._cut_file(document, document.content)

    def _cut_file(self, file: Document, ids: NDArray[np.integer]) -> Iterator[Document]:
        start = 0
        for end in self._find_ends(ids):
            yield from _cut_blocks(ids[start:end], file.origin, start, ends=True)
            start = end + 1
        if start == 0 and len(ids):
            self.files_without_ends.append(file.origin)
        if start < len(ids):
            yield from _cut_blocks(ids[start:], file.origin, start, ends=start > 0)

    def _find_ends(self, ids: NDArray[np.integer]) -> Iterator[int]:
        if self._end_of_document is None:
            return
        for start in range(0, len(ids), SCANNED_TOKENS):
            found = np.flatnonzero(ids[start : start + SCANNED_TOKENS] == self._end_of_document)
            yield from (found + start).tolist()


def _cut_blocks(ids: NDArray[np.integer], origin: str, offset: int, *, ends: bool) -> Iterator[Document]:
    """One document in blocks counted from its start, so that its repetition gives the same ones."""
    for start in range(0, max(1, len(ids)), BLOCK_TOKENS):
        block = np.asarray(ids[start : start + BLOCK_TOKENS])
        is_last = start + BLOCK_TOKENS >= len(ids)
        yield Document(block, ends=ends and is_last, origin=origin, offset=offset + start)


class Splitter:
    """Sends every document to train or validation by content hash; drops empty ones and exact repetitions."""

    def __init__(self, validation_fraction: float) -> None:
        """`validation_fraction` is the expected share of documents held out."""
        self._threshold = int(validation_fraction * 2**64)
        self._seen: set[bytes] = set()
        self.duplicates_dropped = 0
        self.empty_dropped = 0

    def split(self, documents: Iterator[Document]) -> Iterator[tuple[Split, Document]]:
        """Yield each document that is kept, with its split."""
        for document in documents:
            content = document.as_bytes()
            if not content:
                self.empty_dropped += 1
            elif self._is_new(digest := hashlib.sha256(content).digest()):
                yield self._choose(document, digest), document

    def _is_new(self, digest: bytes) -> bool:
        if digest in self._seen:
            self.duplicates_dropped += 1
            return False
        self._seen.add(digest)
        return True

    def _choose(self, document: Document, digest: bytes) -> Split:
        if document.split_content:
            digest = hashlib.sha256(document.split_content).digest()
        return "validation" if int.from_bytes(digest[:8], "big") < self._threshold else "train"
