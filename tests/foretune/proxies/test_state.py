from __future__ import annotations

import torch
from torch import nn

from foretune.proxies.decoder import Decoder
from foretune.proxies.state import StackedState
from foretune.records import DecoderSpec
from foretune_factories import make_spec


def build(members: int = 3, **overrides: object) -> tuple[Decoder, StackedState]:
    model = make_spec(**overrides).model
    assert isinstance(model, DecoderSpec)
    decoder = Decoder(model, members, seq_len=16)
    for member in range(members):
        decoder.initialise(member, seed=member)
    return decoder, StackedState(decoder, decoder.groups())


def compute_logits(decoder: Decoder, members: int) -> torch.Tensor:
    ids = torch.randint(0, 257, (2, 16), generator=torch.Generator().manual_seed(0))
    return decoder(ids.expand(members, -1, -1))  # type: ignore[no-any-return]


def test_rows_hold_every_parameter_once() -> None:
    for tied_head in (False, True):
        decoder, state = build(tied_head=tied_head, qk_norm=True)
        assert state.weights.shape == (3, decoder.spec.shape.params_total)
        assert [slot.start for slot in state.slots] == [0, *(slot.stop for slot in state.slots)][:-1]
        assert state.slots[-1].stop == state.weights.shape[1]
        assert {slot.name for slot in state.slots} == dict(decoder.named_parameters()).keys()
        for slot in state.slots:
            assert torch.equal(state.view(state.weights, slot), decoder.get_parameter(slot.name))


def test_the_module_computes_with_the_rows_and_its_gradients_go_into_them() -> None:
    decoder, state = build()
    logits = compute_logits(decoder, 3)
    logits.square().sum().backward()
    assert all(state.view(state.gradients, slot).any() for slot in state.slots)
    expected = {slot.name: state.view(state.gradients, slot).clone() for slot in state.slots}
    compute_logits(decoder, 3).square().sum().backward()
    for slot in state.slots:
        torch.testing.assert_close(state.view(state.gradients, slot), 2 * expected[slot.name])
    state.weights.zero_()
    assert not compute_logits(decoder, 3).any()


def test_members_are_kept_dropped_and_doubled() -> None:
    decoder, state = build()
    before = compute_logits(decoder, 3).detach()
    state.take(torch.tensor([2, 0, 2]))
    torch.testing.assert_close(compute_logits(decoder, 3), before[[2, 0, 2]])
    with torch.no_grad():
        state.weights[2] *= 0.5  # a copy, not the same row
    assert not torch.equal(state.weights[0], state.weights[2])
    state.take(torch.tensor([1]))
    torch.testing.assert_close(compute_logits(decoder, 1), before[[0]])
    compute_logits(decoder, 1).sum().backward()
    assert state.gradients.shape == state.weights.shape == (1, decoder.spec.shape.params_total)
    assert state.gradients.any()


def test_some_members_can_be_looked_at_alone() -> None:
    decoder, state = build()
    before = compute_logits(decoder, 3).detach()
    kept = state.weights
    with torch.no_grad(), state.only(torch.tensor([2])):
        torch.testing.assert_close(compute_logits(decoder, 1), before[[2]])
    assert state.weights is kept
    torch.testing.assert_close(compute_logits(decoder, 3), before)


def test_an_ordinary_module_is_one_member() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = module(x).detach()
    state = StackedState(module, dict.fromkeys((name for name, _ in module.named_parameters()), "all"), stacked=False)
    assert state.weights.shape == (1, 3 * 4 + 4 + 4 * 2)
    torch.testing.assert_close(module(x), before)
    module(x).sum().backward()
    for slot in state.slots:
        parameter = module.get_parameter(slot.name)
        assert slot.shape == parameter.shape
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == state.view(state.gradients, slot).data_ptr()
