"""Sequences are weighed by their loss as the paper's formulas say, and plain runs stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from foretune.corpora import Corpus
from foretune.proxies.reweighting import SCORES, Reweighter, normalise
from foretune.proxies.train import train_run, train_runs
from foretune.records import RunSpec
from foretune.training.packing import pack_key
from foretune_packs import build_stepper, take_batches

MakeRun = Callable[..., RunSpec]
LOSSES = np.array([[2.0, 3.0, 2.5, 4.0], [1.0, 1.5, 1.25, 2.0]])
WRITTEN = {
    "linupper": lambda h: np.minimum(h + 1, 1),
    "quadratic": lambda h: 1 - h**2,
    "extremes": abs,
}
"""The strategies as they are printed, with delta = 1."""


def weigh_by_hand(losses: np.ndarray, strategy: str, temperature: float) -> np.ndarray:
    """The formulas for one member: h = 2 l / (max - min) - (max + min) / (max - min), then softmax(score / r)."""
    least, most = losses.min(), losses.max()
    scores = WRITTEN[strategy](2 * losses / (most - least) - (most + least) / (most - least))
    powers = np.exp(scores / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize("strategy", list(SCORES))
def test_weights_are_those_of_the_formulas(make_run: MakeRun, strategy: str) -> None:
    temperatures = (0.4, 1.0)
    runs = [make_run(reweighting=strategy, reweighting_temperature=r) for r in temperatures]
    weigher = Reweighter([spec.training for spec in runs], torch.device("cpu"))
    weights = weigher.weigh(torch.tensor(LOSSES), torch.zeros(2, dtype=torch.int64))
    for row, losses, temperature in zip(weights.numpy(), LOSSES, temperatures, strict=True):
        assert row == pytest.approx(weigh_by_hand(losses, strategy, temperature), rel=1e-6)


def test_equal_losses_weigh_the_same() -> None:
    assert normalise(torch.full((1, 4), 2.5)).tolist() == [[0.0] * 4]


def test_the_burn_in_weighs_all_alike_and_ends_by_the_steps_of_each_member(make_run: MakeRun) -> None:
    runs = [make_run(reweighting="linupper", reweighting_burn_in_steps=steps) for steps in (3, 5)]
    weigher = Reweighter([spec.training for spec in runs], torch.device("cpu"))
    weights = weigher.weigh(torch.tensor(LOSSES), torch.tensor([4, 4]))
    assert weights[1].tolist() == [0.25] * 4
    assert weights[0].tolist() == pytest.approx(weigh_by_hand(LOSSES[0], "linupper", 1.0))


def test_the_gradient_is_that_of_the_weighted_losses_and_the_loss_recorded_is_the_mean(
    corpus: Corpus, make_run: MakeRun
) -> None:
    run = make_run(reweighting="linupper", reweighting_temperature=0.3, clip_norm=1e9)
    stepper, batch = build_stepper(corpus, run), take_batches(corpus, 0, run)
    sequences = batch.shape[1]
    apart = []
    for number in range(sequences):
        one = build_stepper(corpus, make_run(clip_norm=1e9))
        losses = one.accumulate(batch[:, number : number + 1])
        apart.append((float(losses), one.state.gradients.clone()))
    weights = weigh_by_hand(np.array([loss for loss, _ in apart]), "linupper", 0.3)
    expected = sum(weight * gradient for weight, (_, gradient) in zip(weights, apart, strict=True))
    result = stepper.measure(batch)
    assert float(result.losses) == pytest.approx(np.mean([loss for loss, _ in apart]), abs=1e-5)
    assert torch.allclose(stepper.state.gradients, expected, atol=1e-5)
    assert not torch.allclose(expected, sum(gradient for _, gradient in apart) / sequences, atol=1e-3)


def test_an_endless_temperature_is_the_plain_run(tmp_path: Path, make_run: MakeRun) -> None:
    plain = train_run(make_run(), tmp_path / "plain", lambda point: None)
    flat = train_run(
        make_run(reweighting="extremes", reweighting_temperature=1e9), tmp_path / "flat", lambda point: None
    )
    assert flat.loss == pytest.approx(plain.loss, abs=1e-4)


def test_members_of_a_pack_are_what_they_are_alone(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [
        make_run(reweighting="quadratic", reweighting_temperature=r, reweighting_burn_in_steps=steps, seed=seed)
        for r, steps, seed in ((0.2, 0, 0), (2.0, 6, 1))
    ]
    assert pack_key(runs[0]) == pack_key(runs[1]) != pack_key(make_run(reweighting="extremes"))
    packed = train_runs(runs, [tmp_path / "pack" / spec.run_id for spec in runs], lambda spec, point: None)
    for spec, outcome in packed:
        alone = train_run(spec, tmp_path / "alone" / spec.run_id, lambda point: None)
        assert outcome.loss == pytest.approx(alone.loss, abs=2e-4)


def test_reweighting_has_ids_of_its_own_and_leaves_those_of_plain_runs(make_run: MakeRun) -> None:
    plain, weighed = make_run(), make_run(reweighting="linupper")
    assert "reweighting" not in plain.content()["training"]
    assert "mixture_learning" not in plain.content()["training"]
    assert (
        len({plain.run_id, weighed.run_id, make_run(reweighting="linupper", reweighting_temperature=2.0).run_id}) == 3
    )
