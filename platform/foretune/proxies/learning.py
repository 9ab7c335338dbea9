"""What runs that learn more than their weights have in common: the text they learn by, and how that moved.

Shapes
    R  reference sequences    T  positions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretune.corpora import Corpus, take_reference_batches
from foretune.proxies.process import send
from foretune.records import LearnedPoint, RunSpec

PATH_POINTS = 50
"""Most points that are kept of how something moved."""
AVERAGED_SHARE = 0.5
"""Share of the run, at its end, over which what is learned is averaged: single steps are noisy (assumption)."""


class LearnedPath:
    """How what a run learns moved, step by step, and what it came to."""

    def __init__(self, names: Sequence[str], steps: int, device: torch.device) -> None:
        """`steps` are those of the run."""
        self._names = list(names)
        self._steps = steps
        self._done = 0
        self._sum = torch.zeros(len(self._names), dtype=torch.float64, device=device)
        self._points: list[tuple[int, Tensor]] = []

    def note(self, values: Tensor) -> None:
        """What is learned after the next step, one number a name; it stays on the device."""
        self._done += 1
        if self._done > self._steps * (1 - AVERAGED_SHARE):
            self._sum += values
        if self._done % -(-self._steps // PATH_POINTS) == 0 or self._done == self._steps:
            self._points.append((self._done, values.clone()))

    def average(self) -> dict[str, float]:
        """The mean over the last part of the steps."""
        counted = self._done - int(self._steps * (1 - AVERAGED_SHARE))
        return self._name(self._sum / counted)

    def points(self) -> tuple[LearnedPoint, ...]:
        """How it moved."""
        return tuple(LearnedPoint(step=step, values=self._name(values)) for step, values in self._points)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"done": self._done, "sum": self._sum.clone(), "points": list(self._points)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._done, self._sum, self._points = state["done"], state["sum"].clone(), list(state["points"])

    def _name(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self._names, values.tolist(), strict=True))


class ReferenceText:
    """Reference sequences by number: a pure function of the run's seed and the number."""

    def __init__(self, corpus: Corpus, spec: RunSpec, device: torch.device) -> None:
        """From the held-out text that no run is judged by."""
        reference, data = spec.training.reference, spec.data
        assert reference is not None, "only runs that learn more than weights come here"
        windows = take_reference_batches(corpus, data.seq_len, reference.reference_sequences, data.validation_sequences)
        weights = [reference.objective[name] for name in windows]
        self._bounds = np.cumsum(weights) / sum(weights)
        self._counts = np.array([len(rows) for rows in windows.values()])
        self._firsts = np.cumsum(self._counts) - self._counts
        self._windows = torch.from_numpy(np.concatenate(list(windows.values()))).to(device)
        self._seed = spec.seed
        self._drawn = round(reference.reference_share * spec.training.batch_tokens / data.seq_len)
        self._device = device

    def draw(self, number: int) -> Tensor:
        """Token ids [R, T + 1]; domains as often as their weights say, by systematic sampling."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self._seed, number], dtype=np.uint64)))
        points = (np.arange(self._drawn) + generator.random()) / self._drawn
        domains = np.searchsorted(self._bounds[:-1], points, side="right")
        places = self._firsts[domains] + generator.integers(self._counts[domains])
        return self._windows[send(places.tolist(), self._device)]
