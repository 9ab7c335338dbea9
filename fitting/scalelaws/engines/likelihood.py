"""The profile of a likelihood along one quantity, traced by pulled refits; and Laplace's interval beside it.

Legend (shapes):
    B rows of parameter values      P parameters      t (P,) fitting coordinates, t_0 the minimum
    J(t)  cost of the fit (minus the log posterior)     g(t)  the quantity, in ln where it is positive
    s     Laplace's standard error of g
    R(v) = 2 (min over g(t) = v of J(t) - J(t_0)) / scale       the profile: F-distributed with 1 and `dof` freedoms

The profile is traced without constraints: the minimum of J + (g - v)^2 / (2 e^2) lies on the profile, at the value of g
that it reaches, whatever e is. A batch of such pulled refits traces it, each started along Laplace's direction. A bound
is where R crosses its threshold, so where the runs begin to contradict the value; where R never does, there is none.
Sources: Wilks 1938; Venzon and Moolgavkar 1988 (profiles); Bates and Watts 1988, section 6.1 (the F threshold where the
noise is estimated); Schrader and Hettmansperger 1980 (the scale under a robust penalty).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scalelaws.engines.nonlinear import WIDE, Columns, Model, Parameter, Task, minimise, to_values
from scalelaws.observations import FloatArray
from scalelaws.results import Estimate, Status

POINTS = 8
"""Points of the profile on each side, at first."""
PULL = 0.05
"""e over s: weak enough to be smooth, strong enough to land within .3 % of where it pulls."""
DOUBLINGS = 7
"""A side is followed to some 2^7 times its Laplace interval before it is called open."""
REFINEMENTS = 2
"""Points added at the crossing, by interpolation of the signed root of R, which is nearly linear."""
DIFFERENCE = 1e-5
"""Relative step of the central differences of g; its errors, 1e-10, only move where a pull lands."""
IMPROVED = 1e-3
"""A refit that lowers J by more than this has found a better minimum, and the profile starts anew from there."""
RESTARTS = 3
"""How often it may; a profile that still meets a better minimum is not to be used."""
FEWEST_CONVERGED = 0.9
"""Share of the pulled refits that must converge."""


@dataclass(frozen=True)
class Quantity:
    """What is profiled: a function of the law's parameters."""

    name: str
    compute: Callable[[FloatArray], FloatArray]
    """Values (B, P) of the law's parameters in natural units -> the quantity (B,)."""
    positive: bool = True
    """Positive quantities are profiled in ln."""
    unit: str = ""

    def measure(self, values: FloatArray) -> FloatArray:
        """The quantity in the coordinate in which it is profiled."""
        found = self.compute(values)
        with np.errstate(all="ignore"):
            return np.asarray(np.log(np.maximum(found, 1e-300)) if self.positive else found)

    def unfold(self, coordinate: float) -> float:
        """The quantity itself; infinite where the number is too large."""
        with np.errstate(over="ignore"):
            return float(np.exp(coordinate)) if self.positive else float(coordinate)


@dataclass(frozen=True, eq=False)
class Profile:
    """How fast a fit worsens as one quantity is moved away from its best value."""

    quantity: str
    grid: FloatArray
    """Values of the quantity, ascending."""
    ratio: FloatArray
    """R at each of them: 0 at the best, `threshold` at the bounds."""
    threshold: float
    interval: Estimate
    """Where R stays below the threshold; a bound that the runs do not give is None."""
    laplace: Estimate
    """The interval from the curvature at the minimum alone."""
    level: float
    status: Status
    message: str
    positive: bool = True
    """Whether the quantity was profiled in ln."""


def trace_profile(
    task: Task, best: FloatArray, sd: float, dof: float, quantity: Quantity, *, scale: float = 1.0, level: float = 0.9
) -> Profile:
    """Profile and Laplace interval of a quantity of the task's natural values, around the minimum near `best` (P,).

    `sd` is the noise by which the cost is scaled, `dof` how many freedoms its estimate has (infinite where it is
    known), `scale` what R is divided by (`robust_scale` for a penalty of fixed width).
    """
    from scipy.special import ndtri, stdtrit

    tail = (1 + level) / 2
    root = float(stdtrit(dof, tail) if np.isfinite(dof) else ndtri(tail))
    path = _Path.at(task, best, sd, quantity, scale)
    trace = path.trace(root)
    for _ in range(RESTARTS):
        if trace.better is None:
            break
        path = _Path.at(task, trace.better, sd, quantity, scale)
        trace = path.trace(root)
    return path.finish(trace, root, level)


