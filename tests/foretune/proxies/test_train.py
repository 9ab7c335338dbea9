from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.corpora import Corpus
from foretune.errors import InputError
from foretune.proxies.process import count_threads
from foretune.proxies.stepping import Stepper, StepResult
from foretune.proxies.train import measure_throughput, train_run
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune_packs import build_stepper, take_batches

MakeRun = Callable[..., RunSpec]
FIVE_WORDS_NATS = math.log(5) / (sum(map(len, ("alpha ", "beta ", "gamma ", "delta ", "epsilon\n"))) / 5)
"""Entropy of the words domain, nats per byte: one of five words of 6.0 bytes on average, drawn evenly."""


def train(spec: RunSpec, workspace: Path) -> RunOutcome:
    return train_run(spec, workspace, lambda point: None)


def curve_losses(outcome: RunOutcome) -> list[float | None]:
    return [point.loss for point in outcome.curve]


def test_a_run_learns_what_the_text_allows(make_run: MakeRun, tmp_path: Path) -> None:
    """The floor is the entropy of the source; a model that learned the spelling is near it, and none is below."""
    spec = make_run(steps=150, warmup_steps=10, decay_steps=40, peak_lr=2**-6, mixture={"words": 1.0, "digits": 0.0})
    outcome = train(spec, tmp_path)
    assert outcome.status is RunStatus.COMPLETED
    assert outcome.loss == outcome.loss_by_domain["words"]
    assert FIVE_WORDS_NATS < outcome.loss < 1.6 * FIVE_WORDS_NATS
    assert outcome.loss_by_domain["digits"] > math.log(10)
    assert outcome.bytes_per_token == pytest.approx(1.0, abs=0.01)


def test_outcome_and_reports_tell_the_same_story(make_run: MakeRun, tmp_path: Path, corpus: Corpus) -> None:
    points: list[CurvePoint] = []
    spec = make_run(steps=20, evaluations=3)
    outcome = train_run(spec, tmp_path, points.append)
    assert outcome.curve == tuple(points)
    assert [point.step for point in points if point.held_out is not None] == [7, 13, 20]
    assert outcome.tokens == spec.training.tokens == points[-1].tokens
    assert outcome.loss == points[-1].held_out
    shares = {"digits": 0.25, "words": 0.75}
    assert outcome.loss == pytest.approx(sum(shares[name] * outcome.loss_by_domain[name] for name in shares))
    bytes_per_token = sum(shares[name] * (corpus.domains[name].bytes_per_token or 0) for name in shares)
    assert outcome.bytes_per_token == pytest.approx(bytes_per_token)
    assert "torch" in outcome.device
    assert outcome.wall_seconds > 0


