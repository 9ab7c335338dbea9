"""Fits a joint response surface: Gauss-Newton with exact derivatives, robust, integrated over the scatter of cells.

Legend: theta parameters of the surface, w weights of the runs, H = sum w row row^T + prior precision, tau scatter of
the cells' optima around the law (of the learning rate, of the batch).

Weights follow Student's t (a run that broke counts less) over a noise that grows with the excess (`surfaces.vary`).
The noise in the valley is re-estimated from residuals that are corrected for their leverage; theta is moved by
Levenberg-Marquardt between. Then H is kept and the posterior integrated over a grid of tau in closed form, as
`hierarchy` does for optima of single cells. There is no randomness but the seeded draws.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from scalelaws.engines.hierarchy import SCATTER_PRIOR_SD
from scalelaws.observations import FloatArray
from scalelaws.sweeps.surfaces import Layout, Surface, SurfaceRuns, respond, vary

TAIL_DOF = 4.0
"""Degrees of freedom of Student's t for the residuals (Lange et al. 1989, section 3: 4 is robust at little cost)."""
NOISE_GRID = np.geomspace(3e-5, 3e-2, 61)
NOISE_PRIOR = (7e-4, 1.0)
"""Noise of a run: centre (published reruns: .0002 to .001) and standard deviation of its logarithm (an assumption)."""
SCATTER_GRID = np.array([0.01, 0.02, 0.035, 0.055, 0.08, 0.12, 0.18, 0.3, 0.5])
START_SCATTER = 0.1
"""Scatter before any is known."""
ROUNDS = 12
"""Rounds of weights, noise and scatter; published runs need four to six."""
STEPS = 40
SETTLED = 0.01
"""A search ends when no parameter of the laws moves by more than this share of its standard deviation in a round."""
STAYS = 0.3
"""After the last round a fit still counts as settled below this share: noise and scatter move on grids."""
LARGEST_STEP = 1.0
"""A step is cut to this length in every parameter: all of them are logarithms or exponents."""
SKEW_STARTS = (0.3, 1.5, 3.0)
"""Starts of the skew in the learning rate; the best of them is kept."""
START_DECAY = 0.003
"""The first guess of a cell's optimum weighs its runs by exp(-excess / .003)."""


@dataclass(frozen=True, eq=False)
class SurfaceSearch:
    """The fitted surface and how the search ended."""

    surface: Surface
    settled: bool
    objective: float
    """Weighted sum of squares with the prior's at the end."""
    residuals: FloatArray
    excess: FloatArray


@dataclass(eq=False)
class _State:
    """Where a search stands."""

    theta: FloatArray
    noise_log: float
    scatter: tuple[float, ...]
    settled: bool = False
    objective: float = np.inf


def fit_surface(
    layout: Layout, runs: SurfaceRuns, *, start: Surface | None = None, draws: int = 400, seed: int = 0
) -> SurfaceSearch:
    """The posterior of the surface given runs; `start` is an earlier surface of (some of) the same cells."""
    if start is not None:
        state = _settle(layout, runs, _State(_carry(layout, start, runs), start.noise_log, start.scatter))
    else:
        scatter = (START_SCATTER,) * layout.settings
        starts = [_State(_guess(layout, runs, skew), NOISE_PRIOR[0], scatter) for skew in SKEW_STARTS]
        for state in starts:
            _descend(layout, runs, state)
        state = _settle(layout, runs, min(starts, key=lambda item: item.objective))
    return _finish(layout, runs, state, draws, seed)


