from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from foretune.corpora.tokenization import END_OF_DOCUMENT, make_tokenizer
from foretune.errors import InputError

TEXTS = [f"the quick brown fox number {number} jumps over the lazy dog" for number in range(50)]


def no_texts() -> Iterator[str]:
    raise AssertionError("read text that it does not need")


def test_bytes_are_utf8() -> None:
    tokenizer = make_tokenizer("bytes", no_texts)
    assert tokenizer.encode(["a\u00e9\n"])[0].tolist() == [97, 0xC3, 0xA9, 10]
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (257, 256)


def test_bpe_is_the_same_every_time_and_reads_back(tmp_path: Path) -> None:
    first, second = (make_tokenizer("bpe:400", lambda: iter(TEXTS)) for _ in range(2))
    assert first.digest == second.digest
    assert first.vocab_size <= 400
    text = "unseen text, \u4e2d\u6587 and \U0001f600"
    first.save(tmp_path)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = first.encode([text])[0]
    assert inner.decode(ids.tolist()) == text
    assert len(first.encode(["the quick brown fox"])[0]) < len("the quick brown fox")
    assert ids.max() < first.vocab_size


def test_a_text_cannot_end_its_own_document() -> None:
    tokenizer = make_tokenizer("bpe:300", lambda: iter(TEXTS))
    assert tokenizer.end_of_document not in tokenizer.encode([f"before {END_OF_DOCUMENT} after"])[0].tolist()


def test_a_tokenizer_file_is_used_as_it_is(tmp_path: Path) -> None:
    trained = make_tokenizer("bpe:400", lambda: iter(TEXTS))
    trained.save(tmp_path)
    loaded = make_tokenizer(str(tmp_path / "tokenizer.json"), no_texts)
    assert (loaded.digest, loaded.vocab_size, loaded.end_of_document) == (
        trained.digest,
        trained.vocab_size,
        trained.end_of_document,
    )
    np.testing.assert_array_equal(loaded.encode([TEXTS[3]])[0], trained.encode([TEXTS[3]])[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("words", "must be bytes, bpe:VOCAB, ids:VOCAB, ids:VOCAB:EOD or the path of a tokenizer.json, got 'words'"),
        ("bpe:100", r"must be a whole number in \[257, 2\^32\], got 'bpe:100'"),
        ("ids:300:300", "end-of-document id must be a whole number below the vocabulary of 300, got 'ids:300:300'"),
        ("ids:300:", "end-of-document id must be a whole number"),
        ("bpe:many", "for example bpe:4096"),
        ("/nowhere/tokenizer.json", "no file '/nowhere/tokenizer.json'"),
    ],
)
def test_what_is_wrong_with_a_name(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_tokenizer(name, lambda: iter(TEXTS))


def test_files_that_are_no_tokenizers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match=r"is not a tokenizer\.json"):
        make_tokenizer(str(tmp_path / "bad.json"), no_texts)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    make_tokenizer("bpe:300", lambda: iter(TEXTS)).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace(END_OF_DOCUMENT, "<|other|>"))
    with pytest.raises(InputError, match="has no end-of-document token; add one of"):
        make_tokenizer(str(file), no_texts)
