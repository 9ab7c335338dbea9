"""Sums of power laws and the exact, batched minimiser of their robust objective.

Legend (shapes):
    B  problems solved at once (bootstrap draws)       n  runs       T  power terms       P = 2T + 1 coefficients
    u  (n, T)   ln of the scaled variables, centred
    y  (B, n)   ln loss                                w  (B, n)   weights of the runs
    t  (B, P)   coefficients (e, a_1..a_T, alpha_1..alpha_T):  ln L = ln( exp e + sum_j exp(a_j - alpha_j u_j) )
    p  (B, n, 1+T)  share of the floor and of each term in the predicted loss (they sum to one)
    r  (B, n)   residuals, predicted minus observed ln loss
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from scalelaws.observations import BoolArray, FloatArray

RELAXED = (16.0, 4.0, 2.0)
"""Problems that stall start anew with the penalty made this much wider, then narrowed: near its own delta few runs bend
the objective, and far from the minimum Newton creeps from kink to kink."""
ROUNDS = 30
"""Newton steps of one stage (the usual need is below 15)."""
LAST_ROUNDS = 400
"""Newton steps before a problem is called not converged."""
DECREMENT = 1e-13
"""Converged when Newton promises a relative decrease of the objective below this: rounding of a sum of 1e3 terms."""
NOTHING = 1e-7
"""A residual of ln loss that is not worth a further step."""
STALLED = 1e-8
"""A step that cannot decrease the objective ends the search; it counts as converged below this promised decrease."""
MAX_DAMPING = 1e12
PROBLEMS_AT_ONCE = 500
"""Keeps the working arrays of a batch within the processor's caches (500 x 240 runs x 5 numbers = 5 MB)."""


@dataclass(frozen=True)
class Objective:
    """J(t) = sum_i w_i huber(r_i) / noise^2 + 1/2 sum_j ((ln alpha_j - mean_j) / sd)^2; the last term is optional."""

    huber_delta: float
    """Residual of ln loss beyond which the penalty grows linearly."""
    noise_log: float = 1.0
    """Standard deviation of ln loss; 1 for the plain objective without priors."""
    prior_sd: float | None = None
    """Standard deviation of the prior of ln alpha; None switches the prior off."""


@dataclass(frozen=True, eq=False)
class Problems:
    """B problems over the same runs: logs of the scales, observed ln losses, weights and prior means of ln alpha."""

    u: FloatArray
    y: FloatArray
    w: FloatArray
    prior_mean: FloatArray

    def take(self, rows: BoolArray | slice) -> Problems:
        """Some of the problems."""
        return Problems(self.u, self.y[rows], self.w[rows], self.prior_mean[rows])


@dataclass(frozen=True, eq=False)
class Minima:
    """Coefficients (B, P), objective values (B,) and whether each problem converged."""

    t: FloatArray
    value: FloatArray
    converged: BoolArray


def predict_log(t: FloatArray, u: FloatArray) -> FloatArray:
    """Predicted ln loss, (B, n), of coefficients (B, P) at log scales (n, T)."""
    z = _exponents(t, u)
    top = z.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(z - top).sum(axis=-1)) + top[..., 0])


def _exponents(t: FloatArray, u: FloatArray) -> FloatArray:
    """The logs of the floor and of each term, (B, n, 1+T)."""
    terms = u.shape[1]
    floor = np.broadcast_to(t[:, None, :1], (len(t), len(u), 1))
    return np.concatenate([floor, t[:, None, 1 : 1 + terms] - t[:, None, 1 + terms :] * u], axis=-1)


def evaluate(t: FloatArray, problems: Problems, objective: Objective) -> FloatArray:
    """The objective, (B,); infinite where a prior on ln alpha meets alpha <= 0."""
    r = predict_log(t, problems.u) - problems.y
    size, delta = np.abs(r), objective.huber_delta
    penalty = np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))
    value = (problems.w * penalty).sum(axis=1) / objective.noise_log**2
    if objective.prior_sd is not None:
        alpha = t[:, 1 + problems.u.shape[1] :]
        gap = (np.log(np.where(alpha > 0, alpha, 1.0)) - problems.prior_mean) / objective.prior_sd
        value = np.where((alpha > 0).all(axis=1), value + 0.5 * (gap * gap).sum(axis=1), np.inf)
    return np.asarray(value)


