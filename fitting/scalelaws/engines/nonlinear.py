"""Robust non-linear least squares for whole batches of problems: all starts at once, all draws at once.

Legend (shapes):  B problems, n rows, P parameters
    values (B, P) natural parameters        t (B, P) fitting coordinates: ln of a positive parameter, else itself
    y (B, n) responses (ln loss or score)   w (B, n) weights     r = prediction - y
    cost = sum_i w_i h(r_i) / noise^2 + sum_j ((t_j - centre_j) / sd_j)^2 / 2,  h(r) = r^2 / 2, linear beyond delta
Gauss-Newton steps on the reweighted problem with Levenberg's damping; derivatives are exact, given by the law.
Source of the reweighting: Huber and Ronchetti 2009, Robust Statistics, section 7.8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from scalelaws.intervals import draw_variances, pool_variance, resample_weights
from scalelaws.observations import BoolArray, FloatArray

Columns = Mapping[str, FloatArray]

ROUNDS = 200
DECREMENT = 1e-12
"""A step that promises to lower the cost by less than this share of it ends the search."""
MAX_DAMPING = 1e10
STEP_LIMIT = 2.0
"""Longest step of one fitting coordinate: a factor of seven for a positive parameter."""
WIDE = 3.0
"""With the noise estimated, the penalty turns linear at this many standard deviations."""
NOISE_ROUNDS = 4
NUMBERS_AT_ONCE = 4e6
"""Derivatives held at once, 32 MB of them."""
PRIOR_DOF = 3.0
"""How many residuals the expected noise is worth (an assumption)."""
RUNS_PER_PARAMETER = 8.0
"""From this many groups per parameter on, resampled groups speak for themselves; below, data and priors are perturbed
instead, because a resample of few runs loses a whole scale too often. An assumption between two risks. Mean coverage of
90 % intervals of parameters over 80 to 100 planted sets each, at 9 to 20 groups per parameter: even noise (`kaplan`,
`average_params`), resampled .85 to .90 and perturbed .87 to .92; noise that grows sevenfold from the smallest to the
largest run (`kaplan`), resampled .82 to .86 and perturbed .77 to .80, their forecasts .84 to .88 and .71 to .73."""
CONVERGED_DECREMENT = 1e-4
"""Converged: an undamped step promises to lower the cost by less than this share of it."""
DECIDED_BY_PRIOR = 0.85
"""A parameter whose standard deviation stays above this share of its prior's has been told nothing by the runs."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law, with its unit and its weak prior."""

    name: str
    centre: float
    """Centre of the prior, natural units."""
    sd: float
    """Standard deviation of the prior in fitting coordinates (of ln for a positive parameter)."""
    unit: str = ""
    kind: Literal["positive", "real"] = "positive"
    needed: bool = True
    """Whether the law is void when the runs say nothing of it; else that is a warning."""
    given: bool = False
    """Whether the prior holds a value that is known, so that nobody asks the runs for it."""


class Model(Protocol):
    """What is fitted: a prediction with its exact derivatives."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in the order of the columns of `values`."""

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """Predicted response (B, n) and its derivatives by the natural parameters (B, n, P)."""


