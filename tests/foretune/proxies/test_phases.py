"""Settings that change along a run, and runs that end before their schedule does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foretune.errors import InputError
from foretune.parametrization import GroupRule
from foretune.proxies.optimizers import build_optimizer
from foretune.proxies.state import StackedState
from foretune.proxies.train import train_run
from foretune.records import CHANGEABLE, Phase, RunOutcome, RunSpec, RunStatus
from foretune.training.schedules import schedule_lr
from foretune_factories import make_spec

MakeRun = Callable[..., RunSpec]
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_tokens": 64, "validation_sequences": 2, "steps": 12}
OTHER: dict[str, Any] = {
    "peak_lr": 2**-5,
    "weight_decay": 2.0,
    "beta1": 0.5,
    "beta2": 0.8,
    "eps": 1e-2,
    "clip_norm": 0.05,
    "momentum": 0.5,
}
READ = {"adamw": {*CHANGEABLE} - {"momentum"}, "sgd": {"peak_lr", "weight_decay", "clip_norm", "momentum"}}
"""Settings that an optimizer takes notice of."""


def train(spec: RunSpec, workspace: Path) -> RunOutcome:
    return train_run(spec, workspace / spec.run_id, lambda point: None)


def change(spec: RunSpec, *phases: Phase, **overrides: Any) -> RunSpec:
    return spec.model_copy(update={"phases": phases, **overrides})


@pytest.mark.parametrize("optimizer", ["adamw", "nadamw", "lion", "sgd", "muon", "schedulefree", "prodigy"])
def test_a_phase_from_the_first_step_on_is_a_run_with_its_settings(
    make_run: MakeRun, tmp_path: Path, optimizer: str
) -> None:
    settings = {key: value for key, value in OTHER.items() if (optimizer, key) != ("schedulefree", "beta1")}
    mixture, common = {"digits": 0.9, "words": 0.1}, {**SMALL, "optimizer": optimizer, "steps": 5}
    common |= {"parametrization": "standard"} if optimizer == "prodigy" else {}
    changed = change(make_run(**common), Phase(start_step=0, settings=settings, mixture=mixture))
    plain = make_run(**common, **settings, mixture=mixture)
    found, expected = train(changed, tmp_path), train(plain, tmp_path)
    assert changed.run_id != plain.run_id
    assert found.curve == expected.curve
    assert found.loss_by_domain == expected.loss_by_domain
    assert found.loss == expected.loss


@pytest.mark.parametrize("optimizer", READ)
def test_each_setting_holds_from_its_step_on(make_run: MakeRun, tmp_path: Path, optimizer: str) -> None:
    before = make_run(**SMALL, optimizer=optimizer)
    expected = train(before, tmp_path).curve
    for name in CHANGEABLE:
        after = change(before, Phase(start_step=6, settings={name: OTHER[name]}))
        found = train(after, tmp_path).curve
        assert found[:6] == expected[:6], name
        assert found[6].loss == expected[6].loss, name  # measured before the first update under the new setting
        assert (found[7].loss != expected[7].loss) == (name in READ[optimizer]), name


def test_the_learning_rate_is_that_of_the_phase_under_the_shape_of_the_whole_schedule(
    make_run: MakeRun, tmp_path: Path
) -> None:
    phases = (Phase(start_step=3, settings={"peak_lr": 0.02}), Phase(start_step=7, settings={"weight_decay": 0.0}))
    spec = change(make_run(**SMALL), *phases, stop_step=10)
    rates = [point.lr for point in train(spec, tmp_path).curve]
    lower = make_run(**SMALL).training
    higher = make_run(**SMALL, peak_lr=0.02).training
    assert rates == [schedule_lr(lower if step < 3 else higher, step) for step in range(10)]
    assert rates[2:4] == [lower.peak_lr, 0.02]
    assert rates[-1] == pytest.approx(0.02 * 3 / 4)  # the decay is that of 12 steps


def test_retuned_members_follow_torch_when_its_groups_are_changed() -> None:
    """Member 0 changes everything after three updates, member 1 nothing; rates differ, as in training."""
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))))
    state = StackedState(module, {"w": "hidden"})
    rules = {"hidden": GroupRule("hidden", "hidden", 15, 0.5, 0.25, 4.0, 0.5)}
    first = make_spec().training
    later = first.model_copy(update={name: OTHER[name] for name in ("weight_decay", "beta1", "beta2", "eps")})
    references = []
    for row in state.weights:
        parameter = nn.Parameter(row.clone())
        references.append(torch.optim.AdamW([parameter], eps=first.eps * 0.5, betas=(first.beta1, first.beta2)))
    stacked = build_optimizer(state, rules, [first, first])
    for step in range(7):
        if step == 3:
            stacked.retune([later, first])
        lr = torch.tensor([0.01 * (step + 1), 0.02])
        state.gradients.copy_(torch.randn(2, 15, generator=torch.Generator().manual_seed(step)))
        for member, reference in enumerate(references):
            group, now = reference.param_groups[0], later if member == 0 and step >= 3 else first
            group |= {"eps": now.eps * 0.5, "betas": (now.beta1, now.beta2), "weight_decay": now.weight_decay * 4}
            group["lr"] = float(lr[member]) * 0.25
            group["params"][0].grad = state.gradients[member].clone()
            reference.step()
        stacked.step(lr)
    for row, reference in zip(state.weights, references, strict=True):
        torch.testing.assert_close(row, reference.param_groups[0]["params"][0].detach())


def test_a_loss_is_weighted_by_the_mixture_of_its_time(make_run: MakeRun, tmp_path: Path) -> None:
    spec = change(make_run(**SMALL), Phase(start_step=6, mixture={"digits": 1.0, "words": 0.0}))
    outcome = train(spec, tmp_path)
    plain = train(make_run(**SMALL), tmp_path)
    assert outcome.loss == outcome.loss_by_domain["digits"]
    assert outcome.curve[:6] == plain.curve[:6]
    assert outcome.curve[6].loss != plain.curve[6].loss  # the text is another from the first step of the phase on


def test_a_run_that_ends_early_is_the_beginning_of_the_whole(make_run: MakeRun, tmp_path: Path) -> None:
    whole, part = make_run(**SMALL), make_run(**SMALL, stop_step=7)
    full, cut = train(whole, tmp_path), train(part, tmp_path)
    assert cut.status is RunStatus.COMPLETED
    assert [point.step for point in cut.curve if point.held_out is not None] == [3, 6, 7]
    assert cut.curve[:6] == full.curve[:6]
    assert cut.curve[6].model_copy(update={"held_out": None}) == full.curve[6]
    assert cut.loss == cut.curve[6].held_out
    assert cut.tokens == 7 * 64
    assert cut.spent_flops == part.compute_flops == pytest.approx(whole.compute_flops * 7 / 12)
    assert (tmp_path / part.run_id / "checkpoints").exists()
    assert not (tmp_path / whole.run_id / "checkpoints").exists()


def test_beta1_of_an_optimizer_that_interpolates_with_it_cannot_change(make_run: MakeRun, tmp_path: Path) -> None:
    spec = change(make_run(**SMALL, optimizer="schedulefree"), Phase(start_step=2, settings={"beta1": 0.8}))
    with pytest.raises(InputError, match=r"'schedulefree' keeps it along a run, got .* after"):
        train(spec, tmp_path)
