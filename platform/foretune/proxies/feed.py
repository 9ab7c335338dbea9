"""Batches, ready before they are needed: while the device computes a step, a thread prepares the next one.

Shapes
    K  members    B  sequences    T  positions
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foretune.corpora import BatchStream, Corpus
from foretune.records import RunSpec


class StreamName(NamedTuple):
    """What decides which sequences a run sees: runs that agree in it share their batches."""

    seed: int
    """Seed of the run."""
    unique_tokens: tuple[tuple[str, int], ...]
    """Domains of which it may see a part only, sorted."""
    mixtures: tuple[tuple[int, tuple[tuple[str, float], ...]], ...]
    """The mixtures up to this one, each with the number of its first sequence; shares by domain, sorted."""


@dataclass(frozen=True)
class Order:
    """The batch that one member wants: sequences `first`, `first` + 1, ... of its stream."""

    stream: StreamName
    """The stream."""
    first: int
    """Number of the first sequence."""
    count: int
    """Sequences."""


def name_streams(spec: RunSpec) -> dict[int, StreamName]:
    """The streams of a run by the step that each begins at: one more for every phase with a mixture of its own."""
    changes = {0: spec.data.mixture} | {phase.start_step: phase.mixture for phase in spec.phases if phase.mixture}
    firsts = [spec.training.tokens_at(step) // spec.data.seq_len for step in changes]
    mixtures = [(first, tuple(sorted(shares.items()))) for first, shares in zip(firsts, changes.values(), strict=True)]
    held = tuple(sorted(spec.data.unique_tokens.items()))
    return {step: StreamName(spec.seed, held, tuple(mixtures[: place + 1])) for place, step in enumerate(changes)}


def order_batch(spec: RunSpec, step: int, stream: StreamName | None = None) -> Order:
    """The batch of step 0, 1, ... of a run; its own stream there, unless another one is given."""
    training, seq_len = spec.training, spec.data.seq_len
    first, count = training.tokens_at(step) // seq_len, training.batch_tokens_at(step) // seq_len
    if stream is None:
        named = name_streams(spec)
        stream = named[max(start for start in named if start <= step)]
    return Order(stream, first, count)


class Feed:
    """Serves the batches of a pack on its device."""

    def __init__(self, corpus: Corpus, specs: Sequence[RunSpec], device: torch.device) -> None:
        """A stream for every distinct seed and mixture."""
        names = dict.fromkeys(name for spec in specs for name in name_streams(spec).values())
        self._streams: dict[StreamName, BatchStream] = {}
        for name in sorted(names, key=lambda name: len(name.mixtures)):
            self._streams[name] = self._open(name, corpus, specs[0].data.seq_len)
        self._device = device
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feed")
        self._ahead: tuple[Sequence[Order], Future[_Batch]] | None = None

    def take(self, orders: Sequence[Order]) -> Tensor:
        """Token ids [K, B, T + 1] for the members of a step, of int64; inputs and targets overlap by one."""
        if self._ahead is None or self._ahead[0] != orders:
            self.prepare(orders)
        assert self._ahead is not None
        batch, self._ahead = self._ahead[1].result(), None
        return batch.expand(len(orders))

    def prepare(self, orders: Sequence[Order]) -> None:
        """Begin with the batches that will probably be wanted next."""
        self._ahead = (orders, self._thread.submit(self._build, orders))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _open(self, name: StreamName, corpus: Corpus, seq_len: int) -> BatchStream:
        """A stream, which goes on where the one before it is left."""
        *before, (first, shares) = name.mixtures
        taken = self._streams[name._replace(mixtures=tuple(before))].count_taken(first) if before else {}
        held = dict(name.unique_tokens)
        return BatchStream(corpus, dict(shares), seq_len, name.seed, held, first=first, taken=taken)

    def _build(self, orders: Sequence[Order]) -> _Batch:
        distinct = list(dict.fromkeys(orders))
        drawn = [self._streams[order.stream].sequences(order.first, order.count) for order in distinct]
        places = None if len(distinct) in (1, len(orders)) else torch.tensor([distinct.index(o) for o in orders])
        if self._copying is None:
            return _Batch(torch.from_numpy(np.stack(drawn)), places, None)
        with torch.cuda.stream(self._copying):
            tokens = torch.from_numpy(np.stack(drawn)).pin_memory().to(self._device, non_blocking=True)
            places = None if places is None else places.pin_memory().to(self._device, non_blocking=True)
            return _Batch(tokens, places, self._copying.record_event())


@dataclass(frozen=True)
class _Batch:
    """The distinct batches of a step, perhaps still on their way to the device."""

    tokens: Tensor
    places: Tensor | None
    """Which of them each member has; None where all have the same or each its own."""
    copied: torch.cuda.Event | None

    def expand(self, members: int) -> Tensor:
        """A batch for every member."""
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.tokens.device)
            stream.wait_event(self.copied)
            for tensor in (self.tokens, *([] if self.places is None else [self.places])):
                tensor.record_stream(stream)  # or its memory would be given away while this stream still reads it
        return self.tokens.expand(members, -1, -1) if self.places is None else self.tokens[self.places]
