"""What every runner promises, asked of each."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from foretune.errors import InputError
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus, trainer_of
from foretune.runners import Runner, make_runner
from foretune.sections import RunnerSection, SurfaceSection
from foretune_factories import make_spec

RATES = [2.0**-exponent for exponent in (1, 3, 5, 7, 9)]
SURFACE = RunnerSection(kind="replay", surface=SurfaceSection(divergence_factor=4.0))


@dataclass(frozen=True)
class Bench:
    """A runner, and the name under which it can execute runs."""

    runner: Runner
    trainer: str
    kind: str

    def specs(self, **overrides: Any) -> list[RunSpec]:
        return [make_spec(trainer=self.trainer, peak_lr=rate, **overrides) for rate in RATES]


@pytest.fixture(params=["inline", "replay", pytest.param("ray", marks=pytest.mark.live)])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "replay":
        return Bench(make_runner(SURFACE, workspace=tmp_path), trainer_of("", SURFACE), "replay")
    if request.param == "ray":
        request.getfixturevalue("shared_ray")
    runner = make_runner(RunnerSection(kind=request.param, retries=0), workspace=tmp_path)
    return Bench(runner, "toy_trainers:train_toy", request.param)


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


def collect(runner: Runner, specs: list[RunSpec], observe: Callable[..., None] = ignore) -> dict[str, RunOutcome]:
    return {spec.run_id: outcome for spec, outcome in runner.run(specs, observe)}


def test_each_run_ends_once_and_is_heard_of(bench: Bench) -> None:
    heard: dict[str, list[float]] = {}
    threads = set()

    def observe(spec: RunSpec, point: CurvePoint) -> None:
        assert point.held_out is not None
        heard.setdefault(spec.run_id, []).append(point.held_out)
        threads.add(threading.current_thread())

    specs = bench.specs()
    ended = [(spec.run_id, outcome) for spec, outcome in bench.runner.run(specs, observe)]
    assert sorted(run_id for run_id, _ in ended) == sorted(spec.run_id for spec in specs)
    assert {outcome.status for _, outcome in ended} == {RunStatus.COMPLETED, RunStatus.DIVERGED}
    for run_id, outcome in ended:
        if outcome.status is RunStatus.COMPLETED:
            assert heard[run_id] == [point.held_out for point in outcome.curve if point.held_out is not None]
            assert heard[run_id][-1] == outcome.loss
    assert threads == {threading.current_thread()}


def test_outcomes_depend_on_neither_order_nor_repetition(bench: Bench) -> None:
    specs = bench.specs()
    shuffled = random.Random(0).sample(specs, len(specs))
    assert collect(bench.runner, specs) == collect(bench.runner, shuffled)


def test_closing_early_leaves_the_runner_usable(bench: Bench) -> None:
    specs = bench.specs()
    outcomes = bench.runner.run(specs, ignore)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(collect(bench.runner, specs[:2])) == 2
    bench.runner.close()
    bench.runner.close()


def test_trouble_of_the_listener_is_not_a_failed_run(bench: Bench) -> None:
    def refuse(spec: RunSpec, point: CurvePoint) -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        collect(bench.runner, bench.specs(), refuse)


def test_no_runs_are_no_work(bench: Bench) -> None:
    assert collect(bench.runner, []) == {}


def test_description_is_one_line(bench: Bench) -> None:
    assert bench.runner.describe().startswith(bench.kind)
    assert "\n" not in bench.runner.describe()


def test_a_name_that_cannot_run_here_is_refused_before_any_work(bench: Bench) -> None:
    foreign = "toy_trainers:train_toy" if bench.kind == "replay" else "replay:0123456789ab"
    with pytest.raises(InputError, match=foreign):
        collect(bench.runner, [*bench.specs(), make_spec(trainer=foreign)])


class Search:
    """Asks for runs by the results so far: rounds of two, of which the second depends on the loss of the first."""

    def __init__(self, bench: Bench, rounds: int) -> None:
        self.bench, self.rounds = bench, rounds
        self.ended: list[tuple[RunSpec, RunOutcome]] = []
        self.asked = [make_spec(trainer=bench.trainer, peak_lr=2.0**-9, seed=seed) for seed in range(2)]

    def more(self) -> list[RunSpec]:
        """The next round when the last one has ended."""
        if len(self.ended) < len(self.asked) or len(self.asked) == 2 * self.rounds:
            return []
        best = min((outcome.loss or 99.0, spec.training.peak_lr) for spec, outcome in self.ended)[1]
        rates = (best * 2, best * 2**0.5)
        new = [make_spec(trainer=self.bench.trainer, peak_lr=rate, seed=len(self.asked)) for rate in rates]
        self.asked += new
        return new

    def run(self) -> None:
        for spec, outcome in self.bench.runner.run(self.asked[:], ignore, more=self.more):
            self.ended.append((spec, outcome))


def test_runs_are_added_by_what_came_of_others(bench: Bench) -> None:
    search = Search(bench, rounds=4)
    search.run()
    assert len(search.asked) == 8
    ended = [spec.run_id for spec, _ in search.ended]
    assert sorted(ended) == sorted(spec.run_id for spec in search.asked), "one outcome each"
    assert all(outcome.status is RunStatus.COMPLETED for _, outcome in search.ended)
    alone = collect(bench.runner, search.asked)
    assert dict(zip(ended, (outcome for _, outcome in search.ended), strict=True)) == alone


def test_more_is_asked_for_whenever_an_outcome_has_been_taken(bench: Bench) -> None:
    specs, taken, heard = bench.specs(), [], []

    def more() -> list[RunSpec]:
        heard.append(len(taken))
        return [make_spec(trainer=bench.trainer, peak_lr=2.0**-8, seed=9)] if len(taken) == len(specs) else []

    for spec, _ in bench.runner.run(specs, ignore, more=more):
        taken.append(spec.run_id)
    assert heard == list(range(1, len(specs) + 2))
    assert len(taken) == len(specs) + 1


def test_a_search_that_raises_is_not_a_failed_run(bench: Bench) -> None:
    def more() -> list[RunSpec]:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        list(bench.runner.run(bench.specs(), ignore, more=more))
    assert len(collect(bench.runner, bench.specs())) == len(RATES)


@pytest.mark.live
def test_a_search_goes_on_in_the_next_experiment_when_one_is_full(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foretune.runners.raytune.CHUNK_RUNS", 3)
    runner = make_runner(RunnerSection(kind="ray"), workspace=tmp_path)
    search = Search(Bench(runner, "toy_trainers:train_toy", "ray"), rounds=4)
    search.run()
    assert sorted(spec.run_id for spec, _ in search.ended) == sorted(spec.run_id for spec in search.asked)


@pytest.mark.live
def test_ray_and_inline_measure_the_same(shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretune.runners.raytune.CHUNK_RUNS", 4)  # also across the seam of two experiments
    specs = [make_spec(trainer="toy_trainers:raise_on_odd_seed", seed=seed) for seed in range(6)]
    by_kind = {}
    for kind in ("inline", "ray"):
        runner = make_runner(RunnerSection(kind=kind, retries=0), workspace=tmp_path / kind)  # type: ignore[arg-type]
        by_kind[kind] = collect(runner, specs)
    assert by_kind["inline"] == by_kind["ray"]
    failed = by_kind["ray"][specs[3].run_id]
    assert failed.status is RunStatus.FAILED
    assert failed.reason.startswith("ValueError: planted failure of seed 3 (toy_trainers.py:")
    assert failed.reason.endswith("in raise_on_odd_seed)")
    assert [by_kind["ray"][spec.run_id].status for spec in specs[::2]] == [RunStatus.COMPLETED] * 3
