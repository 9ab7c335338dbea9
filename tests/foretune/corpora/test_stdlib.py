from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from foretune.corpora import prepare_corpus
from foretune.corpora.documents import Splitter
from foretune.corpora.stdlib import MIN_TEST_FILES, find_stdlib_sources
from foretune.errors import InputError
from foretune.sections import DataSection


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A standard library of 60 modules, each with a docstring that names it, and 60 tests."""
    root = tmp_path / "lib"
    for package in ("package", "package/test", "site-packages"):
        (root / package).mkdir(parents=True)
    for number in range(60):
        (root / f"m{number}.py").write_text(f'"""About module {number}."""\ndef f():\n    """Of {number}."""\n')
        (root / "package" / "test" / f"test_{number}.py").write_text(f"assert {number} == {number}\n")
    (root / "package" / "plain.py").write_text("x = 1\n")
    (root / "package" / "latin.py").write_bytes(b"x = '\xe9'\n")
    (root / "site-packages" / "other.py").write_text("y = 2\n")
    return root


def test_modules_tests_and_docstrings_are_the_domains(library: Path) -> None:
    sources, notes = find_stdlib_sources(library)
    texts = {source.name: [document.content for document in source.read()] for source in sources}
    assert notes == ()
    assert len(texts["code"]) == 61
    assert len(texts["tests"]) == 60
    assert "m7\n\nAbout module 7.\n\n\nm7.f\n\nOf 7." in texts["docs"]
    assert "y = 2\n" not in texts["code"]


def test_docstrings_of_a_held_out_module_are_held_out(library: Path) -> None:
    sources = {source.name: source for source in find_stdlib_sources(library)[0]}
    code = {str(document.content): split for split, document in Splitter(0.5).split(sources["code"].read())}
    docs = {str(document.content): split for split, document in Splitter(0.5).split(sources["docs"].read())}
    pairs = [(split, docs[f"m{n}\n\nAbout module {n}.\n\n\nm{n}.f\n\nOf {n}."])
             for n in range(60) for text, split in code.items() if f"About module {n}." in text]  # fmt: skip
    assert len(pairs) == 60
    assert {"train", "validation"} == {split for split, _ in pairs}
    assert all(of_code == of_docs for of_code, of_docs in pairs)


def test_a_slim_install_has_no_tests_and_says_so(library: Path) -> None:
    for number in range(MIN_TEST_FILES // 2, 60):
        (library / "package" / "test" / f"test_{number}.py").unlink()
    sources, notes = find_stdlib_sources(library)
    assert [source.name for source in sources] == ["code", "docs"]
    assert "no domain `tests`" in notes[0]


def test_no_library_at_all_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no standard library source"):
        find_stdlib_sources(tmp_path / "absent")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_this_python_is_a_corpus(shared_cache: Path) -> None:
    corpus = prepare_corpus(DataSection(), cache=shared_cache)
    assert {"code", "docs"} <= set(corpus.domains)
    assert corpus.vocab_size == 257
    for name, facts in corpus.domains.items():
        assert facts.train_tokens > 1_000_000, name
        assert 0.01 < facts.validation_tokens / facts.train_tokens < 0.12, name
    argparse = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    code = np.concatenate([corpus.tokens("code", "train"), corpus.tokens("code", "validation")])
    assert argparse.encode() in np.where(code == 256, 0, code).astype(np.uint8).tobytes()


def test_nothing_held_out_stands_in_training_as_a_whole(shared_cache: Path) -> None:
    corpus = prepare_corpus(DataSection(), cache=shared_cache)
    for name in corpus.domains:
        held_out, train = (
            np.where(tokens == 256, 0, tokens).astype(np.uint8).tobytes()
            for tokens in (corpus.tokens(name, "validation"), corpus.tokens(name, "train"))
        )
        documents = [document for document in held_out.split(b"\0") if len(document) > 200]
        assert documents
        assert not [document[:60] for document in documents if b"\0" + document + b"\0" in train]
