"""A run that tunes its regularisation is a plain one but for that, moves where it should, and goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foretune.corpora import Corpus
from foretune.proxies.self_tuning import ResponsiveLinear
from foretune.proxies.self_tuning_stepper import SelfTuningStepper
from foretune.proxies.stepping import Stepper
from foretune.proxies.train import train_run
from foretune.records import CurvePoint, RunSpec, RunStatus
from foretune.training.packing import pack_key
from foretune_factories import make_self_tuning
from foretune_packs import build_stepper, take_batches

MakeRun = Callable[..., RunSpec]
CPU = torch.device("cpu")
QUIET: Callable[[CurvePoint], None] = lambda point: None  # noqa: E731


def silence(stepper: SelfTuningStepper) -> None:
    """Take the answer of the weights away."""
    with torch.no_grad():
        for layer in (module for module in stepper.model.modules() if isinstance(module, ResponsiveLinear)):
            layer.response.zero_()
            layer.scales.zero_()


def plain_weights(stepper: Stepper) -> torch.Tensor:
    slots = [slot for slot in stepper.state.slots if not slot.name.endswith((".response", ".scales"))]
    return torch.cat([stepper.state.weights[0, slot.start : slot.stop] for slot in slots])


def test_without_an_answer_and_noise_it_is_a_plain_run_with_dropout(corpus: Corpus, make_run: MakeRun) -> None:
    plain = make_run(dropout=0.3, clip_norm=1e9)
    still = make_run(self_tuning=make_self_tuning(width=1e-6, lr=1e-9), clip_norm=1e9)
    stepper, reference = SelfTuningStepper(still, corpus, CPU), build_stepper(corpus, plain)
    silence(stepper)
    for step in range(8):
        batch = take_batches(corpus, step, plain)
        losses = [float(one.step(batch, [0.01]).losses) for one in (stepper, reference)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert torch.allclose(plain_weights(stepper), plain_weights(reference), atol=1e-4)
    assert stepper.evaluate([0])[0] == pytest.approx(reference.evaluate([0])[0], abs=1e-4)


def test_settings_stand_still_until_they_have_warmed_up_and_move_once_a_round(
    corpus: Corpus, make_run: MakeRun
) -> None:
    run = make_run(self_tuning=make_self_tuning(train_steps=3, warmup_steps=4))
    stepper, values = SelfTuningStepper(run, corpus, CPU), []
    for step in range(12):
        stepper.step(take_batches(corpus, step, run), [0.01])
        values.append(float(stepper.tuner.values()))
    moved = [step + 1 for step in range(1, 12) if values[step] != values[step - 1]]
    assert moved == [7, 10]


def test_a_tuning_step_changes_no_weight(corpus: Corpus, make_run: MakeRun) -> None:
    """Two runs that differ in the tuning alone have the same weights until the settings have moved."""
    runs = [make_run(self_tuning=make_self_tuning(warmup_steps=steps)) for steps in (0, 10)]
    steppers = [SelfTuningStepper(run, corpus, CPU) for run in runs]
    for stepper, run in zip(steppers, runs, strict=True):
        for step in range(2):
            stepper.step(take_batches(corpus, step, run), [0.01])
    assert torch.equal(steppers[0].state.weights, steppers[1].state.weights)
    assert not torch.equal(steppers[0].tuner.centre, steppers[1].tuner.centre)
    assert not steppers[0].state.gradients.any()


def test_the_settings_follow_the_answer_of_the_weights(corpus: Corpus, make_run: MakeRun) -> None:
    """Where the answer is W itself, h scales the feed-forward: it moves as the held-out loss over that scale says."""
    run = make_run(self_tuning=make_self_tuning(width=1e-4, warmup_steps=0, train_steps=1, start={"dropout": 0.3}))
    stepper = SelfTuningStepper(run, corpus, CPU)
    for step in range(12):
        stepper.step(take_batches(corpus, step, run), [0.01])
    with torch.no_grad():
        for layer in (module for module in stepper.model.modules() if isinstance(module, ResponsiveLinear)):
            layer.response.copy_(layer.weight)
            layer.scales.fill_(0.2)
    h, text = stepper.tuner.centre.clone(), take_batches(corpus, 30, run)
    losses = []
    for shift in (-0.1, 0.1):
        stepper.model.respond(h + shift)
        stepper.model.dropout.active = False
        with torch.no_grad():
            losses.append(float(stepper._measure_losses(text)[0]))
    for _ in range(20):
        stepper._tune()
    assert float(stepper.tuner.centre - h) * (losses[1] - losses[0]) < 0


def test_an_l2_penalty_is_trained_on_and_is_not_reported(corpus: Corpus, make_run: MakeRun) -> None:
    sizes = []
    for start in (1e-6, 1.0):
        run = make_run(self_tuning=make_self_tuning(start={"l2": start}, width=1e-6), weight_decay=0.0)
        stepper = SelfTuningStepper(run, corpus, CPU)
        losses = [float(stepper.step(take_batches(corpus, step, run), [0.01]).losses) for step in range(10)]
        assert max(losses) < 7
        sizes.append(float(stepper.model.penalise().detach()))
    assert sizes[1] < 0.9 * sizes[0]


def test_a_run_tells_what_it_learned_and_what_it_cost(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(self_tuning=make_self_tuning(start={"dropout": 0.3, "l2": 1e-4}), steps=40)
    plain = make_run(steps=40)
    outcome = train_run(run, tmp_path, QUIET)
    assert outcome.status is RunStatus.COMPLETED
    assert set(outcome.learned) == {"dropout", "l2"}
    steps = [point.step for point in outcome.learned_path]
    assert steps[-1] == 40
    late = [point.values["dropout"] for point in outcome.learned_path if point.step > 20]
    assert outcome.learned["dropout"] == pytest.approx(sum(late) / len(late), abs=1e-6)
    assert outcome.learned_path[3].values == pytest.approx({"dropout": 0.3, "l2": 1e-4})  # warming up
    assert outcome.learned["dropout"] != pytest.approx(0.3, abs=1e-3)
    assert run.compute_flops == 1.5 * plain.compute_flops  # one step on as much text for every two
    assert outcome.spent_flops == 1.5 * plain.compute_flops
    assert outcome.diagnoses == ()


def test_a_killed_run_goes_on_to_the_same_settings(tmp_path: Path, make_run: MakeRun) -> None:
    class Killed(BaseException):
        pass

    def die(point: CurvePoint) -> None:
        if point.step >= 13:
            raise Killed

    run = make_run(self_tuning=make_self_tuning(start={"dropout": 0.3, "l2": 1e-4}), checkpoint_steps=5)
    whole = train_run(run, tmp_path / "whole", QUIET)
    with pytest.raises(Killed):
        train_run(run, tmp_path / "killed", die)
    again = train_run(run, tmp_path / "killed", QUIET)
    assert (again.loss, again.learned, again.learned_path) == (whole.loss, whole.learned, whole.learned_path)


def test_a_diagnosed_run_is_the_same_up_to_rounding(tmp_path: Path, make_run: MakeRun) -> None:
    plain, seen = make_run(self_tuning=make_self_tuning()), make_run(self_tuning=make_self_tuning(), diagnoses=4)
    outcomes = [train_run(run, tmp_path / str(number), QUIET) for number, run in enumerate((plain, seen))]
    assert len(outcomes[1].diagnoses) > 0
    assert outcomes[1].loss == pytest.approx(outcomes[0].loss, rel=2e-4)


def test_runs_that_tune_themselves_train_alone(make_run: MakeRun) -> None:
    one, two = (make_run(self_tuning=make_self_tuning(), seed=seed) for seed in (0, 1))
    assert pack_key(one) != pack_key(two)
