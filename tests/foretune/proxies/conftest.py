"""A small corpus with something to learn, and runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretune.corpora import Corpus, prepare_corpus
from foretune.records import RunSpec
from foretune.sections import DataSection, DomainSection
from foretune_factories import make_spec

WORDS = ("alpha ", "beta ", "gamma ", "delta ", "epsilon\n")
SEQ_LEN = 32


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of 200 documents: words in a random order, and digits."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("text")
    for name, pieces in (("words", WORDS), ("digits", tuple("0123456789"))):
        (folder / name).mkdir()
        for number in range(200):
            drawn = generator.choice(pieces, 40 if name == "words" else 200)
            (folder / name / f"{number:04d}.txt").write_text("".join(drawn))
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FORETUNE_CACHE", str(folder))
        patch.setenv("FORETUNE_THREADS", "1")
        yield folder


@pytest.fixture(scope="session")
def section(text_folder: Path) -> DataSection:
    domains = {name: DomainSection(path=str(text_folder / name)) for name in ("words", "digits")}
    return DataSection(corpus="files", domains=domains, seq_len=SEQ_LEN, validation_fraction=0.2)


@pytest.fixture(scope="session")
def corpus(section: DataSection, cache: Path) -> Corpus:
    return prepare_corpus(section, cache=cache)


MakeRun = Callable[..., RunSpec]


@pytest.fixture
def make_run(section: DataSection, corpus: Corpus) -> MakeRun:
    """A run on the small corpus; overrides as in `make_spec`."""

    def make(**overrides: Any) -> RunSpec:
        settings = {
            "corpus_digest": corpus.digest,
            "section": section,
            "seq_len": SEQ_LEN,
            "mixture": {"digits": 0.25, "words": 0.75},
            "batch_tokens": 8 * SEQ_LEN,
            "steps": 20,
            "warmup_steps": 2,
            "decay_steps": 4,
        }
        return make_spec(**{**settings, **overrides})

    return make


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
