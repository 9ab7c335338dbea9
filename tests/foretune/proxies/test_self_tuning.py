"""Self-tuning finds the regularisation that a grid of closed-form solutions finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foretune.proxies.decoder import Decoder
from foretune.proxies.self_tuning import ResponsiveLinear, SelfTuner, SelfTuningDecoder, seed_generator
from foretune_factories import make_self_tuning, make_spec

FEATURES, ROUNDS, WARMUP, AVERAGED, WEIGHT_LR = 12, 1500, 100, 300, 0.01
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Problem:
    """A noisy linear regression with few examples."""

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor

    def solve(self, penalty: Tensor) -> Tensor:
        """The weights that minimise mean squared error / 2 plus sum penalty w^2 / 2, in closed form."""
        moment = self.x.T @ self.x / len(self.x)
        return torch.linalg.solve(moment + torch.diag(penalty), self.x.T @ self.y / len(self.x))

    def judge(self, penalty: Tensor) -> float:
        """Held-out loss of those weights."""
        return float(self.measure_held_out(self.solve(penalty)))

    def measure_held_out(self, weight: Tensor) -> Tensor:
        return (self.held_out_x @ weight - self.held_out_y).square().mean() / 2


def draw_problem(seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(FEATURES, generator=generator) * 0.5
    x, held_out_x = (torch.randn(rows, FEATURES, generator=generator) for rows in (24, 200))
    y, held_out_y = (rows @ truth + torch.randn(len(rows), generator=generator) for rows in (x, held_out_x))
    return Problem(x, y, held_out_x, held_out_y)


def solve_by_tuning(problem: Problem, name: str, start: float) -> tuple[float, float]:
    """The value that is found, the mean over the last rounds, and the held-out loss of the tuned model there."""
    layer = ResponsiveLinear(1, FEATURES, 1, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(0.0, FEATURES**-0.5, generator=generator)
    layer.draw_response(FEATURES**-0.5, generator)
    tuner = SelfTuner(make_self_tuning(start={name: start}), 0, CPU)
    weights = torch.optim.Adam(layer.parameters(), lr=WEIGHT_LR)

    def train(h: Tensor) -> Tensor:
        layer.h = h
        value, weight = tuner.read(h)[name], layer.matrices()[0, 0]
        fit = (problem.x @ weight - problem.y).square().mean() / 2
        if name == "l2":
            return fit + value * weight.square().sum() / 2
        spread = problem.x.square().mean(dim=0) * value / (1 - value)  # of dropout on the inputs, its mean
        return fit + (spread * weight.square()).sum() / 2

    def held_out(h: Tensor) -> Tensor:
        layer.h = h
        return F.mse_loss(layer(problem.held_out_x[None, None])[0, 0, :, 0], problem.held_out_y) / 2

    path = []
    for number in range(ROUNDS):
        for _ in range(2):
            weights.zero_grad()
            train(tuner.disturb().detach()).backward()  # type: ignore[no-untyped-call]
            weights.step()
        if number >= WARMUP:
            tuner.step(held_out(tuner.disturb()))
        path.append(tuner.centre.clone())
    mean = torch.stack(path[-AVERAGED:]).mean(dim=0)
    return float(tuner.read(mean)[name]), float(held_out(mean).detach())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_l2_coefficient_of_a_ridge_regression_is_found(seed: int) -> None:
    problem = draw_problem(seed)
    grid = {log: problem.judge(torch.full((FEATURES,), float(np.exp(log)))) for log in np.linspace(-6, 3, 91)}
    best = min(grid, key=grid.__getitem__)
    value, loss = solve_by_tuning(problem, "l2", start=0.01)
    assert abs(np.log(value) - best) < 0.5
    assert problem.judge(torch.full((FEATURES,), value)) < 1.005 * grid[best]
    assert loss == pytest.approx(grid[best], rel=0.02)
    assert grid[best] < 0.97 * problem.judge(torch.full((FEATURES,), 0.01))  # there was something to find


def test_the_dropout_rate_of_a_linear_regression_is_found() -> None:
    """Dropout of inputs, kept ones scaled up, is in the mean a penalty of E[x^2] p / (1 - p) on every weight."""
    problem = draw_problem(0)
    moments = problem.x.square().mean(dim=0)
    grid = {rate: problem.judge(moments * rate / (1 - rate)) for rate in np.linspace(0.005, 0.8, 160)}
    best = min(grid, key=grid.__getitem__)
    value, loss = solve_by_tuning(problem, "dropout", start=0.02)
    assert problem.judge(moments * value / (1 - value)) < 1.005 * grid[best]
    assert loss == pytest.approx(grid[best], rel=0.02)


def test_a_layer_is_affine_in_the_hyperparameters() -> None:
    layer = ResponsiveLinear(1, 3, 2, 2)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(1))
    layer.draw_response(0.5, torch.Generator().manual_seed(2))
    x, layer.h = torch.randn(1, 1, 5, 3), torch.tensor([0.7, -1.3])
    plain, response = x @ layer.weight[0].T, x @ layer.response[0].T
    assert torch.allclose(layer(x), plain + (layer.scales[0] @ layer.h) * response, atol=1e-6)
    layer.h = torch.zeros(2)
    assert torch.allclose(layer(x), plain, atol=1e-6)


@pytest.mark.parametrize("activation", ["swiglu", "relu2"])
def test_a_decoder_without_responses_is_the_plain_one(activation: str) -> None:
    model = make_spec(activation=activation).model
    assert model.architecture == "decoder"
    plain, tuned = Decoder(model, 1, 16), SelfTuningDecoder(model, 16, 2)
    for decoder in (plain, tuned):
        decoder.initialise(0, seed=3)
    ids = torch.randint(257, (1, 2, 16), generator=torch.Generator().manual_seed(0))
    tuned.respond(torch.zeros(2))
    assert torch.equal(tuned(ids), plain(ids))
    tuned.respond(torch.tensor([-2.0, 1.0]))
    assert not torch.allclose(tuned(ids), plain(ids), atol=1e-4)
    with torch.no_grad():
        for layer in (module for module in tuned.modules() if isinstance(module, ResponsiveLinear)):
            layer.scales.zero_()
    assert torch.equal(tuned(ids), plain(ids))


def test_what_answers_is_trained_by_the_rules_of_what_it_answers_for() -> None:
    model = make_spec().model
    assert model.architecture == "decoder"
    groups = SelfTuningDecoder(model, 16, 1).groups()
    assert groups["blocks.0.feed_forward.down.response"] == "down"
    assert groups["blocks.1.feed_forward.gate_up.scales"] == "norms"
    assert {name: group for name, group in groups.items() if name in Decoder(model, 1, 16).groups()} == Decoder(
        model, 1, 16
    ).groups()


def test_the_penalty_is_half_the_squares_of_the_matrices() -> None:
    model = make_spec().model
    assert model.architecture == "decoder"
    decoder = SelfTuningDecoder(model, 16, 1)
    decoder.initialise(0, seed=0)
    by_hand = sum(
        float(weight.detach().square().sum()) / 2
        for name, weight in decoder.named_parameters()
        if name.endswith(("gate_up.weight", "down.weight"))
    )
    assert float(decoder.penalise().detach()) == pytest.approx(by_hand, rel=1e-5)


def test_values_begin_where_they_are_put_and_go_on_from_a_state() -> None:
    begun = SelfTuner(make_self_tuning(start={"l2": 0.02, "dropout": 0.3}), 0, CPU)
    assert begun.values().tolist() == pytest.approx([0.02, 0.3])
    begun.step(begun.disturb().sum())
    again = SelfTuner(make_self_tuning(start={"l2": 0.5, "dropout": 0.5}), 1, CPU)
    again.restore(begun.state())
    for tuner in (begun, again):
        tuner.step(tuner.disturb().square().sum())
    assert torch.equal(begun.centre, again.centre)
    assert begun.values()[0] < 0.02


def test_the_noise_is_as_wide_as_it_is_put_and_its_entropy_widens_it() -> None:
    tuner = SelfTuner(make_self_tuning(width=0.5, start={"dropout": 0.1}), 0, CPU)
    drawn = torch.stack([tuner.disturb().detach() for _ in range(2000)]) - tuner.centre
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.06)  # four standard errors
    rewarded = SelfTuner(make_self_tuning(width=0.5, entropy=1.0, start={"dropout": 0.1}), 0, CPU)
    for _ in range(50):
        rewarded.step(rewarded.disturb().sum() * 0)
    spread = torch.stack([rewarded.disturb().detach() for _ in range(500)]) - rewarded.centre
    assert float(spread.std()) > 1.0


def test_purposes_of_a_seed_are_not_related() -> None:
    one, two = (torch.randn(4000, generator=seed_generator(name, 0)) for name in ("noise", "response"))
    assert abs(float((one * two).mean())) < 4 / 4000**0.5
