"""Train one proxy from a RunSpec: build, step, evaluate, checkpoint. Top to bottom, this is what a run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretune.corpora import BatchStream, Corpus, open_corpus, take_validation_batches
from foretune.proxies.checkpoint import CheckpointFolder
from foretune.proxies.model import Proxy, measure_loss
from foretune.proxies.optimization import build_optimizer, set_lr
from foretune.proxies.process import autocast, choose_device, describe_device, reset_process, synchronize
from foretune.proxies.recording import Recorder, RunStopped
from foretune.records import CurvePoint, RunOutcome, RunSpec, RunStatus
from foretune.schedules import schedule_lr

GPU_STEPS_PER_READ = 16
"""Losses stay on a GPU for this many steps, since reading one waits for the device."""


def train_run(spec: RunSpec, workspace: Path, report: Callable[[CurvePoint], None]) -> RunOutcome:
    """Train to the last step, or to the step at which the run is lost; go on from a checkpoint in `workspace`.

    `report` gets every curve point of this attempt. A run that diverges is an outcome, not an error; InputError is
    raised when the corpus of this machine is not the planned one.
    """
    reset_process(spec.seed)
    run = _Run(spec, workspace, report)
    try:
        run.resume()
        run.train()
        run.recorder.check_movement()
    except RunStopped as stop:
        return run.conclude(stop.status, stop.reason)
    return run.conclude(RunStatus.COMPLETED)


def measure_throughput(spec: RunSpec, steps: int = 3) -> float:
    """Seconds per training step on this machine, after one step to warm up; evaluations are not counted."""
    reset_process(spec.seed)
    trainer = Trainer(spec, _open_corpus(spec))
    trainer.train_step(0, 0.0)
    synchronize(trainer.device)
    began = time.monotonic()
    for step in range(1, steps + 1):
        trainer.train_step(step, 0.0)
    synchronize(trainer.device)
    return (time.monotonic() - began) / steps


class Trainer:
    """Model, optimizer and data of one run."""

    def __init__(self, spec: RunSpec, corpus: Corpus) -> None:
        """Everything is a pure function of the spec: weights by its seed, batches by seed and step."""
        self.spec = spec
        self.device = choose_device()
        seq_len, training = spec.data.seq_len, spec.training
        self.model = Proxy(spec.model, seq_len=seq_len, seed=spec.seed).to(self.device)
        self.optimizer = build_optimizer(self.model, spec.model, training)
        self.stream = BatchStream(corpus, spec.data.mixture, seq_len, training.batch_tokens // seq_len, spec.seed)
        held_out = take_validation_batches(corpus, seq_len, spec.data.validation_sequences)
        self.held_out = {name: torch.from_numpy(rows).to(self.device) for name, rows in held_out.items()}
        self.micro_sequences = self.stream.batch_sequences // training.accumulation_steps

    def train_step(self, step: int, lr: float) -> tuple[Tensor, Tensor]:
        """One optimizer step; its training loss and its gradient norm before clipping, on the device."""
        training = self.spec.training
        set_lr(self.optimizer, lr)
        tokens = torch.from_numpy(self.stream.batch(step))
        if self.device.type == "cuda":
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)  # only pinned memory copies beside work
        total = torch.zeros((), device=self.device)
        for micro in torch.split(tokens, self.micro_sequences):
            loss = self._loss(micro) / training.accumulation_steps
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Held-out loss per domain, nats per token, always on the same sequences."""
        means = [
            torch.stack([self._loss(part) * len(part) for part in torch.split(rows, self.micro_sequences)]).sum()
            / len(rows)
            for rows in self.held_out.values()
        ]
        return dict(zip(self.held_out, torch.stack(means).tolist(), strict=True))

    def _loss(self, tokens: Tensor) -> Tensor:
        with autocast(self.device, self.spec.training.precision):
            return measure_loss(self.model, tokens)


class _Run:
    """One attempt at a run: the loop around a trainer, and what it leaves behind."""

    def __init__(self, spec: RunSpec, workspace: Path, report: Callable[[CurvePoint], None]) -> None:
        self.spec = spec
        self.corpus = _open_corpus(spec)
        self.trainer = Trainer(spec, self.corpus)
        self.recorder = Recorder(spec, report)
        self.checkpoints = CheckpointFolder(workspace / "checkpoints", spec.run_id)
        self.step = 0
        self._began = time.monotonic()
        self._unread: list[tuple[int, float, Tensor, Tensor]] = []

    def train(self) -> None:
        training = self.spec.training
        steps_per_read = GPU_STEPS_PER_READ if self.trainer.device.type == "cuda" else 1
        while self.step < training.steps:
            lr = schedule_lr(training, self.step)
            loss, norm = self.trainer.train_step(self.step, lr)
            self.step += 1
            self._unread.append((self.step, lr, loss, norm))
            evaluates = self.step in self.recorder.evaluation_steps
            checkpoints = training.checkpoint_steps > 0 and self.step % training.checkpoint_steps == 0
            if evaluates or checkpoints or len(self._unread) >= steps_per_read:
                self._read_losses()
            if evaluates:
                self._evaluate(lr)
            if checkpoints:
                self._save()

    def resume(self) -> None:
        state = self.checkpoints.load(self.trainer.device)
        if state is None:
            return
        self.trainer.model.load_state_dict(state["model"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        self.recorder.restore(state["recorder"])
        torch.set_rng_state(state["rng"].cpu())
        self.step = state["step"]
        self._began -= state["wall_seconds"]

    def conclude(self, status: RunStatus, reason: str = "") -> RunOutcome:
        done = status is RunStatus.COMPLETED
        return RunOutcome(
            status=status,
            reason=reason,
            loss=self._mix(self.recorder.held_out) if done else None,
            loss_by_domain=self.recorder.held_out if done else {},
            curve=self.recorder.curve,
            tokens=self.recorder.curve[-1].tokens,  # the step that ended it: a GPU may be some steps ahead
            wall_seconds=self._elapsed(),
            device=describe_device(self.trainer.device),
            bytes_per_token=self._bytes_per_token(),
        )

    def _read_losses(self) -> None:
        """Bring the losses since the last reading from the device, all at once, and record them in order."""
        unread, self._unread = self._unread, []
        values = torch.stack([torch.stack((loss, norm)) for _, _, loss, norm in unread]).tolist()
        for (step, lr, _, _), (loss, norm) in zip(unread, values, strict=True):
            self.recorder.record_step(step, lr, loss, norm)

    def _evaluate(self, lr: float) -> None:
        by_domain = self.trainer.evaluate()
        self.recorder.record_held_out(self.step, lr, self._mix(by_domain), by_domain)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "model": self.trainer.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "recorder": self.recorder.state(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "wall_seconds": self._elapsed(),
        }
        self.checkpoints.save(self.step, state)

    def _mix(self, by_domain: dict[str, float]) -> float:
        """The mean over domains, weighted by the mixture; domains without a share do not count."""
        return sum(share * by_domain[name] for name, share in self.spec.data.mixture.items() if share > 0)

    def _bytes_per_token(self) -> float | None:
        ratios = {name: facts.bytes_per_token for name, facts in self.corpus.domains.items()}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        return self._mix(known) if len(known) == len(ratios) else None

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _open_corpus(spec: RunSpec) -> Corpus:
    return open_corpus(spec.data.section, spec.data.corpus_digest)
