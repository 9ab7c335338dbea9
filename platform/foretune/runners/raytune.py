"""Runs on Ray Tune, on this machine or on a cluster; the one module that imports ray.

Tune is a disposable executor: it places packs of runs on workers, one trial each, restarts those whose worker died, and
is thrown away. Nothing is ever restored from its files: a truncated one passes for an empty experiment, and they are
pickles.

`fit` runs in a thread of its own; `_Courier`, a callback inside it, puts events on a queue; the thread that iterates
over the outcomes takes them off, so that ledger writes and Ctrl-C stay where the user's program is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.worker as ray_worker
from pydantic import ValidationError
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from foretune.errors import InputError, RunnerInterruption
from foretune.records import CurvePoint, RunOutcome, RunSpec
from foretune.runners.grouping import group_runs
from foretune.runners.interface import Note, Observer, ignore_note
from foretune.runners.memory import count_cpus
from foretune.runners.nodes import (
    NodeFacts,
    check_address,
    check_nodes,
    check_resources,
    count_slots,
    inspect_node,
    list_import_folders,
)
from foretune.runners.sizing import Sizer, Timing
from foretune.runners.trainers import check_trainers, describe_error, fail
from foretune.runners.transport import encode_spec
from foretune.runners.worker import (
    FAILURE,
    OUTCOME,
    POINT,
    RUN,
    describe_job,
    describe_pack,
    execute_pack,
    measure_texts,
)
from foretune.sections import RunnerSection

_log = logging.getLogger(__name__)
CHUNK_RUNS = 1000
"""Runs per experiment: Tune rewrites its whole state, some 10 kB a run, every few seconds."""
_STOP_SECONDS = 8.0
"""How long to wait for Tune to let go of its workers; it takes one or two."""
_SILENCE_SECONDS = 30.0
"""After how long without news the machines are counted: Ray itself would wait for lost ones for ever."""
_DETECTION_SECONDS = 40.0
"""How long Ray may take to find that a machine is gone: 5 missed checks, 3 s apart, after 5 s (Ray 2.60's defaults)."""
_PROBE_SECONDS = 120.0
"""How long a node may take to import this package: an assumption."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Results are a few kilobytes of text; Ray's least is 75 MiB."""
_MEASURE_SECONDS = 900.0
"""How long packs of one shape may be timed, Ray's placement included: an assumption."""

Pack = tuple[RunSpec, ...]


@dataclass(frozen=True)
class _Event:
    """What the experiment's thread tells the main thread, of a run or of itself (empty run_id)."""

    run_id: str = ""
    point: str = ""
    outcome: str = ""
    failure: str = ""
    died: bool = False
    """Whether the run has failed without raising anything: its worker is gone, and its machine perhaps."""


class RayRunner:
    """Executes runs in parallel on reused Ray workers."""

    def __init__(self, section: RunnerSection, address: str, workspace: Path) -> None:
        """Raises InputError for an address that cannot be; Ray itself starts with the first run."""
        check_address(address)
        self._section = section
        self._address = address
        self._workspace = workspace.absolute()
        self._owns_ray = False
        self._sizer = Sizer(section, self._measure)

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Yield outcomes as they arrive, the costliest packs started first; see `Runner.run`."""
        if not specs:
            return
        check_trainers(specs)
        try:
            self._connect(sorted({spec.trainer for spec in specs}))
            check_resources(self._section, _list_resources())
            for packs in _list_chunks(self._pack(specs, note)):
                yield from self._run_chunk(packs, observe)
        except BaseException:  # a closed generator, Ctrl-C, a broken Ray: the workers must end in every case
            self.close()
            raise

    def describe(self) -> str:
        """One line for people."""
        need = f"{self._section.cpus_per_run:g} CPU, {self._section.gpus_per_run:g} GPU a run"
        if self._address == "local":
            return f"ray: this machine with {count_cpus()} CPU, {need}"
        slots = f", {count_slots(self._section, _list_resources())} runs at once" if ray.is_initialized() else ""
        return f"ray: cluster {self._address}, {need}{slots}"

    def close(self) -> None:
        """Leave Ray, and end it if it was started here."""
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    def _connect(self, trainers: Sequence[str]) -> None:
        """Start or join Ray, unless the program has done so already."""
        if ray.is_initialized():
            return
        logger = logging.getLogger("ray")
        logger.setLevel(max(logger.level, logging.CRITICAL))  # what matters comes back as the reason of a run
        self._owns_ray = True
        if self._address == "local":
            start_ray()
        else:
            _join_ray(self._address)
            self._check_cluster(trainers)

    def _check_cluster(self, trainers: Sequence[str]) -> None:
        """On this machine workers are this program's own; on others they may be anything."""
        self._workspace.mkdir(parents=True, exist_ok=True)
        probe_file = self._workspace / f".probe-{secrets.token_hex(8)}"
        probe_file.touch()
        try:
            nodes = _inspect_nodes(str(probe_file), trainers)
            check_nodes(inspect_node(str(probe_file), ()), nodes, self._workspace)
        finally:
            probe_file.unlink(missing_ok=True)

    def _pack(self, specs: Sequence[RunSpec], note: Note) -> list[Pack]:
        slots = count_slots(self._section, _list_resources())
        groups = group_runs(specs, self._section, slots, self._sizer)
        for line in (line for group in groups for line in group.notes()):
            note(line)
        packs = [pack for group in groups for pack in group.packs]
        return sorted(packs, key=lambda pack: -sum(spec.compute_flops for spec in pack))  # the last one must be short

    def _measure(self, specs: Sequence[RunSpec], most: int) -> Timing:
        """Time packs on a worker, which has the machine and the resources that a run will have."""
        remote: Any = ray.remote(measure_texts).options(**_name_resources(self._section, "num_cpus", "num_gpus"))
        task = remote.remote([encode_spec(spec) for spec in specs[:most]], most, self._section)
        try:
            timing: Timing = ray.get(task, timeout=_MEASURE_SECONDS)
        except Exception as error:  # a worker that was killed for its memory, above all: the runs are then tried alone
            ray.cancel(task, force=True)
            return Timing({}, describe_error(error))
        return timing

    def _run_chunk(self, packs: Sequence[Pack], observe: Observer) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Outcomes of an experiment; runs that went down with a machine begin again, whatever their retries."""
        while packs:
            nodes = _list_node_ids()
            died: dict[str, tuple[RunSpec, _Event]] = {}
            with contextlib.closing(self._run_experiment(packs, observe)) as events:
                for spec, event in events:
                    if event.died and len(nodes) > 1:
                        died[spec.run_id] = (spec, event)
                    else:
                        yield spec, _read_outcome(event)
            if died and not _has_lost_node(nodes):
                yield from ((spec, _read_outcome(event)) for spec, event in died.values())
                return
            left = [tuple(spec for spec in pack if spec.run_id in died) for pack in packs]
            packs = [pack for pack in left if pack]

    def _run_experiment(self, packs: Sequence[Pack], observe: Observer) -> Generator[tuple[RunSpec, _Event]]:
        """How each run of one experiment ended."""
        pending = {spec.run_id: spec for pack in packs for spec in pack}
        courier = _Courier()
        folder = self._workspace / "tune" / secrets.token_hex(8)  # Tune merges experiments of one name
        thread = threading.Thread(target=self._fit, args=(packs, courier, folder), daemon=True)
        thread.start()
        try:
            while pending and (event := self._wait_for_event(courier)).run_id:
                if event.run_id in pending and event.point:
                    _observe(observe, pending[event.run_id], event.point)
                elif event.run_id in pending:
                    if event.failure and not folder.is_dir():
                        raise RunnerInterruption(f"the folder {folder} is gone, with {len(pending)} runs to do")
                    yield pending.pop(event.run_id), event
            if pending and event.failure:
                raise RunnerInterruption(f"Ray broke down with {len(pending)} runs to do: {event.failure}")
            for run_id, spec in pending.items():
                yield spec, _Event(run_id, failure="Ray ended without a word on this run")
        finally:
            courier.stopping = True  # also when all is told: what Tune still does then is of no use
            thread.join(_STOP_SECONDS)
            shutil.rmtree(folder, ignore_errors=True)

    def _wait_for_event(self, courier: _Courier) -> _Event:
        """The next event; in long silences, whether any machine is left on which there could be one."""
        while True:
            try:
                return courier.events.get(timeout=_SILENCE_SECONDS)
            except queue.Empty:
                if count_slots(self._section, _list_resources()) == 0:
                    return _Event(failure="no machine is left that has the CPUs and GPUs of one run")

    def _fit(self, packs: Sequence[Pack], courier: _Courier, folder: Path) -> None:
        """Run the experiment to its end, in a thread; whatever goes wrong becomes the last event."""
        try:
            self._make_tuner(packs, courier, folder).fit()
        except BaseException as error:
            courier.events.put(_Event(failure=describe_error(error)))
        else:
            courier.events.put(_Event())

    def _make_tuner(self, packs: Sequence[Pack], courier: _Courier, folder: Path) -> tune.Tuner:
        section = self._section
        job = describe_job(section, self._workspace, folder / "outcomes")
        return tune.Tuner(
            tune.with_resources(_execute_pack, _name_resources(section, "cpu", "gpu")),
            param_space={"job": job, "pack": tune.grid_search([describe_pack(pack) for pack in packs])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=section.concurrency,
                reuse_actors=True,  # 20-70 ms a run instead of 1-2 s, and torch is imported once per worker
                trial_name_creator=_name_trial,
                trial_dirname_creator=_name_trial,
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                failure_config=tune.FailureConfig(max_failures=section.retries),
                callbacks=[courier],
                verbose=0,
            ),
        )


class _Courier(tune.Callback):
    """Carries events out of the experiment's thread; only a wish to stop is raised, because Tune then gives up."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self.stopping = False
        self._failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; this one holds nothing worth keeping

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self.stopping:
            return
        for trial in trials:  # Tune would first wait 5 s for runs that cannot hear it
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        raise RunnerInterruption("stopped by the caller")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for run_id in trial.config["pack"]["runs"]:
            self._failures.pop(run_id, None)  # a new attempt

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        run_id = result.get(RUN, "")
        if POINT in result:
            self.events.put(_Event(run_id, point=result[POINT]))
        elif OUTCOME in result:
            self.events.put(_Event(run_id, outcome=result[OUTCOME]))
        elif FAILURE in result:
            self._failures[run_id] = result[FAILURE]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "the worker ended without an outcome", died=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, _describe_death(trial), died=True)

    def _end(self, trial: Any, reason: str, *, died: bool) -> None:
        """Nothing more comes of these runs: those that have an outcome by now are pending no longer."""
        for run_id in trial.config["pack"]["runs"]:
            raised = self._failures.get(run_id)
            self.events.put(_Event(run_id, failure=raised or reason, died=died and not raised))


