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
