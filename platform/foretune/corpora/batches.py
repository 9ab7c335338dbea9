"""Which tokens a run trains on: a pure function of seed, mixture and the number of a sequence, with no state to save.

Sequences are numbered 0, 1, 2, ... over the run, whatever the batch size, so runs of one seed see the same text in the
same order. Sequence i belongs to the domain whose interval of cumulated shares holds

    u_i = frac(offset + i / golden ratio)

a rotation, whose share of points in any interval is exact to a few points at every moment (Weyl 1916; the golden ratio
spreads most evenly). Within a domain the windows of an epoch come in a seeded order, without replacement, and start at
a seeded phase, so that another epoch cuts the text elsewhere. The k-th window of a domain is the same in every mixture.
When the mixture of a run changes on its way, sequences are numbered on and each domain goes on behind its last window:
none comes again before its domain is gone through.

A domain may be held to a part of its tokens, so that a small run repeats it as often as a large one will. The part is
made of blocks in an order that depends on the domain alone: every seed sees the same part, and a smaller part lies
inside a larger one.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foretune.corpora.corpus import Corpus
from foretune.errors import InputError

UNIT = 2**64
"""The unit interval as 64-bit integers, so that the rotation is exact."""
GOLDEN_STEP = 11400714819323198485
"""2^64 / golden ratio, rounded to an odd number (Knuth, TAOCP 3, section 6.4)."""
KEPT_EPOCHS = 2
"""A batch may end one epoch and begin the next."""
BLOCK_SEQUENCES = 16
"""Sequences of text that stay together in a part of a domain: one window in 16 runs over a seam, as windows run over
the ends of documents anyway (an assumption)."""


class BatchStream:
    """The training sequences of one run."""

    def __init__(
        self,
        corpus: Corpus,
        mixture: dict[str, float],
        seq_len: int,
        seed: int,
        unique_tokens: Mapping[str, int] | None = None,
        *,
        first: int = 0,
        taken: Mapping[str, int] | None = None,
    ) -> None:
        """`mixture` gives the share of sequences per domain; a domain without a share is never read.

        Of a domain in `unique_tokens` only so many tokens are read, in whole sequences. A run whose mixture changes has
        a stream from sequence `first` on, which goes on behind the windows `taken` of each domain by those before.
        """
        shares = {name: share for name, share in corpus.resolve_mixture(mixture).items() if share > 0}
        held = unique_tokens or {}
        self._domains = [_DomainStream(corpus, name, seq_len, seed, held.get(name)) for name in shares]
        self._bounds = _cumulate(list(shares.values()))
        self._seq_len = seq_len
        self._offset = _hash_number("rotation", seed)
        self._taken = dict(taken or {})
        self._bases = [
            self._taken.get(stream.name, 0) - self._count(domain, first) for domain, stream in enumerate(self._domains)
        ]
        self._known: tuple[int, list[int]] = (-1, [])  # a sequence, and the windows of each domain before it

    def sequences(self, first: int, count: int) -> NDArray[np.int64]:
        """Token ids of so many sequences from number `first` on: [count, seq_len + 1]; inputs and targets overlap."""
        domains = self.domains_of(first, count)
        known, ranks = self._known
        if known != first:  # what is asked for is mostly what comes next
            ranks = [self._rank(domain, first) for domain in range(len(self._domains))]
        rows = [np.flatnonzero(domains == domain) for domain in range(len(self._domains))]
        found = np.empty((count, self._seq_len + 1), dtype=np.int64)
        for stream, rank, places in zip(self._domains, ranks, rows, strict=True):
            found[places] = stream.windows_from(rank, len(places))
        self._known = (first + count, [rank + len(places) for rank, places in zip(ranks, rows, strict=True)])
        return found

    def domains_of(self, first: int, count: int) -> NDArray[np.int64]:
        """The domain of each of these sequences, by its place among those with a share, [count]."""
        numbers = np.arange(first, first + count, dtype=np.uint64)
        points = numbers * np.uint64(GOLDEN_STEP) + np.uint64(self._offset)  # wraps, as it should
        return np.searchsorted(np.array(self._bounds[1:-1], dtype=np.uint64), points, side="right")

    def count_taken(self, sequences: int) -> dict[str, int]:
        """Windows of each domain that were given before a sequence, by this stream and those before it."""
        ranks = {stream.name: self._rank(domain, sequences) for domain, stream in enumerate(self._domains)}
        return self._taken | ranks

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often each domain is gone through in the first so many sequences."""
        taken = self.count_taken(sequences)
        return {stream.name: taken[stream.name] / stream.windows for stream in self._domains}

    def _rank(self, domain: int, sequences: int) -> int:
        """How many windows of a domain were taken before a sequence."""
        return self._bases[domain] + self._count(domain, sequences)

    def _count(self, domain: int, sequences: int) -> int:
        """How many of the first sequences belong to a domain."""
        low, high = self._bounds[domain], self._bounds[domain + 1]
        return _count_below(high, sequences, self._offset) - _count_below(low, sequences, self._offset)


