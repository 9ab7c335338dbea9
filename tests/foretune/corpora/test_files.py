from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foretune.corpora import Corpus, prepare_corpus
from foretune.corpora.documents import BLOCK_TOKENS
from foretune.corpora.files import SECTION_CHARACTERS
from foretune.errors import InputError
from foretune.sections import DataSection, DomainSection

TEXTS = [f"row {number} has some text in it" for number in range(100)]


def prepare(tokenizer: str = "bytes", **domain: Any) -> Corpus:
    domains = {"web": DomainSection(**domain)}
    return prepare_corpus(DataSection(corpus="files", domains=domains, tokenizer=tokenizer, validation_fraction=0.2))


def read_texts(corpus: Corpus) -> set[str]:
    found: set[str] = set()
    for split in ("train", "validation"):
        tokens = np.asarray(corpus.tokens("web", split))
        content = bytes(np.where(tokens == 256, 0, tokens).astype(np.uint8)).decode()
        found |= set(content.removesuffix("\0").split("\0"))
    return found


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_jsonl_rows_are_documents(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name, [{"body": text, "id": n} for n, text in enumerate(TEXTS)])
    assert read_texts(prepare(path=str(tmp_path), format="jsonl", field="body")) == set(TEXTS)


def test_parquet_rows_are_documents_and_nulls_are_counted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [*TEXTS, None], "other": range(101)}), tmp_path / "rows.parquet")
    corpus = prepare(path=str(tmp_path / "*.parquet"), format="parquet")
    assert read_texts(corpus) == set(TEXTS)
    assert corpus.domains["web"].empty_dropped == 1


def test_datasets_are_read_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"content": text} for text in TEXTS])
    assert read_texts(prepare(dataset=str(tmp_path / "set"), field="content")) == set(TEXTS)
    with pytest.raises(InputError, match=r"has no column 'text'; it has: content"):
        prepare(dataset=str(tmp_path / "set"))
    with pytest.raises(InputError, match="cannot load split 'dev'"):
        prepare(dataset=str(tmp_path / "set"), field="content", split="dev")


def test_hidden_files_are_no_text(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.md").write_text(text)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("not text")
    assert read_texts(prepare(path=str(tmp_path))) == set(TEXTS)


def test_a_book_is_cut_into_sections_at_line_breaks(tmp_path: Path) -> None:
    book = "".join(f"line {number} of a long book\n" for number in range(40_000))
    (tmp_path / "book.txt").write_text(book)
    corpus = prepare(path=str(tmp_path / "book.txt"))
    facts = corpus.domains["web"]
    documents = facts.train_documents + facts.validation_documents
    assert documents == pytest.approx(len(book) / SECTION_CHARACTERS, rel=0.05)
    held_out = np.asarray(corpus.tokens("web", "validation"))
    assert 0.05 < len(held_out) / len(book) < 0.4
    ends = sum(int((corpus.tokens("web", split) == 256).sum()) for split in ("train", "validation"))
    assert ends == 1
    assert bytes(held_out[held_out < 256].astype(np.uint8)).decode().startswith("line ")


@pytest.mark.parametrize(("kind", "dtype"), [("tokens_uint16", "<u2"), ("tokens_uint32", "<u4")])
def test_token_files_are_split_in_blocks(tmp_path: Path, kind: str, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 50_000, 50 * BLOCK_TOKENS + 17)
    ids.astype(dtype).tofile(tmp_path / "ids.bin")
    corpus = prepare(path=str(tmp_path / "ids.bin"), format=kind, tokenizer="ids:50304")
    facts = corpus.domains["web"]
    assert (corpus.vocab_size, corpus.dtype, facts.bytes_per_token) == (50304, "<u2", None)
    assert facts.train_tokens + facts.validation_tokens == len(ids)
    train = np.asarray(corpus.tokens("web", "train"))
    validation = np.asarray(corpus.tokens("web", "validation"))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.sort(ids))
    assert "text that repeats is not detected" in corpus.notes[0]
    blocks = {ids[start : start + BLOCK_TOKENS].tobytes() for start in range(0, len(ids), BLOCK_TOKENS)}
    assert validation[:BLOCK_TOKENS].astype(ids.dtype).tobytes() in blocks


