"""Model soups: the mean of the final weights of several runs, judged on the held-out text that the runs were."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from foretune.corpora import Corpus, open_corpus
from foretune.errors import InputError
from foretune.proxies.members import find_checkpoints, mix_bytes_per_token, mix_losses
from foretune.proxies.process import choose_device, describe_device, reset_process
from foretune.proxies.stepping import Stepper
from foretune.records import RunOutcome, RunSpec, RunStatus
from foretune.training.souping import Soup, choose_members


def evaluate_soup(specs: Sequence[RunSpec], folders: Sequence[Path], kind: Soup) -> tuple[RunOutcome, list[str]]:
    """The outcome of a soup of these runs, and the ids of those that are in it, best first.

    `folders` are the runs' own; each holds the final state of its run (`keep_state`). All losses are weighted by the
    mixture that the first run ended with. It trains nothing, so that it spends no training FLOPs. Whether a mean of
    these weights makes sense is not asked here: it does for runs that were forked from one trunk. Raises InputError
    where a state is missing or models differ.
    """
    began, first = time.monotonic(), specs[0]
    _check(specs)
    reset_process(first.seed)
    device = choose_device()
    corpus = open_corpus(first.data.section, first.data.corpus_digest)
    kitchen = _Kitchen(specs, folders, corpus, device)
    kept = choose_members([kitchen.judge([number]) for number in range(len(specs))], kind, kitchen.judge)
    by_domain = kitchen.evaluate(kept)
    loss = mix_losses(by_domain, kitchen.mixture)
    lost = "" if math.isfinite(loss) else f"the held-out loss of the mean is {loss}"
    outcome = RunOutcome(
        status=RunStatus.DIVERGED if lost else RunStatus.COMPLETED,
        reason=lost,
        loss=None if lost else loss,
        loss_by_domain={} if lost else by_domain,
        tokens=specs[kept[0]].tokens,
        wall_seconds=time.monotonic() - began,
        device=describe_device(device),
        bytes_per_token=mix_bytes_per_token(corpus, kitchen.mixture),
        spent_flops=0.0,
    )
    return outcome, [specs[number].run_id for number in kept]


class _Kitchen:
    """One model on the device, filled with the mean of the weights that are to be judged."""

    def __init__(self, specs: Sequence[RunSpec], folders: Sequence[Path], corpus: Corpus, device: torch.device) -> None:
        self.mixture = specs[0].mixture_at(specs[0].last_step - 1)
        self._specs, self._folders = specs, folders
        self._stepper = Stepper([specs[0]], corpus, device, compiled=False)
        self._mean: tuple[tuple[int, ...], Tensor] = ((), self._stepper.state.weights[0].clone())

    def judge(self, numbers: Sequence[int]) -> float:
        """The loss of the mean of some runs; infinite where it is no number."""
        loss = mix_losses(self.evaluate(numbers), self.mixture)
        return loss if math.isfinite(loss) else math.inf

    def evaluate(self, numbers: Sequence[int]) -> dict[str, float]:
        """Losses by domain of the mean of some runs."""
        self._stepper.state.weights[0].copy_(self._average(tuple(numbers)))
        (by_domain,) = self._stepper.evaluate([0])
        return by_domain

    def _average(self, numbers: tuple[int, ...]) -> Tensor:
        """The running mean; that of all runs but the last is mostly the mean that was kept."""
        *before, last = numbers
        weights = self._load(last)
        if not before:
            self._mean = numbers, weights
            return weights
        known, mean = self._mean
        if known != tuple(before):
            mean = self._average(tuple(before))
            self._mean = tuple(before), mean
        return torch.lerp(mean, weights, 1 / len(numbers))

    def _load(self, number: int) -> Tensor:
        spec = self._specs[number]
        state = find_checkpoints(self._folders[number], spec.run_id).load(self._stepper.device, spec.last_step)
        if state is None:
            raise InputError(
                f"soup: the final state of run {spec.run_id} (step {spec.last_step}) is not in "
                f"{self._folders[number]}; runs of a soup need keep_state"
            )
        weights: Tensor = state["weights"]
        return weights


def _check(specs: Sequence[RunSpec]) -> None:
    """Raise InputError for runs whose weights cannot be averaged."""
    first = specs[0]
    for spec in specs:
        if (spec.model, spec.data.corpus_digest, spec.data.seq_len) != (
            first.model,
            first.data.corpus_digest,
            first.data.seq_len,
        ):
            raise InputError(
                f"soup: run {spec.run_id} has another model or corpus than run {first.run_id}; average runs of one rung"
            )
        if spec.training.optimizer == "schedulefree" or spec.training.reference:
            raise InputError(
                f"soup: the state of run {spec.run_id} holds other weights beside those it is judged by; average runs "
                "of another optimizer that learn nothing but weights"
            )
