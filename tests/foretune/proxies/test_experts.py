"""The stacked experts against a loop over tokens, Mixtral's block in `transformers`, and closed forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from foretune.corpora import BatchStream, Corpus
from foretune.proxies import experts as module
from foretune.proxies.decoder import Decoder
from foretune.proxies.experts import Experts, group_by_size, group_in_blocks
from foretune.proxies.library import import_transformers
from foretune.proxies.stepping import Stepper
from foretune.records import DecoderSpec, ExpertsSpec, RunSpec
from foretune_factories import make_spec

COUNT, WIDTH = 6, 32

MakeRun = Callable[..., RunSpec]


def make_model(*, activation: str = "swiglu", width: int = WIDTH, **overrides: Any) -> DecoderSpec:
    fields: dict[str, Any] = {
        "count": COUNT,
        "active": 2,
        "shared": 0,
        "width": 24,
        "base_width": 24,
        "balance": "global",
        "balance_weight": 1.0,
        "router_z_weight": 0.0,
    }
    experts = ExpertsSpec(**{**fields, **overrides})
    return make_spec(width=width).model.model_copy(update={"activation": activation, "experts": experts})


def build(model: DecoderSpec, members: int = 1, *, skew: float = 1.0) -> Experts:
    """With weights drawn alike for all; `skew` is the size of the router's logits."""
    experts, generator = Experts(model, members), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        experts.router.weight.mul_(skew)
    return experts


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def feed(x: Tensor, into: Tensor, down: Tensor, activation: str) -> Tensor:
    if activation == "relu2":
        return down @ torch.clamp(into @ x, min=0) ** 2
    gate, up = (into @ x).chunk(2)
    return down @ (gate / (1 + torch.exp(-gate)) * up)


