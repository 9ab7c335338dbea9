from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from foretune.parametrization import choose_multipliers, choose_rules
from foretune.proxies.decoder import Decoder, measure_losses
from foretune.proxies.layers import Rotary
from foretune.records import DecoderSpec
from foretune_factories import make_spec

VARIANTS = [
    {},
    {"qk_norm": True, "tied_head": True},
    {"width": 64, "head_size": 32, "depth": 1, "parametrization": "standard"},
    {"width": 64, "queries_per_key": 2, "parametrization": "completep", "depth": 3},
    {"activation": "relu2", "queries_per_key": 2, "tied_head": True},
]


def build(members: int = 1, **overrides: Any) -> tuple[Decoder, DecoderSpec]:
    """Members with seeds 0, 1, ... and gains that are not all 1."""
    model = make_spec(**overrides).model
    assert isinstance(model, DecoderSpec)
    decoder = Decoder(model, members, seq_len=24)
    generator = torch.Generator().manual_seed(1)
    for member in range(members):
        decoder.initialise(member, seed=member)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("gain"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return decoder, model


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


def compute_logits(decoder: Decoder, member: int, model: DecoderSpec, ids: np.ndarray) -> np.ndarray:
    """The whole model for one sequence, written again in float64 loops over heads."""
    weights = {name: value[member].double().numpy() for name, value in decoder.state_dict().items()}
    x = weights["embedding.weight"][ids]
    size, scales = model.head_size, choose_multipliers(model)
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for number in range(model.depth):
        layer = {k.removeprefix(f"blocks.{number}."): v for k, v in weights.items() if f"blocks.{number}." in k}
        normed = norm(x, layer["attention_norm.gain"])
        sizes = [model.width, model.width + model.width // model.queries_per_key]
        query, key, value = np.split(normed @ layer["attention.query_key_value.weight"].T, sizes, axis=-1)
        outputs = []
        for start in range(0, model.width, size):
            shared = start // size // model.queries_per_key * size
            q, k, v = query[:, start : start + size], key[:, shared : shared + size], value[:, shared : shared + size]
            if model.qk_norm:
                q, k = norm(q, layer["attention.query_norm.gain"]), norm(k, layer["attention.key_norm.gain"])
            scores = rotate(q, model.rope_base) @ rotate(k, model.rope_base).T * scales.attention + future
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            outputs.append(shares / shares.sum(-1, keepdims=True) @ v)
        x = x + scales.residual * (np.concatenate(outputs, -1) @ layer["attention.attention_output.weight"].T)
        normed = norm(x, layer["feed_forward_norm.gain"])
        if model.activation == "relu2":
            inner = np.maximum(normed @ layer["feed_forward.up.weight"].T, 0) ** 2
        else:
            gate, up = np.split(normed @ layer["feed_forward.gate_up.weight"].T, 2, -1)
            inner = gate / (1 + np.exp(-gate)) * up
        x = x + scales.residual * (inner @ layer["feed_forward.down.weight"].T)
    return norm(x, weights["norm.gain"]) @ weights["head.weight"].T * scales.logits


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_logits_agree_with_the_model_written_out_in_numpy(overrides: dict[str, Any], members: int) -> None:
    decoder, model = build(members, **overrides)
    ids = draw_tokens(members, 2, 20)
    with torch.no_grad():
        logits = decoder(ids).numpy()
    for member in range(members):
        for row, found in zip(ids[member].numpy(), logits[member], strict=True):
            np.testing.assert_allclose(compute_logits(decoder, member, model, row), found, atol=2e-4)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("width", [32, 64, 128, 96])
def test_a_logit_scale_put_into_the_head_changes_no_bit(width: int, members: int) -> None:
    decoder, model = build(members, width=width, base_width=32)
    scale = choose_multipliers(model).logits
    assert scale == 32 / width
    assert (decoder.head_scale == 1) == (width in (32, 96))  # 1/3 is rounded wherever it is applied: to the outputs
    ids = draw_tokens(members, 2, 21)

    def differentiate() -> list[torch.Tensor]:
        logits = decoder(ids[..., :-1])
        gradients = torch.autograd.grad(measure_losses(logits, ids[..., 1:]).sum(), list(decoder.parameters()))
        return [logits, *gradients]

    found = differentiate()
    decoder.head_scale, decoder.logit_scale = 1.0, scale
    assert all(torch.equal(*pair) for pair in zip(found, differentiate(), strict=True))


def test_no_position_sees_the_future() -> None:
    decoder, _ = build()
    ids = draw_tokens(1, 1, 24)
    changed = ids.clone()
    changed[0, 0, 15] = (ids[0, 0, 15] + 1) % 257
    with torch.no_grad():
        before, after = decoder(ids), decoder(changed)
    assert torch.equal(before[0, 0, :15], after[0, 0, :15])
    assert not torch.allclose(before[0, 0, 15:], after[0, 0, 15:])


def test_a_member_has_the_weights_of_its_seed_whoever_is_beside_it() -> None:
    three, model = build(3)
    alone = Decoder(model, 1, seq_len=24)
    alone.initialise(0, seed=2)
    for (name, value), (_, beside) in zip(alone.named_parameters(), three.named_parameters(), strict=True):
        if not name.endswith("gain"):
            assert torch.equal(value[0], beside[2]), name
    assert not torch.equal(three.head.weight[0], three.head.weight[2])


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_every_group_has_a_rule_and_its_initial_weights(overrides: dict[str, Any]) -> None:
    decoder, model = build(**overrides)
    groups = decoder.groups()
    found: dict[str, list[torch.Tensor]] = {}
    for name, parameter in decoder.named_parameters():
        found.setdefault(groups[name], []).append(parameter.detach().flatten())
    rules = {rule.name: rule for rule in choose_rules(model)}
    assert set(rules) == set(found)
    for name, rule in rules.items():
        assert sum(map(len, found[name])) == rule.params, name
        if rule.init_std:
            assert torch.cat(found[name]).std().item() == pytest.approx(rule.init_std, rel=0.1), name


def test_no_gradient_crosses_from_member_to_member() -> None:
    decoder, _ = build(3, qk_norm=True)
    tokens = draw_tokens(3, 2, 25)
    losses = measure_losses(decoder(tokens[..., :-1]), tokens[..., 1:])
    losses[1].backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad[1].any(), name
        assert not parameter.grad[[0, 2]].any(), name


def test_rotary_products_depend_on_the_distance_alone() -> None:
    rotary = Rotary(head_size=8, seq_len=40, base=100.0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    products = rotary(query.expand(1, 1, 40, 8))[0, 0] @ rotary(key.expand(1, 1, 40, 8))[0, 0].T
    for distance in (0, 3, 17):
        along = torch.diagonal(products, -distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products[3, 0], products[17, 0])


def test_loss_is_the_mean_cross_entropy_of_the_next_token() -> None:
    decoder, _ = build(2)
    tokens = draw_tokens(2, 3, 25)
    with torch.no_grad():
        logits = decoder(tokens[..., :-1])
        chances = logits.double().softmax(-1)
        expected = -chances.gather(-1, tokens[..., 1:, None]).log().mean(dim=(1, 2, 3))
        torch.testing.assert_close(measure_losses(logits, tokens[..., 1:]).double(), expected, rtol=1e-6, atol=0)


def test_a_model_with_a_head_of_zeros_is_uniform() -> None:
    decoder, _ = build()
    tokens = draw_tokens(1, 2, 25)
    with torch.no_grad():
        decoder.head.weight.zero_()
        losses = measure_losses(decoder(tokens[..., :-1]), tokens[..., 1:])
    assert losses.item() == pytest.approx(math.log(257), rel=1e-6)


def test_a_tied_head_is_the_embedding_and_starts_as_calm_as_an_untied_one() -> None:
    tied, _ = build(tied_head=True)
    untied, _ = build(tied_head=False)
    assert tied.head.weight is tied.embedding.weight
    with torch.no_grad():
        ids = draw_tokens(1, 8, 24)
        assert tied(ids).std().item() == pytest.approx(untied(ids).std().item(), rel=0.5)
