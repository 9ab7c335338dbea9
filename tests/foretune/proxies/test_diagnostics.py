from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretune.parametrization import GroupRule, choose_rules
from foretune.proxies.decoder import Decoder
from foretune.proxies.diagnostics import MEASURES, StepProbe, measure_attention
from foretune.proxies.optimizers import StackedOptimizer, build_optimizer
from foretune.proxies.state import StackedState
from foretune_factories import make_spec

HIDDEN = GroupRule("matrix", "hidden", 1, 0.0, 1.0, 1.0, 1.0)
EMBEDDING = GroupRule("table", "embedding", 1, 0.0, 1.0, 1.0, 1.0)


def build_rows(members: int, optimizer: str, **training: object) -> tuple[StackedState, StackedOptimizer]:
    """Members of a hidden matrix of 40 numbers and an embedding of 60."""
    module = nn.Module()
    module.matrix = nn.Parameter(torch.ones(members, 5, 8))
    module.table = nn.Parameter(torch.ones(members, 10, 6))
    state = StackedState(module, {"matrix": "matrix", "table": "table"})
    spec = make_spec(optimizer=optimizer, **{"weight_decay": 0.0, **training}).training
    return state, build_optimizer(state, {"matrix": HIDDEN, "table": EMBEDDING}, [spec] * members)


def step(
    state: StackedState, optimizer: StackedOptimizer, parts: Iterable[Tensor], apply: Tensor | None = None
) -> dict[str, Tensor]:
    """One diagnosed step from the gradients of equal parts of a batch, each [K, P]."""
    parts = list(parts)
    probe = StepProbe(state, optimizer)
    state.gradients.zero_()
    for part in parts:
        state.gradients.add_(part / len(parts))
        probe.see_backward()
    optimizer.step(torch.full((state.members,), 0.01), apply)
    return dict(zip(MEASURES, probe.read(), strict=True))


def test_plain_gradient_descent_goes_down_the_gradient() -> None:
    state, optimizer = build_rows(2, "sgd", momentum=0.0)
    gradients = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [7.0]])
    measured = step(state, optimizer, [gradients])
    torch.testing.assert_close(measured["update_cosine"], torch.ones(2))
    torch.testing.assert_close(measured["update_norm"], 0.01 * gradients.norm(dim=1), rtol=1e-4, atol=0)
    assert measured["saturated_share"].isnan().all()  # no second moment
    assert measured["near_eps_share"].isnan().all()


def test_momentum_against_a_turned_gradient_goes_up() -> None:
    state, optimizer = build_rows(1, "sgd", momentum=0.9)
    gradients = torch.ones(1, 100)
    step(state, optimizer, [gradients])
    assert step(state, optimizer, [-0.1 * gradients])["update_cosine"].item() == pytest.approx(-1)


def test_an_optimizer_that_writes_over_its_gradients_is_measured_against_what_they_were() -> None:
    """AdamWScheduleFree normalises them in place; its first update is their sign, unequal ones lie off it."""
    pytest.importorskip("schedulefree")
    state, optimizer = build_rows(1, "schedulefree")
    gradients = torch.randn(1, 100, generator=torch.Generator().manual_seed(4))
    expected = F.cosine_similarity(gradients, gradients.sign())
    torch.testing.assert_close(step(state, optimizer, [gradients])["update_cosine"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "nadamw"])
def test_the_saturated_share_is_that_of_gradients_that_keep_their_sign(optimizer: str) -> None:
    """m / sqrt(v) is 1 for a constant gradient; one that alternates has |m| near (1 - b1) / (1 + b1) sqrt(v)."""
    state, adam = build_rows(2, optimizer)
    signs = torch.ones(2, 100)
    constant = torch.zeros(2, 100, dtype=torch.bool)
    constant[0, :30], constant[1, :75] = True, True
    for _ in range(60):
        measured = step(state, adam, [torch.where(constant, 1.0, signs)])
        signs = -signs
    assert measured["saturated_share"].tolist() == pytest.approx([0.3, 0.75])


def test_the_saturated_share_has_both_bias_corrections() -> None:
    """After one step m / sqrt(v) is 1 whatever the gradient, without the corrections .1 / sqrt(.05) = .45."""
    state, adam = build_rows(1, "adamw")
    gradients = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    assert step(state, adam, [gradients])["saturated_share"].item() == 1


