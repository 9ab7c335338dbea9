"""Members of a pack and their batches, for tests of single steps."""

from __future__ import annotations

from contextlib import closing

import torch

from foretune.corpora import Corpus
from foretune.proxies.feed import Feed, order_batch
from foretune.proxies.stepping import Stepper
from foretune.records import RunSpec


def build_stepper(corpus: Corpus, *specs: RunSpec) -> Stepper:
    """The members of a pack on the CPU."""
    return Stepper(specs, corpus, torch.device("cpu"), compiled=False)


def take_batches(corpus: Corpus, step: int, *specs: RunSpec) -> torch.Tensor:
    """What those members train on at a step: [K, B, T + 1]."""
    with closing(Feed(corpus, specs, torch.device("cpu"))) as feed:
        return feed.take([order_batch(spec, step) for spec in specs])
