from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foretune.corpora import open_corpus, prepare_corpus
from foretune.corpora.documents import Document, DomainSource, Splitter
from foretune.corpora.preparation import find_sources
from foretune.corpora.tokenization import Tokenizer, make_tokenizer
from foretune.errors import InputError
from foretune.sections import DataSection, DomainSection

DOCUMENTS = [f"document {number}: " + "word " * (number % 7) for number in range(200)]


def section_for(folder: Path, **settings: object) -> DataSection:
    domains = {"notes": DomainSection(path=str(folder))}
    return DataSection(corpus="files", domains=domains, validation_fraction=0.2, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.mkdir()
    for number, document in enumerate(DOCUMENTS):
        (path / f"{number:05d}.txt").write_text(document)
    return path


def read_documents(tokens: np.ndarray) -> list[str]:
    return [bytes(part.astype(np.uint8)).decode() for part in np.split(tokens, np.flatnonzero(tokens == 256))]


def hash_share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def test_every_document_is_in_the_split_that_its_hash_says_and_ends(folder: Path) -> None:
    corpus = prepare_corpus(section_for(folder))
    for split, held_out in (("train", False), ("validation", True)):
        tokens = np.asarray(corpus.tokens("notes", split))
        expected = [text for text in DOCUMENTS if (hash_share(text) < 0.2) is held_out]
        assert bytes(np.where(tokens == 256, 0, tokens).astype(np.uint8)).decode() == "".join(
            f"{text}\0" for text in expected
        )
        assert int((tokens == 256).sum()) == len(expected)


def test_facts_count_tokens_documents_and_bytes(folder: Path) -> None:
    facts = prepare_corpus(section_for(folder)).domains["notes"]
    held_out = [text for text in DOCUMENTS if hash_share(text) < 0.2]
    assert facts.validation_documents == len(held_out)
    assert facts.train_documents == len(DOCUMENTS) - len(held_out)
    assert facts.train_tokens + facts.validation_tokens == sum(len(text) + 1 for text in DOCUMENTS)
    held_out_bytes = sum(map(len, held_out))
    assert facts.bytes_per_token == pytest.approx(held_out_bytes / (held_out_bytes + len(held_out)))


def test_names_and_order_of_files_do_not_move_a_document_between_splits(folder: Path) -> None:
    before = set(read_documents(np.asarray(prepare_corpus(section_for(folder)).tokens("notes", "validation"))))
    for number in range(len(DOCUMENTS)):
        (folder / f"{number:05d}.txt").rename(folder / f"new-{(number * 37) % len(DOCUMENTS):05d}.txt")
    after = set(read_documents(np.asarray(prepare_corpus(section_for(folder)).tokens("notes", "validation"))))
    assert {text.strip("\0") for text in before} == {text.strip("\0") for text in after}


def test_repetitions_and_empty_documents_are_dropped_and_counted(folder: Path) -> None:
    plain = prepare_corpus(section_for(folder))
    for number in range(5):
        (folder / f"again-{number}.txt").write_text(DOCUMENTS[number])
    (folder / "empty.txt").write_text("")
    corpus = prepare_corpus(section_for(folder))
    assert corpus.domains["notes"].duplicates_dropped == 5
    assert corpus.domains["notes"].empty_dropped == 1
    assert corpus.digest == plain.digest


def test_documents_of_one_original_share_a_split() -> None:
    pieces = [Document(f"piece {n} of {n // 10}", split_content=f"original {n // 10}".encode()) for n in range(500)]
    splits: dict[int, set[str]] = {}
    for split, document in Splitter(0.5).split(iter(pieces)):
        splits.setdefault(int(str(document.content).split()[-1]), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {"train", "validation"} == set().union(*splits.values())


def test_equal_text_in_another_place_has_the_same_digest(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere" / "notes")
    here = prepare_corpus(section_for(folder))
    there = prepare_corpus(section_for(tmp_path / "elsewhere" / "notes"))
    assert here.folder != there.folder
    assert here.digest == there.digest


def test_digest_follows_text_tokenizer_and_split(folder: Path) -> None:
    digests = {prepare_corpus(section_for(folder)).digest}
    digests.add(prepare_corpus(section_for(folder, tokenizer="bpe:300")).digest)
    (folder / "00000.txt").write_text("something else")
    digests.add(prepare_corpus(section_for(folder)).digest)
    assert len(digests) == 3


def test_a_tokenizer_is_trained_on_the_training_split_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(name: str, train_texts: Callable[[], Iterator[str]]) -> Tokenizer:
        seen.extend(train_texts())
        return make_tokenizer(name, train_texts)

    monkeypatch.setattr("foretune.corpora.preparation.make_tokenizer", spy)
    prepare_corpus(section_for(folder, tokenizer="bpe:300"))
    assert seen == [text for text in DOCUMENTS if hash_share(text) >= 0.2]


def test_a_second_opening_reads_no_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_corpus(section_for(folder))

    def refuse(section: DataSection) -> tuple[list[DomainSource], tuple[str, ...]]:
        def read() -> Iterator[Document]:
            raise AssertionError("a source was read again")
            yield

        sources, notes = find_sources(section)
        return [DomainSource(source.name, source.listing, read) for source in sources], notes

    monkeypatch.setattr("foretune.corpora.preparation.find_sources", refuse)
    assert prepare_corpus(section_for(folder)) == first


def test_settings_that_do_not_change_the_tokens_share_a_cache_entry(folder: Path) -> None:
    first = prepare_corpus(section_for(folder))
    second = prepare_corpus(section_for(folder, seq_len=16, mixture={"notes": 1.0}, validation_sequences=2))
    assert first == second


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_cache_is_prepared_again(folder: Path, damage: str) -> None:
    corpus = prepare_corpus(section_for(folder))
    tokens = np.array(corpus.tokens("notes", "train"))
    file = corpus.folder / "0.train.bin"
    if damage == "truncate":
        os.truncate(file, 10)
    elif damage == "remove":
        file.unlink()
    else:
        (corpus.folder / "manifest.json").write_text("{")
    again = prepare_corpus(section_for(folder))
    assert again == corpus
    np.testing.assert_array_equal(again.tokens("notes", "train"), tokens)


def test_nothing_is_left_behind_by_a_preparation_that_fails(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "fine"}\n{"body": "wrong"}\n')
    section = DataSection(
        corpus="files", domains={"notes": DomainSection(path=str(tmp_path / "one.jsonl"), format="jsonl")}
    )
    with pytest.raises(InputError, match="no key 'text'"):
        prepare_corpus(section)
    assert list((cache / "corpora").iterdir()) == []


def test_drafts_of_killed_processes_are_cleared_after_a_day(folder: Path, cache: Path) -> None:
    for name, age in (("draft-old", 2 * 24 * 3600), ("draft-new", 60)):
        (cache / "corpora" / name).mkdir(parents=True)
        moment = (cache / "corpora" / name).stat().st_mtime - age
        os.utime(cache / "corpora" / name, (moment, moment))
    prepare_corpus(section_for(folder))
    assert [path.name for path in (cache / "corpora").glob("draft-*")] == ["draft-new"]


def test_manifest_holds_the_hash_of_every_file(folder: Path) -> None:
    corpus = prepare_corpus(section_for(folder))
    files = json.loads((corpus.folder / "manifest.json").read_text())["files"]
    assert sorted(files) == ["0.train.bin", "0.validation.bin"]
    for name, facts in files.items():
        assert hashlib.sha256((corpus.folder / name).read_bytes()).hexdigest() == facts["sha256"]


def test_two_processes_may_prepare_at_once(folder: Path, cache: Path) -> None:
    code = (
        "import sys; from foretune.corpora import prepare_corpus; from foretune.sections import *;"
        "section = DataSection.model_validate_json(sys.argv[1]); print(prepare_corpus(section).digest)"
    )
    command = [sys.executable, "-c", code, section_for(folder).model_dump_json()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FORETUNE_CACHE": str(cache)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    digests = {process.communicate(timeout=60)[0].strip() for process in both}
    assert digests == {prepare_corpus(section_for(folder)).digest}
    assert len(list((cache / "corpora").iterdir())) == 1


def test_a_worker_with_other_text_is_refused_with_both_digests(folder: Path) -> None:
    planned = prepare_corpus(section_for(folder)).digest
    assert open_corpus(section_for(folder), planned).digest == planned
    (folder / "00000.txt").write_text("changed since")
    with pytest.raises(InputError, match=planned[:16]) as caught:
        open_corpus(section_for(folder), planned)
    assert prepare_corpus(section_for(folder)).digest[:16] in str(caught.value)


def test_a_domain_without_held_out_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("alone")
    with pytest.raises(InputError, match=r"data\.domains\.notes: none of its 1 documents fell into the validation"):
        prepare_corpus(DataSection(corpus="files", domains={"notes": DomainSection(path=str(tmp_path / "one"))}))


def test_mixtures_are_resolved_over_all_domains(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "more")
    for number in range(100):
        (tmp_path / "more" / f"extra-{number}.txt").write_text(f"extra {number}")
    domains = {"notes": DomainSection(path=str(folder)), "more": DomainSection(path=str(tmp_path / "more"))}
    corpus = prepare_corpus(DataSection(corpus="files", domains=domains, validation_fraction=0.2))
    tokens = {name: facts.train_tokens for name, facts in corpus.domains.items()}
    assert list(corpus.domains) == ["more", "notes"]
    assert corpus.resolve_mixture({}) == {name: count / sum(tokens.values()) for name, count in tokens.items()}
    assert corpus.resolve_mixture({"notes": 1.0}) == {"more": 0.0, "notes": 1.0}
    with pytest.raises(InputError, match=r"data\.mixture\.web: no such domain; domains of this corpus: more, notes"):
        corpus.resolve_mixture({"web": 1.0})