def _carry(layout: Layout, start: Surface, runs: SurfaceRuns) -> FloatArray:
    """The parameters of an earlier surface in this layout; cells that it did not have start from this one's guess."""
    theta = _guess(layout, runs, float(start.parameters[start.layout.at("lr_skew")]))
    n, d = start.layout.centred(*layout.origin)
    for name in start.layout.law_names:
        theta[layout.at(name)] = start.parameters[start.layout.at(name)]
    for setting in ("lr", "batch") if layout.batched else ("lr",):
        at = layout.at(f"{setting}_intercept")
        theta[at] += theta[at + 1] * float(n) + theta[at + 2] * float(d)
    for cell, (ln_n, ln_d) in enumerate(zip(layout.ln_params, layout.ln_tokens, strict=True)):
        known = start.find_cell(float(np.exp(ln_n)), float(np.exp(ln_d)))
        for name in layout.effect_names if known is not None else ():
            theta[layout.effects(name).start + cell] = start.parameters[start.layout.effects(name)][known]
    return theta


def _guess(layout: Layout, runs: SurfaceRuns, skew: float) -> FloatArray:
    """Floors from the lowest runs, laws from a ridge regression of the cells' low runs on n and d."""
    theta = layout.prior((START_SCATTER,) * layout.settings)[0]
    theta[layout.at("lr_skew")] = skew
    lowest = np.full(layout.cells, np.inf)
    np.minimum.at(lowest, runs.cell, runs.ln_loss)
    theta[layout.effects("floor")] = np.where(np.isfinite(lowest), lowest, np.mean(runs.ln_loss))
    weight = np.exp(-(runs.ln_loss - lowest[runs.cell]) / START_DECAY)
    n, d = layout.centred(layout.ln_params[runs.cell], layout.ln_tokens[runs.cell])
    design = np.stack([np.ones_like(n), n, d], axis=1)
    ridge = np.diag([1e-6, 1.0, 1.0]) * 0.05
    normal = design.T @ (design * weight[:, None]) + ridge
    for setting, value in (("lr", runs.ln_lr), ("batch", runs.ln_batch)):
        if value is not None and (setting == "lr" or layout.batched):
            at = layout.at(f"{setting}_intercept")
            middle = float(weight @ value / weight.sum())
            theta[at : at + 3] = np.linalg.solve(normal, design.T @ (weight * (value - middle)))
            theta[at] += middle
    for place, held in zip(("params", "tokens"), layout.slopes_held, strict=True):
        for setting in ("lr", "batch") if layout.batched and held else ("lr",) if held else ():
            theta[layout.at(f"{setting}_exponent_{place}")] = 0.0
    return theta


def _weigh(runs: SurfaceRuns, layout: Layout, state: _State) -> FloatArray:
    """Weights of the runs: inverse variance, less for what lies off by many deviations."""
    answer = respond(layout, state.theta, runs)
    variance = vary(answer.excess, state.noise_log)
    square = (runs.ln_loss - answer.floor - answer.excess) ** 2 / variance
    return np.asarray((TAIL_DOF + 1) / (TAIL_DOF + square) / variance)


def _descend(layout: Layout, runs: SurfaceRuns, state: _State) -> None:
    """Levenberg-Marquardt at fixed weights and scatter; moves the state."""
    weight = _weigh(runs, layout, state)
    centre, precision = layout.prior(state.scatter)

    def assess(theta: FloatArray) -> tuple[float, FloatArray, FloatArray]:
        answer = respond(layout, theta, runs)
        residual = runs.ln_loss - answer.floor - answer.excess
        gap = theta - centre
        return float(weight @ residual**2 + gap @ precision @ gap), residual, answer.rows

    value, residual, rows = assess(state.theta)
    damping = 1e-4
    for _ in range(STEPS):
        hessian = rows.T @ (rows * weight[:, None]) + precision
        gradient = rows.T @ (weight * residual) - precision @ (state.theta - centre)
        size = np.sqrt(np.diag(hessian))
        scaled = hessian / size[:, None] / size
        step = np.linalg.solve(scaled + damping * np.eye(len(size)), gradient / size) / size
        trial = state.theta + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
        found = assess(trial)
        if found[0] > value:
            damping *= 8
            if damping > 1e8:
                break
            continue
        gain, state.theta = value - found[0], trial
        (value, residual, rows), damping = found, max(damping / 10, 1e-9)
        if gain < 1e-7 * max(1.0, value):
            break
    state.objective = value