def test_repeated_documents_of_a_token_file_are_not_in_both_splits(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [*generator.integers(20, 200, 400).tolist(), 2 * BLOCK_TOKENS + 5]
    texts = [generator.integers(1, 50_000, size) for size in sizes]
    order = generator.permutation(np.repeat(np.arange(len(texts)), 5))
    np.concatenate([np.append(texts[number], 0) for number in order]).astype("<u2").tofile(tmp_path / "ids.bin")
    corpus = prepare(path=str(tmp_path / "ids.bin"), format="tokens_uint16", tokenizer="ids:50000:0")
    facts = corpus.domains["web"]
    assert corpus.notes == ()
    assert facts.train_tokens + facts.validation_tokens == sum(sizes) + len(sizes)  # each once, and its end
    assert facts.duplicates_dropped == 4 * (400 + 3)
    train, validation = (np.asarray(corpus.tokens("web", split)) for split in ("train", "validation"))
    windows = [{ids[i : i + 16].tobytes() for i in range(len(ids) - 16)} for ids in (train, validation)]
    assert not windows[0] & windows[1]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    ids = np.arange(40 * BLOCK_TOKENS, dtype="<u4") % 100_000
    ids.tofile(tmp_path / "ids.bin")
    assert prepare(path=str(tmp_path / "ids.bin"), format="tokens_uint32", tokenizer="ids:100000").dtype == "<u4"


def test_an_id_above_the_vocabulary_is_named_with_its_place(tmp_path: Path) -> None:
    ids = np.zeros(3 * BLOCK_TOKENS, dtype="<u2")
    ids[:] = np.random.default_rng(0).integers(0, 256, len(ids))
    ids[BLOCK_TOKENS + 5] = 50256
    ids.tofile(tmp_path / "ids.bin")
    with pytest.raises(InputError, match=rf"token id 50256 at token {BLOCK_TOKENS + 5} of .*ids\.bin"):
        prepare(path=str(tmp_path / "ids.bin"), format="tokens_uint16")


def wrong_files(folder: Path) -> None:
    (folder / "odd.bin").write_bytes(b"\0" * 1001)
    np.save(folder / "array.npy", np.arange(10))
    (folder / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (folder / "rows.jsonl").write_text('{"text": 5}\n')
    (folder / "list.jsonl").write_text("[1]\n")
    (folder / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (folder / "not.parquet").write_text("nothing of the kind")
    pq.write_table(pa.table({"body": ["x"]}), folder / "body.parquet")
    (folder / "empty").mkdir()
    (folder / "blank").mkdir()
    (folder / "blank" / "a.txt").write_text("")


WRONG = [
    ({"path": "absent.txt"}, r"data\.domains\.web\.path: nothing at .*absent\.txt.*give a file, a folder or a glob"),
    ({"path": "empty"}, "holds no files"),
    ({"path": "blank", "format": "jsonl"}, r"holds no \*\.jsonl"),
    ({"path": "blank"}, r"data\.domains\.web: no text in it"),
    ({"path": "latin.txt"}, r"latin\.txt is not UTF-8 \(byte 3\)"),
    ({"path": "rows.jsonl", "format": "jsonl"}, r"line 1 of .*: 'text' must hold text, got int '5'"),
    ({"path": "rows.jsonl", "format": "jsonl", "field": "body"}, "has no key 'body'; it has: text"),
    ({"path": "list.jsonl", "format": "jsonl"}, "has no key 'text'; it has: list"),
    ({"path": "broken.jsonl", "format": "jsonl"}, "line 2 of .* is not JSON"),
    ({"path": "not.parquet", "format": "parquet"}, "is not a Parquet file"),
    ({"path": "body.parquet", "format": "parquet"}, "has no column 'text'; it has: body"),
    ({"path": "odd.bin", "format": "tokens_uint16"}, "has 1001 bytes, no multiple of the 2 of tokens_uint16"),
    ({"path": "array.npy", "format": "tokens_uint16"}, r"is a \.npy file"),
]


@pytest.mark.parametrize(("domain", "message"), WRONG, ids=[str(domain) for domain, _ in WRONG])
def test_wrong_input_says_what_to_do(tmp_path: Path, domain: dict[str, str], message: str) -> None:
    wrong_files(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare(**{**domain, "path": str(tmp_path / domain["path"])})


def test_text_needs_a_tokenizer_that_knows_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="'ids:300' knows no text"):
        prepare(path=str(tmp_path), tokenizer="ids:300")


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    rows = [{"text": text} for text in TEXTS]
    content = "".join(json.dumps(row) + "\n" for row in rows) + '{"text": "half \\ud83d pair"}\n'
    (tmp_path / "rows.jsonl").write_text(content)
    assert "half ? pair" in read_texts(prepare(path=str(tmp_path / "rows.jsonl"), format="jsonl"))
