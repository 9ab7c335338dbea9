"""Every optimizer against PyTorch's, or the lines of its paper, on the same gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.parametrization import GroupRule
from foretune.proxies.elementwise import ElementwiseOptimizer, StackedOptimizer
from foretune.proxies.muon import COEFFICIENTS, orthogonalise
from foretune.proxies.optimizers import OPTIMIZERS, build_optimizer
from foretune.proxies.state import StackedState
from foretune.records import TrainingSpec
from foretune_factories import make_spec

SHAPES = {"table": (11, 4), "wide": (4, 12), "tall": (9, 4), "gain": (4,), "second_wide": (4, 12), "head": (11, 4)}
GROUPS = {
    "table": "embedding",
    "wide": "hidden",
    "tall": "down",
    "gain": "norms",
    "second_wide": "hidden",
    "head": "head",
}
RULES = {
    "embedding": GroupRule("embedding", "embedding", 44, 1.0, 1.0, 1.0, 0.5),
    "hidden": GroupRule("hidden", "hidden", 96, 0.5, 0.25, 4.0, 0.5),
    "down": GroupRule("down", "hidden", 36, 0.5, 0.5, 2.0, 1.0),
    "norms": GroupRule("norms", "vector", 4, 0.0, 1.0, 0.0, 1.0),
    "head": GroupRule("head", "head", 44, 0.5, 1.0, 1.0, 1.0),
}
STACKED = ("adamw", "nadamw", "nadamw_constant", "lion", "sgd", "muon")
DIFFERENT = (
    {},
    {"beta1": 0.8, "weight_decay": 0.3, "momentum": 0.9},
    {"beta2": 0.999, "eps": 1e-3, "weight_decay": 0.0, "momentum": 0.5},
)
"""Settings of three members."""


class Tensors(nn.Module):
    """Parameters [K, *shape] and no forward pass."""

    def __init__(self, members: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(members, *shape, generator=generator)))


def settings(optimizer: str, **overrides: Any) -> TrainingSpec:
    return make_spec(optimizer=optimizer, peak_lr=0.01, **overrides).training


def build(
    optimizer: str, members: tuple[dict[str, Any], ...] = DIFFERENT, rules: dict[str, GroupRule] = RULES
) -> tuple[StackedState, StackedOptimizer]:
    state = StackedState(Tensors(len(members)), GROUPS)
    return state, build_optimizer(state, rules, [settings(optimizer, **member) for member in members])


def draw_gradients(state: StackedState, step: int) -> None:
    state.gradients.copy_(torch.randn(state.gradients.shape, generator=torch.Generator().manual_seed(100 + step)))


def draw_rates(step: int, members: int = 3) -> Tensor:
    return torch.tensor([0.01, 0.02, 0.003])[:members] * (1 + step % 7)


def train_alone(
    state: StackedState,
    member: int,
    build_reference: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    steps: int,
) -> Tensor:
    """The row of a member after so many steps of a reference with one parameter group per tensor."""
    tensors = {slot.name: nn.Parameter(state.view(state.weights, slot)[member].clone()) for slot in state.slots}
    reference = build_reference(
        [{"params": [tensors[slot.name]], "rule": RULES[slot.group], "name": slot.name} for slot in state.slots]
    )
    for step in range(steps):
        draw_gradients(state, step)
        for slot in state.slots:
            tensors[slot.name].grad = state.view(state.gradients, slot)[member].clone()
        for group in reference.param_groups:
            group["lr"] = float(draw_rates(step)[member]) * group["rule"].lr_multiplier
        reference.step()
    return torch.cat([tensors[slot.name].detach().flatten() for slot in state.slots])


def with_settings(groups: list[dict[str, Any]], spec: TrainingSpec) -> list[dict[str, Any]]:
    for group in groups:
        group["weight_decay"] = spec.weight_decay * group["rule"].weight_decay_multiplier
        group["eps"] = spec.eps * group["rule"].eps_multiplier
    return groups


def adamw(groups: list[dict[str, Any]], spec: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(with_settings(groups, spec), betas=(spec.beta1, spec.beta2))


def nadamw(groups: list[dict[str, Any]], spec: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.NAdam(with_settings(groups, spec), betas=(spec.beta1, spec.beta2), decoupled_weight_decay=True)


class DecayedSGD(torch.optim.SGD):
    """torch.optim.SGD couples its weight decay; here it is applied to the weights beforehand."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["params"][0].mul_(1 - group["lr"] * group["decay"])
        return super().step(closure)


def sgd(groups: list[dict[str, Any]], spec: TrainingSpec) -> torch.optim.Optimizer:
    for group in groups:
        group["decay"] = spec.weight_decay * group["rule"].weight_decay_multiplier
    return DecayedSGD(groups, momentum=spec.momentum)


