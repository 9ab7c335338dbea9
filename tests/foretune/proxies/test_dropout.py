"""Dropout leaves out what it says, follows from run and step alone, and is no part of a run without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foretune.corpora import Corpus
from foretune.proxies.dropout import Dropout, mix
from foretune.proxies.train import train_run, train_runs
from foretune.records import CurvePoint, RunSpec
from foretune.training.packing import pack_key
from foretune_factories import make_spec
from foretune_packs import build_stepper, take_batches

MakeRun = Callable[..., RunSpec]
CPU = torch.device("cpu")
QUIET: Callable[[CurvePoint], None] = lambda point: None  # noqa: E731


def make_dropout(*rates: float, steps: int = 0, first: int = 0, seed: int = 0) -> Dropout:
    dropout = Dropout(len(rates))
    dropout.configure(rates, [seed] * len(rates), CPU)
    dropout.draw(torch.full((len(rates),), steps), first)
    return dropout


def find_dropped(place: int = 0, **settings: Any) -> torch.Tensor:
    return make_dropout(0.5, **settings)(torch.ones(1, 8, 32, 64), place)[0] == 0


def test_the_bits_are_mixed_as_published() -> None:
    """Against `lowbias32` in unsigned arithmetic."""
    numbers = np.array([0, 1, 2, 12345, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    x = numbers.copy()
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    ours = mix(torch.from_numpy(numbers.view(np.int32).copy())).numpy().view(np.uint32)
    assert ours.tolist() == x.tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_many_are_left_out_as_it_says_and_the_mean_stays(rate: float) -> None:
    out = make_dropout(rate)(torch.ones(1, 16, 64, 64), 0)
    count = out.numel()
    within = 4 * (rate * (1 - rate) / count) ** 0.5  # four standard deviations
    assert abs(float((out == 0).double().mean()) - rate) < within
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - rate)))
    for dim in (1, 2, 3):  # no sequence, position or channel is favoured: chi^2 of its counts
        others = tuple(axis for axis in range(4) if axis != dim)
        counts = (out == 0).sum(dim=others).double()
        size = count / len(counts)
        chi_square = float(((counts - size * rate) ** 2 / (size * rate * (1 - rate))).sum())
        assert abs(chi_square - len(counts)) < 4 * (2 * len(counts)) ** 0.5


@pytest.mark.parametrize("other", [{"steps": 1}, {"seed": 1}, {"place": 1}, {"first": 8}], ids=str)
def test_masks_of_other_steps_seeds_blocks_and_sequences_are_not_related(other: dict[str, Any]) -> None:
    one, two = find_dropped(), find_dropped(**other)
    agreement = float((one == two).double().mean())
    assert abs(agreement - 0.5) < 4 * 0.5 / one.numel() ** 0.5


def test_a_micro_batch_has_its_part_of_the_masks() -> None:
    whole = find_dropped()
    part = make_dropout(0.5, first=4)(torch.ones(1, 4, 32, 64), 0)[0] == 0
    assert torch.equal(whole[4:], part)


def test_it_is_off_at_rate_0_and_where_nothing_is_trained() -> None:
    x = torch.randn(2, 2, 4, 8)
    assert make_dropout(0.0, 0.0)(x, 0) is x
    with torch.no_grad():
        assert make_dropout(0.5, 0.5)(x, 0) is x
    assert torch.equal(make_dropout(0.0, 0.5)(x, 0)[0], x[0])


def test_a_run_without_it_keeps_its_id() -> None:
    content = make_spec().content()["training"]
    assert "dropout" not in content
    assert "self_tuning" not in content
    assert make_spec(dropout=0.1).run_id != make_spec().run_id
    assert pack_key(make_spec(dropout=0.1)) == pack_key(make_spec(dropout=0.2)) != pack_key(make_spec())


def test_only_training_is_disturbed(corpus: Corpus, make_run: MakeRun) -> None:
    plain, dropped = build_stepper(corpus, make_run()), build_stepper(corpus, make_run(dropout=0.5))
    assert plain.evaluate([0]) == dropped.evaluate([0])
    batch = take_batches(corpus, 0, make_run())
    assert float(plain.measure(batch).losses) != float(dropped.measure(batch).losses)


def test_runs_of_a_pack_equal_those_alone(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [make_run(dropout=rate, seed=seed) for rate, seed in ((0.1, 0), (0.4, 0), (0.4, 1))]
    alone = [train_run(run, tmp_path / f"{number}", QUIET) for number, run in enumerate(runs)]
    folders = [tmp_path / f"packed{number}" for number in range(3)]
    packed = {spec.run_id: outcome for spec, outcome in train_runs(runs, folders, lambda spec, point: None)}
    assert len({outcome.loss for outcome in alone}) == 3
    for run, outcome in zip(runs, alone, strict=True):
        assert packed[run.run_id].loss == pytest.approx(outcome.loss, rel=2e-4)


def test_micro_batches_and_diagnoses_change_nothing_but_rounding(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(dropout=0.3)
    whole = train_run(run, tmp_path / "whole", QUIET)
    for number, other in enumerate((make_run(dropout=0.3, accumulation_steps=4), make_run(dropout=0.3, diagnoses=4))):
        assert train_run(other, tmp_path / str(number), QUIET).loss == pytest.approx(whole.loss, rel=2e-4)


def test_a_killed_run_goes_on_to_the_same_loss(tmp_path: Path, make_run: MakeRun) -> None:
    class Killed(BaseException):
        pass

    def die(point: CurvePoint) -> None:
        if point.step >= 12:
            raise Killed

    run = make_run(dropout=0.3, checkpoint_steps=5)
    whole = train_run(run, tmp_path / "whole", QUIET)
    with pytest.raises(Killed):
        train_run(run, tmp_path / "killed", die)
    again = train_run(run, tmp_path / "killed", QUIET)
    assert (again.loss, again.curve) == (whole.loss, whole.curve)


def test_horizons_share_their_trunk(tmp_path: Path, make_run: MakeRun) -> None:
    runs = [make_run(dropout=0.3, steps=steps) for steps in (12, 20)]
    alone = [train_run(run, tmp_path / f"{number}", QUIET) for number, run in enumerate(runs)]
    folders = [tmp_path / "a", tmp_path / "b"]
    shared = {spec.run_id: outcome for spec, outcome in train_runs(runs, folders, lambda spec, point: None)}
    for run, outcome in zip(runs, alone, strict=True):
        assert shared[run.run_id].loss == pytest.approx(outcome.loss, rel=2e-4)
    assert (shared[runs[0].run_id].spent_flops or 0) < (alone[0].spent_flops or 0)
