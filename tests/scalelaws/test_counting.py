"""The same models counted in three ways: exact counts of published models, and planted laws under another counting."""

import numpy as np
import pytest

from scalelaws import Observations, get_published
from scalelaws.splits.counting import Shape, compare_countings, recount, recount_runs, tabulate_countings

BESIROGLU = get_published("besiroglu").constants
PEARCE = Shape(65536, aspect=12 * (47491 / 65536) ** 3)
"""Pearce and Song 2024 write total = N + 47491 N^(1/3); this vocabulary and aspect give that factor."""


def test_counts_of_gpt2():
    """GPT-2 XL: 48 layers of width 1600, 50257 tokens; 12 l d^2 = 1.4746e9, tied embedding 8.04e7."""
    layers = 12 * 48 * 1600**2
    shape = Shape(50257)
    assert recount(layers, "non_embedding", "total", shape, width=[1600.0])[0] == layers + 50257 * 1600
    untied = Shape(50257, tied=False)
    assert recount(layers, "non_embedding", "total", untied, width=[1600.0])[0] == layers + 2 * 50257 * 1600
    assert recount(layers, "non_embedding", "with_head", untied, width=[1600.0])[0] == layers + 50257 * 1600
    by_rule = recount(layers, "non_embedding", "total", Shape(50257, aspect=1600 / 48))
    assert by_rule[0] == pytest.approx(layers + 50257 * 1600, rel=1e-12)


@pytest.mark.parametrize("width", [None, np.array([300.0, 1200.0, 9000.0])])
def test_there_and_back(width):
    counts = np.array([1e8, 3e9, 5e11])
    shape = Shape(50304, aspect=80, tied=False)
    for wanted in ("non_embedding", "with_head"):
        moved = recount(counts, "total", wanted, shape, width=width)
        assert (moved < counts).all()
        assert recount(moved, wanted, "total", shape, width=width) == pytest.approx(counts, rel=1e-9)


def test_counts_that_cannot_be():
    with pytest.raises(ValueError, match="fewer than the embedding"):
        recount(1e6, "total", "non_embedding", Shape(50257), width=np.array([1024.0]))
    with pytest.raises(ValueError, match="non_embedding, with_head, total; got 'active'"):
        recount(1e9, "active", "total", Shape(50257))
    with pytest.raises(ValueError, match="params must be positive"):
        recount(-1.0, "total", "non_embedding", Shape(50257))
    with pytest.raises(ValueError, match="vocabulary must be positive"):
        Shape(0)


def plant(smallest, largest):
    """Models of a range of non-embedding sizes on both sides of their best horizon; the law is in total parameters."""
    e, a, b, alpha, beta = BESIROGLU
    total = recount(np.geomspace(smallest, largest, 20), "non_embedding", "total", PEARCE)
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    best_tokens = (total / ratio) ** ((alpha + beta) / beta) / total
    n, share = (part.ravel() for part in np.meshgrid(total, [0.5, 0.7, 1.0, 1.4, 2.0], indexing="ij"))
    d = np.repeat(best_tokens, 5) * share
    return Observations(n, d, e + a * n**-alpha + b * d**-beta, params_convention="total")


def test_kaplans_exponent_comes_from_his_counting():
    """Pearce and Song 2024: Chinchilla's law, counted without embeddings over Kaplan's sizes (790 to 1.58e9), looks
    like N* ~ C^.74 to C^.78 where the truth is .51."""
    by_name = {
        split.counting: split for split in compare_countings(plant(790, 1.58e9), "total", 1e20, PEARCE, bootstrap=50)
    }
    assert by_name["total"].exponent.value == pytest.approx(0.3658 / 0.7136, abs=2e-3)
    assert 0.7 < by_name["non_embedding"].exponent.value < 0.85
    assert by_name["total"].params_non_embedding < by_name["total"].params.value


def test_counting_hardly_matters_for_large_models():
    splits = compare_countings(plant(1e9, 1e12), "total", 1e23, PEARCE, bootstrap=50)
    sizes = [split.params_non_embedding for split in splits]
    assert max(sizes) / min(sizes) < 1.1
    assert np.ptp([split.exponent.value for split in splits]) < 0.02
    table = tabulate_countings(splits)
    assert list(table.counting) == ["non_embedding", "with_head", "total"]
    assert (6 * table.params * table.tokens).to_numpy() == pytest.approx([1e23] * 3)


def test_recounted_runs_say_how_they_count():
    runs = plant(1e8, 1e10)
    without = recount_runs(runs, "total", "non_embedding", PEARCE)
    assert without.params_convention == "non_embedding"
    assert without.compute == pytest.approx(6 * without.params_non_embedding * without.tokens)
    assert (without.params_non_embedding < runs.params_non_embedding).all()
