"""Does the optimum move? The drift of the optimal learning rate over width, depth, batch or horizon.

Legend: x the scale that is doubled (width, layers, tokens per step, tokens), slope = d log2 lr* / d log2 x: factors of
two in the optimal learning rate per doubling of x.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.engines.hierarchy import regress
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.optima import Optimum, find_basin_optimum
from scalelaws.results import Estimate, Status

HOLDS_WITHIN = 0.25
"""An optimum that moves by less than a quarter of a factor of two per doubling counts as staying (a choice: over width,
standard parametrization moves by about one, Yang et al. 2022, figure 1)."""
DRAWS = 2000


@dataclass(frozen=True)
class Axis:
    """A scale over which the optimum may move."""

    name: str
    plural: str
    column: str
    """Where the runs hold it."""
    fixed: tuple[str, ...]
    """Columns that must not vary along the ladder: their own effect would be counted as drift."""


AXES: Mapping[str, Axis] = {
    "width": Axis("width", "widths", "width", ("tokens", "batch_tokens", "depth")),
    "depth": Axis("depth", "depths", "depth", ("tokens", "batch_tokens", "width")),
    "batch": Axis("batch", "batches", "batch_tokens", ("params_non_embedding", "tokens")),
    "horizon": Axis("horizon", "horizons", "tokens", ("params_non_embedding", "batch_tokens")),
}


@dataclass(frozen=True)
class Expectation:
    """The slope that theory or a published fit leads to expect."""

    slope: float
    source: str


EXPECTED: Mapping[str, Mapping[str, Expectation]] = {
    "width": {
        "standard": Expectation(-1.0, "hidden matrices under Adam, Yang et al. 2022, arXiv 2203.03466"),
        "mup": Expectation(0.0, "Yang et al. 2022, arXiv 2203.03466"),
    },
    "depth": {
        "depth_mup": Expectation(0.0, "base rate of depth-muP, Yang et al. 2023, arXiv 2310.02244"),
        "completep": Expectation(0.0, "Dey et al. 2025, arXiv 2505.01618"),
    },
    "batch": {
        "sgd": Expectation(1.0, "linear rule, Goyal et al. 2017, arXiv 1706.02677"),
        "adam": Expectation(0.5, "square root rule, Malladi et al. 2022, arXiv 2205.10287"),
    },
    "horizon": {"fixed_batch": Expectation(-0.32, "Bjorck et al. 2024, arXiv 2409.19913, as quoted")},
}
"""By axis and by what the runs used: a parametrization, an optimizer, or what was held fixed."""


@dataclass(frozen=True, eq=False)
class Drift:
    """The optimum at each place of a ladder, and how it moves."""

    scale: FloatArray
    """Widths, depths, batches or horizons, ascending."""
    optima: tuple[Optimum, ...]
    """One for each place; refused ones are kept with their status."""
    slope: Estimate | None
    """Change of log2 of the optimal learning rate per doubling of the scale."""
    steps_moved: float | None
    """Steps of the learning-rate grid between the optima of the smallest and of the largest scale that have one."""
    grid_step: float
    """log2 of the ratio of neighbouring learning rates."""
    verdict: str
    """holds, drifts or undecided."""
    message: str
    """The verdict as a sentence with its numbers, and what was expected."""
    level: float
    draws: FloatArray
    """Draws of the slope."""
    axis: str = "width"
    expected: Expectation | None = None

    @property
    def width(self) -> FloatArray:
        """The places of a ladder in width; of another ladder, its own scale."""
        return self.scale

    @property
    def as_expected(self) -> bool | None:
        """Whether the interval of the slope holds the expected one; None without an expectation or a slope."""
        if self.expected is None or self.slope is None or self.slope.low is None or self.slope.high is None:
            return None
        return self.slope.low <= self.expected.slope <= self.slope.high

    def to_dict(self) -> dict[str, Any]:
        """The drift as plain data."""
        expected = None if self.expected is None else {"slope": self.expected.slope, "source": self.expected.source}
        return {
            "axis": self.axis,
            "verdict": self.verdict,
            "message": self.message,
            "slope": None if self.slope is None else self.slope.to_dict(),
            "expected": expected,
            "steps_moved": self.steps_moved,
            "level": self.level,
            "optima": [
                {self.axis: float(place), "status": item.message, "peak_lr": item.peak_lr.to_dict()}
                for place, item in zip(self.scale, self.optima, strict=True)
            ],
        }


def measure_drift(
    scale: ArrayLike,
    peak_lr: ArrayLike,
    loss: ArrayLike,
    *,
    axis: str = "width",
    expected: str = "",
    level: float = 0.9,
    seed: int = 0,
) -> Drift:
    """The drift of the optimal learning rate over one ladder, all else equal.

    `scale` holds the widths (or the values of another of `AXES`), one entry per run as `peak_lr` and `loss`; NaN or
    +inf for diverged runs. `expected` names an entry of `EXPECTED[axis]`, for example "mup"; the message then says
    whether the slope agrees with it. Raises ValueError for unusable input.
    """
    along, expectation = find_axis(axis), find_expectation(axis, expected)
    scales, rates, losses = (np.asarray(values, dtype=np.float64) for values in (scale, peak_lr, loss))
    if not (scales.shape == rates.shape == losses.shape) or scales.ndim != 1 or len(scales) == 0:
        raise ValueError(f"{axis}, peak_lr and loss need one entry per run; got {scales.shape}, {rates.shape}, "
                         f"{losses.shape}")  # fmt: skip
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ValueError(f"{axis} must be positive and finite")
    ladder = np.unique(scales)
    optima = tuple(
        find_basin_optimum(rates[scales == one], losses[scales == one], level=level, seed=seed) for one in ladder
    )
    return _judge(_Ladder(along, ladder, optima, _find_step(rates), expectation), level, seed)


def measure_observed_drift(
    observations: Observations, axis: str = "width", *, expected: str = "", level: float = 0.9, seed: int = 0
) -> Drift:
    """As `measure_drift`, from a run table; ValueError where something else varied along the ladder."""
    along = find_axis(axis)
    for name in along.fixed:
        values = observations.covariates.get(name, getattr(observations, name, None))
        if values is not None and count_levels(values) > 1:
            raise ValueError(
                f"the drift over {axis} needs runs of one {name}; these have {count_levels(values)}. Select one, "
                "since its own effect on the learning rate would be counted as drift"
            )
    scale, rates = observations.column(along.column), observations.column("peak_lr")
    return measure_drift(scale, rates, observations.loss, axis=axis, expected=expected, level=level, seed=seed)


def compare_drifts(drifts: Mapping[str, Drift]) -> str:
    """One line for each parametrization, in the order given."""
    return "\n".join(f"{name}: {drift.message}" for name, drift in drifts.items())


@dataclass(frozen=True, eq=False)
class _Ladder:
    """The optima along one axis, before they are judged."""

    axis: Axis
    places: FloatArray
    optima: tuple[Optimum, ...]
    step: float
    expected: Expectation | None

    @property
    def found(self) -> list[tuple[float, Optimum]]:
        return [(place, item) for place, item in zip(self.places, self.optima, strict=True) if item.status.ok]

    @property
    def left_grid(self) -> bool:
        return any(item.status in (Status.EDGE_LOW, Status.EDGE_HIGH) for item in self.optima)

    @property
    def refused(self) -> str:
        pairs = zip(self.places, self.optima, strict=True)
        return "; ".join(f"{self.axis.name} {place:g}: {item.message}" for place, item in pairs if not item.status.ok)


def find_axis(name: str) -> Axis:
    """The axis of that name; ValueError with the known ones."""
    if name not in AXES:
        raise ValueError(f"there is no axis {name!r}; known are {', '.join(AXES)}")
    return AXES[name]


def find_expectation(axis: str, name: str) -> Expectation | None:
    """What is expected over an axis under that name, None for no name; ValueError with the known ones."""
    if not name:
        return None
    if name not in EXPECTED[axis]:
        raise ValueError(f"nothing is expected over {axis} for {name!r}; known are {', '.join(EXPECTED[axis])}")
    return EXPECTED[axis][name]


def _find_step(rates: FloatArray) -> float:
    """log2 ratio of neighbouring learning rates; rates within 2 % are one grid point, rounded differently."""
    levels = np.unique(np.log2(rates))
    steps = np.diff(levels)
    steps = steps[steps > np.log2(1.02)]
    return float(np.median(steps)) if len(steps) else float("nan")


def _judge(ladder: _Ladder, level: float, seed: int) -> Drift:
    found, axis, given = ladder.found, ladder.axis, (ladder.places, ladder.optima)
    if len(found) < 2:
        message = (
            f"undecided: an optimum was found at {len(found)} of {len(ladder.places)} {axis.plural}, two are needed; "
            f"{ladder.refused}"
        )
        nothing = np.empty(0)
        return Drift(*given, None, None, ladder.step, "undecided", message, level, nothing, axis.name, ladder.expected)
    slopes = draw_slopes([found], seed)
    slope = Estimate.from_draws(slopes, level, unit=f"factors of two per doubling of {axis.name}")
    moved = float(np.log2(found[-1][1].value / found[0][1].value)) / ladder.step
    steps = f"{moved:+.1f} grid steps from {axis.name} {found[0][0]:g} to {found[-1][0]:g}"
    verdict, message = decide_drift(slope, steps, level, axis, ladder.left_grid)
    message += compare_slope(slope, ladder.expected)
    if ladder.refused:
        message += f"; left out: {ladder.refused}"
    return Drift(*given, slope, moved, ladder.step, verdict, message, level, slopes, axis.name, ladder.expected)


def draw_slopes(ladders: Sequence[Sequence[tuple[float, Optimum]]], seed: int) -> FloatArray:
    """Slope of log2 optimum on log2 scale, with scatter between places; ladders have each a level of their own.

    A ladder is its places with the optima found there, two or more.
    """
    owner = np.concatenate([np.full(len(found), i) for i, found in enumerate(ladders)])
    logs = [np.log2(np.array([place for place, _ in found])) for found in ladders]
    quantiles = np.stack([np.quantile(item.draws[:, 0], [0.159, 0.5, 0.841]) for found in ladders for _, item in found])
    levels = [np.asarray(owner == i, dtype=np.float64) for i in range(len(ladders))]
    design = np.stack([*levels, np.concatenate([x - x.mean() for x in logs])], axis=1)
    variance = (0.5 * (quantiles[:, 2] - quantiles[:, 0])) ** 2
    flat = np.full(design.shape[1], np.inf)
    fitted = regress(design, quantiles[:, 1], variance, flat, np.concatenate(logs))
    coefficients, _ = fitted.draw(DRAWS, np.random.default_rng(seed))
    return np.asarray(coefficients[:, -1] / np.log(2))


def decide_drift(slope: Estimate, steps: str, level: float, axis: Axis, left_grid: bool) -> tuple[str, str]:
    """The verdict and its sentence.

    Holds if the whole interval is small, drifts if all of it is on one side of zero and not small. An optimum that
    left the grid at some place is at odds with one that stays, so nothing holds then.
    """
    assert slope.low is not None
    assert slope.high is not None
    said = (
        f"the optimum moves by {slope.value:+.2f} factors of two per doubling of {axis.name} ({100 * level:g} %: "
        f"{slope.low:+.2f} to {slope.high:+.2f}), {steps}"
    )
    if max(abs(slope.low), abs(slope.high)) <= HOLDS_WITHIN and not left_grid:
        return "holds", f"holds: {said}"
    if min(abs(slope.low), abs(slope.high)) > HOLDS_WITHIN / 2 and slope.low * slope.high > 0:
        return "drifts", f"drifts: {said}"
    return "undecided", f"undecided: {said}; add {axis.plural} or learning rates"


def compare_slope(slope: Estimate, expected: Expectation | None) -> str:
    """Whether the slope agrees with the expectation, as the end of a sentence."""
    if expected is None or slope.low is None or slope.high is None:
        return ""
    told = f"{expected.slope:+.2f} was expected ({expected.source})"
    if slope.low <= expected.slope <= slope.high:
        return f"; {told}, which the interval holds"
    return f"; {told}, and the optimum departs from it by {slope.value - expected.slope:+.2f}"
