"""Runs that are diagnosed along the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from foretune.corpora import Corpus
from foretune.proxies.train import train_run, train_runs
from foretune.records import ExpertsSpec, RunOutcome, RunSpec, RunStatus
from foretune_causal_lms import make_causal_lm
from foretune_packs import build_stepper

MakeRun = Callable[..., RunSpec]
FIELDS = {
    "gradient_norm",
    "update_norm",
    "update_cosine",
    "saturated_share",
    "noise_scale_tokens",
    "logit_max",
    "attention_logit_max",
    "near_eps_share",
}


def train(spec: RunSpec, folder: Path) -> RunOutcome:
    return train_run(spec, folder, lambda point: None)


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_diagnoses_change_nothing_but_the_rounding(make_run: MakeRun, tmp_path: Path, accumulation_steps: int) -> None:
    """The losses of the two agree as far as those of a run with and without micro-batches."""
    settings = {"steps": 48, "accumulation_steps": accumulation_steps, "peak_lr": 2**-8}
    plain = train(make_run(**settings), tmp_path / "plain")
    diagnosed = train(make_run(**settings, diagnoses=20), tmp_path / "diagnosed")
    assert plain.diagnoses == ()
    assert [found.step for found in diagnosed.diagnoses] == [16, 32, 48]
    losses = [[point.loss for point in outcome.curve] for outcome in (plain, diagnosed)]
    np.testing.assert_allclose(*np.array(losses, dtype=float), rtol=1e-5)
    if accumulation_steps > 1:
        assert diagnosed.curve == plain.curve  # nothing is split, so nothing is rounded otherwise
    assert diagnosed.spent_flops == plain.spent_flops


def test_every_field_is_measured_within_its_bounds(make_run: MakeRun, tmp_path: Path) -> None:
    spec = make_run(steps=32, diagnoses=2, batch_tokens=32 * 32, peak_lr=2**-8)
    for found in train(spec, tmp_path).diagnoses:
        values = found.model_dump()
        assert {name for name, value in values.items() if value is not None} == {"step", *FIELDS}
        assert 0 <= values["saturated_share"] <= 1
        assert 0 <= values["near_eps_share"] <= 1
        assert -1 <= values["update_cosine"] <= 1
        assert values["logit_max"] > 0
        assert 1 < values["noise_scale_tokens"] < 1e9


def test_what_an_optimizer_does_not_have_is_missing(make_run: MakeRun, tmp_path: Path) -> None:
    outcome = train(make_run(steps=16, diagnoses=1, optimizer="sgd", batch_tokens=32), tmp_path)  # of one sequence
    missing = {name for name, value in outcome.diagnoses[0].model_dump().items() if value is None}
    assert missing == {"saturated_share", "near_eps_share", "noise_scale_tokens"}


def test_experts_keep_their_batch_whole(make_run: MakeRun, corpus: Corpus) -> None:
    """Their load-balancing loss over two halves is another one."""
    experts = ExpertsSpec(
        count=4, active=2, shared=0, width=16, base_width=16, balance="global", balance_weight=0.01, router_z_weight=0.0
    )
    spec = make_run(experts=experts)
    stepper = build_stepper(corpus, spec)
    result = stepper.measure(torch.zeros(1, 8, 33, dtype=torch.int64), diagnose=True)
    assert result.probe is not None
    assert result.probe.parts == 1


@pytest.mark.parametrize(("model_type", "parts"), [("mixtral", 1), ("llama", 2)])
def test_so_do_those_of_transformers(make_run: MakeRun, corpus: Corpus, model_type: str, parts: int) -> None:
    model = make_causal_lm(model_type, vocab_size=257, seq_len=32)
    stepper = build_stepper(corpus, make_run().model_copy(update={"model": model}))
    result = stepper.measure(torch.arange(8 * 33).view(1, 8, 33) % 257, diagnose=True)
    assert result.probe is not None
    assert result.probe.parts == parts


def test_members_of_a_pack_are_diagnosed_as_alone(make_run: MakeRun, tmp_path: Path) -> None:
    """Also one that is diagnosed at other steps, one that is not, and beside one that ends early."""
    specs = [
        make_run(steps=48, diagnoses=3, peak_lr=2**-8),
        make_run(steps=40, diagnoses=2, peak_lr=2**-7, seed=1),
        make_run(steps=48, diagnoses=0, seed=2),
        make_run(steps=48, diagnoses=3, peak_lr=1e30, warmup_steps=0, seed=3),
    ]
    folders = [tmp_path / str(number) for number in range(4)]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, lambda spec, point: None)}
    assert outcomes[specs[3].run_id].status is RunStatus.DIVERGED
    for number, spec in enumerate(specs[:3]):
        alone, beside = train(spec, tmp_path / f"alone-{number}").diagnoses, outcomes[spec.run_id].diagnoses
        assert len(beside) == len(alone) == spec.training.diagnoses
        for found, expected in zip(beside, alone, strict=True):
            assert found.model_dump() == pytest.approx(expected.model_dump(), rel=2e-3)


def test_forks_of_one_trunk_have_the_diagnoses_of_separate_runs(make_run: MakeRun, tmp_path: Path) -> None:
    specs = [make_run(steps=steps, decay_steps=8, diagnoses=2, peak_lr=2**-8) for steps in (64, 40)]
    folders = [tmp_path / str(number) for number in range(2)]
    outcomes = {spec.run_id: outcome for spec, outcome in train_runs(specs, folders, lambda spec, point: None)}
    for number, spec in enumerate(specs):
        alone, beside = train(spec, tmp_path / f"alone-{number}").diagnoses, outcomes[spec.run_id].diagnoses
        assert [found.step for found in beside] == [spec.training.steps // 2, spec.training.steps]
        for found, expected in zip(beside, alone, strict=True):
            assert found.model_dump() == pytest.approx(expected.model_dump(), rel=2e-3)
