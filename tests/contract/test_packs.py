"""What a runner promises of runs that train together, on real training: none suffers for what befalls another."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from foretune.corpora import prepare_corpus
from foretune.proxies.train import train_runs
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.runners import Runner, make_runner, sizing
from foretune.sections import DataSection, RunnerSection
from foretune_factories import make_spec

SEQ_LEN = 32
RATES = [2.0**-exponent for exponent in (5, 6, 7, 8)]
HOPELESS = 1e6
"""A learning rate at which a run diverges."""
Kind = Literal["inline", "ray"]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunSpec]:
    """A small run on the standard library's source; its overrides are those of `make_spec`."""
    section = DataSection(seq_len=SEQ_LEN)
    corpus = prepare_corpus(section)
    domain = next(iter(corpus.domains))
    fixed = {"width": 16, "head_size": 8, "depth": 1, "vocab_size": corpus.vocab_size, "validation_sequences": 4}
    fixed |= {"seq_len": SEQ_LEN, "section": section, "corpus_digest": corpus.digest, "mixture": {domain: 1.0}}
    fixed |= {"batch_tokens": 4 * SEQ_LEN, "steps": 64, "evaluations": 3, "checkpoint_steps": 8}
    return lambda **overrides: make_spec(**(fixed | overrides))


@pytest.fixture(params=["inline", pytest.param("ray", marks=pytest.mark.live)])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("shared_ray")
    return str(request.param)


def start(kind: Any, workspace: Path, **options: Any) -> Runner:
    return make_runner(RunnerSection(kind=kind, **{"pack": 8, "concurrency": 1, **options}), workspace=workspace)


def ignore(spec: RunSpec, point: CurvePoint) -> None:
    pass


def collect(
    runner: Runner, specs: Sequence[RunSpec], observe: Callable[[RunSpec, CurvePoint], None] = ignore
) -> dict[str, RunOutcome]:
    """Outcomes by run; each run must have exactly one."""
    ended = list(runner.run(specs, observe))
    assert sorted(spec.run_id for spec, _ in ended) == sorted(spec.run_id for spec in specs)
    return {spec.run_id: outcome for spec, outcome in ended}


@pytest.fixture(scope="session")
def alone(make_run: Callable[..., RunSpec], tmp_path_factory: pytest.TempPathFactory) -> dict[float, RunOutcome]:
    """What training each run alone gives, by learning rate."""
    specs = [make_run(peak_lr=rate) for rate in (*RATES, HOPELESS)]
    outcomes = collect(start("inline", tmp_path_factory.mktemp("alone"), pack=1), specs)
    assert {outcome.pack_size for outcome in outcomes.values()} == {1}
    return {spec.training.peak_lr: outcomes[spec.run_id] for spec in specs}


def test_a_pack_gives_what_its_runs_give_alone_also_beside_one_that_diverges(
    kind: Kind, make_run: Callable[..., RunSpec], alone: dict[float, RunOutcome], tmp_path: Path
) -> None:
    specs = [make_run(peak_lr=rate) for rate in (*RATES, HOPELESS)]
    heard: dict[str, list[float | None]] = {}
    threads = set()

    def observe(spec: RunSpec, point: CurvePoint) -> None:
        heard.setdefault(spec.run_id, []).append(point.held_out)
        threads.add(threading.current_thread())

    outcomes = collect(start(kind, tmp_path), specs, observe)
    assert threads == {threading.current_thread()}
    for spec in specs:
        outcome, expected = outcomes[spec.run_id], alone[spec.training.peak_lr]
        assert (outcome.status, outcome.pack_size) == (expected.status, 5)
        if outcome.status is RunStatus.COMPLETED:
            assert outcome.loss == pytest.approx(expected.loss, abs=1e-5)
            assert heard[spec.run_id] == [point.held_out for point in outcome.curve if point.held_out is not None]
    assert [outcome.status for outcome in outcomes.values()].count(RunStatus.DIVERGED) == 1


def test_a_run_that_raises_fails_alone(
    kind: Kind, make_run: Callable[..., RunSpec], alone: dict[float, RunOutcome], tmp_path: Path
) -> None:
    specs = [make_run(peak_lr=rate) for rate in RATES]
    folder = tmp_path / "runs" / specs[1].run_id
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file where checkpoints should be")
    outcomes = collect(start(kind, tmp_path, retries=1), specs)
    assert outcomes[specs[1].run_id].status is RunStatus.FAILED
    assert "checkpoints" in outcomes[specs[1].run_id].reason
    for spec in (specs[0], *specs[2:]):
        assert outcomes[spec.run_id].loss == pytest.approx(alone[spec.training.peak_lr].loss, abs=1e-5)