def _settle(layout: Layout, runs: SurfaceRuns, state: _State) -> _State:
    """Alternates descent, noise and scatter until the parameters of the laws stay."""
    laws = len(layout.law_names)
    for _ in range(ROUNDS):
        before = state.theta[:laws].copy()
        _descend(layout, runs, state)
        data = _inform(layout, runs, state)
        covariance = np.asarray(np.linalg.inv(data[0] + layout.prior(state.scatter)[1]), dtype=np.float64)
        moved = np.abs(state.theta[:laws] - before) / np.sqrt(np.diag(covariance)[:laws])
        state.settled = bool(moved.max() < STAYS)
        state.noise_log = _estimate_noise(layout, runs, state, covariance)
        state.scatter = _integrate(layout, state, data).scatter
        if moved.max() < SETTLED:
            break
    return state


def _inform(layout: Layout, runs: SurfaceRuns, state: _State) -> tuple[FloatArray, FloatArray]:
    """sum w row row^T (p, p), and that times theta plus sum w row residual: the linearised data."""
    answer = respond(layout, state.theta, runs)
    weight = _weigh(runs, layout, state)
    matrix = answer.rows.T @ (answer.rows * weight[:, None])
    residual = runs.ln_loss - answer.floor - answer.excess
    return matrix, matrix @ state.theta + answer.rows.T @ (weight * residual)


def _estimate_noise(layout: Layout, runs: SurfaceRuns, state: _State, covariance: FloatArray) -> float:
    """The noise in the valley of highest posterior; residuals are blown up by their leverage first."""
    answer = respond(layout, state.theta, runs)
    weight = _weigh(runs, layout, state)
    leverage = weight * np.einsum("rp,pq,rq->r", answer.rows, covariance, answer.rows, optimize=True)
    square = (runs.ln_loss - answer.floor - answer.excess) ** 2 / (1 - np.minimum(leverage, 0.95))
    variance = np.stack([vary(answer.excess, float(noise)) for noise in NOISE_GRID])
    likelihood = -0.5 * np.log(variance) - 0.5 * (TAIL_DOF + 1) * np.log1p(square / variance / TAIL_DOF)
    prior = -0.5 * (np.log(NOISE_GRID / NOISE_PRIOR[0]) / NOISE_PRIOR[1]) ** 2
    return float(NOISE_GRID[np.argmax(likelihood.sum(axis=1) + prior)])