@dataclass(frozen=True)
class Noise:
    """What is expected of the residuals, and how the penalty treats them."""

    expected: float
    """Expected standard deviation of a residual."""
    huber_delta: float = np.inf
    """Fixed residual beyond which the penalty is linear; inf: three times the noise, which is then estimated."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The best parameters, their draws, and how well the runs determine them."""

    values: FloatArray
    """(P,) natural units."""
    draws: FloatArray
    """(draws, P) natural units."""
    residuals: FloatArray
    """(n,) prediction - response."""
    noise: float
    """Standard deviation of a residual."""
    cost: float
    converged: bool
    share_converged: float
    """Share of the draws that converged."""
    spread: FloatArray
    """(P,) standard deviation over the prior's, in fitting coordinates."""
    method: str
    """How the draws came about, in words."""

    def undecided(self, parameters: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
        """Parameters of which the runs say next to nothing."""
        pairs = zip(parameters, self.spread, strict=True)
        return tuple(item for item, ratio in pairs if ratio > DECIDED_BY_PRIOR and not item.given)


@dataclass(frozen=True, eq=False)
class Task:
    """One data set and one model; everything that a search for the minimum needs."""

    model: Model
    columns: Columns
    y: FloatArray
    """(n,) or (B, n)."""
    w: FloatArray
    """(n,) or (B, n)."""
    noise: Noise

    @property
    def scale(self) -> FloatArray:
        """Standard deviations of the priors."""
        return np.array([item.sd for item in self.model.parameters])

    @property
    def centre(self) -> FloatArray:
        """Centres of the priors in fitting coordinates."""
        natural = np.array([[item.centre for item in self.model.parameters]])
        return np.asarray(to_coordinates(natural, self.model.parameters)[0])


def name_undecided(parameters: Iterable[Parameter], evidence: str) -> tuple[str, ...]:
    """One warning for all that the evidence ("runs", "curves") leaves to its prior and the law can do without."""
    names = [item.name for item in parameters if not item.needed]
    return (f"set by their priors, for these {evidence} do not determine them: {', '.join(names)}",) if names else ()


def to_coordinates(values: FloatArray, parameters: tuple[Parameter, ...]) -> FloatArray:
    """Natural values (B, P) in fitting coordinates."""
    t = np.array(values, dtype=np.float64)
    for j, item in enumerate(parameters):
        if item.kind == "positive":
            t[:, j] = np.log(np.maximum(t[:, j], 1e-300))
    return t


def to_values(t: FloatArray, parameters: tuple[Parameter, ...]) -> FloatArray:
    """Fitting coordinates (B, P) in natural units."""
    values = np.array(t, dtype=np.float64)
    for j, item in enumerate(parameters):
        if item.kind == "positive":
            values[:, j] = np.exp(np.clip(values[:, j], -690.0, 690.0))
    return values


def solve(
    model: Model,
    columns: Columns,
    y: FloatArray,
    starts: FloatArray,
    noise: Noise,
    *,
    weights: FloatArray | None = None,
    groups: FloatArray | None = None,
    draws: int = 400,
    seed: int = 0,
) -> Solution:
    """The best of all starts (S, P natural units) and seeded draws around it.

    `y` (n,) are responses; rows with equal `groups` (n,) are resampled together (the points of one curve, the seeds of
    one cell); where data are perturbed, half of the variance is taken to be shared within a group (an assumption).
    `weights` (n,) are ratios of variances, that of the noise over the row's own; other weights only lead to honest
    draws where groups are resampled. Deterministic for a seed.
    """
    task = Task(model, columns, y, np.ones(len(y)) if weights is None else weights, noise)
    best, sd, dof = fit_noise(task, starts)
    found, share, method = _draw(task, best.t, sd, dof, _number(groups, len(y)), draws, seed)
    return Solution(
        values=to_values(best.t, model.parameters)[0],
        draws=to_values(found, model.parameters),
        residuals=_residuals(task, best.t)[0],
        noise=sd,
        cost=float(best.cost[0]),
        converged=bool(best.converged[0]),
        share_converged=share,
        spread=_measure_spread(task, best.t, sd),
        method=method,
    )


def find_best(task: Task, starts: FloatArray) -> FloatArray:
    """Natural values (P,) of the best minimum reached from the starts, without draws."""
    values: FloatArray = to_values(fit_noise(task, starts)[0].t, task.model.parameters)[0]
    return values


@dataclass(eq=False)
class _Minima:
    t: FloatArray
    cost: FloatArray
    converged: np.ndarray


def fit_noise(task: Task, starts: FloatArray) -> tuple[_Minima, float, float]:
    """The best minimum, the noise and its degrees of freedom; with a fixed penalty the noise is only measured."""
    start, sd, dof = to_coordinates(starts, task.model.parameters), task.noise.expected, np.inf
    spare = float((task.w > 0).sum()) - len(task.model.parameters)
    for step in range(NOISE_ROUNDS if np.isinf(task.noise.huber_delta) else 1):
        found = minimise(task, start, sd)
        winner = [int(np.argmin(found.cost))]
        best = _Minima(found.t[winner], found.cost[winner], found.converged[winner])
        start = best.t if step else found.t[np.argsort(found.cost, kind="stable")[:4]]
        reached = np.abs(_residuals(task, best.t)[0])
        squares = float((task.w * np.minimum(reached, WIDE * sd) ** 2).sum())
        variance, dof = pool_variance(task.noise.expected, PRIOR_DOF, squares, spare)
        sd = float(np.sqrt(variance))
    return best, sd, dof


def _draw(
    task: Task, t: FloatArray, sd: float, dof: float, groups: np.ndarray, draws: int, seed: int
) -> tuple[FloatArray, float, str]:
    """Draws in fitting coordinates, the share that converged, and how they came about."""
    rng, rows, count, stretch = np.random.default_rng(seed), len(task.y), int(groups.max()) + 1, 1.0
    if count >= RUNS_PER_PARAMETER * len(task.model.parameters):
        picked = resample_weights(count, draws, rng)[:, groups]
        drawn = replace(task, w=task.w * picked)
        # refits of a resample spread as its residuals do, which are too small by what the parameters took up
        stretch = float(np.sqrt(count / (count - len(task.model.parameters))))
        method = f"{count} groups of runs resampled, priors perturbed"
    else:
        spread = np.sqrt(draw_variances(sd**2, dof, draws, rng))[:, None] if np.isfinite(dof) else sd
        shared = rng.standard_normal((draws, count))[:, groups]
        own = rng.standard_normal((draws, rows))
        noise = spread * (shared + own) / np.sqrt(2) if count < rows else spread * own
        drawn = replace(task, y=task.y + noise / np.sqrt(np.maximum(task.w, 1e-12)))
        method = "data and priors perturbed"
    # the centres move with the draws: else what the runs leave open would look certain
    centres = task.centre + task.scale * rng.standard_normal((draws, len(task.scale)))
    found = minimise(drawn, np.repeat(t, draws, axis=0), sd, centres)
    return t + stretch * (found.t - t), float(found.converged.mean()), method


def _number(groups: FloatArray | None, rows: int) -> np.ndarray:
    return np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)