def differentiate(t: FloatArray, problems: Problems, objective: Objective) -> tuple[FloatArray, FloatArray]:
    """Exact gradient (B, P) and Hessian (B, P, P) of the objective (the Huber penalty's own, piecewise)."""
    u, delta = problems.u, objective.huber_delta
    z = _exponents(t, u)
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    total = p.sum(axis=-1, keepdims=True)
    r = np.log(total[..., 0]) + z.max(axis=-1) - problems.y
    p /= total
    scale = problems.w / objective.noise_log**2
    pull = scale * np.clip(r, -delta, delta)
    jacobian = np.concatenate([p, -p[..., 1:] * u], axis=-1)
    gradient = np.einsum("bn,bnp->bp", pull, jacobian)
    bend = scale * (np.abs(r) <= delta) - pull
    hessian = np.swapaxes(jacobian * bend[..., None], 1, 2) @ jacobian + _spread(pull[..., None] * p, u)
    if objective.prior_sd is not None:
        _add_prior(gradient, hessian, t[:, 1 + u.shape[1] :], problems.prior_mean, objective.prior_sd)
    return gradient, hessian


def _spread(pull: FloatArray, u: FloatArray) -> FloatArray:
    """sum_i pull_ic z_ic z_ic^T, where z_ic is the gradient of the exponent of component c; (B, P, P)."""
    terms = u.shape[1]
    hessian = np.zeros((len(pull), 2 * terms + 1, 2 * terms + 1))
    hessian[:, 0, 0] = pull[..., 0].sum(axis=1)
    for j in range(terms):
        a, alpha = 1 + j, 1 + terms + j
        hessian[:, a, a] = pull[..., 1 + j].sum(axis=1)
        hessian[:, a, alpha] = hessian[:, alpha, a] = -pull[..., 1 + j] @ u[:, j]
        hessian[:, alpha, alpha] = pull[..., 1 + j] @ u[:, j] ** 2
    return hessian


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


def _minimise(start: FloatArray, problems: Problems, objective: Objective, rounds: int) -> Minima:
    """Damped Newton steps; problems that are done leave the batch."""
    t = np.array(start)
    value = evaluate(t, problems, objective)
    damping = np.full(len(t), 1e-6)
    active = np.isfinite(value)
    converged = np.zeros(len(t), dtype=bool)
    for _ in range(rounds):
        rows = np.flatnonzero(active)
        if len(rows) == 0:
            break
        part = Problems(problems.u, problems.y[rows], problems.w[rows], problems.prior_mean[rows])
        step, promise = _propose(t[rows], part, objective, damping[rows])
        trial = t[rows] + step
        trial_value = evaluate(trial, part, objective)
        better = trial_value < value[rows]
        promise /= np.maximum(value[rows], NOTHING**2 * part.w.sum(axis=1) / objective.noise_log**2)
        t[rows[better]] = trial[better]
        value[rows[better]] = trial_value[better]
        damping[rows] = np.where(better, np.maximum(damping[rows] * 0.1, 1e-12), damping[rows] * 8)
        stuck = ~better & (damping[rows] > MAX_DAMPING)
        done = (promise < DECREMENT) | (~better & (promise < 100 * DECREMENT)) | stuck
        converged[rows] = done & (promise < STALLED)
        active[rows] = ~done
    return Minima(t, value, converged)


def _propose(
    t: FloatArray, problems: Problems, objective: Objective, damping: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The damped Newton step (B, P) and the decrease that an undamped one promises (B,).

    Directions of negative curvature are walked down by their absolute curvature, so a saddle is left, not sought.
    """
    gradient, hessian = differentiate(t, problems, objective)
    size = np.sqrt(np.maximum(np.abs(np.diagonal(hessian, axis1=1, axis2=2)), 1e-300))
    curvature, axes = np.linalg.eigh(hessian / (size[:, :, None] * size[:, None, :]))
    along = np.einsum("bpq,bp->bq", axes, gradient / size)
    stiffness = np.maximum(np.abs(curvature), 1e-14)
    step = -np.einsum("bpq,bq->bp", axes, along / (stiffness + damping[:, None])) / size
    return np.clip(step, -4.0, 4.0), 0.5 * (along * along / stiffness).sum(axis=1)


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
