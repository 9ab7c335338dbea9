"""Soups of real runs, forked from one trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.corpora import Corpus
from foretune.errors import InputError
from foretune.proxies.averaging import evaluate_soup
from foretune.proxies.train import train_run
from foretune.records import Phase, RunOutcome, RunSpec, RunStatus
from foretune_packs import build_stepper

MakeRun = Callable[..., RunSpec]
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_tokens": 128, "validation_sequences": 4, "steps": 40}
Forks = tuple[list[RunSpec], list[Path], list[RunOutcome]]


@pytest.fixture
def forks(make_run: MakeRun, tmp_path: Path) -> Forks:
    """Three decays from one trunk of 24 steps: two of moderate rates, one that does harm."""
    trunk = make_run(**SMALL, stop_step=24)
    specs = [
        trunk.model_copy(
            update={
                "stop_step": 0,
                "phases": (Phase(start_step=24, settings={"peak_lr": rate}),),
                "parent_run_id": trunk.run_id,
                "parent_step": 24,
                "keep_state": True,
            }
        )
        for rate in (2**-7, 2**-5, 0.5)
    ]
    folders = [tmp_path / spec.run_id for spec in specs]
    train_run(trunk, tmp_path / trunk.run_id, lambda point: None)
    return specs, folders, [train_run(*run, lambda point: None) for run in zip(specs, folders, strict=True)]


def read_weights(folder: Path) -> torch.Tensor:
    (file,) = folder.rglob("state.pt")
    weights: torch.Tensor = torch.load(file, weights_only=True)["weights"]
    return weights


def test_a_uniform_soup_has_the_loss_of_the_mean(forks: Forks, corpus: Corpus) -> None:
    specs, folders, members = forks
    outcome, kept = evaluate_soup(specs, folders, "uniform")
    stepper = build_stepper(corpus, specs[0])
    stepper.state.weights[0].copy_(torch.stack([read_weights(folder) for folder in folders]).double().mean(dim=0))
    (expected,) = stepper.evaluate([0])
    assert outcome.loss_by_domain == pytest.approx(expected, abs=1e-5)
    assert outcome.loss == pytest.approx(0.25 * expected["digits"] + 0.75 * expected["words"], abs=1e-5)
    assert sorted(kept) == sorted(spec.run_id for spec in specs)
    assert (outcome.status, outcome.spent_flops, outcome.tokens) == (RunStatus.COMPLETED, 0.0, specs[0].tokens)
    assert outcome.bytes_per_token == members[0].bytes_per_token


def test_a_greedy_soup_is_no_worse_than_the_best_run(forks: Forks) -> None:
    specs, folders, members = forks
    losses = {spec.run_id: outcome.loss or 0.0 for spec, outcome in zip(specs, members, strict=True)}
    outcome, kept = evaluate_soup(specs, folders, "greedy")
    assert outcome.loss is not None
    assert outcome.loss <= min(losses.values())
    assert kept[0] == min(losses, key=lambda run_id: losses[run_id])
    assert specs[2].run_id not in kept


@pytest.mark.parametrize("kind", ["greedy", "uniform"])
def test_a_soup_of_one_is_the_run_to_the_last_bit(forks: Forks, kind: Any) -> None:
    specs, folders, members = forks
    outcome, kept = evaluate_soup(specs[:1], folders[:1], kind)
    assert kept == [specs[0].run_id]
    assert outcome.loss == members[0].loss
    assert outcome.loss_by_domain == members[0].loss_by_domain


def test_what_cannot_be_averaged_is_refused(forks: Forks, make_run: MakeRun, tmp_path: Path) -> None:
    specs, folders, _ = forks

    def refused(others: Sequence[RunSpec], match: str) -> None:
        with pytest.raises(InputError, match=match):
            evaluate_soup([*specs, *others], [*folders, *(tmp_path / "none" for _ in others)], "uniform")

    refused([make_run(**{**SMALL, "width": 32})], "has another model or corpus")
    refused([make_run(**SMALL, seed=5)], "the final state of run .* is not in")
    refused([make_run(**SMALL, optimizer="schedulefree")], "average runs of another optimizer")
