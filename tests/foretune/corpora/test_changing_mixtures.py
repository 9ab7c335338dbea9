"""What a run sees whose mixture changes on its way."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from foretune.corpora import BatchStream, Corpus, DomainFacts
from foretune.proxies.feed import Feed, name_streams, order_batch
from foretune.records import Phase
from foretune_factories import make_spec

SEQ_LEN = 16
SIZES = {"a": 8000, "b": 8000, "c": 1600}
MIXTURES = ({"a": 0.8, "b": 0.2, "c": 0.0}, {"a": 0.1, "b": 0.6, "c": 0.3}, {"a": 0.5, "b": 0.5, "c": 0.0})
STARTS = (0, 40, 100)
STEPS = 160
BATCH = 4


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    facts = {}
    for number, (name, size) in enumerate(SIZES.items()):
        (np.arange(size, dtype="<u4") + 100_000 * number).tofile(tmp_path / f"{number}.train.bin")
        np.arange(size // 10, dtype="<u4").tofile(tmp_path / f"{number}.validation.bin")
        facts[name] = DomainFacts(size, size // 10, 1, 1, 0, 0, None)
    return Corpus(tmp_path, "digest", "ids:300000", 300_000, None, "<u4", facts)


def read_starts(corpus: Corpus, *, changes: bool) -> list[list[int]]:
    """The first tokens of the sequences of each step."""
    phases = tuple(Phase(start_step=step, mixture=shares) for step, shares in zip(STARTS, MIXTURES, strict=True))[1:]
    spec = make_spec(seq_len=SEQ_LEN, mixture=MIXTURES[0], batch_tokens=BATCH * SEQ_LEN, steps=STEPS)
    spec = spec.model_copy(update={"phases": phases if changes else ()})
    with closing(Feed(corpus, [spec], torch.device("cpu"))) as feed:
        return [feed.take([order_batch(spec, step)])[0, :, 0].tolist() for step in range(STEPS)]


def test_shares_are_those_of_each_phase_and_nothing_changes_before_it(corpus: Corpus) -> None:
    rows, plain = read_starts(corpus, changes=True), read_starts(corpus, changes=False)
    assert rows[: STARTS[1]] == plain[: STARTS[1]]
    for first, last, shares in zip(STARTS, (*STARTS[1:], STEPS), MIXTURES, strict=True):
        counts = Counter("abc"[start // 100_000] for row in rows[first:last] for start in row)
        for name, share in shares.items():
            assert counts[name] / ((last - first) * BATCH) == pytest.approx(share, abs=0.02)


def test_no_window_comes_again_before_its_domain_is_gone_through(corpus: Corpus) -> None:
    starts = [start for row in read_starts(corpus, changes=True) for start in row]
    assert len(set(starts)) == len(starts)
    fresh = BatchStream(corpus, {"b": 1.0}, SEQ_LEN, 0).sequences(0, len(starts))[:, 0].tolist()
    of_b = [start for start in starts if start // 100_000 == 1]
    assert of_b == fresh[: len(of_b)]  # the k-th window of a domain is the same in every mixture, and in their sequence


def test_streams_that_agree_are_shared() -> None:
    spec = make_spec()
    phase = Phase(start_step=4, settings={"peak_lr": 0.5})
    assert name_streams(spec) == name_streams(spec.model_copy(update={"phases": (phase,)}))
    first = Phase(start_step=0, mixture={"other": 1.0})
    assert name_streams(spec.model_copy(update={"phases": (first,)})) == name_streams(make_spec(mixture={"other": 1.0}))
