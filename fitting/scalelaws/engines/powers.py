"""Sums of power laws and the exact, batched minimiser of their robust objective.

Legend (shapes):
    B  problems solved at once (bootstrap draws)       n  runs       T  power terms       P = 2T + 1 coefficients
    u  (n, T)   ln of the scaled variables, centred
    y  (B, n)   ln loss                                w  (B, n)   weights of the runs
    t  (B, P)   coefficients (e, a_1..a_T, alpha_1..alpha_T):  ln L = ln( exp e + sum_j exp(a_j - alpha_j u_j) )
    p  (1+T, B, n)  share of the floor and of each term in the predicted loss (they sum to one)
    r  (B, n)   residuals, predicted minus observed ln loss
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelaws.engines.valleys import follow, straighten
from scalelaws.observations import BoolArray, FloatArray

IntArray = NDArray[np.int64]

RELAXED = (16.0, 4.0, 2.0)
"""Problems that stall start anew with the penalty made this much wider, then narrowed: near its own delta few runs bend
the objective, and far from the minimum Newton creeps from kink to kink."""
ROUNDS = 30
"""Newton steps of one stage (the usual need is below 15)."""
LAST_ROUNDS = 400
"""Newton steps before a problem is called not converged."""
DECREMENT = 1e-13
"""Converged when Newton promises a relative decrease of the objective below this: rounding of a sum of 1e3 terms."""
ROUGH = 1e-5
"""The same where the problem is about to change; it moves a fit by .01 of its standard errors."""
NOTHING = 1e-7
"""A residual of ln loss that is not worth a further step."""
STALLED = 1e-8
"""A step that cannot decrease the objective ends the search; it counts as converged below this promised decrease."""
FIRST_DAMPING = 1e-3
"""As large as the least curvatures of a scaled Hessian on published runs: a smaller one changes no first step."""
MAX_DAMPING = 1e12
PROBLEMS_AT_ONCE = 500
"""Keeps the working arrays of a batch within the processor's caches (500 x 240 runs x 5 numbers = 5 MB)."""


@dataclass(frozen=True)
class Objective:
    """J(t) = sum_i w_i penalty(r_i) / noise^2 + 1/2 sum_j ((ln alpha_j - mean_j) / sd)^2; the last term is optional."""

    huber_delta: float
    """Residual of ln loss beyond which the penalty grows linearly."""
    noise_log: float = 1.0
    """Standard deviation of ln loss; 1 for the plain objective without priors."""
    prior_sd: float | None = None
    """Standard deviation of the prior of ln alpha; None switches the prior off."""
    smooth: bool = False
    """Pseudo-Huber, delta^2 (sqrt(1 + (r / delta)^2) - 1), instead of the penalty with a kink: few Newton steps."""

    def penalise(self, r: FloatArray) -> FloatArray:
        """The penalty of each residual."""
        delta = self.huber_delta
        if self.smooth:
            square = (r / delta) ** 2
            return np.asarray(delta**2 * square / (1 + np.sqrt(1 + square)))
        inside = np.clip(r, -delta, delta)
        return np.asarray(inside * (r - 0.5 * inside))

    def bend(self, r: FloatArray) -> tuple[FloatArray, FloatArray]:
        """First and second derivative of the penalty."""
        if self.smooth:
            root = 1 / np.sqrt(1 + (r / self.huber_delta) ** 2)
            return r * root, root**3
        return np.clip(r, -self.huber_delta, self.huber_delta), (np.abs(r) <= self.huber_delta).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Problems:
    """B problems over the same runs: logs of the scales, observed ln losses, weights and prior means of ln alpha."""

    u: FloatArray
    y: FloatArray
    w: FloatArray
    prior_mean: FloatArray

    def take(self, rows: BoolArray | IntArray | slice) -> Problems:
        """Some of the problems."""
        return Problems(self.u, self.y[rows], self.w[rows], self.prior_mean[rows])