class _DomainStream:
    """The windows of one domain, by number."""

    def __init__(self, corpus: Corpus, name: str, seq_len: int, seed: int, unique_tokens: int | None) -> None:
        self.name = name
        self.tokens = corpus.tokens(name, "train")
        self.seq_len = seq_len
        self.seed = seed
        self.windows = (len(self.tokens) - seq_len) // seq_len  # fits behind every phase
        self._epochs: OrderedDict[int, tuple[int, NDArray[np.int64]]] = OrderedDict()
        if self.windows < 1:
            raise InputError(
                f"data.domains.{name}: {len(self.tokens)} training tokens are fewer than two sequences of "
                f"data.seq_len = {seq_len}; shorten the sequences or add text"
            )
        self._blocks: NDArray[np.int64] | None = None  # where each block of the part begins; None: all tokens
        if unique_tokens is not None and round(unique_tokens / seq_len) < self.windows:
            self.windows = max(1, round(unique_tokens / seq_len))
            self._blocks = _choose_blocks(name, len(self.tokens), self.windows + 1, seq_len)

    def windows_from(self, number: int, count: int) -> NDArray[np.integer]:
        """So many windows from a number on: [count, seq_len + 1]."""
        epochs, places = np.divmod(np.arange(number, number + count), self.windows)
        starts = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            phase, order = self._order(epoch)
            starts[epochs == epoch] = phase + order[places[epochs == epoch]] * self.seq_len
        return np.asarray(self.tokens[self._locate(starts[:, None] + np.arange(self.seq_len + 1))])

    def _locate(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where tokens of the part are in the domain."""
        if self._blocks is None:
            return places
        size = BLOCK_SEQUENCES * self.seq_len
        return np.asarray(self._blocks[places // size] + places % size)

    def _order(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        if epoch not in self._epochs:
            generator = np.random.Generator(np.random.Philox(key=_hash_number("epoch", self.seed, self.name, epoch)))
            self._epochs[epoch] = (int(generator.integers(self.seq_len)), generator.permutation(self.windows))
            if len(self._epochs) > KEPT_EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


def _choose_blocks(name: str, tokens: int, sequences: int, seq_len: int) -> NDArray[np.int64]:
    """The starts of blocks that hold so many sequences: the first ones of a fixed order of all, the short end last."""
    size = BLOCK_SEQUENCES * seq_len
    generator = np.random.Generator(np.random.Philox(key=_hash_number("part", name)))
    order = np.append(generator.permutation(tokens // size), tokens // size)
    return np.asarray(order[: math.ceil(sequences * seq_len / size)] * size)


def take_validation_batches(corpus: Corpus, seq_len: int, sequences_per_domain: int) -> dict[str, NDArray[np.int64]]:
    """The held-out windows of each domain, evenly spread and without overlap: [sequences_per_domain, seq_len + 1]."""
    return {name: _spread_windows(corpus, name, seq_len, sequences_per_domain) for name in corpus.domains}


def take_reference_batches(
    corpus: Corpus, seq_len: int, sequences_per_domain: int, validation_sequences: int
) -> dict[str, NDArray[np.int64]]:
    """Held-out windows to learn from: [sequences_per_domain, seq_len + 1], evenly spread.

    None shares a token with another, nor with a window of `take_validation_batches`, by which runs are judged; they may
    come from the same documents. A domain that holds out too little for as many gives those that it has, at least one.
    """
    return {
        name: _spread_references(corpus, name, seq_len, sequences_per_domain, validation_sequences)
        for name in corpus.domains
    }


def _spread_references(corpus: Corpus, domain: str, seq_len: int, wanted: int, judging: int) -> NDArray[np.int64]:
    """Windows behind those that judge, up to the next one of these."""
    tokens = corpus.tokens(domain, "validation")
    judged = [*_spread_starts(corpus, domain, seq_len, judging).tolist(), len(tokens)]
    size = seq_len + 1
    free = [
        start for before, after in itertools.pairwise(judged) for start in range(before + size, after - size + 1, size)
    ]
    if not free:
        raise InputError(
            f"data.validation_sequences: {judging} sequences of {seq_len} tokens leave no text of domain {domain!r} "
            f"({len(tokens)} tokens held out) that a run could learn its mixture or settings by; lower it, or raise "
            "data.validation_fraction"
        )
    places = np.unique(np.linspace(0, len(free) - 1, min(wanted, len(free))).round().astype(int))
    return np.stack([tokens[start : start + size] for start in np.array(free)[places]]).astype(np.int64)


def _spread_windows(corpus: Corpus, domain: str, seq_len: int, sequences: int) -> NDArray[np.int64]:
    tokens, starts = corpus.tokens(domain, "validation"), _spread_starts(corpus, domain, seq_len, sequences)
    return np.stack([tokens[start : start + seq_len + 1] for start in starts]).astype(np.int64)


def _spread_starts(corpus: Corpus, domain: str, seq_len: int, sequences: int) -> NDArray[np.int64]:
    held_out = len(corpus.tokens(domain, "validation"))
    most = (held_out - 1) // seq_len
    if most < sequences:
        raise InputError(
            f"data.validation_sequences: {sequences} sequences of {seq_len} tokens are more than domain {domain!r} "
            f"holds out ({held_out} tokens, {most} sequences); lower it, or raise data.validation_fraction"
        )
    return (np.arange(sequences) * ((held_out - 1) / sequences)).astype(np.int64)


def _cumulate(shares: list[float]) -> list[int]:
    """The bounds of the domains' intervals: 0, ..., 2^64."""
    # a share below the rounding of the sum leaves a bound at 2^64, which 64 bits do not hold
    bounds = [min(round(float(bound) * UNIT), UNIT - 1) for bound in np.cumsum(shares)]
    return [0, *bounds[:-1], UNIT]


def _count_below(bound: int, count: int, offset: int) -> int:
    """How many of the first `count` points of the rotation lie below `bound`.

    A point x mod UNIT lies below it exactly if floor(x / UNIT) - floor((x - bound) / UNIT) is 1.
    """
    above = _sum_floors(count, UNIT, GOLDEN_STEP, offset)
    return above - _sum_floors(count, UNIT, GOLDEN_STEP, offset + UNIT - bound) + count


def _sum_floors(count: int, modulus: int, slope: int, offset: int) -> int:
    """The sum of floor((slope i + offset) / modulus) over 0 <= i < count, by Euclid's algorithm in O(log modulus)."""
    total = 0
    while count > 0:
        total += count * (count - 1) // 2 * (slope // modulus) + count * (offset // modulus)
        slope, offset = slope % modulus, offset % modulus
        highest = slope * count + offset
        if highest < modulus:
            break
        count, offset = divmod(highest, modulus)
        modulus, slope = slope, modulus
    return total


def _hash_number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
