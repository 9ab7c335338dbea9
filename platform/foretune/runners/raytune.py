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
import secrets
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import ray._private.worker as ray_worker
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from foretune.errors import InputError, RunnerInterruption
from foretune.records import RunOutcome, RunSpec
from foretune.runners.grouping import group_runs
from foretune.runners.interface import More, Note, Observer, ask_nothing, ignore_note
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
from foretune.runners.streaming import Backlog, Event, Flow, Stream
from foretune.runners.trainers import check_trainers, describe_error
from foretune.runners.transport import encode_spec
from foretune.runners.worker import (
    FAILURE,
    OUTCOME,
    POINT,
    RUN,
    describe_job,
    execute_pack,
    measure_texts,
)
from foretune.sections import RunnerSection

_log = logging.getLogger(__name__)
CHUNK_RUNS = 1000
"""Runs per experiment: Tune rewrites its whole state, some 10 kB a run, every few seconds."""
_STOP_SECONDS = 8.0
"""How long to wait for Tune to let go of its workers; it takes one or two."""
MISSES = 3
"""How often a pack is handed to another worker because its own died before it began: an assumption."""
_PROBE_SECONDS = 120.0
"""How long a node may take to import this package: an assumption."""
_OBJECT_STORE_BYTES = 100 * 2**20
"""Results are a few kilobytes of text; Ray's least is 75 MiB."""
_MEASURE_SECONDS = 900.0
"""How long packs of one shape may be timed, Ray's placement included: an assumption."""


