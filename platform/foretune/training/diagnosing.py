"""When a run is diagnosed, and what comes of the raw numbers: pure arithmetic on plain data.

Symbols
    B_s, B_b      tokens of a small batch (a micro-batch) and of the big one that it is a part of
    |G_s|^2       squared norm of a small batch's gradient, mean over the small batches of a step
    |G_b|^2       squared norm of the gradient of the whole batch
    |G|^2, tr S   squared norm of the true gradient, and the variance of one token's gradient about it

Since E |G_B|^2 = |G|^2 + tr S / B, two batch sizes give both unknowns without bias (McCandlish et al. 2018, arXiv
1812.06162, appendix A.1):

    |G|^2 = (B_b |G_b|^2 - B_s |G_s|^2) / (B_b - B_s)        tr S = (|G_s|^2 - |G_b|^2) / (1/B_s - 1/B_b)

Their ratio tr S / |G|^2 is biased and may be negative, so each is smoothed along the run before they are divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from foretune.records import Diagnosis, TrainingSpec

MEASURED = (
    "gradient_norm",
    "update_norm",
    "update_cosine",
    "saturated_share",
    "near_eps_share",
    "logit_max",
    "attention_logit_max",
)
"""What is taken over as it was measured."""
NOISE_DECAY = 0.8
"""Share of the smoothed moments that each diagnosis keeps: a memory of about five (assumption: the source smooths too,
and leaves the time to the reader)."""
LEAST_STEPS = 16
"""Fewest steps from one diagnosis to the next, which bounds their share of the time (see benchmarks/diagnostics)."""
_DIAGNOSES = TypeAdapter(tuple[Diagnosis, ...])


def choose_diagnosed_steps(training: TrainingSpec) -> frozenset[int]:
    """Steps (counted from 1) that are diagnosed: evenly spaced, the last one at the end of the run."""
    count = min(training.diagnoses, training.steps // LEAST_STEPS)
    return frozenset(round(training.steps * part / count) for part in range(1, count + 1))


class NoiseScale:
    """The gradient noise scale tr S / |G|^2 in tokens, from steps of which two batch sizes were measured."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._signal = self._noise = 0.0

    def add(self, small_square: float, big_square: float, *, small_tokens: float, big_tokens: float) -> None:
        """Take in a step; a weight that all steps share cancels in the ratio, so the start needs no correction."""
        signal = (big_tokens * big_square - small_tokens * small_square) / (big_tokens - small_tokens)
        noise = (small_square - big_square) / (1 / small_tokens - 1 / big_tokens)
        self._signal = NOISE_DECAY * self._signal + (1 - NOISE_DECAY) * signal
        self._noise = NOISE_DECAY * self._noise + (1 - NOISE_DECAY) * noise

    @property
    def tokens(self) -> float | None:
        """The noise scale, or None while noise hides the gradient."""
        return self._noise / self._signal if self._signal > 0 and self._noise > 0 else None

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"signal": self._signal, "noise": self._noise}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from `state`."""
        self._signal, self._noise = state["signal"], state["noise"]


class DiagnosisLog:
    """The diagnoses of one run."""

    def __init__(self, training: TrainingSpec) -> None:
        """None yet."""
        self.steps = choose_diagnosed_steps(training)
        self.diagnoses: tuple[Diagnosis, ...] = ()
        self._training = training
        self._noise = NoiseScale()

    def record(self, step: int, measured: Mapping[str, float]) -> None:
        """Take what was measured at a step (counted from 1): MEASURED, and for the noise `small_square`, `parts`."""
        known = {name: value if math.isfinite(value := measured.get(name, math.nan)) else None for name in MEASURED}
        tokens, parts = self._training.batch_tokens_at(step - 1), measured["parts"]
        norm, small_square = known["gradient_norm"], measured["small_square"]
        if norm is not None and math.isfinite(small_square) and parts > 1:
            self._noise.add(small_square, norm**2, small_tokens=tokens / parts, big_tokens=tokens)
        diagnosis = Diagnosis(step=step, noise_scale_tokens=self._noise.tokens, **known)
        self.diagnoses = (*self.diagnoses, diagnosis)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain data."""
        return {"diagnoses": _DIAGNOSES.dump_json(self.diagnoses).decode(), "noise": self._noise.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.diagnoses = _DIAGNOSES.validate_json(state["diagnoses"])
        self._noise.restore(state["noise"])
