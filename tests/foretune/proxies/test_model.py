from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from foretune.parametrization import choose_multipliers
from foretune.proxies.model import Proxy, Rotary, measure_loss
from foretune.records import ModelSpec
from foretune_factories import make_spec

VARIANTS = [
    {},
    {"qk_norm": True, "tied_head": True},
    {"width": 64, "head_size": 32, "depth": 1, "parametrization": "standard"},
]


def build(seed: int = 0, **overrides: Any) -> tuple[Proxy, ModelSpec]:
    model = make_spec(**overrides).model
    proxy = Proxy(model, seq_len=24, seed=seed)
    with torch.no_grad():
        for gain in proxy.parameters_by_group()["norms"]:
            gain.copy_(1 + 0.1 * torch.randn(gain.shape, generator=torch.Generator().manual_seed(1)))
    return proxy, model


def draw_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 257, shape, generator=torch.Generator().manual_seed(0))


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gain


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary embedding as complex numbers: pair (k, k + K/2) at position t turns by t base^(-2k/K)."""
    half = x.shape[-1] // 2
    turns = np.outer(np.arange(x.shape[0]), base ** (-np.arange(half) / half))
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * turns)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def compute_logits(proxy: Proxy, model: ModelSpec, ids: np.ndarray) -> np.ndarray:
    """The whole model for one sequence, written again in float64 loops over heads."""
    weights = {name: value.double().numpy() for name, value in proxy.state_dict().items()}
    x = weights["embedding.weight"][ids]
    size, scales = model.head_size, choose_multipliers(model)
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for number in range(model.depth):
        layer = {k.removeprefix(f"blocks.{number}."): v for k, v in weights.items() if f"blocks.{number}." in k}
        normed = norm(x, layer["attention_norm.gain"])
        query, key, value = np.split(normed @ layer["attention.query_key_value.weight"].T, 3, axis=-1)
        outputs = []
        for start in range(0, model.width, size):
            q, k, v = (part[:, start : start + size] for part in (query, key, value))
            if model.qk_norm:
                q, k = norm(q, layer["attention.query_norm.gain"]), norm(k, layer["attention.key_norm.gain"])
            scores = rotate(q, model.rope_base) @ rotate(k, model.rope_base).T * scales.attention + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(shares / shares.sum(-1, keepdims=True) @ v)
        x = x + np.concatenate(outputs, -1) @ layer["attention.attention_output.weight"].T
        gate, up = np.split(norm(x, layer["feed_forward_norm.gain"]) @ layer["feed_forward.gate_up.weight"].T, 2, -1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["feed_forward.down.weight"].T
    return norm(x, weights["norm.gain"]) @ weights["head.weight"].T * scales.logits


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_logits_agree_with_the_model_written_out_in_numpy(overrides: dict[str, Any]) -> None:
    proxy, model = build(**overrides)
    ids = draw_tokens(2, 20)
    with torch.no_grad():
        logits = proxy(ids).numpy()
    for row, expected in zip(ids.numpy(), logits, strict=True):
        np.testing.assert_allclose(compute_logits(proxy, model, row), expected, atol=2e-4)


def test_no_position_sees_the_future() -> None:
    proxy, _ = build()
    ids = draw_tokens(1, 24)
    changed = ids.clone()
    changed[0, 15] = (ids[0, 15] + 1) % 257
    with torch.no_grad():
        before, after = proxy(ids), proxy(changed)
    assert torch.equal(before[0, :15], after[0, :15])
    assert not torch.allclose(before[0, 15:], after[0, 15:])


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary(head_size=8, seq_len=40, base=100.0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    products = rotary(query.expand(1, 1, 40, 8))[0, 0] @ rotary(key.expand(1, 1, 40, 8))[0, 0].T
    for distance in (0, 3, 17):
        along = torch.diagonal(products, -distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products[3, 0], products[17, 0])


def test_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    proxy, _ = build()
    tokens = draw_tokens(3, 25)
    with torch.no_grad():
        chances = proxy(tokens[:, :-1]).double().softmax(-1)
        expected = -chances.gather(-1, tokens[:, 1:, None]).log().mean()
        assert measure_loss(proxy, tokens).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_model_with_a_head_of_zeros_is_uniform() -> None:
    proxy, _ = build()
    with torch.no_grad():
        proxy.head.weight.zero_()
        assert measure_loss(proxy, draw_tokens(2, 25)).item() == pytest.approx(math.log(257), rel=1e-6)


def test_a_tied_head_is_the_embedding_and_starts_as_calm_as_an_untied_one() -> None:
    tied, _ = build(tied_head=True)
    untied, _ = build(tied_head=False)
    assert tied.head.weight is tied.embedding.weight
    with torch.no_grad():
        ids = draw_tokens(8, 24)
        assert tied(ids).std().item() == pytest.approx(untied(ids).std().item(), rel=0.5)