class PaperLion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2."""

    def __init__(self, groups: list[dict[str, Any]], spec: TrainingSpec) -> None:
        super().__init__(with_settings(groups, spec), {"lr": 0.0, "betas": (spec.beta1, spec.beta2)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            weight, (beta1, beta2) = group["params"][0], group["betas"]
            momentum = self.state[weight].get("m", torch.zeros_like(weight))
            update = torch.sign(beta1 * momentum + (1 - beta1) * weight.grad)
            self.state[weight]["m"] = beta2 * momentum + (1 - beta2) * weight.grad
            weight -= group["lr"] * (update + group["weight_decay"] * weight)


class PaperNAdamW(torch.optim.Optimizer):
    """Choi et al. 2019, table 1, with decoupled weight decay and bias corrections, as AlgoPerf's baselines have it."""

    def __init__(self, groups: list[dict[str, Any]], spec: TrainingSpec) -> None:
        super().__init__(with_settings(groups, spec), {"lr": 0.0, "betas": (spec.beta1, spec.beta2)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            weight, (beta1, beta2) = group["params"][0], group["betas"]
            state = self.state.setdefault(
                weight, {"m": torch.zeros_like(weight), "v": torch.zeros_like(weight), "t": 0}
            )
            state["t"] += 1
            state["m"] = beta1 * state["m"] + (1 - beta1) * weight.grad
            state["v"] = beta2 * state["v"] + (1 - beta2) * weight.grad**2
            ahead = (beta1 * state["m"] + (1 - beta1) * weight.grad) / (1 - beta1 ** state["t"])
            root = torch.sqrt(state["v"] / (1 - beta2 ** state["t"])) + group["eps"]
            weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * ahead / root)


REFERENCES = {"adamw": adamw, "nadamw": nadamw, "nadamw_constant": PaperNAdamW, "sgd": sgd, "lion": PaperLion}


@pytest.mark.parametrize("kernel", ["of this device", "of a GPU"])
@pytest.mark.parametrize("name", REFERENCES)
def test_twenty_steps_equal_the_reference(name: str, kernel: str) -> None:
    """AdamW has a kernel of its own on a CPU; the other one is what runs on a GPU."""
    state, optimizer = build(name)
    assert isinstance(optimizer, ElementwiseOptimizer)
    step = optimizer.step if kernel == "of this device" else ElementwiseOptimizer.step.__get__(optimizer)
    specs = [settings(name, **member) for member in DIFFERENT]
    expected = [
        train_alone(state, row, lambda groups, spec=spec: REFERENCES[name](groups, spec), 20)  # type: ignore[misc]
        for row, spec in enumerate(specs)
    ]
    for number in range(20):
        draw_gradients(state, number)
        step(draw_rates(number))
    torch.testing.assert_close(state.weights, torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert optimizer.steps.tolist() == [20, 20, 20]


def test_muon_equals_that_of_torch_in_its_precision() -> None:
    """In bfloat16, whose rounding a product of matrices in another order may change by one unit: 2^-8 of an update."""
    member = {"precision": "bfloat16"}
    spec = settings("muon", **member)

    class Both(torch.optim.Optimizer):
        def __init__(self, groups: list[dict[str, Any]]) -> None:
            super().__init__(with_settings(groups, spec), {"lr": 0.0})
            hidden = [group for group in self.param_groups if group["rule"].kind == "hidden"]
            others = [group for group in self.param_groups if group["rule"].kind != "hidden"]
            names = ("params", "rule", "lr", "weight_decay")
            self.muon = torch.optim.Muon(
                [{name: group[name] for name in names} for group in hidden],
                momentum=spec.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            self.adamw = adamw([{name: group[name] for name in names} for group in others], spec)
            self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

        def step(self, closure: Any = None) -> Any:
            self.muon.step()
            self.adamw.step()

    state, optimizer = build("muon", (member,))
    expected = train_alone(state, 0, Both, 20)
    for number in range(20):
        draw_gradients(state, number)
        optimizer.step(draw_rates(number, 1))
    torch.testing.assert_close(state.weights[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 12), (2, 3, 12, 5)])
def test_orthogonalise_is_the_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.pow(2).sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        values = sum(c * values ** (2 * power + 1) for power, c in enumerate(COEFFICIENTS))
    torch.testing.assert_close(orthogonalise(matrices), left * values[..., None, :] @ right)


@pytest.mark.parametrize("kernel", ["of this device", "of a GPU"])
@pytest.mark.parametrize("name", STACKED)
def test_a_member_left_out_keeps_all_it_has_whatever_its_gradient(name: str, kernel: str) -> None:
    state, optimizer = build(name)
    assert isinstance(optimizer, ElementwiseOptimizer)
    alone_state, alone = build(name)
    step = (
        optimizer.step if kernel == "of this device" or name == "muon" else ElementwiseOptimizer.step.__get__(optimizer)
    )
    for number in range(6):
        draw_gradients(state, number)
        draw_gradients(alone_state, number)
        applied = torch.tensor([True, number >= 2, number != 3])
        state.gradients[~applied] = torch.nan
        before, held = state.weights.clone(), [optimizer.state_of(member) for member in range(3)]
        step(draw_rates(number), applied)
        alone.step(draw_rates(number))
        for member in (~applied).nonzero().flatten().tolist():
            assert torch.equal(state.weights[member], before[member])
            after = optimizer.state_of(member)
            assert all(torch.equal(after[key], value) for key, value in held[member].items())
    assert optimizer.steps.tolist() == [6, 4, 5]
    torch.testing.assert_close(state.weights[0], alone_state.weights[0], rtol=1e-6, atol=1e-6)
    assert torch.isfinite(state.weights).all()


@pytest.mark.parametrize("name", STACKED)
def test_members_taken_go_on_as_before(name: str) -> None:
    """The rows 2, 0, 2 continue as members 2 and 0 did, with their settings, moments and counts."""
    state, optimizer = build(name)
    whole_state, whole = build(name)
    rows = torch.tensor([2, 0, 2])
    for number in range(8):
        draw_gradients(whole_state, number)
        whole.step(draw_rates(number))
        if number == 4:
            state.take(rows)
            optimizer.take(rows)
        draw_gradients(state, number)
        if number >= 4:
            state.gradients.copy_(whole_state.gradients[rows])
        optimizer.step(draw_rates(number)[rows] if number >= 4 else draw_rates(number))
    torch.testing.assert_close(state.weights, whole_state.weights[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_member_goes_on_from_its_saved_state(name: str) -> None:
    """Saved after 3 steps and loaded into another optimizer, member 0 takes the steps that it would have taken."""
    members = DIFFERENT if name in STACKED else DIFFERENT[:1]
    rules = RULES if name != "prodigy" else level(RULES)
    state, optimizer = build(name, members, rules)
    for number in range(3):
        draw_gradients(state, number)
        optimizer.step(draw_rates(number, len(members)))
    other_state, other = build(name, members, rules)
    draw_gradients(other_state, 50)
    other.step(draw_rates(0, len(members)))
    other_state.weights[0] = state.weights[0]
    other.load_state_of(0, optimizer.state_of(0))
    assert other.steps[0] == 3
    for number in range(3, 6):
        for each_state, each in ((state, optimizer), (other_state, other)):
            draw_gradients(each_state, number)
            each.step(draw_rates(number, len(members)))
    assert torch.equal(state.weights[0], other_state.weights[0])


def level(rules: dict[str, GroupRule]) -> dict[str, GroupRule]:
    """The same with one learning rate for all groups."""
    return {name: GroupRule(name, rule.kind, rule.params, 1.0, 1.0, 1.0, 1.0) for name, rule in rules.items()}


def test_schedulefree_is_its_package_and_is_evaluated_at_the_average() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    state, optimizer = build("schedulefree", ({},))
    spec = settings("schedulefree")
    built: list[Any] = []

    def reference(groups: list[dict[str, Any]]) -> Any:
        for group in groups:
            group["lr"] = spec.peak_lr * group["rule"].lr_multiplier
        built.append(schedulefree.AdamWScheduleFree(with_settings(groups, spec), betas=(spec.beta1, spec.beta2)))
        built[0].train()
        return built[0]

    expected = train_alone(state, 0, reference, 12)
    for number in range(12):
        draw_gradients(state, number)
        optimizer.step(draw_rates(number, 1))
    assert torch.equal(state.weights[0], expected)
    built[0].eval()
    average = torch.cat([group["params"][0].detach().flatten() for group in built[0].param_groups])
    with optimizer.evaluation():
        assert torch.equal(state.weights[0], average)
        assert not torch.equal(average, expected)
    assert torch.equal(state.weights[0], expected)


def test_looking_at_the_average_of_schedulefree_changes_no_bit() -> None:
    """The package puts back what it computes from the average: here one weight in ten would be another."""
    pytest.importorskip("schedulefree")
    state, optimizer = build("schedulefree", ({},))
    for number in range(12):
        draw_gradients(state, number)
        optimizer.step(torch.tensor([1.0]))
    trained = state.weights.clone()
    with optimizer.evaluation():
        assert not torch.equal(state.weights, trained)
    assert torch.equal(state.weights, trained)


def test_prodigy_is_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    rules = level(RULES)
    state, optimizer = build("prodigy", ({},), rules)
    assert capsys.readouterr().out == ""
    spec = settings("prodigy")
    tensors = {slot.name: nn.Parameter(state.view(state.weights, slot)[0].clone()) for slot in state.slots}
    reference = prodigyopt.Prodigy(
        tensors.values(), betas=(spec.beta1, spec.beta2), weight_decay=spec.weight_decay, eps=spec.eps
    )
    for number in range(12):
        draw_gradients(state, number)
        for slot in state.slots:
            tensors[slot.name].grad = state.view(state.gradients, slot)[0].clone()
        reference.step()
        optimizer.step(torch.ones(1))
    expected = torch.cat([tensors[slot.name].detach().flatten() for slot in state.slots])
    torch.testing.assert_close(state.weights[0], expected, rtol=1e-6, atol=1e-6)


def test_library_optimizers_say_what_they_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'schedulefree' trains one run at a time, got 3; set pack = 1"):
        build("schedulefree")
    with pytest.raises(InputError, match=r"one learning rate for all groups, .* other than 1 for down, hidden"):
        build("prodigy", ({},))
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(InputError, match=r"schedulefree is not installed .*pip install 'foretune\[lr_free\]'"):
        build("schedulefree", ({},))