def test_memory_that_is_too_small_for_all_suffices_for_fewer(
    make_run: Callable[..., RunSpec],
    alone: dict[float, RunOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def train_few(specs: Sequence[RunSpec], *arguments: Any, **options: Any) -> Iterator[tuple[RunSpec, RunOutcome]]:
        if len(specs) > 2:
            raise MemoryError("not enough for three")
        return train_runs(specs, *arguments, **options)

    monkeypatch.setattr("foretune.proxies.train.train_runs", train_few)
    specs = [make_run(peak_lr=rate) for rate in RATES]
    outcomes = collect(start("inline", tmp_path, retries=0), specs)
    assert [outcomes[spec.run_id].pack_size for spec in specs] == [2, 2, 2, 2]
    for spec in specs:
        assert outcomes[spec.run_id].loss == pytest.approx(alone[spec.training.peak_lr].loss, abs=1e-5)


def test_trouble_of_the_listener_is_no_fault_of_the_pack(make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    heard = []

    def refuse(spec: RunSpec, point: CurvePoint) -> None:
        heard.append(point)
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError, match="the lease is lost"):
        collect(start("inline", tmp_path), [make_run(peak_lr=rate) for rate in RATES], refuse)
    assert len(heard) == 1


def test_closing_in_the_middle_of_a_pack_leaves_the_runner_usable(
    kind: Kind, make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    specs = [make_run(peak_lr=rate, steps=steps) for rate, steps in zip(RATES, (16, 64, 64, 64), strict=True)]
    runner = start(kind, tmp_path)
    with closing(runner.run(specs, ignore)) as outcomes:
        first, _ = next(outcomes)
    assert first.training.steps == 16, "an outcome comes when its run ends, not when the pack does"
    assert len(collect(runner, specs[1:])) == 3


def test_a_pack_is_said_with_its_reason(make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    said: list[str] = []
    list(start("inline", tmp_path, pack=3).run([make_run(peak_lr=rate) for rate in RATES], ignore, said.append))
    assert said == ["width 16, depth 1, 128 tokens a step: 4 runs in 2 packs of at most 2; runner.pack = 3"]


def test_auto_measures_where_runs_are_executed(
    kind: Kind, make_run: Callable[..., RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "SHORT_FLOPS", 0.0)
    said: list[str] = []
    specs = [make_run(peak_lr=rate, steps=12, warmup_steps=2) for rate in RATES]
    ended = list(start(kind, tmp_path, pack="auto").run(specs, ignore, said.append))
    assert {outcome.status for _, outcome in ended} == {RunStatus.COMPLETED}
    (line,) = said
    assert "; measured: " in line
    assert "(tried 1, 2" in line


@pytest.mark.live
@pytest.mark.usefixtures("shared_ray")
def test_a_killed_worker_loses_only_runs_that_go_on_from_their_checkpoints(
    make_run: Callable[..., RunSpec], alone: dict[float, RunOutcome], tmp_path: Path
) -> None:
    specs = [make_run(peak_lr=rate) for rate in RATES] + [make_run(steps=12, warmup_steps=2, decay_steps=4)]
    killed: list[int] = []
    ended = []
    for spec, outcome in start("ray", tmp_path, retries=1).run(specs, ignore):
        ended.append((spec, outcome))
        if not killed:
            assert spec.training.steps == 12
            killed += kill_workers()
    assert len(killed) == 1
    assert sorted(spec.run_id for spec, _ in ended) == sorted(spec.run_id for spec in specs)
    for spec, outcome in ended[1:]:
        assert outcome.loss == pytest.approx(alone[spec.training.peak_lr].loss, abs=1e-5)


@pytest.mark.live
@pytest.mark.usefixtures("shared_ray")
def test_when_the_retries_are_spent_the_runs_without_an_outcome_have_failed(
    make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    specs = [make_run(peak_lr=rate) for rate in RATES]

    def kill(spec: RunSpec, point: CurvePoint) -> None:
        kill_workers()

    outcomes = collect(start("ray", tmp_path, retries=1), specs, kill)
    assert {outcome.status for outcome in outcomes.values()} == {RunStatus.FAILED}
    assert all("the worker process died" in outcome.reason for outcome in outcomes.values())


def kill_workers() -> list[int]:
    """Kill the Ray workers below this process that train, as a machine without memory would."""
    busy = [process for process in list_descendants(os.getpid()) if read_title(process).startswith("ray::ImplicitFunc")]
    for process in busy:
        os.kill(process, signal.SIGKILL)
    return busy


def list_descendants(ancestor: int) -> Iterator[int]:
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for process in parents:
        above = parents[process]
        while above not in (0, 1, ancestor):
            above = parents.get(above, 0)
        if above == ancestor:
            yield process


def read_title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