def test_the_same_spec_gives_the_same_bits(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = (train(make_run(), tmp_path / name) for name in "ab")
    assert first.curve == second.curve
    assert train(make_run(seed=1), tmp_path / "c").curve != first.curve


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: CPU runs are compared above")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_spec_gives_the_same_bits_on_a_gpu(make_run: MakeRun, tmp_path: Path, precision: str) -> None:
    first, second = (train(make_run(precision=precision, qk_norm=True), tmp_path / name) for name in "ab")
    assert torch.are_deterministic_algorithms_enabled()
    assert first.curve == second.curve
    assert "cpu" not in first.device


@pytest.mark.parametrize("tied_head", [False, True])
def test_standard_and_mup_are_one_model_at_the_base_width(make_run: MakeRun, tmp_path: Path, tied_head: bool) -> None:
    curves = [
        train(make_run(parametrization=name, tied_head=tied_head, qk_norm=tied_head), tmp_path / name).curve
        for name in ("standard", "mup")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 20


def test_away_from_the_base_width_they_are_not(make_run: MakeRun, tmp_path: Path) -> None:
    curves = [
        train(make_run(width=64, parametrization=name, steps=5), tmp_path / name).curve for name in ("standard", "mup")
    ]
    assert curves[0] != curves[1]


@pytest.mark.parametrize("accumulation_steps", [2, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    make_run: MakeRun, corpus: Corpus, accumulation_steps: int
) -> None:
    found = []
    for parts in (1, accumulation_steps):
        spec = make_run(accumulation_steps=parts)
        stepper = build_stepper(corpus, spec)
        losses = stepper.accumulate(take_batches(corpus, 0, spec))
        found.append([losses, stepper.state.gradients])
    for whole, summed in zip(*found, strict=True):
        torch.testing.assert_close(summed, whole, atol=1e-6, rtol=1e-5)


def test_the_gradients_of_each_member_are_clipped_as_torch_does(make_run: MakeRun, corpus: Corpus) -> None:
    specs = [make_run(seed=seed, clip_norm=limit) for seed, limit in enumerate((0.01, 0.3, 1e9))]
    stepper = build_stepper(corpus, *specs)
    stepper.accumulate(take_batches(corpus, 0, *specs))
    rows = stepper.state.gradients.clone()
    norms = stepper.clip()
    for row, clipped, norm, spec in zip(rows, stepper.state.gradients, norms, specs, strict=True):
        parameter = torch.nn.Parameter(torch.zeros_like(row))
        parameter.grad = row
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([parameter], spec.training.clip_norm))
        torch.testing.assert_close(clipped, parameter.grad)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_bfloat16_stays_close_to_float32(make_run: MakeRun, tmp_path: Path, qk_norm: bool) -> None:
    precisions = ("float32", "bfloat16")
    exact, rounded = (train(make_run(precision=name, qk_norm=qk_norm), tmp_path / name) for name in precisions)
    assert exact.curve != rounded.curve
    assert exact.loss == pytest.approx(rounded.loss, rel=0.02)


def test_weights_stay_float32_under_bfloat16(make_run: MakeRun, corpus: Corpus) -> None:
    spec = make_run(precision="bfloat16")
    stepper = build_stepper(corpus, spec)
    stepper.step(take_batches(corpus, 0, spec), [0.01])
    assert {p.dtype for p in stepper.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("peak_lr", [2.0, 1e4])
def test_an_absurd_learning_rate_diverges_and_keeps_its_curve(
    make_run: MakeRun, tmp_path: Path, peak_lr: float
) -> None:
    outcome = train(make_run(peak_lr=peak_lr, steps=120, warmup_steps=1, weight_decay=0.0), tmp_path)
    assert outcome.status is RunStatus.DIVERGED
    assert outcome.loss is None
    assert "learning rate" in outcome.reason
    assert outcome.curve
    assert 0 < outcome.tokens <= 120 * 8 * 32


def test_not_a_number_is_named_with_its_step(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = Stepper.measure, itertools.count()

    def poison(stepper: Stepper, tokens: torch.Tensor, *, diagnose: bool) -> StepResult:
        result = measure(stepper, tokens, diagnose=diagnose)
        return StepResult(result.losses * math.nan, result.norms) if next(calls) == 7 else result

    monkeypatch.setattr(Stepper, "measure", poison)
    outcome = train(make_run(), tmp_path)
    assert outcome.status is RunStatus.DIVERGED
    assert outcome.reason.startswith("training loss is nan at step 8 (last finite loss ")
    assert curve_losses(outcome)[-1] is None
    assert outcome.tokens == 8 * 8 * 32


def test_a_run_whose_weights_never_move_is_no_result(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.proxies.members.schedule_lr", lambda training, step: 0.0)
    outcome = train(make_run(), tmp_path)
    assert outcome.status is RunStatus.DIVERGED
    assert "in 4 evaluations: nothing is learned" in outcome.reason


def test_globals_that_an_earlier_run_left_behind_change_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    clean = train(make_run(steps=5), tmp_path / "clean")
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.set_autocast_enabled("cpu", True)
        torch.rand(17)
        assert train(make_run(steps=5), tmp_path / "leaked").curve == clean.curve
        assert torch.get_default_dtype() is torch.float32
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled() == torch.cuda.is_available()
    finally:
        torch.set_autocast_enabled("cpu", False)


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETUNE_THREADS", "3")
    assert count_threads() == 3
    monkeypatch.setenv("FORETUNE_THREADS", "many")
    with pytest.raises(InputError, match="FORETUNE_THREADS must be a whole number of at least 1, got 'many'"):
        count_threads()


def test_other_text_than_planned_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the run was planned with 0000000000000000"):
        train(make_run(corpus_digest="0" * 64), tmp_path)


def test_throughput_is_measured(make_run: MakeRun) -> None:
    assert 0 < measure_throughput([make_run(), make_run(seed=1)], steps=2) < 10


def test_throughput_is_that_of_the_full_batch(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    step, sequences = Stepper.step, set()

    def note(stepper: Stepper, tokens: torch.Tensor, *args: Any) -> Any:
        sequences.add(tokens.shape[1])
        return step(stepper, tokens, *args)

    monkeypatch.setattr(Stepper, "step", note)
    measure_throughput([make_run(ramp=[{"steps": 9, "batch_tokens": 64}], batch_tokens=256)], steps=1)
    assert sequences == {8}
