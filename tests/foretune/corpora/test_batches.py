from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from foretune.corpora import BatchStream, Corpus, DomainFacts, take_validation_batches
from foretune.corpora.batches import GOLDEN_STEP, UNIT, _count_below
from foretune.errors import InputError

SIZES = {"a": 10_000, "b": 3_000, "c": 801}
BASES = {"a": 0, "b": 100_000, "c": 200_000}
"""Token i of a domain is its base plus i, so a token tells where it is from."""


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    facts = {}
    for number, (name, size) in enumerate(SIZES.items()):
        (np.arange(size, dtype="<u4") + BASES[name]).tofile(tmp_path / f"{number}.train.bin")
        np.arange(size // 10, dtype="<u4").tofile(tmp_path / f"{number}.validation.bin")
        facts[name] = DomainFacts(size, size // 10, 1, 1, 0, 0, None)
    return Corpus(tmp_path, "digest", "ids:300000", 300_000, None, "<u4", facts)


MIXTURE = {"a": 0.55, "b": 0.35, "c": 0.1}


def stream(corpus: Corpus, mixture: dict[str, float] = MIXTURE, *, seed: int = 0) -> BatchStream:
    return BatchStream(corpus, mixture, seq_len=32, seed=seed)


def domain_of(rows: np.ndarray) -> list[str]:
    return ["abc"[int(row[0]) // 100_000] for row in rows]


def take_rows(batches: BatchStream, steps: int, batch: int = 16) -> np.ndarray:
    return np.concatenate([batches.sequences(step * batch, batch) for step in range(steps)])


def test_rows_are_consecutive_tokens_of_one_domain(corpus: Corpus) -> None:
    rows = take_rows(stream(corpus), 20)
    assert rows.shape == (320, 33)
    assert rows.dtype == np.int64
    assert (np.diff(rows) == 1).all()


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_share_below_rounding_is_never_drawn(corpus: Corpus, name: str) -> None:
    rows = take_rows(stream(corpus, {"a": 1.0, "b": 1.0, "c": 1.0} | {name: 1e-17}), 20)
    assert name not in domain_of(rows)
    assert len(rows) == 320


def test_a_sequence_depends_on_nothing_but_seed_and_number(corpus: Corpus) -> None:
    forward = [stream(corpus).sequences(16 * step, 16) for step in range(50)]
    backward = stream(corpus)
    for step in reversed(range(50)):
        np.testing.assert_array_equal(backward.sequences(16 * step, 16), forward[step])
    assert not np.array_equal(stream(corpus, seed=1).sequences(0, 16), forward[0])


def test_the_batch_size_cuts_the_same_sequence(corpus: Corpus) -> None:
    np.testing.assert_array_equal(take_rows(stream(corpus), 24, 4), take_rows(stream(corpus), 3, 32))


def test_a_growing_batch_cuts_the_same_sequence(corpus: Corpus) -> None:
    ramped, batches = [], stream(corpus)
    for first, count in ((0, 4), (4, 4), (8, 8), (16, 16), (32, 16)):
        ramped.append(batches.sequences(first, count))
    np.testing.assert_array_equal(np.concatenate(ramped), take_rows(stream(corpus), 3))


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_exact_to_a_few_sequences_at_every_moment(corpus: Corpus, seed: int) -> None:
    names = domain_of(take_rows(stream(corpus, seed=seed), 200))
    for name, share in MIXTURE.items():
        counts = np.cumsum([found == name for found in names])
        assert np.abs(counts - share * np.arange(1, len(names) + 1)).max() < 3


def test_counting_the_rotation_agrees_with_going_through_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        bound, offset = (int(generator.integers(0, 2**63)) * 2 for _ in range(2))
        count = int(generator.integers(0, 500))
        points = [(offset + number * GOLDEN_STEP) % UNIT for number in range(count)]
        assert _count_below(bound, count, offset) == sum(point < bound for point in points)
    assert _count_below(UNIT, 123, 7) == 123
    assert _count_below(0, 123, 7) == 0


def test_an_epoch_reads_every_window_once(corpus: Corpus) -> None:
    only_c = stream(corpus, {"c": 1.0})
    windows = (SIZES["c"] - 32) // 32
    for epoch in range(3):
        starts = [int(only_c.sequences(epoch * windows + place, 1)[0, 0]) - BASES["c"] for place in range(windows)]
        assert {right - left for left, right in pairwise(sorted(starts))} == {32}
        assert starts != sorted(starts)


def test_epochs_differ_in_order_and_phase(corpus: Corpus) -> None:
    only_c, windows = stream(corpus, {"c": 1.0}), (SIZES["c"] - 32) // 32
    first, second, third = (only_c.sequences(epoch * windows, windows)[:, 0] for epoch in range(3))
    assert len({int(starts.min()) for starts in (first, second, third)}) > 1
    assert not np.array_equal(np.argsort(first), np.argsort(second))


def test_the_windows_of_a_domain_do_not_depend_on_the_mixture(corpus: Corpus) -> None:
    mixed, alone = take_rows(stream(corpus), 40), take_rows(stream(corpus, {"b": 1.0}), 40)
    of_b = mixed[[name == "b" for name in domain_of(mixed)]]
    np.testing.assert_array_equal(of_b, alone[: len(of_b)])


def test_a_domain_without_a_share_is_never_read(corpus: Corpus) -> None:
    assert set(domain_of(take_rows(stream(corpus, {"a": 0.5, "b": 0.5, "c": 0.0}), 50))) == {"a", "b"}


def test_epochs_count_what_was_read(corpus: Corpus) -> None:
    batches = stream(corpus)
    names = domain_of(take_rows(batches, 30))
    expected = {name: names.count(name) / ((SIZES[name] - 32) // 32) for name in SIZES}
    assert batches.epochs(30 * 16) == expected


def test_too_little_text_for_a_sequence_is_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"data\.domains\.c: 801 training tokens are fewer than two sequences"):
        BatchStream(corpus, {"c": 1.0}, seq_len=500, seed=0)


def test_held_out_windows_are_fixed_spread_and_disjoint(corpus: Corpus) -> None:
    batches = take_validation_batches(corpus, seq_len=16, sequences_per_domain=4)
    for name, rows in batches.items():
        assert rows.shape == (4, 17)
        assert (np.diff(rows) == 1).all()
        starts = rows[:, 0]
        assert (np.diff(starts) >= 16).all()
        assert starts[-1] >= 0.75 * corpus.domains[name].validation_tokens - 16
    with pytest.raises(InputError, match="5 sequences of 16 tokens are more than domain 'c' holds out"):
        take_validation_batches(corpus, seq_len=16, sequences_per_domain=5)


def test_a_part_of_a_domain_is_repeated_that_much_more_often(corpus: Corpus) -> None:
    """A quarter of the tokens is gone through four times as often, to a window of the part."""
    whole, part = stream(corpus), BatchStream(corpus, MIXTURE, 32, 0, {"a": 2500, "b": 750})
    assert part.epochs(400)["a"] / whole.epochs(400)["a"] == pytest.approx(311 / round(2500 / 32))
    assert part.epochs(400)["c"] == whole.epochs(400)["c"]
    sequences = round(round(2500 / 32) / MIXTURE["a"])  # one epoch of the part
    assert part.epochs(sequences)["a"] == pytest.approx(1.0, abs=2 / 78)


def test_no_epoch_and_no_seed_leaves_the_part(corpus: Corpus) -> None:
    seen = [
        np.unique(BatchStream(corpus, {"a": 1.0}, 32, seed, {"a": 2500}).sequences(0, 800)[:, :-1]) for seed in range(3)
    ]
    for tokens in seen:
        assert len(tokens) <= 79 * 32  # 78 windows behind every phase
        assert len(tokens) > 78 * 32  # ten epochs, each with a phase of its own
    assert len(np.unique(np.concatenate(seen))) <= 79 * 32


def test_a_smaller_part_lies_inside_a_larger_one(corpus: Corpus) -> None:
    blocks = [
        np.unique(BatchStream(corpus, {"a": 1.0}, 32, 0, {"a": size}).sequences(0, 3000)[:, :-1] // 512).tolist()
        for size in (1000, 2500, 6000, 9600)
    ]
    assert [len(found) for found in blocks] == [2, 5, 12, 19]
    for small, large in pairwise(blocks):
        assert set(small) < set(large)
    assert blocks[1] != list(range(5))  # from all over the domain


def test_a_part_as_large_as_the_domain_changes_nothing(corpus: Corpus) -> None:
    same = BatchStream(corpus, MIXTURE, 32, 0, {"a": 10_000, "b": 5_000})
    np.testing.assert_array_equal(same.sequences(0, 200), stream(corpus).sequences(0, 200))