def _list_chunks(packs: Sequence[Pack]) -> Iterator[list[Pack]]:
    """Packs by experiment, in their order."""
    chunk: list[Pack] = []
    for pack in packs:
        if chunk and sum(map(len, chunk)) + len(pack) > CHUNK_RUNS:
            yield chunk
            chunk = []
        chunk.append(pack)
    yield chunk


def _execute_pack(config: dict[str, Any]) -> None:
    """What Tune calls on a worker, once for each attempt at a pack."""
    execute_pack(config["job"], config["pack"], tune.report)


def _name_resources(section: RunnerSection, cpus: str, gpus: str) -> dict[str, float]:
    """What a pack, like a run alone, reserves."""
    return {cpus: section.cpus_per_run} | ({gpus: section.gpus_per_run} if section.gpus_per_run else {})


def _name_trial(trial: Any) -> str:
    return str(trial.config["pack"]["runs"][0])


def _observe(observe: Observer, spec: RunSpec, text: str) -> None:
    try:
        point = CurvePoint.model_validate_json(text)
    except ValidationError:
        return  # progress only: a point that JSON cannot carry (a learning rate of NaN) fails the outcome
    observe(spec, point)


def _read_outcome(event: _Event) -> RunOutcome:
    return RunOutcome.model_validate_json(event.outcome) if event.outcome else fail(event.failure)