def loop(model: DecoderSpec, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """One member, token by token and expert by expert: T D to T D."""
    spec, name = model.experts, "gate_up" if model.activation == "swiglu" else "up"
    assert spec is not None
    outputs = []
    for token in x:
        logits = weights["router.weight"] @ token
        chances = torch.exp(logits) / torch.exp(logits).sum()
        chosen = sorted(range(spec.count), key=lambda e: -chances[e].item())[: spec.active]
        total = sum(chances[e] for e in chosen) if spec.active > 1 else 1.0
        output = torch.zeros_like(token)
        for e in chosen:
            matrices = weights[f"experts_{name}"][e], weights["experts_down"][e]
            output = output + chances[e] / total * feed(token, *matrices, model.activation)
        for s in range(spec.shared):  # the shared experts lie side by side in one matrix
            inner = slice(s * spec.width, (s + 1) * spec.width)
            into = weights[f"shared_{name}.weight"].unflatten(0, (-1, spec.shared, spec.width))[:, s].flatten(0, 1)
            output = output + feed(token, into, weights["shared_down.weight"][:, inner], model.activation)
        outputs.append(output)
    return torch.stack(outputs)


VARIANTS: list[tuple[dict[str, Any], int, float]] = [
    ({}, 1, 1.0),
    ({"shared": 2}, 3, 1.0),
    ({"active": 1}, 2, 1.0),
    ({"activation": "relu2", "shared": 1, "active": 3}, 3, 1.0),
    ({"width": 48}, 2, 30.0),
]


@pytest.mark.parametrize("grouping", [group_by_size, group_in_blocks])
@pytest.mark.parametrize(("overrides", "members", "skew"), VARIANTS, ids=str)
def test_outputs_and_gradients_agree_with_a_loop_over_tokens(
    overrides: dict[str, Any],
    members: int,
    skew: float,
    grouping: Callable[..., module.Grouping],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_size = grouping is group_by_size
    monkeypatch.setattr(
        module, "group_assignments", lambda *args: group_by_size(*args[:2]) if by_size else group_in_blocks(*args)
    )
    model = make_model(**overrides)
    experts = build(model, members, skew=skew)
    x = draw(members, 2, 7, model.width).requires_grad_()
    wish = draw(members, 2, 7, model.width, seed=2)
    actual = torch.autograd.grad((experts(x) * wish).sum(), [x, *experts.parameters()])

    names = [name for name, _ in experts.named_parameters()]
    for member in range(members):
        weights = {n: p[member].detach().double().requires_grad_() for n, p in experts.named_parameters()}
        tokens = x[member].detach().double().flatten(0, 1).requires_grad_()
        scaled = {**weights, "router.weight": weights["router.weight"] * experts.router_scale}
        output = loop(model, scaled, tokens)
        torch.testing.assert_close(experts(x)[member].flatten(0, 1).double(), output, atol=2e-5, rtol=2e-5)
        expected = torch.autograd.grad((output * wish[member].flatten(0, 1)).sum(), [tokens, *weights.values()])
        for name, mine, theirs in zip(["x", *names], actual, expected, strict=True):
            torch.testing.assert_close(
                mine[member].double().view_as(theirs), theirs, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_blocks_hold_every_assignment_once_in_a_block_of_its_group() -> None:
    generator = torch.Generator().manual_seed(0)
    for count, draws in ((6, 40), (12, 12), (6, 3)):
        for power in (1, 8):  # even, and nearly all in the first group of each member
            each = (torch.rand(2, draws, generator=generator) ** power * count // 2).long()
            groups = (each + torch.tensor([[0], [count // 2]])).flatten()
            blocks = group_in_blocks(groups, count, 2)
            assert blocks.owners is not None
            size = len(blocks.sources) // len(blocks.owners)
            assert torch.equal(blocks.sources[blocks.places], torch.arange(len(groups)))
            assert torch.equal(blocks.owners[blocks.places // size], groups)
            assert torch.equal(blocks.counts, torch.bincount(groups, minlength=count))
            assert len(blocks.sources) <= 2 * len(groups) + 2 * count


@pytest.mark.parametrize("grouping", [group_by_size, group_in_blocks])
def test_a_member_that_is_not_a_number_harms_no_other(
    grouping: Callable[..., module.Grouping], monkeypatch: pytest.MonkeyPatch
) -> None:
    if grouping is group_in_blocks:
        monkeypatch.setattr(module, "group_assignments", group_in_blocks)
    model = make_model(shared=1, router_z_weight=0.1)
    sound, broken = build(model, 3), build(model, 3)
    x = draw(3, 2, 7, WIDTH)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter[0] = math.nan
    spoilt = torch.cat([torch.full_like(x[:1], math.nan), x[1:]])
    outputs = [experts(inputs).square().sum((1, 2, 3)) for experts, inputs in ((sound, x), (broken, spoilt))]
    for experts, output in zip((sound, broken), outputs, strict=True):
        (output + experts.auxiliary_loss()).sum().backward()
    assert outputs[1][0].isnan()
    assert torch.equal(outputs[0][1:], outputs[1][1:])
    for mine, theirs in zip(sound.parameters(), broken.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert torch.equal(mine.grad[1:], theirs.grad[1:])


def test_a_member_is_what_it_would_be_alone() -> None:
    model = make_model(shared=1)
    together, x = build(model, 3), draw(3, 2, 9, WIDTH)
    for member in range(3):
        alone = Experts(model, 1)
        alone.load_state_dict({name: value[member : member + 1] for name, value in together.state_dict().items()})
        torch.testing.assert_close(alone(x[member : member + 1])[0], together(x)[member], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(alone.auxiliary_loss()[0], together.auxiliary_loss()[member])


def test_it_is_mixtrals_sparse_block() -> None:
    import_transformers()
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    model = make_model()
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=24, num_local_experts=COUNT, num_experts_per_tok=2, hidden_act="silu"
    )
    experts, block = build(model), MixtralSparseMoeBlock(config)
    with torch.no_grad():
        block.gate.weight.copy_(experts.router.weight[0])
        block.experts.gate_up_proj.copy_(experts.experts_gate_up[0])
        block.experts.down_proj.copy_(experts.experts_down[0])
    x, wish = draw(1, 3, 8, WIDTH), draw(1, 3, 8, WIDTH, seed=2)
    output, theirs = experts(x), block(x[0])
    torch.testing.assert_close(output[0], theirs, atol=1e-6, rtol=1e-5)
    (output * wish).sum().backward()
    (theirs * wish[0]).sum().backward()
    pairs = [
        (experts.router.weight.grad, block.gate.weight.grad),
        (experts.experts_gate_up.grad, block.experts.gate_up_proj.grad),
        (experts.experts_down.grad, block.experts.down_proj.grad),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine[0], other, atol=1e-5, rtol=1e-5)


def test_balance_is_one_for_an_even_router_and_the_number_of_experts_after_a_collapse() -> None:
    x = draw(1, 2, 500, WIDTH).abs()
    even = build(make_model(balance_weight=0.25), skew=0.0)
    even(x)
    assert even.auxiliary_loss().item() == pytest.approx(0.25)  # P = 1/E whatever f
    collapsed = build(make_model(active=1, balance_weight=0.25))
    with torch.no_grad():
        collapsed.router.weight.zero_()[0, 2] = 10.0
    collapsed(x)
    assert collapsed.auxiliary_loss().item() == pytest.approx(0.25 * COUNT)
    assert collapsed.load()[0].tolist() == [0, 0, 1, 0, 0, 0]
    assert collapsed.violation().tolist() == [COUNT - 1]


def test_router_loss_is_the_mean_square_of_the_log_sum_exp() -> None:
    model = make_model(balance="none", router_z_weight=0.5)
    experts, x = build(model, skew=2.0), draw(1, 2, 9, WIDTH)
    experts(x)
    logits = x.double() @ experts.router.weight[0].T.double()
    expected = 0.5 * (torch.exp(logits).sum(-1).log() ** 2).mean()
    assert experts.auxiliary_loss().item() == pytest.approx(expected.item(), rel=1e-5)
    even = build(model, skew=0.0)
    even(x)
    assert even.auxiliary_loss().item() == pytest.approx(0.5 * math.log(COUNT) ** 2)


def test_balance_pulls_on_the_chances_and_never_on_the_counts() -> None:
    experts, x = build(make_model(), skew=2.0), draw(1, 1, 50, WIDTH)
    experts(x)
    experts.auxiliary_loss().sum().backward()
    chances = (x[0, 0] @ experts.router.weight[0].T).softmax(-1).detach()
    shares = experts.load()[0]
    # d/d logits of E sum_e f_e mean_n p_ne, with f held fixed: E/N p (f - sum_e f_e p_e)
    by_hand = COUNT / 50 * chances * (shares - chances @ shares[:, None])
    torch.testing.assert_close(experts.router.weight.grad[0], by_hand.T @ x[0, 0], atol=1e-6, rtol=1e-4)
    assert experts.experts_down.grad is None


@pytest.mark.parametrize("balance", ["global", "micro"])
def test_four_micro_batches_balance_over_all_or_over_the_last(balance: str) -> None:
    x = draw(2, 8, 5, WIDTH) + draw(1, 8, 1, WIDTH, seed=5)  # sequences differ in what they are about
    whole = build(make_model(balance=balance), 2, skew=2.0)
    whole.begin_step()
    whole(x)
    parts = build(make_model(balance=balance), 2, skew=2.0)
    for batch in (-x, x):  # the second step must know nothing of the first
        parts.begin_step()
        for micro in batch.chunk(4, dim=1):
            parts(micro)
    torch.testing.assert_close(parts.load(), whole.load())

    logits = torch.einsum("kbtd,ked->kbte", x, parts.router.weight.detach())
    chosen = F.one_hot(logits.topk(2).indices, COUNT).double().sum(3)  # K B T E
    assert whole.load().allclose((chosen.mean((1, 2)) / 2).float())
    seen = chosen if balance == "global" else chosen[:, -2:]
    expected = COUNT * (seen.mean((1, 2)) / 2 * logits[:, -2:].softmax(-1).mean((1, 2))).sum(-1)
    torch.testing.assert_close(parts.auxiliary_loss().double(), expected, atol=1e-5, rtol=1e-5)
    other = COUNT * (chosen[:, -2:].mean((1, 2)) / 2 * logits[:, -2:].softmax(-1).mean((1, 2))).sum(-1)
    assert (balance == "micro") == torch.allclose(parts.auxiliary_loss().double(), other, atol=1e-3)


def test_a_pass_without_gradients_is_no_training() -> None:
    experts, x = build(make_model(router_z_weight=0.1)), draw(1, 2, 9, WIDTH)
    experts(x)
    before = experts.counts.clone()
    with torch.no_grad():
        experts(2 * x)
    assert torch.equal(experts.counts, before)
    assert experts.auxiliary_loss().tolist() == [0.0]


def test_a_step_begins_with_the_members_that_are_left() -> None:
    experts, x = build(make_model(), 3), draw(3, 2, 9, WIDTH)
    experts(x)
    for parameter in experts.parameters():
        parameter.data = parameter.data[[2, 0]]
    experts.begin_step()
    assert experts.load().tolist() == [[0.0] * COUNT] * 2
    experts(x[[2, 0]])
    again = build(make_model(), 3)
    again(x)
    assert torch.equal(experts.load(), again.load()[[2, 0]])


def test_the_router_stays_in_float32_under_autocast() -> None:
    model = make_model(shared=1, router_z_weight=0.1)
    exact, rounded, x = build(model), build(model), draw(1, 2, 40, WIDTH)
    expected = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = rounded(x)
    assert torch.equal(exact.counts, rounded.counts)
    assert torch.equal(exact.auxiliary_loss(), rounded.auxiliary_loss())
    assert not torch.equal(output, expected)
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("overrides", [{}, {"shared": 2, "active": 3}, {"activation": "relu2", "active": 1}], ids=str)
def test_counts_of_the_shape_are_those_of_the_tensors(overrides: dict[str, Any]) -> None:
    model = make_model(**overrides)
    spec, shape = model.experts, model.shape
    assert spec is not None
    decoder = Decoder(model, 1, 16)
    sizes = {name: parameter.numel() for name, parameter in decoder.named_parameters()}
    routed = sum(size for name, size in sizes.items() if "experts_" in name)
    shared = sum(size for name, size in sizes.items() if "shared_" in name)
    assert shape.params_total == sum(sizes.values())
    assert shape.params_active == sum(sizes.values()) - routed * (COUNT - spec.active) // COUNT
    assert shape.activation_ratio == pytest.approx((routed * spec.active / COUNT + shared) / (routed + shared))

    block, x = decoder.blocks[0].feed_forward, draw(1, 2, 8, WIDTH).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        block(x).sum().backward()
    dense = make_spec().model.shape
    attention = dense.flops_per_token(16) - 6 * dense.count_params()["feed_forward"]
    assert counter.get_total_flops() * model.depth == (shape.flops_per_token(16) - attention) * 16


def measure_violation(spec: RunSpec, corpus: Corpus) -> float:
    """Mean over the blocks and the second half of a real training."""
    stepper = Stepper([spec], corpus, torch.device("cpu"), compiled=False)
    stream = BatchStream(corpus, spec.data.mixture, spec.data.seq_len, spec.seed)
    violations = []
    for step in range(spec.training.steps):
        stepper.step(torch.from_numpy(stream.sequences(8 * step, 8))[None], [spec.training.peak_lr])
        violations.append(sum(block.feed_forward.violation().item() for block in stepper.model.blocks))
    return sum(violations[len(violations) // 2 :]) / (len(violations) // 2 * spec.model.depth)


@pytest.mark.live
def test_the_load_is_evener_with_a_balance_loss_than_without(make_run: MakeRun, corpus: Corpus) -> None:
    def run(balance: str) -> RunSpec:
        spec = make_run(steps=60)
        return spec.model_copy(update={"model": make_model(balance=balance, balance_weight=0.05)})

    assert measure_violation(run("global"), corpus) < 0.6 * measure_violation(run("none"), corpus)


def test_compiled_it_is_the_same() -> None:
    experts, x = build(make_model(shared=1), 2), draw(2, 2, 9, WIDTH)
    twin = copy.deepcopy(experts)
    compiled = torch.compile(twin, backend="aot_eager", dynamic=False)  # traces all, needs no C++ compiler
    (experts(x).square().sum() + experts.auxiliary_loss().sum()).backward()
    (compiled(x).square().sum() + twin.auxiliary_loss().sum()).backward()
    assert torch.equal(experts.counts, twin.counts)
    for mine, theirs in zip(experts.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-4)
