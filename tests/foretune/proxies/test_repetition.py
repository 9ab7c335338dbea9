"""Runs that may see a part of each domain only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from foretune.corpora import BatchStream, Corpus
from foretune.proxies.feed import Feed, order_batch
from foretune.records import RunSpec

CPU = torch.device("cpu")


def test_a_pack_serves_each_member_its_own_part(make_run: Callable[..., RunSpec], corpus: Corpus) -> None:
    whole, part = make_run(), make_run(unique_tokens={"words": 40 * 32})
    feed = Feed(corpus, [whole, part], CPU)
    for step in range(20):
        rows = feed.take([order_batch(whole, step), order_batch(part, step)]).numpy()
        np.testing.assert_array_equal(rows[0], stream_of(whole, corpus).sequences(8 * step, 8))
        np.testing.assert_array_equal(rows[1], stream_of(part, corpus).sequences(8 * step, 8))
    feed.close()
    assert round(stream_of(part, corpus).epochs(160)["words"]) == 3  # 120 sequences of 40
    assert stream_of(whole, corpus).epochs(160)["words"] < 1.0


def stream_of(spec: RunSpec, corpus: Corpus) -> BatchStream:
    return BatchStream(corpus, spec.data.mixture, spec.data.seq_len, spec.seed, spec.data.unique_tokens)