def robust_scale(task: Task, t: FloatArray, sd: float) -> float:
    """What R under a penalty of fixed width is divided by to be F-distributed: mean psi^2 over mean psi', per sd^2."""
    predicted, _ = task.model.evaluate(to_values(t[None], task.model.parameters), task.columns)
    residual, turn = predicted[0] - task.y, task.noise.huber_delta
    spare = max(len(residual) - len(task.model.parameters), 1)
    bent = float((task.w * np.clip(residual, -turn, turn) ** 2).sum()) / spare
    return bent / float((np.abs(residual) <= turn).mean()) / sd**2


@dataclass(frozen=True, eq=False)
class _Pulled:
    """A model with one more row: the quantity, to be pulled to a value."""

    model: Model
    quantity: Quantity
    unit: float
    """The row's factor: it keeps the pull within the quadratic part of the penalty."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of the model."""
        return self.model.parameters

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """The model's rows and the quantity's; its derivatives are central differences."""
        predicted, slopes = self.model.evaluate(values, columns)
        row = self.unit * self.quantity.measure(values)[:, None]
        by_values = self.unit * differentiate(self.quantity, values, self.parameters)[:, None]
        return np.concatenate([predicted, row], axis=1), np.concatenate([slopes, by_values], axis=1)


def differentiate(quantity: Quantity, values: FloatArray, parameters: tuple[Parameter, ...]) -> FloatArray:
    """Central differences of a quantity by the natural parameters, (B, P)."""
    rows, count = values.shape
    least = np.array([0.0 if item.kind == "positive" else 0.1 for item in parameters])
    step = DIFFERENCE * np.maximum(np.abs(values), least) + 1e-300
    away = step[:, None, None, :] * np.stack([np.eye(count), -np.eye(count)])
    moved = values[:, None, None, :] + away
    found = quantity.measure(moved.reshape(-1, count)).reshape(rows, 2, count)
    return np.asarray((found[:, 0] - found[:, 1]) / (2 * step))


@dataclass(frozen=True, eq=False)
class _Trace:
    """Points of the profile, ascending in g, and where it crosses the threshold."""

    g: FloatArray
    ratio: FloatArray
    low: float | None
    high: float | None
    converged: float
    better: FloatArray | None
    """Coordinates of a better minimum, if one was met."""


