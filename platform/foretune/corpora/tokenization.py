"""Text to token ids: bytes, a byte-level BPE trained on the corpus, or the tokenizer file of a model.

A study names its tokenizer as `bytes`, `bpe:VOCAB`, `PATH/tokenizer.json`, or `ids:VOCAB` when all of its domains are
flat token files, whose text is not known; `ids:VOCAB:EOD` also names the id that ends a document in them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foretune.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

END_OF_DOCUMENT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
"""End-of-document tokens of GPT-2 and NeoX, Llama 3, Llama 2 and T5, Gemma, Qwen."""
MIN_BPE_VOCAB = 257
"""256 bytes and the end-of-document token."""
BATCH_DOCUMENTS = 256


class Tokenizer(ABC):
    """Text to ids. `digest` identifies it, `vocab_size` bounds its ids."""

    vocab_size: int
    end_of_document: int | None
    digest: str

    @abstractmethod
    def encode(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """The ids of each text, without an end-of-document token."""

    def save(self, folder: Path) -> None:  # noqa: B027 (most have nothing to save)
        """Write what is needed to read the ids back, if anything is."""


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes are the ids 0 to 255; 256 ends a document."""

    vocab_size = 257
    end_of_document = 256
    digest = "bytes"

    def encode(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """The bytes of each text."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class IdTokenizer(Tokenizer):
    """No text at all: the ids of flat token files, below a given vocabulary size."""

    def __init__(self, vocab_size: int, end_of_document: int | None = None) -> None:
        """Both are of the tokenizer which wrote the files."""
        self.vocab_size = vocab_size
        self.end_of_document = end_of_document
        self.digest = f"ids:{vocab_size}" if end_of_document is None else f"ids:{vocab_size}:{end_of_document}"

    def encode(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """Refuse: there is no tokenizer for text."""
        raise InputError(
            f"data.tokenizer = {self.digest!r} knows no text; text domains need bytes, bpe:VOCAB or a tokenizer.json"
        )


class FileTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, trained here or read from a file."""

    def __init__(self, inner: FastTokenizer, end_of_document: int) -> None:
        """Special tokens that occur in a text are encoded as ordinary text, so a text cannot end a document."""
        inner.encode_special_tokens = True
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_document = end_of_document
        self.digest = hashlib.sha256(inner.to_str().encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[NDArray[np.integer]]:
        """The ids of each text."""
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        self._inner.save(str(folder / "tokenizer.json"))


def make_tokenizer(name: str, train_texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer that a study names; `train_texts` reads the training split, for `bpe:VOCAB` alone."""
    kind, _, argument = name.partition(":")
    if name == "bytes":
        return ByteTokenizer()
    if kind == "bpe":
        return _train_bpe(_read_vocab(name, argument, MIN_BPE_VOCAB), train_texts())
    if kind == "ids":
        size, _, end = argument.partition(":")
        vocab_size = _read_vocab(name, size, 2)
        return IdTokenizer(vocab_size, _read_end(name, end, vocab_size) if argument != size else None)
    if name.endswith(".json"):
        return _load_tokenizer(Path(name))
    raise InputError(
        f"data.tokenizer: must be bytes, bpe:VOCAB, ids:VOCAB, ids:VOCAB:EOD or the path of a tokenizer.json, "
        f"got {name!r}"
    )


def _read_vocab(name: str, argument: str, smallest: int) -> int:
    if not argument.isdecimal() or not smallest <= int(argument) <= 2**32:
        raise InputError(
            f"data.tokenizer: the vocabulary must be a whole number in [{smallest}, 2^32], got {name!r}; "
            f"for example {name.partition(':')[0]}:4096"
        )
    return int(argument)


def _read_end(name: str, argument: str, vocab_size: int) -> int:
    if not argument.isdecimal() or int(argument) >= vocab_size:
        raise InputError(
            f"data.tokenizer: the end-of-document id must be a whole number below the vocabulary of {vocab_size}, "
            f"got {name!r}; for example ids:50304:50256"
        )
    return int(argument)


def _train_bpe(vocab_size: int, texts: Iterator[str]) -> FileTokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, Radford et al. 2019), the same on every machine."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_DOCUMENT], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer=trainer)
    return FileTokenizer(inner, 0)  # special tokens come first


def _load_tokenizer(path: Path) -> FileTokenizer:
    from tokenizers import Tokenizer as Inner

    if not path.is_file():
        raise InputError(f"data.tokenizer: no file {str(path)!r}; give a tokenizer.json that this machine can read")
    try:
        inner = Inner.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"data.tokenizer: {str(path)!r} is not a tokenizer.json: {error}") from None
    ends = [end for token in KNOWN_ENDS if (end := inner.token_to_id(token)) is not None]
    if not ends:
        raise InputError(
            f"data.tokenizer: {str(path)!r} has no end-of-document token; add one of {', '.join(KNOWN_ENDS)}"
        )
    return FileTokenizer(inner, ends[0])
