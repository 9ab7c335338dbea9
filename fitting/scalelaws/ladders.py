"""Every ladder that a run table holds along one axis, one verdict from all of them, and which runs would decide it.

A ladder is the runs in which one scale varies (width, say) and nothing else that moves the optimum does: widths at
depth 2 are one ladder, widths at depth 4 another. Each has its own optimum to start from; the slope is theirs together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelaws.observations import FloatArray, Observations, count_levels, index_levels
from scalelaws.optima import Optimum
from scalelaws.results import Estimate, Status
from scalelaws.transfer import (
    Axis,
    Drift,
    Expectation,
    compare_slope,
    decide_drift,
    draw_slopes,
    find_axis,
    find_expectation,
    measure_drift,
)

SHOWN = 3
"""How many refused places a sentence lists."""


@dataclass(frozen=True, eq=False)
class Ladder:
    """One ladder and how the optimum moves along it."""

    fixed: Mapping[str, float]
    """What is the same for all of its runs."""
    drift: Drift
    runs: int

    @property
    def found(self) -> list[tuple[float, Optimum]]:
        """The places that have an optimum."""
        pairs = zip(self.drift.scale, self.drift.optima, strict=True)
        return [(float(place), item) for place, item in pairs if item.status.ok]

    def describe_place(self, place: float) -> str:
        """A place of the ladder in words, with what is fixed."""
        fixed = ", ".join(f"{name} {value:g}" for name, value in self.fixed.items())
        return f"{self.drift.axis} {place:g} ({fixed})" if fixed else f"{self.drift.axis} {place:g}"


@dataclass(frozen=True, eq=False)
class PooledDrift:
    """How the optimum moves along one axis, by all ladders together."""

    axis: str
    ladders: tuple[Ladder, ...]
    slope: Estimate | None
    """Change of log2 of the optimal learning rate per doubling of the scale; one slope for all ladders."""
    verdict: str
    """holds, drifts or undecided."""
    message: str
    """The verdict as a sentence with its numbers, and what was expected."""
    wanted: str
    """Which runs would decide it; empty when it is decided."""
    expected: Expectation | None
    level: float

    def to_dict(self) -> dict[str, Any]:
        """The drift as plain data."""
        return {
            "axis": self.axis,
            "verdict": self.verdict,
            "message": self.message,
            "wanted": self.wanted,
            "slope": None if self.slope is None else self.slope.to_dict(),
            "expected": None if self.expected is None else dict(vars(self.expected)),
            "level": self.level,
            "ladders": [
                {"fixed": dict(ladder.fixed), "runs": ladder.runs, **ladder.drift.to_dict()} for ladder in self.ladders
            ],
        }


def split_ladders(
    observations: Observations, axis: str, apart: Sequence[str] = ()
) -> list[tuple[dict[str, float], Observations]]:
    """The ladders along an axis, each with what is fixed in it; runs at a single place are in none.

    `apart` names columns beside those of `AXES` that must not vary either, such as a weight decay that was searched.
    """
    along = find_axis(axis)
    names = [name for name in (*along.fixed, *apart) if _has(observations, name)]
    if not _has(observations, along.column):
        return []
    levels = [index_levels(observations.column(name)) for name in names]
    keys = np.stack(levels, axis=1) if levels else np.zeros((len(observations), 1), dtype=np.int64)
    ladders = []
    for key in np.unique(keys, axis=0):
        rows = np.flatnonzero((keys == key).all(axis=1))
        part = observations.rows(rows)
        if count_levels(part.column(along.column)) > 1:
            ladders.append(({name: float(part.column(name)[0]) for name in names}, part))
    return ladders


def measure_pooled_drift(
    observations: Observations,
    axis: str = "width",
    *,
    expected: str = "",
    apart: Sequence[str] = (),
    level: float = 0.9,
    seed: int = 0,
) -> PooledDrift | None:
    """The drift along an axis from every ladder of a run table; None where there is no ladder.

    `expected` as for `measure_drift`, `apart` as for `split_ladders`. Places of one width in several ladders share some
    of their scatter, so more ladders of the same widths are not as many witnesses.
    """
    along, expectation = find_axis(axis), find_expectation(axis, expected)
    ladders = tuple(
        Ladder(fixed, _measure(part, along, expected, level, seed), len(part))
        for fixed, part in split_ladders(observations, axis, apart)
    )
    if not ladders:
        return None
    usable = [ladder.found for ladder in ladders if len(ladder.found) > 1]
    if not usable:
        found = sum(len(ladder.found) for ladder in ladders)
        places = sum(len(ladder.drift.scale) for ladder in ladders)
        message = f"undecided: an optimum was found at {found} of {places} places, two of a ladder are needed"
        return PooledDrift(axis, ladders, None, "undecided", message, _suggest(ladders), expectation, level)
    draws = draw_slopes(usable, seed)
    slope = Estimate.from_draws(draws, level, unit=f"factors of two per doubling of {axis}")
    left_grid = any(
        item.status in (Status.EDGE_LOW, Status.EDGE_HIGH) for ladder in ladders for item in ladder.drift.optima
    )
    verdict, message = decide_drift(slope, _describe_reach(usable), level, along, left_grid)
    wanted = _suggest(ladders) if verdict == "undecided" else ""
    message += compare_slope(slope, expectation)
    return PooledDrift(axis, ladders, slope, verdict, message, wanted, expectation, level)


def _has(observations: Observations, name: str) -> bool:
    return observations.covariates.get(name, getattr(observations, name, None)) is not None


def _measure(part: Observations, axis: Axis, expected: str, level: float, seed: int) -> Drift:
    """One ladder; places that differ by rounding alone are one."""
    values = part.column(axis.column)
    ranks = index_levels(values)
    places = np.array([values[ranks == rank].max() for rank in range(int(ranks.max()) + 1)])
    rates = part.column("peak_lr")
    return measure_drift(places[ranks], rates, part.loss, axis=axis.name, expected=expected, level=level, seed=seed)


def _describe_reach(usable: Sequence[Sequence[tuple[float, Optimum]]]) -> str:
    places = [place for found in usable for place, _ in found]
    ladders = f"{len(usable)} ladders" if len(usable) > 1 else "one ladder"
    return f"{ladders} from {min(places):g} to {max(places):g}"


def _suggest(ladders: Sequence[Ladder]) -> str:
    """The runs that would decide: where an optimum is missing, else where its error moves the slope most."""
    missing = [
        _mend(ladder, float(place), item)
        for ladder in ladders
        for place, item in zip(ladder.drift.scale, ladder.drift.optima, strict=True)
        if not item.status.ok
    ]
    if missing:
        more = f"; and {len(missing) - SHOWN} more places like these" if len(missing) > SHOWN else ""
        return "; ".join(missing[:SHOWN]) + more
    _, where = max(pull for ladder in ladders for pull in _weigh_places(ladder))
    farthest = max(float(ladder.drift.scale[-1]) for ladder in ladders)
    return f"two more seeds at {where}, or a {ladders[0].drift.axis} beyond {farthest:g}"


def _mend(ladder: Ladder, place: float, item: Optimum) -> str:
    where = ladder.describe_place(place)
    if item.suggested_extension:
        return f"learning rates {', '.join(f'{rate:.3g}' for rate in item.suggested_extension)} at {where}"
    if item.status is Status.TOO_FEW_POINTS:
        return f"more learning rates at {where}"
    return f"two more seeds, or a finer grid of learning rates, at {where}"


def _weigh_places(ladder: Ladder) -> list[tuple[float, str]]:
    """For each place with an optimum: how far its error moves the slope, and its name."""
    logs = np.log2([place for place, _ in ladder.found])
    return [
        (float(abs(x - logs.mean())) * _error(item.draws[:, 0]), ladder.describe_place(place))
        for x, (place, item) in zip(logs, ladder.found, strict=True)
    ]


def _error(draws: FloatArray) -> float:
    low, high = np.quantile(draws, [0.159, 0.841])
    return float(high - low) / 2
