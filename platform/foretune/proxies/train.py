"""Train proxies from their RunSpecs: build, step, evaluate, checkpoint. Top to bottom, this is what a run is.

Runs of one shape train as one pack: every tensor has a first dimension of rows, and a row is one run, or several runs
whose training is the same up to the step at which the first of them begins to decay. A run alone is a pack of one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from foretune.corpora import Corpus, open_corpus
from foretune.proxies.diagnostics import MEASURES
from foretune.proxies.feed import Feed, Order, order_batch
from foretune.proxies.members import Member
from foretune.proxies.process import choose_device, describe_device, reset_process, synchronize
from foretune.proxies.residents import RESIDENTS, FinalState, Resident
from foretune.proxies.steppers import build_stepper
from foretune.proxies.stepping import Stepper, StepResult
from foretune.records import CurvePoint, DecoderSpec, RunOutcome, RunSpec
from foretune.sections import Compile
from foretune.training.packing import find_trunks, pack_key

STEPS_PER_READ = {"cpu": 1, "cuda": 16}
"""Steps for which losses stay on the device: reading one waits for a GPU."""
WARMUP_STEPS = 3
"""Steps before throughput is measured: compilation, allocation, and the recording of CUDA graphs at the third call."""

Row = list[Member]
"""Runs that share weights and state; the first of them pays for it."""


def train_run(spec: RunSpec, folder: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """Train to the last step, or to the step at which the run is lost; go on from a checkpoint in `folder`.

    `report` gets every curve point of this attempt. A run that diverges is an outcome, not an error; InputError is
    raised when the corpus of this machine is not the planned one.
    """
    ((_, outcome),) = train_runs([spec], [folder], lambda _, point: report(point))
    return outcome


def train_runs(
    specs: Sequence[RunSpec],
    folders: Sequence[Path],
    report: Callable[[RunSpec, CurvePoint], None],
    *,
    share_trunks: bool = True,
    compiled: Compile = "auto",
) -> Generator[tuple[RunSpec, RunOutcome]]:
    """Train runs of one shape (`packing.pack_key`) as one batched computation, each in a folder of its own.

    Yields the outcome of each as soon as it ends. Every run equals its training alone up to the rounding of sums;
    `share_trunks` and `compiled` are those of `[runner]`.
    """
    with closing(Pack(specs, folders, report, share_trunks=share_trunks, compiled=compiled)) as pack:
        for member in pack.train():
            assert member.outcome is not None
            yield member.spec, member.outcome


def measure_throughput(
    specs: Sequence[RunSpec],
    steps: int = 3,
    *,
    compiled: Compile = "auto",
    ready: Callable[[], object] = lambda: None,
) -> float:
    """Seconds per training step of these runs as one pack on this machine, after the ramp of their batch.

    Evaluations are not counted.
    `ready` is called after the first steps, when the clock is about to start: processes may wait for each other there.
    """
    reset_process(specs[0].seed)
    device, corpus = choose_device(), _open_corpus(specs[0])
    stepper = build_stepper(specs, corpus, device, compiled=_compiles(compiled, specs[0], device))
    lr = [spec.training.peak_lr for spec in specs]
    first = sum(phase.steps for phase in specs[0].training.ramp)  # runs of a pack have the same
    began = 0.0
    with closing(Feed(corpus, specs, device)) as feed:
        for step in range(first, first + WARMUP_STEPS + steps):
            if step == first + WARMUP_STEPS:
                synchronize(device)
                ready()
                began = time.monotonic()
            tokens = feed.take([order_batch(spec, step) for spec in specs])
            feed.prepare([order_batch(spec, step + 1) for spec in specs])
            stepper.step(tokens, lr)
        synchronize(device)
    return (time.monotonic() - began) / steps


@dataclass(frozen=True)
class Unread:
    """What a step measured, still on the device."""

    steps: list[int | None]
    """Steps done by each row, this one included, applied or not; None for a row that sat it out."""
    lr: list[float]
    """Learning rate of each row."""
    measured: Tensor
    """Losses and gradient norms, [2, rows]."""
    diagnosed: Tensor | None
    """What was diagnosed, [len(MEASURES), rows]."""
    parts: int
    """Micro-batches that were looked at one by one; 0 where nothing was diagnosed."""

    def list_diagnosed(self, norms: Sequence[float]) -> list[dict[str, float] | None]:
        """What was diagnosed in each row, by name; None where nothing was."""
        if self.diagnosed is None:
            return [None] * len(norms)
        columns = self.diagnosed.T.tolist()
        return [
            {**dict(zip(MEASURES, column, strict=True)), "gradient_norm": norm, "parts": self.parts}
            for column, norm in zip(columns, norms, strict=True)
        ]


class Pack:
    """The loop over the steps of runs that train together."""

    def __init__(
        self,
        specs: Sequence[RunSpec],
        folders: Sequence[Path],
        report: Callable[[RunSpec, CurvePoint], None],
        *,
        share_trunks: bool,
        compiled: Compile,
    ) -> None:
        """Build everything, from checkpoints where there are some; or go on with what the last pack left here."""
        assert len({pack_key(spec) for spec in specs}) == 1, "runs of a pack must agree in packing.pack_key"
        self._mark = time.monotonic()
        reset_process(specs[0].seed)
        self.device = choose_device()
        self.skips_spikes = any(spec.training.spikes == "skip" for spec in specs)
        self.compiled = _compiles(compiled, specs[0], self.device)
        corpus = _open_corpus(specs[0])
        facts = {"device": describe_device(self.device), "pack_size": len(specs)}
        members = [
            Member(spec, folder, partial(report, spec), corpus, facts)
            for spec, folder in zip(specs, folders, strict=True)
        ]
        self.rows: list[Row] = [[member] for member in members]
        self.stepper = self._take_residents(members) or self._build(members, corpus, share_trunks=share_trunks)
        self._retune()  # no state has settings in it
        self.feed = Feed(corpus, specs, self.device)
        self._unread: list[Unread] = []
        self._ended: list[Member] = []
        self._final: dict[FinalState, Resident] = {}

    def train(self) -> Iterator[Member]:
        """Step until every run has ended; yield each as it ends."""
        yield from self._settle()  # a run that was killed after its last step has only to be concluded
        while self.rows:
            self._step()
            if self._is_due():
                self._read_losses()
                self._evaluate()
                self._save()
                yield from self._settle()
        if self._final:
            RESIDENTS.keep(self.stepper, self._final)

    def close(self) -> None:
        """End the thread that prepares batches."""
        self.feed.close()

    def _take_residents(self, members: Sequence[Member]) -> Stepper | None:
        """What the last pack of this process left, as the beginning of this one; None where that does not fit."""
        if not all(member.checkpoints.is_empty for member in members):
            RESIDENTS.release()  # a checkpoint of a run itself is further than its parent
        specs = [member.spec for member in members]
        found = RESIDENTS.take(specs, compiled=self.compiled)
        if found is None:
            return None
        stepper, residents = found
        for member, resident in zip(members, residents, strict=True):
            member.go_on(resident.state)
        stepper.recast([resident.row for resident in residents], specs)
        return stepper

    def _build(self, members: Sequence[Member], corpus: Corpus, *, share_trunks: bool) -> Stepper:
        """Model and optimizer, and what they go on from."""
        states = {member.spec.run_id: member.load(self.device) for member in members}
        if share_trunks:
            self.rows = _share_rows(members)
        leaders = [row[0].spec for row in self.rows]
        stepper = build_stepper(leaders, corpus, self.device, compiled=self.compiled)
        for number, leader in enumerate(leaders):
            if (state := states[leader.run_id]) is not None:
                stepper.load_state_of(number, state)
        return stepper

    def _step(self) -> None:
        """One step of every row but those whose batch has another size just now, on different places of a ramp."""
        orders, steps = self._order_batches()
        if any(row and row[0].begins_phase for row in self.rows):
            self._retune()
        tokens = self.feed.take(orders)
        self.feed.prepare(self._order_batches(ahead=True)[0])
        diagnose = any(member.diagnosed for row, taken in zip(self.rows, steps, strict=True) if taken for member in row)
        result = self.stepper.measure(tokens, diagnose=diagnose)
        factors = self._judge(result, steps)
        lr = [row[0].lr * factor if row else 0.0 for row, factor in zip(self.rows, factors, strict=True)]
        applied = [factor > 0 for factor in factors]
        diagnosed = self.stepper.update(result, lr, None if all(applied) else applied)
        done = [row[0].step + 1 if taken else None for row, taken in zip(self.rows, steps, strict=True)]
        self._advance(steps, applied)
        parts = result.probe.parts if result.probe else 0
        self._unread.append(Unread(done, lr, torch.stack((result.losses, result.norms)), diagnosed, parts))

    def _retune(self) -> None:
        """Give every row the settings of its next step; a row of no run keeps those that it had."""
        known = self.stepper.training
        self.stepper.retune([row[0].training if row else known[number] for number, row in enumerate(self.rows)])

    def _judge(self, result: StepResult, steps: Sequence[bool]) -> list[float]:
        """The factor on each row's learning rate, 0 for one that sits the step out or skips a spike.

        It is the one place that waits for the device within a step, and only where a run skips spikes.
        """
        factors = [float(taken) for taken in steps]
        if self.skips_spikes:
            for number, (loss, norm) in enumerate(torch.stack((result.losses, result.norms), dim=1).tolist()):
                if steps[number]:
                    factors[number] = min(member.judge(loss, norm) for member in self.rows[number])
        return factors

    def _advance(self, steps: Sequence[bool], applied: Sequence[bool]) -> None:
        """Count the step in the rows that took it; what a row computed is paid for by its first run."""
        for row, taken, counts in zip(self.rows, steps, applied, strict=True):
            if taken:
                row[0].own_tokens += row[0].spec.training.batch_tokens_at(row[0].step)
            for member in row:
                member.advance(skipped=not counts) if taken else member.rest()

    def _order_batches(self, *, ahead: bool = False) -> tuple[list[Order], list[bool]]:
        """The batch of each row, and which rows take the step; one that does not is given the batch of another."""
        wanted = [row[0].order(ahead=ahead) if row else None for row in self.rows]
        smallest = min((order for order in wanted if order), key=lambda order: order.count)
        steps = [order is not None and order.count == smallest.count for order in wanted]
        return [order if order and order.count == smallest.count else smallest for order in wanted], steps

    def _is_due(self) -> bool:
        steps_per_read = 1 if self.skips_spikes else STEPS_PER_READ[self.device.type]
        return len(self._unread) >= steps_per_read or any(member.is_due for row in self.rows for member in row)

    def _read_losses(self) -> None:
        """Bring the losses since the last reading from the device, all at once, and record them in order."""
        unread, self._unread = self._unread, []
        values = torch.stack([one.measured for one in unread]).tolist()
        self._share_time()
        for one, (losses, norms) in zip(unread, values, strict=True):
            columns = zip(self.rows, one.steps, one.lr, losses, norms, one.list_diagnosed(norms), strict=True)
            for row, step, lr, loss, norm, measured in columns:
                for member in row if step is not None else ():
                    member.record_step(step, lr, loss, norm, measured)
            self._drop_ended()

    def _evaluate(self) -> None:
        """Measure the held-out loss in the rows of which a run wants it."""
        wanted = [number for number, row in enumerate(self.rows) if any(member.evaluates for member in row)]
        for number, by_domain in zip(wanted, self.stepper.evaluate(wanted) if wanted else (), strict=True):
            for member in self.rows[number]:
                if member.evaluates:
                    member.record_held_out(by_domain)
        self._drop_ended()

    def _save(self) -> None:
        """Write the checkpoints that are due; a run in a shared row has one of its own, which makes it independent."""
        self._share_time()
        for number, row in enumerate(self.rows):
            for member in row:
                if member.saves:
                    member.save(self.stepper.state_of(number))

    def _settle(self) -> Iterator[Member]:
        """Conclude and yield the runs that have ended, and lay the rows out anew for the others."""
        self._share_time()
        for number, row in enumerate(self.rows):
            for member in [member for member in row if member.finished]:
                member.finish(self.stepper.facts_of(number))
                if member.spec.is_partial and len(row) == 1:  # in a row of several the others train on
                    self._final[FinalState(member.spec.run_id, member.step)] = Resident(number, member.state())
        self._drop_ended()
        ended, self._ended = self._ended, []
        yield from ended
        self._mark = time.monotonic()  # whoever asked for the outcomes took his time
        self._compact()
        self._fork()

    def _drop_ended(self) -> None:
        """Take runs that have ended out of their rows: the next one of a shared row is its first from now on."""
        for row in self.rows:
            self._ended += [member for member in row if member.outcome is not None]
            row[:] = [member for member in row if member.outcome is None]

    def _compact(self) -> None:
        """Give up the rows of no run, when that pays: compiled code is compiled again for another number of rows."""
        live = [number for number, row in enumerate(self.rows) if row]
        empty = len(self.rows) - len(live)
        if empty and (not self.compiled or empty >= len(live)):
            self.rows = [self.rows[number] for number in live]
            if live:
                self.stepper.take(live)
                self._final = {}

    def _fork(self) -> None:
        """Give every run that goes its own way a row of its own, copied from the one that it shared."""
        copies = []
        for number, row in enumerate(self.rows):
            for member in [member for member in row if member.leaves(row[0])]:
                member.fork_step = math.inf
                if member is not row[0]:
                    row.remove(member)
                    copies.append((number, member))
        if copies:
            self.stepper.take([*range(len(self.rows)), *(number for number, _ in copies)])
            self.rows += [[member] for _, member in copies]

    def _share_time(self) -> None:
        """Every row costs the same share of the time since the last call."""
        now = time.monotonic()
        live = [row[0] for row in self.rows if row]
        for member in live:
            member.wall_seconds += (now - self._mark) / len(live)
        self._mark = now


def _share_rows(members: Sequence[Member]) -> list[Row]:
    """One row for every trunk, the longest run first; members that resume at different steps share nothing."""
    rows: list[Row] = []
    for _, group in groupby(sorted(members, key=lambda member: member.step), key=lambda member: member.step):
        beside = {member.spec.run_id: member for member in group}
        trunks = find_trunks([member.spec for member in beside.values()])
        shared = {run_id: leader for run_id, (leader, fork) in trunks.items() if beside[run_id].step <= fork}
        for run_id in shared:
            beside[run_id].fork_step = trunks[run_id][1]
        for leader, member in beside.items():
            if leader not in shared:
                followers = [beside[run_id] for run_id in shared if shared[run_id] == leader]
                rows.append([member, *sorted(followers, key=lambda follower: -follower.fork_step)])
    return rows


def _compiles(compiled: Compile, spec: RunSpec, device: torch.device) -> bool:
    """Whether to compile: under `auto` on a GPU, and only layers whose shapes do not depend on the data."""
    if compiled != "auto":
        return compiled == "on"
    return device.type == "cuda" and isinstance(spec.model, DecoderSpec) and spec.model.experts is None


def _open_corpus(spec: RunSpec) -> Corpus:
    return open_corpus(spec.data.section, spec.data.corpus_digest)