@dataclass(frozen=True, eq=False)
class _Points:
    """Pulled refits: what they reached."""

    t: FloatArray
    g: FloatArray
    ratio: FloatArray
    converged: np.ndarray

    def join(self, other: _Points) -> _Points:
        """Both, in order of distance from the best, which is the order of the ratios' growth."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("t", "g", "ratio", "converged")]
        return _Points(*(np.concatenate(pair) for pair in pairs))

    def sort(self, sign: float) -> _Points:
        """Outwards: ascending in sign * g."""
        order = np.argsort(sign * self.g, kind="stable")
        return _Points(self.t[order], self.g[order], self.ratio[order], self.converged[order])


@dataclass(frozen=True, eq=False)
class _Path:
    """The minimum and Laplace's picture of it."""

    task: Task
    sd: float
    quantity: Quantity
    scale: float
    t: FloatArray
    cost: float
    g: float
    error: float
    """Laplace's standard error of g in units of J, without `scale`."""
    direction: FloatArray
    """dt per unit of g along the profile, at the minimum."""

    @classmethod
    def at(cls, task: Task, best: FloatArray, sd: float, quantity: Quantity, scale: float) -> _Path:
        """Polishes the minimum and measures its curvature."""
        found = minimise(task, best[None], sd)
        t, parameters = found.t[0], task.model.parameters
        values = to_values(t[None], parameters)
        stretch = np.where([item.kind == "positive" for item in parameters], values[0], 1.0)
        gradient = differentiate(quantity, values, parameters)[0] * stretch
        toward = np.linalg.solve(_curvature(task, t, sd, stretch), gradient)
        variance = float(gradient @ toward)
        g = float(quantity.measure(values)[0])
        return cls(task, sd, quantity, scale, t, float(found.cost[0]), g, float(np.sqrt(variance)), toward / variance)

    def trace(self, root: float) -> _Trace:
        """Both sides, at first as far as one and a half Laplace intervals."""
        sides = [self._follow(sign, root) for sign in (-1.0, 1.0)]
        points = sides[0][0].join(sides[1][0])
        order = np.argsort(points.g, kind="stable")
        ratio = np.maximum(points.ratio, 0.0)[order]
        least = int(np.argmin(points.ratio))
        better = points.t[least] if points.ratio[least] * self.scale < -2 * IMPROVED else None
        return _Trace(points.g[order], ratio, sides[0][1], sides[1][1], float(points.converged.mean()), better)

    def _follow(self, sign: float, root: float) -> tuple[_Points, float | None]:
        """The points of one side, and the crossing if there is one."""
        reach = 1.5 * root * self.error * np.sqrt(self.scale)
        points = self._start().join(self._pull(self.g + sign * reach * np.linspace(1 / POINTS, 1, POINTS), self.t))
        for doubling in range(1, DOUBLINGS + 1):
            if points.ratio.max() >= root**2:
                break
            further = self.g + sign * reach * 2.0**doubling * np.array([0.75, 1.0])
            points = points.join(self._pull(further, points.t[-1]))
        points = points.sort(sign)
        crossing = _cross(points, root)
        for _ in range(REFINEMENTS if crossing is not None else 0):
            assert crossing is not None
            nearest = int(np.argmin(np.abs(points.g - crossing)))
            points = points.join(self._pull(np.array([crossing]), points.t[nearest])).sort(sign)
            crossing = _cross(points, root)
        return points, crossing

    def _start(self) -> _Points:
        return _Points(self.t[None], np.array([self.g]), np.zeros(1), np.ones(1, dtype=bool))

    def _pull(self, aims: FloatArray, start: FloatArray) -> _Points:
        """Refits pulled to the aims, from Laplace's points on the way there."""
        parameters = self.task.model.parameters
        begin = float(self.quantity.measure(to_values(start[None], parameters))[0])
        starts = start + (aims - begin)[:, None] * self.direction
        turn = self.task.noise.huber_delta if np.isfinite(self.task.noise.huber_delta) else WIDE * self.sd
        furthest = float(np.abs(aims - self.g).max())
        unit, pull = 0.1 * turn / max(furthest, 1e-300), PULL * self.error
        rows = np.broadcast_to(self.task.y, (len(aims), self.task.y.shape[-1]))
        pulled = replace(
            self.task, model=_Pulled(self.task.model, self.quantity, unit),
            y=np.concatenate([rows, unit * aims[:, None]], axis=1),
            w=np.concatenate([self.task.w, [(self.sd / (pull * unit)) ** 2]]),
        )  # fmt: skip
        found = minimise(pulled, starts, self.sd)
        g = self.quantity.measure(to_values(found.t, parameters))
        ratio = 2 * (found.cost - 0.5 * ((g - aims) / pull) ** 2 - self.cost) / self.scale
        return _Points(found.t, g, ratio, found.converged)

    def finish(self, trace: _Trace, root: float, level: float) -> Profile:
        """The record."""
        quantity, width = self.quantity, root * self.error * np.sqrt(self.scale)
        low, high = (None if bound is None else quantity.unfold(bound) for bound in (trace.low, trace.high))
        value = quantity.unfold(self.g)
        lower, upper = (quantity.unfold(self.g + sign * width) for sign in (-1, 1))
        laplace = Estimate(value, lower, upper if np.isfinite(upper) else None, quantity.unit)
        status, message = _judge(low, high, trace.converged if trace.better is None else 0.0)
        return Profile(
            quantity.name, np.array([quantity.unfold(g) for g in trace.g]), trace.ratio, root**2,
            Estimate(value, low, high, quantity.unit), laplace, level, status, message, quantity.positive,
        )  # fmt: skip


def _curvature(task: Task, t: FloatArray, sd: float, stretch: FloatArray) -> FloatArray:
    """Gauss-Newton curvature of J in fitting coordinates, the priors included, (P, P)."""
    predicted, slopes = task.model.evaluate(to_values(t[None], task.model.parameters), task.columns)
    turn = task.noise.huber_delta if np.isfinite(task.noise.huber_delta) else WIDE * sd
    inside = task.w * (np.abs(predicted[0] - task.y) <= turn)
    along = slopes[0] * stretch
    return np.asarray(along.T @ (inside[:, None] * along) / sd**2 + np.diag(1 / task.scale**2))


def _cross(points: _Points, root: float) -> float | None:
    """Where the root of R first reaches its threshold, walking outwards; linear between points."""
    roots = np.sqrt(np.maximum(points.ratio, 0.0))
    beyond = np.flatnonzero(roots >= root)
    if len(beyond) == 0:
        return None
    outer = int(beyond[0])
    inner = outer - 1
    share = (root - roots[inner]) / (roots[outer] - roots[inner])
    return float(points.g[inner] + share * (points.g[outer] - points.g[inner]))


def _judge(low: float | None, high: float | None, converged: float) -> tuple[Status, str]:
    if converged < FEWEST_CONVERGED:
        share = f"{100 * converged:.0f} % of the refits converged"
        return Status.NOT_CONVERGED, f"{Status.NOT_CONVERGED.value}: {share}"
    if low is None and high is None:
        return Status.NOT_IDENTIFIED, f"{Status.NOT_IDENTIFIED.value} (the profile is open on both sides)"
    open_side = "below" if low is None else "above" if high is None else ""
    note = f"; open {open_side}: the runs give no bound there" if open_side else ""
    return Status.CONVERGED, Status.CONVERGED.value + note
