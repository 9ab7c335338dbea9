"""Runs of a pack are the runs that they would be alone."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.corpora import Corpus
from foretune.proxies.train import STEPS_PER_READ, train_run, train_runs
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.training.packing import ROWS_KEPT, estimate_bytes
from foretune_packs import build_stepper, take_batches

MakeRun = Callable[..., RunSpec]
DIE_AT = 13
GRID: list[dict[str, Any]] = [
    {"peak_lr": 2**-6},
    {"peak_lr": 2**-8, "weight_decay": 0.5, "beta2": 0.99},
    {"seed": 1, "clip_norm": 0.2, "eps": 1e-6},
    {"mixture": {"digits": 0.8, "words": 0.2}, "beta1": 0.8},
    {"steps": 30, "schedule": "cosine", "warmup_steps": 8, "decay_steps": 0, "evaluations": 3},
]
"""Members that differ in all that members may differ in."""
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_tokens": 64, "validation_sequences": 2}
"""As little to compute as there can be, where many steps are needed."""


class Killed(BaseException):
    """Stands for the end of a process in the middle of a run."""


def train_pack(
    specs: Sequence[RunSpec],
    workspace: Path,
    report: Callable[[RunSpec, CurvePoint], None] = lambda spec, point: None,
    **options: Any,
) -> dict[str, RunOutcome]:
    """Outcomes by run id, in the order in which they came."""
    folders = [workspace / spec.run_id for spec in specs]
    return {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, report, **options)}


def train_alone(spec: RunSpec, workspace: Path) -> RunOutcome:
    return train_run(spec, workspace / "alone" / spec.run_id, lambda point: None)


def assert_same_run(packed: RunOutcome, alone: RunOutcome, tolerance: float) -> None:
    assert (packed.status, packed.tokens) == (alone.status, alone.tokens)
    assert len(packed.curve) == len(alone.curve)
    for point, expected in zip(packed.curve, alone.curve, strict=True):
        assert (point.step, point.tokens, point.lr) == (expected.step, expected.tokens, expected.lr)
        assert point.loss == pytest.approx(expected.loss, abs=tolerance)
        assert point.held_out == pytest.approx(expected.held_out, abs=tolerance)
    assert packed.loss_by_domain == pytest.approx(alone.loss_by_domain, abs=tolerance)


@pytest.mark.parametrize(
    "model",
    [{}, {"qk_norm": True, "tied_head": True, "queries_per_key": 2, "activation": "relu2", "depth": 1}],
    ids=str,
)
def test_packed_runs_have_the_losses_of_runs_alone(make_run: MakeRun, tmp_path: Path, model: dict[str, Any]) -> None:
    settings = {"steps": 50, "batch_tokens": 64, "validation_sequences": 2, **model}
    specs = [make_run(**{**settings, **member}) for member in GRID]
    packed = train_pack(specs, tmp_path)
    assert next(iter(packed)) == specs[4].run_id  # the shortest ends first
    for spec in specs:
        assert_same_run(packed[spec.run_id], train_alone(spec, tmp_path), 1e-5)
        assert packed[spec.run_id].pack_size == len(specs)
        assert packed[spec.run_id].spent_flops == spec.compute_flops
        assert packed[spec.run_id].bytes_per_token == pytest.approx(1.0, abs=0.01)


EXPERTS = {"count": 4, "active": 2, "shared": 1, "width": 24, "base_width": 24, "balance": "global"}


def test_packed_mixtures_of_experts_have_the_losses_of_runs_alone(make_run: MakeRun, tmp_path: Path) -> None:
    experts = {**EXPERTS, "balance_weight": 0.01, "router_z_weight": 0.001}
    settings = {**SMALL, "batch_tokens": 128, "steps": 10}
    specs = [make_run(experts=experts, accumulation_steps=2, **{**settings, **member}) for member in GRID[:4]]
    packed = train_pack(specs, tmp_path)
    for spec in specs:
        assert_same_run(packed[spec.run_id], train_alone(spec, tmp_path), 1e-5)


@pytest.mark.parametrize("optimizer", ["nadamw", "nadamw_constant", "lion", "sgd", "muon"])
def test_every_optimizer_trains_packs(make_run: MakeRun, tmp_path: Path, optimizer: str) -> None:
    settings = {**SMALL, "width": 32, "optimizer": optimizer, "steps": 10}
    specs = [make_run(peak_lr=2**-9, seed=seed, **settings) for seed in range(2)]
    packed = train_pack(specs, tmp_path)
    for spec in specs:
        assert_same_run(packed[spec.run_id], train_alone(spec, tmp_path), 1e-4)  # a sign may turn on a rounding


@pytest.mark.parametrize("optimizer", ["schedulefree", "prodigy"])
def test_optimizers_of_other_packages_go_on_from_a_checkpoint(
    make_run: MakeRun, tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "schedule": "constant", "decay_steps": 0, "checkpoint_steps": 5, "depth": 1}
    spec = make_run(**settings, peak_lr=0.01 if optimizer == "schedulefree" else 1.0)
    whole = train_alone(spec, tmp_path)

    def die(_: RunSpec, point: CurvePoint) -> None:
        if point.step == DIE_AT:
            raise Killed

    with pytest.raises(Killed):
        train_pack([spec], tmp_path, die)
    assert train_pack([spec], tmp_path)[spec.run_id].curve == whole.curve


def test_accumulation_and_ramps_work_in_packs_too(make_run: MakeRun, tmp_path: Path) -> None:
    ramp = [{"steps": 4, "batch_tokens": 64}, {"steps": 4, "batch_tokens": 128}]
    specs = [make_run(seed=seed, ramp=ramp, accumulation_steps=2, depth=1) for seed in range(2)]
    packed = train_pack(specs, tmp_path)
    for spec in specs:
        outcome = packed[spec.run_id]
        assert [point.tokens for point in outcome.curve[:9]] == [64, 128, 192, 256, 384, 512, 640, 768, 1024]
        assert_same_run(outcome, train_alone(spec, tmp_path), 1e-5)


def test_a_member_that_diverges_ends_alone(make_run: MakeRun, tmp_path: Path) -> None:
    """One is not a number at once, one goes up and stays there; the other two never hear of it."""
    settings = {**SMALL, "weight_decay": 0.0, "clip_norm": 1e9, "warmup_steps": 1, "steps": 70}
    calm = [make_run(seed=seed, **settings) for seed in range(2)]
    wild = [make_run(peak_lr=1e30, **settings), make_run(peak_lr=3.0, **settings)]
    packed = train_pack([calm[0], *wild, calm[1]], tmp_path)
    assert [packed[spec.run_id].status for spec in wild] == [RunStatus.DIVERGED] * 2
    assert "is nan" in packed[wild[0].run_id].reason
    assert "for 50 steps" in packed[wild[1].run_id].reason
    assert packed[wild[0].run_id].tokens < packed[wild[1].run_id].tokens < wild[0].training.tokens
    undisturbed = train_pack(calm, tmp_path / "calm")
    for spec in calm:
        assert_same_run(packed[spec.run_id], undisturbed[spec.run_id], 1e-5)


def test_reading_late_and_dropping_late_change_no_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: losses are read every 16 steps, and rows stay until half of them are of no run.

    The runs end at six different steps, one of them by divergence and one as a follower of another's trunk.
    """
    settings = {**SMALL, "steps": 50}
    specs = [make_run(**{**settings, **member}) for member in GRID]
    specs.append(make_run(**settings, peak_lr=1e30, clip_norm=1e9, warmup_steps=1))
    specs.append(make_run(**{**settings, "steps": 20}, peak_lr=2**-6))
    specs.append(make_run(**{**settings, "steps": 41}, seed=5))
    alone = [train_alone(spec, tmp_path) for spec in specs]
    monkeypatch.setitem(STEPS_PER_READ, "cpu", STEPS_PER_READ["cuda"])
    monkeypatch.setattr("foretune.proxies.stepping.compile_measure", lambda measure, *_: measure)
    packed = train_pack(specs, tmp_path, compiled="on")
    assert packed[specs[5].run_id].status is RunStatus.DIVERGED
    for spec, expected in zip(specs, alone, strict=True):
        assert_same_run(packed[spec.run_id], expected, 1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_moves_nothing(make_run: MakeRun, corpus: Corpus, poison: float) -> None:
    specs = [make_run(seed=seed) for seed in range(3)]
    stepper = build_stepper(corpus, *specs)
    before = stepper.state.weights.clone()
    accumulate = stepper.accumulate

    def spoil(*args: Any) -> torch.Tensor:
        losses: torch.Tensor = accumulate(*args)
        stepper.state.gradients[1, 7] = poison
        return losses

    stepper.accumulate = spoil
    result = stepper.step(take_batches(corpus, 0, *specs), [0.01] * 3)
    assert [bool(torch.equal(*rows)) for rows in zip(before, stepper.state.weights, strict=True)] == [
        False,
        True,
        False,
    ]
    assert result.norms.isfinite().tolist() == [True, False, True]
    assert stepper.optimizer.steps.tolist() == [1, 0, 1]


def test_a_killed_pack_ends_with_the_same_bits(make_run: MakeRun, tmp_path: Path) -> None:
    """Checkpoints at different intervals: the members go on from different steps, at different lengths of the ramp."""
    ramp = [{"steps": 11, "batch_tokens": 128}]
    settings = {"depth": 1, "ramp": ramp}
    specs = [make_run(seed=seed, checkpoint_steps=every, **settings) for seed, every in enumerate((5, 4, 6, 100))]
    whole = train_pack(specs, tmp_path / "whole")

    def die(spec: RunSpec, point: CurvePoint) -> None:
        if point.step == DIE_AT and spec is specs[-1]:
            raise Killed

    with pytest.raises(Killed):
        train_pack(specs, tmp_path / "killed", die)
    first: dict[str, int] = {}

    def note(spec: RunSpec, point: CurvePoint) -> None:
        first.setdefault(spec.run_id, point.step)

    resumed = train_pack(specs, tmp_path / "killed", note)
    assert [first[spec.run_id] for spec in specs] == [11, 13, 13, 1]
    for spec in specs:
        assert resumed[spec.run_id].curve == whole[spec.run_id].curve
        assert resumed[spec.run_id].loss_by_domain == whole[spec.run_id].loss_by_domain
        assert resumed[spec.run_id].spent_flops == whole[spec.run_id].spent_flops


def test_a_run_killed_after_its_last_step_is_only_concluded(make_run: MakeRun, tmp_path: Path) -> None:
    spec = make_run(checkpoint_steps=5, **SMALL)
    whole = train_pack([spec], tmp_path)
    points: list[CurvePoint] = []
    again = train_pack([spec], tmp_path, lambda _, point: points.append(point))
    assert not points
    assert again[spec.run_id].curve == whole[spec.run_id].curve
    assert again[spec.run_id].loss == whole[spec.run_id].loss


def test_closing_the_iterator_ends_the_thread_that_prepares_batches(make_run: MakeRun, tmp_path: Path) -> None:
    specs = [make_run(steps=10, **SMALL), make_run(seed=1, **SMALL)]
    outcomes = train_runs(specs, [tmp_path / "a", tmp_path / "b"], lambda spec, point: None)
    assert next(outcomes)[0] is specs[0]
    assert any(thread.name.startswith("feed") for thread in threading.enumerate())
    outcomes.close()
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def test_the_time_of_a_pack_is_shared_out(make_run: MakeRun, tmp_path: Path) -> None:
    specs = [make_run(seed=seed, depth=1) for seed in range(3)]
    began = time.monotonic()
    outcomes = train_pack(specs, tmp_path).values()
    elapsed = time.monotonic() - began
    assert 0.5 * elapsed < sum(outcome.wall_seconds for outcome in outcomes) <= elapsed


@pytest.mark.live
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_compiled_runs_have_the_losses_of_plain_ones(make_run: MakeRun, tmp_path: Path) -> None:
    specs = [make_run(seed=seed, depth=1, steps=8, evaluations=1) for seed in range(2)]
    plain = train_pack(specs, tmp_path)
    compiled = train_pack(specs, tmp_path, compiled="on")
    for spec in specs:
        assert_same_run(compiled[spec.run_id], plain[spec.run_id], 1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"width": 64, "depth": 4},
        {"precision": "bfloat16", "queries_per_key": 2, "qk_norm": True, "depth": 4},
        {"accumulation_steps": 4, "activation": "relu2"},
        {"experts": {**EXPERTS, "balance_weight": 0.01, "router_z_weight": 0.001}},
    ],
    ids=str,
)
def test_the_memory_of_a_pack_is_known_before(make_run: MakeRun, corpus: Corpus, overrides: dict[str, Any]) -> None:
    """Every allocation of a second step is counted; of an update's passing numbers a CPU has but a few at a time."""
    specs = [make_run(seed=seed, batch_tokens=1024, **overrides) for seed in range(3)]
    stepper, tokens = build_stepper(corpus, *specs), take_batches(corpus, 0, *specs)
    stepper.step(tokens, [0.01] * 3)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        stepper.step(tokens, [0.01] * 3)
    events = profile.profiler.kineto_results.events()
    peak = max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    needed = peak + ROWS_KEPT * stepper.state.weights.nbytes
    assert needed < estimate_bytes(specs[0], 3) < 1.35 * needed


def test_rows_that_were_given_up_hold_no_memory(make_run: MakeRun, corpus: Corpus) -> None:
    specs = [make_run(seed=seed, **SMALL) for seed in range(3)]
    stepper = build_stepper(corpus, *specs)
    stepper.step(take_batches(corpus, 0, *specs), [0.01] * 3)
    rows = (stepper.state.weights, stepper.state.gradients, *stepper.optimizer.buffers.values())
    given_up = [weakref.ref(tensor) for tensor in rows]
    del rows
    stepper.take([2])
    assert [reference() for reference in given_up] == [None] * 4


def test_runs_of_different_shapes_are_no_pack(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="pack_key"):
        train_pack([make_run(), make_run(width=64)], tmp_path)
