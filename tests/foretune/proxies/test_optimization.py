from __future__ import annotations

import math

import pytest
import torch

from foretune.parametrization import choose_rules
from foretune.proxies.model import Proxy, measure_loss
from foretune.proxies.optimization import build_optimizer, set_lr
from foretune.records import RunSpec
from foretune.schedules import schedule_lr
from foretune_factories import make_spec


def rates(spec: RunSpec) -> list[float]:
    return [schedule_lr(spec.training, step) for step in range(spec.training.steps)]


def test_wsd_by_hand() -> None:
    spec = make_spec(peak_lr=1.0, steps=10, warmup_steps=4, decay_steps=4, final_lr_fraction=0.0)
    assert rates(spec) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_wsd_ends_at_the_final_fraction() -> None:
    spec = make_spec(peak_lr=0.5, steps=10, warmup_steps=0, decay_steps=5, final_lr_fraction=0.2)
    assert schedule_lr(spec.training, 10) == pytest.approx(0.1)
    assert rates(spec)[:6] == [0.5] * 6
    assert rates(spec)[6:] == pytest.approx([0.42, 0.34, 0.26, 0.18])


def test_cosine_by_its_formula() -> None:
    spec = make_spec(peak_lr=2.0, schedule="cosine", steps=100, warmup_steps=20, decay_steps=0, final_lr_fraction=0.1)
    for step in range(20, 100):
        expected = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * (step - 20) / 80))
        assert schedule_lr(spec.training, step) == pytest.approx(expected)
    assert schedule_lr(spec.training, 60) == pytest.approx(1.1)
    assert schedule_lr(spec.training, 100) == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (1, 1), (0, 7), (7, 0), (3, 4)])
def test_every_rate_is_above_zero_and_at_most_the_peak(schedule: str, warmup: int, decay: int) -> None:
    spec = make_spec(schedule=schedule, steps=7, warmup_steps=warmup, decay_steps=decay, peak_lr=0.3)
    assert all(0 < rate <= 0.3 for rate in rates(spec))
    assert max(rates(spec)) == 0.3


def test_groups_carry_the_multipliers_of_the_rules() -> None:
    spec = make_spec(width=64, peak_lr=0.01, weight_decay=0.2)
    model = Proxy(spec.model, seq_len=16, seed=0)
    optimizer = build_optimizer(model, spec.model, spec.training)
    set_lr(optimizer, 0.004)
    for group, rule in zip(optimizer.param_groups, choose_rules(spec.model), strict=True):
        assert group["lr"] == pytest.approx(0.004 * rule.lr_multiplier)
        assert group["weight_decay"] == pytest.approx(0.2 * rule.weight_decay_multiplier)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}


def test_the_first_step_is_the_closed_form_of_adamw() -> None:
    """After one step m/sqrt(v) is g/|g|, so w becomes w (1 - lr wd) - lr g / (|g| + eps)."""
    spec = make_spec(width=64, weight_decay=0.5, eps=1e-3)
    model = Proxy(spec.model, seq_len=16, seed=0)
    optimizer = build_optimizer(model, spec.model, spec.training)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    measure_loss(model, torch.randint(0, 257, (4, 17), generator=torch.Generator().manual_seed(0))).backward()
    set_lr(optimizer, 0.01)
    optimizer.step()
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, value in model.named_parameters():
        lr, decay = groups[id(value)]["lr"], groups[id(value)]["weight_decay"]
        assert value.grad is not None
        expected = before[name] * (1 - lr * decay) - lr * value.grad / (value.grad.abs() + 1e-3)
        torch.testing.assert_close(value.detach(), expected, atol=1e-6, rtol=1e-5)
