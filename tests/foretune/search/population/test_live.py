"""A population of real proxies: it goes on from states with the mutated settings, and a replay has the same loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from foretune.launching import launch_study
from foretune.ledger import Ledger, open_ledger
from foretune.records import Result, RunSpec
from foretune.resolution import resolve_corpus
from foretune.runners import make_runner
from foretune.search.population.lineage import Stretch, find_winner, make_schedule, read_stretches
from foretune.search.replaying.schedule import replay_schedule
from foretune.study import Study, read_study
from foretune.training.schedules import schedule_lr

pytestmark = pytest.mark.live
STEPS, READY = 36, 12


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": f"def number_{n}():\n    return {n} + {n * n}\n" * 6}) for n in range(400)]
    (folder / "code.jsonl").write_text("\n".join(lines))
    return read_study(
        {
            "study": {"name": "live", "seed": 1},
            "proxy": {"parametrization": "mup", "base_width": 16, "head_size": 8, "depth": 1},
            "scales": [{"name": "w16", "width": 16, "tokens": STEPS * 512}],
            "training": {"batch_tokens": 512, "evaluations": 3, "diagnoses": 0},
            "data": {
                "corpus": "files",
                "tokenizer": "bytes",
                "seq_len": 32,
                "validation_sequences": 16,
                "validation_fraction": 0.2,
                "max_epochs": 9,
                "domains": {"code": {"path": str(folder / "code.jsonl")}},
            },
            "search": {
                "strategy": "pbt",
                "space": {"peak_lr": {"low": 0.001, "high": 0.1}, "weight_decay": {"low": 0.01, "high": 1.0}},
                "population": {"size": 4, "ready_tokens": READY * 512},
            },
            "runner": {"kind": "inline", "pack": 1},
        }
    )


@pytest.fixture(scope="module")
def ledger(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    place = tmp_path_factory.mktemp("live")
    with open_ledger(place / "ledger.db", create=True) as opened:
        assert launch_study(study, opened, results=place, quiet=True) == 0
        yield opened


@pytest.fixture(scope="module")
def stretches(ledger: Ledger) -> list[Stretch]:
    return read_stretches(ledger.decisions("live"))


@pytest.fixture(scope="module")
def results(ledger: Ledger, stretches: list[Stretch]) -> dict[str, Result]:
    return {item.run_id: item for item in ledger.results([item.run_id for item in stretches])}


def test_every_stretch_trains_only_its_own_tokens(stretches: list[Stretch], results: dict[str, Result]) -> None:
    spent = {item.run_id: results[item.run_id].spent_flops for item in stretches}
    assert len(spent) == 4 * STEPS // READY
    assert len(set(spent.values())) == 1
    assert all(results[item.run_id].tokens == item.stop_tokens for item in stretches)


def test_the_first_step_after_a_copy_has_the_mutated_learning_rate(
    study: Study, stretches: list[Stretch], results: dict[str, Result]
) -> None:
    """Restored optimizer state must not bring the donor's rate back, as Ray Tune's does (ray#62173)."""
    copies = [item for item in stretches if item.kind == "exploit"]
    assert copies
    for item in copies:
        spec = _make_spec(study, item, stretches)
        first = next(point for point in results[item.run_id].curve if point.tokens > item.start_tokens)
        step = first.step - 1
        assert first.lr == schedule_lr(spec.training_at(step), step)
        assert first.lr != schedule_lr(spec.training_at(READY * (item.generation - 1) - 1), step), "the donor's"


def test_the_winner_trained_in_one_go_has_the_same_loss(
    study: Study, stretches: list[Stretch], results: dict[str, Result], tmp_path: Path
) -> None:
    """The whole lineage, copies and changes included, is what its phases say it is: to the last bit."""
    winner = find_winner(stretches, results, {})
    assert winner is not None
    spec = _make_spec(study, winner, stretches)
    assert spec.run_id == winner.run_id
    assert spec.parent_run_id == ""
    runner = make_runner(study.runner, workspace=tmp_path)
    ((_, outcome),) = runner.run([spec], lambda spec, point: None)
    assert outcome.loss == results[winner.run_id].loss


def _make_spec(study: Study, stretch: Stretch, stretches: list[Stretch]) -> RunSpec:
    """The lineage of a stretch as one run from scratch to the end of its schedule."""
    schedule = make_schedule("live", stretch, stretches, 0.0)
    return replay_schedule(study, study.scales[0], schedule, stretch.seed, resolve_corpus(study))