@dataclass(frozen=True, eq=False)
class _Posterior:
    """The linearised posterior: cells' optima E over a grid of scatters, the other parameters O given them.

    O = anchor - slope E + root z (z standard normal); E ~ normal(means, covariances) at each scatter of the grid.
    """

    own: np.ndarray
    others: np.ndarray
    anchor: FloatArray
    slope: FloatArray
    root: FloatArray
    probability: FloatArray
    scatters: FloatArray
    means: FloatArray
    covariances: FloatArray

    @property
    def scatter(self) -> tuple[float, ...]:
        """Root of the posterior mean square."""
        return tuple(float(value) for value in np.sqrt(self.probability @ self.scatters**2))

    def find_moments(self) -> tuple[FloatArray, FloatArray]:
        """Mean (p,) and covariance (p, p) of all parameters, integrated over the scatter."""
        middle = self.probability @ self.means
        gap = self.means - middle
        spread = np.einsum("g,gpq->pq", self.probability, self.covariances + gap[:, :, None] * gap[:, None, :])
        size = len(self.own) + len(self.others)
        mean, covariance = np.empty(size), np.empty((size, size))
        mean[self.own], mean[self.others] = middle, self.anchor - self.slope @ middle
        cross = -self.slope @ spread
        covariance[np.ix_(self.own, self.own)] = spread
        covariance[np.ix_(self.others, self.own)], covariance[np.ix_(self.own, self.others)] = cross, cross.T
        covariance[np.ix_(self.others, self.others)] = self.root @ self.root.T - cross @ self.slope.T
        return mean, covariance

    def draw(self, draws: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Parameters (draws, p) and scatters (draws, k)."""
        places = rng.choice(len(self.probability), size=draws, p=self.probability)
        wiggle = rng.standard_normal((draws, len(self.own) + len(self.others)))
        theta = np.empty_like(wiggle)
        for place in np.unique(places):
            at = np.flatnonzero(places == place)
            root = np.linalg.cholesky(self.covariances[place])
            theta[np.ix_(at, self.own)] = self.means[place] + wiggle[np.ix_(at, self.own)] @ root.T
        rest = self.anchor - theta[:, self.own] @ self.slope.T
        theta[:, self.others] = rest + wiggle[:, self.others] @ self.root.T
        return theta, self.scatters[places]


def _integrate(layout: Layout, state: _State, data: tuple[FloatArray, FloatArray]) -> _Posterior:
    """Posterior over the grid of scatters, the surface being linear around theta (restricted likelihood of tau).

    Only the cells' optima have a prior that depends on the scatter; the others are eliminated once.
    """
    matrix, vector = data
    centre, precision = layout.prior(state.scatter)
    effects = [layout.effects(name) for name in ("lr", "batch")[: layout.settings]]
    own = np.concatenate([np.arange(item.start, item.stop) for item in effects])
    others = np.setdiff1d(np.arange(layout.size), own)
    rest = np.linalg.inv(matrix[np.ix_(others, others)] + precision[np.ix_(others, others)])
    anchor = rest @ (vector[others] + np.diag(precision)[others] * centre[others])
    slope = rest @ matrix[np.ix_(others, own)]
    reduced = matrix[np.ix_(own, own)] - matrix[np.ix_(own, others)] @ slope
    right = vector[own] - matrix[np.ix_(own, others)] @ anchor
    scatters = np.array(list(itertools.product(SCATTER_GRID, repeat=layout.settings)))
    inverse = np.linalg.inv(layout.same_size)
    prior = np.stack([np.kron(np.diag(1 / row**2), inverse) for row in scatters])
    covariances = np.linalg.inv(reduced + prior)
    means = covariances @ right
    log_weight = 0.5 * (np.linalg.slogdet(covariances)[1] + means @ right)
    log_weight -= layout.cells * np.log(scatters).sum(axis=1) + 0.5 * ((scatters / SCATTER_PRIOR_SD) ** 2).sum(axis=1)
    widths = np.array(list(itertools.product(np.gradient(SCATTER_GRID), repeat=layout.settings))).prod(axis=1)
    weight = np.exp(log_weight - log_weight.max()) * widths
    root = np.linalg.cholesky(rest)
    return _Posterior(own, others, anchor, slope, root, weight / weight.sum(), scatters, means, covariances)


def _finish(layout: Layout, runs: SurfaceRuns, state: _State, draws: int, seed: int) -> SurfaceSearch:
    """Draws and moments of the posterior, integrated over the scatter."""
    data = _inform(layout, runs, state)
    posterior = _integrate(layout, state, data)
    mean, covariance = posterior.find_moments()
    theta, scatters = posterior.draw(draws, np.random.default_rng(seed))
    surface = Surface(layout, mean, covariance, data[0], posterior.scatter, state.noise_log, theta, scatters)
    answer = respond(layout, mean, runs)
    residual = runs.ln_loss - answer.floor - answer.excess
    return SurfaceSearch(surface, state.settled, state.objective, residual, answer.excess)


def refit(previous: Surface, runs: SurfaceRuns, *, draws: int = 400, seed: int = 0) -> SurfaceSearch:
    """The surface given all runs so far, from where it stood: a few milliseconds; `runs.cell` counts its cells."""
    return fit_surface(previous.layout, runs, start=previous, draws=draws, seed=seed)