def test_gradients_below_eps_count_in_hidden_matrices_only() -> None:
    state, adam = build_rows(2, "adamw", eps=1e-4)
    gradients = torch.ones(2, 100)
    gradients[:, 40:] = 1e-6
    gradients[0, :10] = 0.9e-4
    gradients[1, :10] = 1.1e-4
    assert step(state, adam, [gradients])["near_eps_share"].tolist() == [0.25, 0]


def test_muon_is_measured_where_adam_updates() -> None:
    state, muon = build_rows(1, "muon")
    measured = step(state, muon, [torch.ones(1, 100)])
    assert measured["saturated_share"].item() == 1  # the embedding's 60 numbers
    assert measured["near_eps_share"].isnan().all()
    assert measured["update_norm"].isfinite().all()


def test_the_squares_are_those_of_the_parts() -> None:
    state, optimizer = build_rows(2, "adamw")
    parts = torch.randn(3, 2, 100, generator=torch.Generator().manual_seed(1))
    measured = step(state, optimizer, parts)
    torch.testing.assert_close(measured["small_square"], parts.square().sum(dim=2).mean(dim=0))


def test_members_do_not_meet() -> None:
    state, optimizer = build_rows(2, "adamw")
    gradients = torch.randn(2, 100, generator=torch.Generator().manual_seed(2))
    gradients[0, 5] = math.nan
    measured = step(state, optimizer, [gradients], apply=torch.tensor([False, True]))
    alone = step(*build_rows(1, "adamw"), [gradients[1:]])
    for name in MEASURES:
        torch.testing.assert_close(measured[name][1:], alone[name], equal_nan=True)
    assert measured["update_norm"][0] == 0


def softmax_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The largest score that a position may see, by loops."""
    sharing = query.shape[1] // key.shape[1]
    return torch.tensor(
        [
            max(
                scale * float(query[n, h, t].detach() @ key[n, h // sharing, s].detach())
                for h in range(query.shape[1])
                for t in range(query.shape[2])
                for s in range(t + 1)
            )
            for n in range(len(query))
        ]
    )


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_the_largest_attention_logit_is_found(key_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretune.proxies.diagnostics.SCORE_ELEMENTS", 2 * 4 * 7 * 7)  # two sequences at once
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(3, 4, 7, 6, generator=generator)
    key = torch.randn(3, key_heads, 7, 6, generator=generator)
    key[1, :, -1] = 100.0  # the last position, which only one query sees
    expected = softmax_scores(query, key, 0.3)
    torch.testing.assert_close(measure_attention(query, key, scale=0.3), expected)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(measure_attention(query, key, causal, 0.3), expected)
    added = torch.zeros(3, 1, 7, 7).masked_fill_(~causal, -1e30)
    torch.testing.assert_close(measure_attention(query, key, added, 0.3), expected)
    torch.testing.assert_close(measure_attention(query, key), softmax_scores(query, key, 6**-0.5))


def test_every_attention_of_a_model_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec(queries_per_key=2, qk_norm=True)
    model = Decoder(spec.model, 2, 16)
    for member in range(2):
        model.initialise(member, member)
    model.blocks[1].attention.query_norm.gain.data[1] *= 9  # in one member the last block has the largest
    state = StackedState(model, model.groups())
    rules = {rule.name: rule for rule in choose_rules(spec.model)}
    probe = StepProbe(state, build_optimizer(state, rules, [spec.training] * 2))
    ids = torch.randint(257, (2, 3, 16), generator=torch.Generator().manual_seed(5))
    plain = model(ids)
    with probe.forward():
        logits = model(ids)
    probe.see_logits(logits)
    probe.see_backward()
    assert torch.equal(logits, plain)
    measured = dict(zip(MEASURES, probe.read(), strict=True))
    torch.testing.assert_close(measured["logit_max"], plain.amax(dim=(1, 2, 3)))
    seen: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        scale = options["scale"]
        assert isinstance(scale, float)
        seen.append(softmax_scores(query, key, scale).view(2, 3).amax(dim=1))
        return attention(query, key, value, **options)

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    model(ids)
    assert len(seen) == spec.model.depth
    torch.testing.assert_close(measured["attention_logit_max"], torch.stack(seen).amax(dim=0))