def _describe_death(trial: Any) -> str:
    """Why a run ended that raised nothing: what Ray wrote of it, cut short."""
    reason = "the worker process died (killed, out of memory, os._exit, or a crash in native code)"
    with contextlib.suppress(Exception):  # only words: the run has failed whatever they are
        lines = [line.strip() for line in (trial.get_error() or "").splitlines() if line.strip()]
        reason += f"; Ray: {' '.join(lines)[:400]}" if lines else ""
    return reason


def start_ray() -> None:
    """A Ray of our own, for this process only; ends with it."""
    try:
        _init_ray(
            address="local",
            num_cpus=count_cpus(),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(list_import_folders())}},
        )
    except Exception as error:
        raise RunnerInterruption(f"Ray did not start: {describe_error(error)}") from error


def _join_ray(address: str) -> None:
    """Join a running cluster; on its nodes this package must be installed in the driver's version."""
    try:
        _init_ray(address=address)
    except ray.exceptions.AuthenticationError as error:
        raise InputError(
            f"address {address!r}: the cluster refuses this user's token; set RAY_AUTH_TOKEN_PATH to the cluster's "
            f"token file, or RAY_AUTH_MODE=disabled for a cluster without authentication ({describe_error(error)})"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "is it a Ray head, of this version of Ray and Python, and is RAY_AUTH_TOKEN_PATH its token?"
        raise InputError(f"address {address!r}: no cluster joined; {hint} ({describe_error(error)})") from error


def _init_ray(**settings: Any) -> None:
    """Start or join Ray without giving it what is the program's: its standard output and its SIGTERM.

    Ray prints what its daemons say (pages of it when a node is lost) and aborts on SIGTERM; neither has a switch.
    """
    handler = signal.getsignal(signal.SIGTERM)
    ray_worker.print_to_stdstream = _log_message
    ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **settings)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _log_message(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        _log.debug("Ray: %s", line)


def _list_nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _list_node_ids() -> set[str]:
    return {node["NodeID"] for node in _list_nodes()}


def _has_lost_node(before: set[str]) -> bool:
    """Whether one of these machines goes, or is gone; Ray finds that out later than that its workers are."""
    end = time.monotonic() + _DETECTION_SECONDS
    while before <= _list_node_ids():
        if time.monotonic() > end:
            return False
        time.sleep(1.0)
    return True


def _list_resources() -> list[Mapping[str, float]]:
    return [node["Resources"] for node in _list_nodes()]


def _inspect_nodes(probe_file: str, trainers: Sequence[str]) -> list[NodeFacts]:
    """The facts of every node, or InputError when this package cannot even be imported on one."""
    remote: Any = ray.remote(inspect_node)
    tasks = []
    for node in _list_nodes():
        placement = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = remote.options(num_cpus=0, scheduling_strategy=placement).remote(probe_file, trainers)
        tasks.append((node["NodeManagerHostname"], task))
    facts: list[NodeFacts] = []
    for name, task in tasks:
        try:
            facts.append(ray.get(task, timeout=_PROBE_SECONDS))
        except (ray.exceptions.RayError, ImportError) as error:
            hint = "install foretune there, in the driver's version"
            raise InputError(f"node {name}: cannot run this package ({describe_error(error)}); {hint}") from error
    return facts