@dataclass(frozen=True, eq=False)
class Minima:
    """Coefficients (B, P), objective values (B,) and whether each problem converged."""

    t: FloatArray
    value: FloatArray
    converged: BoolArray


@dataclass(frozen=True, eq=False)
class _Point:
    """What a place t gives: shares p (1+T, B, n), residuals r (B, n) and the objective (B,)."""

    p: FloatArray
    r: FloatArray
    value: FloatArray

    def take(self, rows: BoolArray | IntArray) -> _Point:
        return _Point(self.p[:, rows], self.r[rows], self.value[rows])

    def update(self, rows: BoolArray, other: _Point) -> None:
        self.p[:, rows], self.r[rows], self.value[rows] = other.p[:, rows], other.r[rows], other.value[rows]


def predict_log(t: FloatArray, u: FloatArray) -> FloatArray:
    """Predicted ln loss, (B, n), of coefficients (B, P) at log scales (n, T)."""
    return _share(t, u)[1]


def _share(t: FloatArray, u: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Shares (1+T, B, n) and predicted ln loss (B, n)."""
    terms = u.shape[1]
    z = np.empty((1 + terms, len(t), len(u)))
    z[0] = t[:, :1]
    for j in range(terms):
        z[1 + j] = t[:, 1 + j, None] - t[:, 1 + terms + j, None] * u[:, j]
    top = functools.reduce(np.maximum, z)
    z -= top
    np.exp(z, out=z)
    total = functools.reduce(np.add, z)
    z /= total
    return z, np.log(total) + top


def _visit(t: FloatArray, problems: Problems, objective: Objective) -> _Point:
    p, predicted = _share(t, problems.u)
    r = predicted - problems.y
    value = np.einsum("bn,bn->b", problems.w, objective.penalise(r)) / objective.noise_log**2
    if objective.prior_sd is not None:
        alpha = t[:, 1 + problems.u.shape[1] :]
        gap = (np.log(np.where(alpha > 0, alpha, 1.0)) - problems.prior_mean) / objective.prior_sd
        value = np.where((alpha > 0).all(axis=1), value + 0.5 * (gap * gap).sum(axis=1), np.inf)
    return _Point(p, r, np.asarray(value))


def evaluate(t: FloatArray, problems: Problems, objective: Objective) -> FloatArray:
    """The objective, (B,); infinite where a prior on ln alpha meets alpha <= 0."""
    return _visit(t, problems, objective).value


def differentiate(t: FloatArray, problems: Problems, objective: Objective) -> tuple[FloatArray, FloatArray]:
    """Exact gradient (B, P) and Hessian (B, P, P) of the objective (that of Huber's penalty piecewise)."""
    return _differentiate(t, _visit(t, problems, objective), problems, objective)


def _differentiate(
    t: FloatArray, point: _Point, problems: Problems, objective: Objective
) -> tuple[FloatArray, FloatArray]:
    """Coefficient k bends component c(k) with a factor f_k(u): 1 for floor and coefficients, -u_j for exponents.

    d r / d t_k = p_c f_k;  H_kl = sum_i f_k f_l (p_c p_c' (w penalty'' - w penalty') + [c = c'] p_c w penalty').
    """
    u, terms = problems.u, problems.u.shape[1]
    first, second = objective.bend(point.r)
    scale = problems.w / objective.noise_log**2
    pull = scale * first
    bend = scale * second - pull
    factors = np.column_stack([np.ones(len(u)), *(-u.T)])
    products = (factors[:, :, None] * factors[:, None, :]).reshape(len(u), -1)
    gradient = np.empty_like(t)
    hessian = np.empty((len(t), t.shape[1], t.shape[1]))
    for c in range(1 + terms):
        pulled = pull * point.p[c]
        gradient[:, _places(c, terms)] = (pulled @ factors)[:, _kinds(c)]
        bent = bend * point.p[c]
        for d in range(c, 1 + terms):
            weight = bent * point.p[d]
            if c == d:
                weight += pulled
            sums = (weight @ products).reshape(len(t), 1 + terms, 1 + terms)
            for k, f in zip(_places(c, terms), _kinds(c), strict=True):
                for m, g in zip(_places(d, terms), _kinds(d), strict=True):
                    hessian[:, k, m] = hessian[:, m, k] = sums[:, f, g]
    if objective.prior_sd is not None:
        _add_prior(gradient, hessian, t[:, 1 + terms :], problems.prior_mean, objective.prior_sd)
    return gradient, hessian


def _places(component: int, terms: int) -> list[int]:
    """The coefficients that bend a component: the floor its own, a term its coefficient and its exponent."""
    return [0] if component == 0 else [component, terms + component]


def _kinds(component: int) -> list[int]:
    """Which column of the factors each of them has."""
    return [0] if component == 0 else [0, component]


def _add_prior(gradient: FloatArray, hessian: FloatArray, alpha: FloatArray, mean: FloatArray, sd: float) -> None:
    gap = np.log(alpha) - mean
    first = alpha.shape[1] + 1
    gradient[:, first:] += gap / (sd**2 * alpha)
    diagonal = np.arange(first, first + alpha.shape[1])
    hessian[:, diagonal, diagonal] += (1 - gap) / (sd**2 * alpha**2)


def minimise(start: FloatArray, problems: Problems, objective: Objective) -> Minima:
    """Solves every problem from its start (B, P), large batches in slices."""
    slices = [slice(i, i + PROBLEMS_AT_ONCE) for i in range(0, len(start), PROBLEMS_AT_ONCE)]
    parts = [_solve(start[rows], problems.take(rows), objective) for rows in slices]
    return Minima(
        np.concatenate([part.t for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )


def minimise_best(start: FloatArray, problems: Problems, objective: Objective) -> Minima:
    """Solves one problem that was posed once for each start (B, P); returns the lowest minimum, one row."""
    found = _minimise(start, problems, objective, ROUNDS)
    winner = slice(int(np.argmin(found.value)), int(np.argmin(found.value)) + 1)
    if found.converged[winner].all():
        return Minima(found.t[winner], found.value[winner], found.converged[winner])
    return _solve(found.t[winner], problems.take(winner), objective)


def approach(start: FloatArray, problems: Problems, objective: Objective) -> Minima:
    """Minima good to `ROUGH`, for problems that are about to change."""
    return _minimise(start, problems, objective, ROUNDS, ROUGH)


def _solve(start: FloatArray, problems: Problems, objective: Objective) -> Minima:
    """Straight to the minimum where that works, by stages of a narrowing penalty where it does not."""
    found = _minimise(start, problems, objective, ROUNDS)
    late = ~found.converged
    if late.any():
        again = _narrow(start[late], problems.take(late), objective)
        found.t[late], found.value[late], found.converged[late] = again.t, again.value, again.converged
    return found


def _narrow(start: FloatArray, problems: Problems, objective: Objective) -> Minima:
    for factor in RELAXED:
        wider = replace(objective, huber_delta=factor * objective.huber_delta)
        start = _minimise(start, problems, wider, ROUNDS).t
    return _minimise(start, problems, objective, LAST_ROUNDS)


def _minimise(
    start: FloatArray, problems: Problems, objective: Objective, rounds: int, enough: float = DECREMENT
) -> Minima:
    """Damped Newton steps; problems that are done leave the batch, and only those that moved are differentiated."""
    t, value = np.array(start), np.empty(len(start))
    converged = np.zeros(len(t), dtype=bool)
    point = _visit(t, problems, objective)
    value[:] = point.value
    rows = np.flatnonzero(np.isfinite(value))
    if len(rows) == 0:
        return Minima(t, value, converged)
    part, point, damping = problems.take(rows), point.take(rows), np.full(len(rows), FIRST_DAMPING)
    slope = _slope(t[rows], point, part, objective)
    for _ in range(rounds):
        trial = follow(t[rows], slope.step(damping))
        there = _visit(trial, part, objective)
        better = there.value < point.value
        promise = slope.promise / np.maximum(point.value, NOTHING**2 * part.w.sum(axis=1) / objective.noise_log**2)
        t[rows[better]] = trial[better]
        point.update(better, there)
        damping = np.where(better, damping * 0.1, np.maximum(damping * 4, slope.stiffness[:, 0]))
        done = (promise < enough) | (~better & (promise < 100 * DECREMENT)) | (~better & (damping > MAX_DAMPING))
        value[rows] = point.value
        converged[rows] = done & (promise < STALLED)
        if done.all():
            break
        if done.any():
            rows, part, point, damping = rows[~done], part.take(~done), point.take(~done), damping[~done]
            slope, better = slope.take(~done), better[~done]
        if better.any():
            slope.update(better, _slope(t[rows[better]], point.take(better), part.take(better), objective))
    return Minima(t, value, converged)


@dataclass(frozen=True, eq=False)
class _Slope:
    """What the derivatives at a place propose, along the axes of the scaled Hessian."""

    directions: FloatArray
    """(B, P, P), the axes as columns."""
    along: FloatArray
    """(B, P), the gradient along them."""
    stiffness: FloatArray
    """(B, P), the absolute curvature along them, ascending."""
    promise: FloatArray
    """(B,), the decrease that an undamped step promises."""

    def step(self, damping: FloatArray) -> FloatArray:
        """The damped Newton step (B, P), in the coordinates of `valleys`."""
        step = -(self.directions @ (self.along / (self.stiffness + damping[:, None]))[:, :, None])[..., 0]
        return np.clip(step, -4.0, 4.0)

    def take(self, rows: BoolArray) -> _Slope:
        return _Slope(self.directions[rows], self.along[rows], self.stiffness[rows], self.promise[rows])

    def update(self, rows: BoolArray, other: _Slope) -> None:
        for name in ("directions", "along", "stiffness", "promise"):
            getattr(self, name)[rows] = getattr(other, name)


def _slope(t: FloatArray, point: _Point, problems: Problems, objective: Objective) -> _Slope:
    """Directions of negative curvature are walked down by their absolute curvature: a saddle is left, not sought."""
    gradient, hessian = straighten(t, *_differentiate(t, point, problems, objective))
    size = np.sqrt(np.maximum(np.abs(np.diagonal(hessian, axis1=1, axis2=2)), 1e-300))
    curvature, axes = np.linalg.eigh(hessian / (size[:, :, None] * size[:, None, :]))
    along = (np.swapaxes(axes, 1, 2) @ (gradient / size)[:, :, None])[..., 0]
    stiffness = np.maximum(np.abs(curvature), 1e-14)
    return _Slope(axes / size[:, :, None], along, stiffness, 0.5 * (along * along / stiffness).sum(axis=1))


def project_starts(u: FloatArray, y: FloatArray, w: FloatArray, exponents: FloatArray) -> FloatArray:
    """Variable projection: for each combination of exponents, the floor and coefficients by linear least squares.

    Takes one set of losses y (n,) and weights (n,); returns starts (len(exponents)^T, P). Relative residuals are
    minimised; a coefficient that comes out negative is put at a small share of the loss.
    """
    grid = np.array(list(itertools.product(exponents, repeat=u.shape[1])))
    basis = np.concatenate([np.ones((len(grid), len(u), 1)), np.exp(-grid[:, None, :] * u)], axis=-1)
    basis *= np.exp(-y)[:, None]
    weighted = np.swapaxes(basis * w[:, None], 1, 2)
    normal = weighted @ basis
    ridge = 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(normal.shape[1])
    linear = np.linalg.solve(normal + ridge, weighted @ np.ones((len(u), 1)))[..., 0]
    smallest = 0.01 * np.exp(y.min())
    return np.concatenate([np.log(np.maximum(linear, smallest)), grid], axis=1)