def _measure_spread(task: Task, t: FloatArray, sd: float) -> FloatArray:
    """Posterior standard deviation over the prior's, from the curvature at the minimum."""
    _, hessian, _ = _differentiate(task, t, sd, task.centre[None])
    covariance = np.linalg.pinv(hessian[0], hermitian=True)
    return np.asarray(np.sqrt(np.maximum(np.diagonal(covariance), 0)) / task.scale)


def _residuals(task: Task, t: FloatArray) -> FloatArray:
    with np.errstate(all="ignore"):
        predicted, _ = task.model.evaluate(to_values(t, task.model.parameters), task.columns)
    return np.asarray(predicted - task.y)


def _turn(task: Task, sd: float) -> float:
    return task.noise.huber_delta if np.isfinite(task.noise.huber_delta) else WIDE * sd


def _cost(task: Task, t: FloatArray, sd: float, centres: FloatArray) -> FloatArray:
    size, turn = np.abs(_residuals(task, t)), _turn(task, sd)
    penalty = np.where(size <= turn, 0.5 * size**2, turn * (size - 0.5 * turn))
    total = (task.w * penalty).sum(axis=-1) / sd**2 + 0.5 * (((t - centres) / task.scale) ** 2).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _differentiate(
    task: Task, t: FloatArray, sd: float, centres: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Gradient (B, P), Gauss-Newton Hessian (B, P, P) with the prior in it, and residuals (B, n)."""
    values = to_values(t, task.model.parameters)
    with np.errstate(all="ignore"):
        predicted, slopes = task.model.evaluate(values, task.columns)
    positive = np.array([item.kind == "positive" for item in task.model.parameters])
    slopes = np.nan_to_num(slopes * np.where(positive, values, 1.0)[:, None, :], posinf=0.0, neginf=0.0)
    r = predicted - task.y
    pull = task.w * np.minimum(1.0, _turn(task, sd) / np.maximum(np.abs(r), 1e-300)) / sd**2
    weighted = slopes * pull[..., None]
    gradient = np.einsum("bnp,bn->bp", weighted, r) + (t - centres) / task.scale**2
    hessian = np.swapaxes(weighted, 1, 2) @ slopes
    diagonal = np.arange(len(task.scale))
    hessian[:, diagonal, diagonal] += 1 / task.scale**2
    return gradient, hessian, r


def minimise(task: Task, start: FloatArray, sd: float, centres: FloatArray | None = None) -> _Minima:
    """Minimises the cost from every start (B, P); one y and w for all, or one for each. Large batches go in slices."""
    centres = np.broadcast_to(task.centre if centres is None else centres, start.shape)
    at_once = max(1, int(NUMBERS_AT_ONCE / (task.y.shape[-1] * start.shape[1])))
    slices = [np.arange(i, min(i + at_once, len(start))) for i in range(0, len(start), at_once)]
    parts = [_minimise(_take(task, rows), start[rows], sd, centres[rows]) for rows in slices]
    return _Minima(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("t", "cost", "converged")))


def _minimise(task: Task, start: FloatArray, sd: float, centres: FloatArray) -> _Minima:
    t = np.array(start)
    cost = _cost(task, t, sd, centres)
    damping, active = np.full(len(t), 1e-3), np.isfinite(cost)
    for _ in range(ROUNDS):
        rows = np.flatnonzero(active)
        if len(rows) == 0:
            break
        part = _take(task, rows)
        gradient, hessian, _ = _differentiate(part, t[rows], sd, centres[rows])
        step, promise = _step(gradient, hessian, damping[rows])
        trial = t[rows] + step
        reached = _cost(part, trial, sd, centres[rows])
        better = reached < cost[rows]
        done = (promise < DECREMENT * np.maximum(cost[rows], 1.0)) | (damping[rows] > MAX_DAMPING)
        t[rows[better]], cost[rows[better]] = trial[better], reached[better]
        damping[rows] = np.where(better, np.maximum(0.1 * damping[rows], 1e-12), 10 * damping[rows])
        active[rows] = ~done
    return _Minima(t, cost, _is_minimum(task, t, cost, sd, centres))


def _is_minimum(task: Task, t: FloatArray, cost: FloatArray, sd: float, centres: FloatArray) -> BoolArray:
    """Whether no undamped step promises anything; a damped one promises little wherever the search is stuck."""
    rows, settled = np.flatnonzero(np.isfinite(cost)), np.zeros(len(t), dtype=bool)
    gradient, hessian, _ = _differentiate(_take(task, rows), t[rows], sd, centres[rows])
    promise = _step(gradient, hessian, np.zeros(len(rows)))[1]
    settled[rows] = promise < CONVERGED_DECREMENT * np.maximum(cost[rows], 1.0)
    return settled


def _take(task: Task, rows: np.ndarray) -> Task:
    y, w = (values if values.ndim == 1 else values[rows] for values in (task.y, task.w))
    return replace(task, y=y, w=w)


def _step(gradient: FloatArray, hessian: FloatArray, damping: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The damped step (B, P) and the decrease that it promises (B,)."""
    size = np.diagonal(hessian, axis1=1, axis2=2)
    damped = hessian + (damping[:, None] * size)[:, :, None] * np.eye(hessian.shape[1])
    step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
    promise = -0.5 * (gradient * step).sum(axis=1)
    return np.clip(step, -STEP_LIMIT, STEP_LIMIT), promise
