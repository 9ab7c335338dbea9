"""Batches, ready before they are needed: while the device computes a step, a thread prepares the next one.

Shapes
    K  members    B  sequences    T  positions
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foretune.corpora import BatchStream, Corpus
from foretune.records import RunSpec


@dataclass(frozen=True)
class Order:
    """The batch that one member wants: sequences `first`, `first` + 1, ... of its stream."""

    stream: tuple[object, ...]
    """What the stream depends on; see `name_stream`."""
    first: int
    """Number of the first sequence."""
    count: int
    """Sequences."""


def name_stream(spec: RunSpec) -> tuple[object, ...]:
    """What decides which sequences a run sees: runs that agree in it share their batches."""
    return (spec.seed, *sorted(spec.data.mixture.items()))


def order_batch(spec: RunSpec, step: int, stream: tuple[object, ...] = ()) -> Order:
    """The batch of step 0, 1, ... of a run; who asks often gives the name of its `stream`."""
    training, seq_len = spec.training, spec.data.seq_len
    first, count = training.tokens_at(step) // seq_len, training.batch_tokens_at(step) // seq_len
    return Order(stream or name_stream(spec), first, count)


class Feed:
    """Serves the batches of a pack on its device."""

    def __init__(self, corpus: Corpus, specs: Sequence[RunSpec], device: torch.device) -> None:
        """A stream for every distinct seed and mixture."""
        self._streams = {
            name_stream(spec): BatchStream(corpus, spec.data.mixture, spec.data.seq_len, spec.seed) for spec in specs
        }
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
