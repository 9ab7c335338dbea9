"""The settings of a copy chosen by a bandit: those that promise most for the next generation (PB2).

Parker-Holder et al. 2020 (2002.02518): every stretch of the population is a trial of its settings, what it gained is
what they gave, and a Gaussian process that forgets forecasts the gain of any settings. A copy takes those whose
forecast plus doubt is highest (GP-UCB); settings that others are being trained with take doubt away and no more, so
that copies differ. Ours works in the unit cube of the axes, which settings cannot leave, and on gains relative to the
generation.

Numbers with bounds are chosen so. Values of a list and mixtures are perturbed as without a bandit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretune.records import Result, RunStatus
from foretune.search.interface import score
from foretune.search.population.drifting_process import DriftingProcess, Floats, fit_drift
from foretune.search.population.exploring import Axes, find_bounded
from foretune.search.population.lineage import Stretch
from foretune.space import LinearRange, LogRange

LARGEST_GAIN = 2.0
"""Gains are cut off so many standard deviations from the mean of their generation, as in Ray Tune's PB2. A stretch that
diverged counts as the lowest, so that a bandit that knows nothing of a corner does not go there again and again."""
DOUBT = (0.8, 4.0)
"""beta of UCB in round t is .8 ln(4 t), as in experiments with this process (Bogunovic et al. 2016, section 5). Ray
Tune's .2 ln(.4 n) has no root for the first two trials (ray#28267)."""
TRIALS = 256
"""Most trials that are gone by, the newest: what is older than many generations is forgotten anyway."""
EVERYWHERE, NEARBY, NEAR_SD = 512, 256, 0.1
"""Settings that are compared: drawn evenly, and around those of the donor at a tenth of each axis (assumption)."""

Results = Mapping[str, Result]
Bounded = Mapping[str, LogRange | LinearRange]


@dataclass(frozen=True, eq=False)
class Bandit:
    """What a population knows of its settings before a generation."""

    axes: Bounded
    """The dimensions that it chooses, by key."""
    process: DriftingProcess
    """Of relative gains."""
    generation: int
    """The one that settings are chosen for: 2, 3, ..."""
    pending: Floats
    """(p, d) settings that others train with in that generation."""

    def propose(self, donor: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Values of the dimensions that have bounds, for a copy of a donor with these settings."""
        near = _locate([donor], self.axes) + NEAR_SD * rng.standard_normal((NEARBY, len(self.axes)))
        places = np.concatenate([rng.random((EVERYWHERE, len(self.axes))), np.clip(near, 0.0, 1.0)])
        scale, rate = DOUBT
        beta = scale * math.log(rate * (self.generation - 1))
        promise = self.process.predict(places, self.generation)
        promise = promise + math.sqrt(beta) * self.process.doubt(places, self.generation, self.pending)
        best = places[int(np.argmax(promise))]
        return {key: axis.place(float(share)) for (key, axis), share in zip(self.axes.items(), best, strict=True)}


def read_bandit(
    axes: Axes, stretches: Sequence[Stretch], results: Results, objective: Mapping[str, float], generation: int
) -> Bandit | None:
    """The bandit for a generation, by those before it; None where no two stretches of one can be compared.

    What members ahead of the others have come to is not looked at, so that decisions do not depend on who was fast.
    """
    before = [item for item in stretches if item.generation < generation]
    gains = measure_gains(before, results, objective)
    trials = [item for item in before if item.run_id in gains][-TRIALS:]
    if not trials:
        return None
    bounded = find_bounded(axes)
    process = fit_drift(
        _locate([item.settings for item in trials], bounded),
        np.array([float(item.generation) for item in trials]),
        np.array([gains[item.run_id] for item in trials]),
    )
    pending = [item.settings for item in stretches if item.generation == generation]
    return Bandit(bounded, process, generation, _locate(pending, bounded))


def measure_gains(stretches: Iterable[Stretch], results: Results, objective: Mapping[str, float]) -> dict[str, float]:
    """What every stretch that has ended gained, by run: how much its score fell, in standard deviations of its
    generation and above its mean. Of the first generation the start is the same but for the seed, and drops out.

    Runs that failed for reasons of the machine say nothing, nor does a generation of which one alone has come to its
    end.
    """
    falls: dict[int, dict[str, float]] = {}
    lost: dict[str, int] = {}
    for item in stretches:
        result = results.get(item.run_id)
        if result is None or result.status is RunStatus.FAILED:
            continue
        fall = score(results[item.parent_run_id], objective) if item.parent_run_id else 0.0
        fall -= score(result, objective)
        if math.isfinite(fall):
            falls.setdefault(item.generation, {})[item.run_id] = fall
        else:
            lost[item.run_id] = item.generation
    gains: dict[str, float] = {}
    for members in falls.values():
        gains |= _standardise(members) if len(members) > 1 else {}
    known = {generation for generation, members in falls.items() if len(members) > 1}
    return gains | {run_id: -LARGEST_GAIN for run_id, generation in lost.items() if generation in known}


def _standardise(falls: Mapping[str, float]) -> dict[str, float]:
    values = np.array(list(falls.values()))
    above = values - values.mean()
    units = above / (float(above.std()) or 1.0)
    return dict(zip(falls, map(float, np.clip(units, -LARGEST_GAIN, LARGEST_GAIN)), strict=True))


def _locate(settings: Sequence[Mapping[str, Any]], axes: Bounded) -> Floats:
    """Settings (n, d) in the unit cube."""
    rows = [[_find_share(axis, item[key]) for key, axis in axes.items()] for item in settings]
    return np.array(rows, dtype=np.float64).reshape(len(settings), len(axes))


def _find_share(axis: LogRange | LinearRange, value: float) -> float:
    """The place of a value between low and high, what `axis.place` begins with."""
    if isinstance(axis, LogRange):
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)
