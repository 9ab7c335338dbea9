"""What the training table does to real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foretune.corpora import BatchStream, Corpus
from foretune.proxies.optimizers import OPTIMIZERS
from foretune.proxies.train import train_run, train_runs
from foretune.records import RampPhase, RunOutcome, RunSpec, RunStatus

MakeRun = Callable[..., RunSpec]
RATES = {"sgd": 0.3, "lion": 2**-9, "prodigy": 1.0}
"""Learning rates of those that are not about that of AdamW."""


def train(spec: RunSpec, folder: Path) -> RunOutcome:
    outcome = train_run(spec, folder, lambda point: None)
    assert outcome.status is RunStatus.COMPLETED, outcome.reason
    return outcome


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns(optimizer: str, make_run: MakeRun, tmp_path: Path) -> None:
    """A guess among the letters of the corpus costs about 3 nats; an untrained model is at ln 257 = 5.5 or above."""
    spec = make_run(
        optimizer=optimizer,
        peak_lr=RATES.get(optimizer, 2**-6),
        schedule="constant",
        steps=40,
        decay_steps=0,
        depth=1,
    )
    assert (train(spec, tmp_path).loss or 9) < 3


def test_a_ramped_run_reads_the_sequences_of_the_plain_one(
    make_run: MakeRun, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ramp cuts the same text into smaller batches at the beginning; its curve counts the tokens."""
    read: list[tuple[int, int]] = []
    original = BatchStream.sequences

    def sequences(self: BatchStream, first: int, count: int) -> object:
        read.append((first, count))
        return original(self, first, count)

    monkeypatch.setattr(BatchStream, "sequences", sequences)
    ramp = (RampPhase(steps=4, batch_tokens=2 * 32), RampPhase(steps=2, batch_tokens=4 * 32))
    outcome = train(make_run(ramp=ramp, steps=10, evaluations=2), tmp_path)
    expected = [(0, 2), (2, 2), (4, 2), (6, 2), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8)]
    assert read[: len(expected)] == expected
    assert [point.tokens for point in outcome.curve][-1] == outcome.tokens == 48 * 32
    assert outcome.spent_flops == make_run(ramp=ramp, steps=10, evaluations=2).compute_flops


@pytest.mark.parametrize("optimizer", ["nadamw", "nadamw_constant", "lion", "sgd", "muon"])
def test_members_of_a_pack_may_differ_in_every_setting(optimizer: str, make_run: MakeRun, tmp_path: Path) -> None:
    settings = (
        {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "eps": 1e-8, "momentum": 0.9, "schedule": "wsd"},
        {"beta1": 0.8, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-6, "momentum": 0.5, "schedule": "cosine"},
        {"beta1": 0.7, "beta2": 0.90, "weight_decay": 0.5, "eps": 1e-4, "momentum": 0.8, "schedule": "wsd"},
    )
    specs = [make_run(optimizer=optimizer, peak_lr=RATES.get(optimizer, 2**-6), **each) for each in settings]
    together = train_runs(specs, [tmp_path / spec.run_id for spec in specs], lambda spec, point: None)
    losses = {spec.run_id: outcome.loss for spec, outcome in together}
    assert len(set(losses.values())) == 3
    for spec in specs:
        assert losses[spec.run_id] == pytest.approx(train(spec, tmp_path / "alone").loss, abs=1e-5)
