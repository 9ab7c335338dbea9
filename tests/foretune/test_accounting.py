"""Parameter and FLOP counts against hand-worked shapes."""

from __future__ import annotations

import pytest

from foretune.accounting import ModelShape, choose_ffn_width
from foretune.quantities import parse_count, parse_horizon, parse_quantity


def test_step_law_shape_is_counted_as_published() -> None:
    # Li et al. 2025: 7 layers of width 960 with a SwiGLU of 9368 have 214,663,680 parameters, norms apart.
    shape = ModelShape(width=960, depth=7, head_size=64, ffn_width=9368, vocab_size=65536)
    groups = shape.count_params()
    assert groups["attention"] + groups["feed_forward"] == 214_663_680
    assert shape.params_non_embedding == 214_663_680 + 7 * 2 * 960 + 960


def test_groups_of_a_small_shape() -> None:
    shape = ModelShape(width=8, depth=2, head_size=4, ffn_width=24, vocab_size=10, qk_norm=True)
    assert shape.count_params() == {
        "embedding": 80,
        "attention": 2 * 4 * 64,
        "feed_forward": 2 * 3 * 8 * 24,
        "norms": 2 * 2 * 8 + 8 + 2 * 2 * 4,
        "head": 80,
    }
    tied = ModelShape(width=8, depth=2, head_size=4, ffn_width=24, vocab_size=10, tied_head=True)
    assert tied.count_params()["head"] == 0
    assert tied.params_total == tied.params_non_embedding + 80


def test_flops_per_token_follow_palm_appendix_b() -> None:
    shape = ModelShape(width=8, depth=2, head_size=4, ffn_width=24, vocab_size=10)
    matrices = 2 * 4 * 64 + 2 * 3 * 8 * 24 + 80
    assert shape.flops_per_token(16) == 6 * matrices + 12 * 2 * 8 * 16


def test_a_mixture_of_experts_is_counted_by_hand() -> None:
    shape = ModelShape(
        width=8,
        depth=2,
        head_size=4,
        ffn_width=24,
        vocab_size=10,
        experts=6,
        active_experts=2,
        shared_experts=1,
        expert_width=16,
    )
    expert = 3 * 8 * 16
    assert shape.count_params()["feed_forward"] == 2 * 7 * expert
    assert shape.count_params()["router"] == 2 * 6 * 8
    assert shape.params_total - shape.params_active == 2 * 4 * expert
    assert shape.activation_ratio == 3 / 7
    matrices = 2 * (4 * 64 + 3 * expert + 6 * 8) + 80
    assert shape.flops_per_token(16) == 6 * matrices + 12 * 2 * 8 * 16


def test_an_activation_ratio_is_that_of_tian_et_al() -> None:
    # Tian et al. 2025 (arXiv 2507.17702): Ling-mini-beta has 384 experts, 12 of them active, 1 shared, A = 3.4 %.
    shape = ModelShape(
        width=2048,
        depth=20,
        head_size=128,
        ffn_width=5632,
        vocab_size=1,
        experts=384,
        active_experts=12,
        shared_experts=1,
        expert_width=384,
    )
    assert round(100 * shape.activation_ratio, 1) == 3.4


@pytest.mark.parametrize("width", [32, 48, 64, 128, 1024])
def test_ffn_width_is_a_near_multiple_of_eight(width: int) -> None:
    inner = choose_ffn_width(width, 8 / 3)
    assert inner % 8 == 0
    assert abs(inner - width * 8 / 3) <= 4


@pytest.mark.parametrize("text", ["", "abc", "7X", "1..2", "--3", "1e999", "20xN"])
def test_unreadable_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be (a number|finite), got"):
        parse_quantity(text)


def test_counts_are_whole() -> None:
    assert parse_count("1.5k") == 1500
    with pytest.raises(ValueError, match="must be a whole number"):
        parse_count("1.2345k")
    with pytest.raises(ValueError, match="must be a number"):
        parse_horizon("20xD")