class RayRunner:
    """Executes runs in parallel on reused Ray workers."""

    def __init__(self, section: RunnerSection, address: str, workspace: Path) -> None:
        """Raises InputError for an address that cannot be; Ray itself starts with the first run."""
        check_address(address)
        self._section = section
        self._address = address
        self._workspace = workspace.absolute()
        self._owns_ray = False
        self._workers_busy = False
        self._sizer = Sizer(section, self._measure)
        self._told: set[str] = set()

    def run(
        self, specs: Sequence[RunSpec], observe: Observer, note: Note = ignore_note, more: More = ask_nothing
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Yield outcomes as they arrive, the costliest of the packs given together started first; see `Runner.run`."""
        if not specs:
            return
        check_trainers(specs)
        backlog = Backlog(loose=list(specs))
        try:
            self._connect(sorted({spec.trainer for spec in specs}))
            check_resources(self._section, _list_resources())
            while backlog.packs or backlog.loose:
                self._pack(backlog, note)
                yield from self._run_experiment(backlog, observe, note, more)
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

    def _pack(self, backlog: Backlog, note: Note) -> None:
        """Pack what is loose; it stays loose where packs have to be timed first and the workers are busy."""
        slots = count_slots(self._section, _list_resources())
        try:
            groups = group_runs(backlog.loose, self._section, slots, self._sizer)
        except _WorkersBusyError:
            return
        lines = dict.fromkeys(line for group in groups for line in group.notes() if line not in self._told)
        self._told.update(lines)
        for line in lines:
            note(line)
        packs = [pack for group in groups for pack in group.packs]
        backlog.packs.extend(sorted(packs, key=lambda pack: -sum(spec.compute_flops for spec in pack)))
        backlog.loose.clear()

    def _measure(self, specs: Sequence[RunSpec], most: int) -> Timing:
        """Time packs on a worker, which has the machine and the resources that a run will have."""
        if self._workers_busy:
            raise _WorkersBusyError
        remote: Any = ray.remote(measure_texts).options(**_name_resources(self._section, "num_cpus", "num_gpus"))
        task = remote.remote([encode_spec(spec) for spec in specs[:most]], most, self._section)
        try:
            timing: Timing = ray.get(task, timeout=_MEASURE_SECONDS)
        except Exception as error:  # a worker that was killed for its memory, above all: the runs are then tried alone
            ray.cancel(task, force=True)
            return Timing({}, describe_error(error))
        return timing

    def _run_experiment(
        self, backlog: Backlog, observe: Observer, note: Note, more: More
    ) -> Generator[tuple[RunSpec, RunOutcome]]:
        """Outcomes of one experiment; what is asked for meanwhile goes into it, as far as it may."""
        self._workers_busy = True
        try:
            with contextlib.closing(_Experiment(self._section, self._workspace)) as experiment:
                experiment.flow.draw(backlog)
                for outcome in experiment.flow.follow(observe):
                    yield outcome
                    if further := more():
                        check_trainers(further)
                        backlog.loose.extend(further)
                        self._pack(backlog, note)
                        experiment.flow.draw(backlog)
        finally:
            self._workers_busy = False


class _WorkersBusyError(Exception):
    """Packs of a new shape cannot be timed while an experiment has the workers."""


class _Experiment:
    """One Tune experiment in a thread of its own, which is given packs while it runs."""

    def __init__(self, section: RunnerSection, workspace: Path) -> None:
        self._section = section
        self._workspace = workspace
        self._folder = workspace / "tune" / secrets.token_hex(8)  # Tune merges experiments of one name
        self._stream = Stream()
        self.flow = Flow(self._stream, CHUNK_RUNS, _list_node_ids, self._find_breakage)
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, also what it is at: when all is told, what Tune still does is of no use."""
        self._stream.close()
        self._thread.join(_STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _find_breakage(self) -> str:
        if count_slots(self._section, _list_resources()) == 0:
            return "no machine is left that has the CPUs and GPUs of one run"
        return "" if self._folder.is_dir() else f"the folder {self._folder} is gone"

    def _fit(self) -> None:
        """Run the experiment to its end, in a thread; whatever goes wrong becomes the last event."""
        try:
            self._make_tuner().fit()
        except BaseException as error:
            self._stream.events.put(Event(failure=describe_error(error)))
        else:
            self._stream.events.put(Event(failure="it ended without a word on them"))

    def _make_tuner(self) -> tune.Tuner:
        section = self._section
        return tune.Tuner(
            tune.with_resources(_execute_pack, _name_resources(section, "cpu", "gpu")),
            param_space={"job": describe_job(section, self._workspace, self._folder / "outcomes")},
            tune_config=tune.TuneConfig(
                search_alg=_Feed(self._stream),
                scheduler=_WorkerKeeper(section.concurrency),
                num_samples=-1,
                max_concurrent_trials=section.concurrency,  # without it Tune prepares one trial at a time
                reuse_actors=True,  # 20-70 ms a run instead of 1-2 s, and torch is imported once per worker
                trial_name_creator=_name_trial,
                trial_dirname_creator=_name_trial,
            ),
            run_config=tune.RunConfig(
                name=self._folder.name,
                storage_path=str(self._folder.parent),
                failure_config=tune.FailureConfig(max_failures=section.retries),
                callbacks=[_Courier(self._stream)],
                verbose=0,
            ),
        )


class _Feed(Searcher):
    """What Tune asks for its next trial: a pack, if there is one now."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._live: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it; nothing here is worth keeping

    def suggest(self, trial_id: str) -> Any:
        """With no trial under way Tune would poll once a second, and not hear that it is to end: so wait here."""
        pack = self._stream.take(wait=not self._live)
        if pack is None:
            return self.FINISHED if self._stream.closed else None
        self._live.add(trial_id)
        return {"pack": pack}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is ever restored."""


class _WorkerKeeper(FIFOScheduler):
    """First come, first served; and workers stay when no pack waits for them, which Tune grants to a single one."""

    def __init__(self, workers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._workers = workers

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self._workers:  # a private place (Ray 2.60): the test of kept workers fails when it moves
            tune_controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory, self._workers)
            self._workers = 0


class _Courier(tune.Callback):
    """Carries events out of the experiment's thread; only a wish to stop is raised, because Tune then gives up."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._failures: dict[str, str] = {}
        self._begun: set[str] = set()
        self._misses: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; this one holds nothing worth keeping

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._stream.closed:
            return
        for trial in trials:  # Tune would first wait 5 s for runs that cannot hear it
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        raise RunnerInterruption("stopped by the caller")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._begun.add(trial.trial_id)
        for run_id in trial.config["pack"]["runs"]:
            self._failures.pop(run_id, None)  # a new attempt

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        run_id = result.get(RUN, "")
        if POINT in result:
            self._stream.events.put(Event(run_id, point=result[POINT]))
        elif OUTCOME in result:
            self._stream.events.put(Event(run_id, outcome=result[OUTCOME]))
        elif FAILURE in result:
            self._failures[run_id] = result[FAILURE]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, "the worker ended without an outcome", died=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker that died while it had nothing to do is found out only now: no attempt was made."""
        first = trial.config["pack"]["runs"][0]
        self._misses[first] += trial.trial_id not in self._begun
        if trial.trial_id in self._begun or self._misses[first] > MISSES:
            self._end(trial, _describe_death(trial), died=True)
        else:
            self._stream.put([trial.config["pack"]])

    def _end(self, trial: Any, reason: str, *, died: bool) -> None:
        """Nothing more comes of these runs: those that have an outcome by now are pending no longer."""
        for run_id in trial.config["pack"]["runs"]:
            raised = self._failures.get(run_id)
            self._stream.events.put(Event(run_id, failure=raised or reason, died=died and not raised))


def _execute_pack(config: dict[str, Any]) -> None:
    """What Tune calls on a worker, once for each attempt at a pack."""
    execute_pack(config["job"], config["pack"], tune.report)


def _name_resources(section: RunnerSection, cpus: str, gpus: str) -> dict[str, float]:
    """What a pack, like a run alone, reserves."""
    return {cpus: section.cpus_per_run} | ({gpus: section.gpus_per_run} if section.gpus_per_run else {})


def _name_trial(trial: Any) -> str:
    return str(trial.config["pack"]["runs"][0])


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


def _list_node_ids() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in _list_nodes())


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
