"""IsoFLOP curves: at each compute budget the size of least loss, its interval, and what a parabola would get wrong.

Two methods. `profile` fits the exact shape of a Chinchilla-like law along a budget, two exponentials in ln N whose
exponents all budgets share (`isoflop_shape`); floor, optimum and curvature of each budget are free, so no power law in
compute is assumed. `parabola` is the usual one, biased where the exponents differ, where the sizes do not lie evenly
around the optimum, and where they reach far; that bias is reported beside every optimum of either method.
Sources: approach 2 of Hoffmann et al. 2022, section 3.2; its bias, and variable projection as the remedy: Open-Athena,
scaling-law-analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from scalelaws.engines.nonlinear import Noise, Solution, solve
from scalelaws.intervals import pool_variance
from scalelaws.laws.loss import keep_tuned
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.results import Estimate, Status
from scalelaws.splits.isoflop_shape import Parabola, Valleys, lift
from scalelaws.sweeps.basins import OVERHANG

Method = Literal["profile", "parabola"]

BUDGET_WIDTH = 0.2
"""Width in ln compute of one budget: published budgets lie a factor of 1.5 or more apart, and values that were read
from figures scatter by some 8 % to both sides."""
FEWEST_SIZES = 4
"""Optimum, loss and curvature take three sizes; the fourth says whether they fit."""
WINDOW_LOG = 0.1
"""Runs further than this above their budget's best, in ln loss, are left out: on published runs the loss leaves every
smooth law there. For N* a window of .05 is worse, .2 a little better on clean sets and worse on those read from figures
(measured in benchmarks/fitting/allocation)."""
EXPECTED_NOISE_LOG = 0.002
"""Expected scatter of ln loss around an isoFLOP curve (an assumption; reruns alone differ by .0005)."""
EXPECTED_DOF = 3.0
"""How many residuals that expectation is worth (an assumption)."""
CURVED = 2.0
"""A parabola that opens downwards by so many standard errors is upside down."""
TOLD_FROM_FLAT = 9.21
"""Squared deviations of a fitted curve from its mean, in units of the noise: below the 99 % point of chi squared with
two freedoms (place and depth of the basin), noise alone makes such a curve."""


@dataclass(frozen=True)
class IsoflopOptimum:
    """The size of least loss at one budget."""

    compute_flops: float
    params: Estimate
    """Counted as the runs count."""
    tokens: Estimate
    loss: Estimate
    sizes: int
    """Distinct sizes behind it."""
    bias_log: float
    """ln N* of a parabola through the fitted profile at these very sizes, less that of the profile itself."""
    status: Status
    message: str


@dataclass(frozen=True, eq=False)
class Isoflops:
    """The optima of all budgets, in order of compute, and what they were read from."""

    method: Method
    optima: tuple[IsoflopOptimum, ...]
    draws: FloatArray
    """(draws, budgets) ln N*; NaN where a budget holds no optimum."""
    exponents: Mapping[str, Estimate]
    """alpha and beta of the shared shape."""
    noise_log: float
    """Scatter of ln loss around the profiles."""
    runs: Observations
    """The runs that were used; what was left out is recorded in them."""
    budget: FloatArray
    """Compute of the budget of every such run, FLOPs."""
    shapes: FloatArray
    """(budgets, 3): loss, curvature and ln N at the optimum of each fitted profile; NaN where there is none."""
    level: float
    warnings: tuple[str, ...] = ()

    def predict_loss(self, budget: int, params: FloatArray) -> FloatArray:
        """Loss along the profile of the budget of that number, (n,)."""
        loss, curvature, ln_size = self.shapes[budget]
        alpha, beta = (np.array(self.exponents[name].value) for name in ("alpha", "beta"))
        return np.asarray(loss * (1 + curvature * lift(np.log(params) - ln_size, alpha, beta)[0]))

    @property
    def usable(self) -> tuple[int, ...]:
        """The numbers of the budgets that hold an optimum."""
        return tuple(k for k, item in enumerate(self.optima) if item.status.ok)


def find_isoflop_optima(
    observations: Observations,
    *,
    method: Method = "profile",
    window_log: float = WINDOW_LOG,
    draws: int = 400,
    level: float = 0.9,
    seed: int = 0,
) -> Isoflops:
    """The optimum of every compute budget that at least four sizes share.

    Of a cell's sweep of learning rate or batch only the best run counts. Runs within 10 % of one compute form a budget;
    those more than `window_log` above its best (in ln loss) are left out and recorded. The scatter of the runs is
    estimated; intervals at `level` come from seeded draws. Raises ValueError where no budget holds enough sizes; an
    optimum that is no optimum says so in its status.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}")
    if not window_log > 0:
        raise ValueError(f"window_log must be positive, for example 0.1; got {window_log}")
    runs, curves = _gather(observations, window_log)
    fitted = [curve for curve in curves if curve.problem is None]
    if not fitted:
        reasons = "; ".join(_refuse(curve).message for curve in curves[:5])
        raise ValueError(
            f"no compute budget holds an optimum ({reasons}). Train >= {FEWEST_SIZES} sizes at one budget, on both "
            "sides of the best, or fit chinchilla to all runs"
        )
    valleys, solution = _fit_profiles(runs, fitted, draws, seed)
    profiles = _read_profiles(fitted, valleys, solution)
    found = profiles if method == "profile" else _read_parabolas(fitted, profiles, _parabola_noise(curves), seed)
    return _finish(runs, curves, method, found, solution, level)


@dataclass(frozen=True, eq=False)
class _Curve:
    """The runs of one budget inside the window."""

    budget: float
    rows: np.ndarray
    ln_size: FloatArray
    loss: FloatArray
    flops_per_pair: float
    """FLOPs per parameter and token, 6 unless the runs were counted otherwise."""
    parabola: Parabola | None = None
    problem: Status | None = None

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest ln size."""
        return float(self.ln_size.min()), float(self.ln_size.max())

    def limit(self, ln_size: FloatArray) -> FloatArray:
        """Draws of the optimum, followed only so far beyond the sizes."""
        low, high = self.span
        return np.clip(ln_size, low - OVERHANG, high + OVERHANG)


def group_budgets(compute: FloatArray, params: FloatArray) -> tuple[np.ndarray, ...]:
    """Row numbers of each budget, ascending in compute: time and again the window of ln compute with the most sizes.

    Windows are as wide as runs of one budget scatter. A run alone in its window is of no budget.
    """
    ln_compute, left, found = np.log(compute), np.ones(len(compute), dtype=bool), []
    while left.any():
        windows = [left & (ln_compute >= start) & (ln_compute <= start + BUDGET_WIDTH) for start in ln_compute[left]]
        sizes = [(count_levels(params[rows]), -float(np.ptp(ln_compute[rows]))) for rows in windows]
        best = windows[max(range(len(windows)), key=sizes.__getitem__)]
        left &= ~best
        if best.sum() > 1:
            found.append(np.flatnonzero(best))
    return tuple(sorted(found, key=lambda rows: float(np.median(compute[rows]))))


def _gather(observations: Observations, window_log: float) -> tuple[Observations, list[_Curve]]:
    finite = keep_tuned(observations)
    budgets = group_budgets(finite.compute, finite.params_non_embedding)
    number = np.full(len(finite), -1)
    for k, rows in enumerate(budgets):
        near = np.log(finite.loss[rows] / finite.loss[rows].min()) <= window_log
        number[rows] = np.where(near, k, -2)
    runs = finite.select(number != -1, "alone at their compute")
    runs = runs.select(number[number != -1] >= 0, f"more than {window_log:g} above the best of their budget in ln loss")
    of_runs = number[number >= 0]
    return runs, _screen([_describe(runs, np.flatnonzero(of_runs == k)) for k in range(len(budgets))])


def _describe(runs: Observations, rows: np.ndarray) -> _Curve:
    size, compute = runs.params_non_embedding[rows], runs.compute[rows]
    per_pair = float(np.median(compute / (size * runs.tokens[rows])))
    curve = _Curve(float(np.median(compute)), rows, np.log(size), runs.loss[rows], per_pair)
    if count_levels(size) < FEWEST_SIZES:
        return replace(curve, problem=Status.TOO_FEW_POINTS)
    return replace(curve, parabola=Parabola.through(curve.ln_size, curve.loss))


def _screen(curves: list[_Curve]) -> list[_Curve]:
    """Marks the budgets whose losses bend the wrong way against the noise of all budgets together."""
    noise = _parabola_noise(curves)
    screened = []
    for curve in curves:
        if curve.parabola is not None:
            error = noise * curve.loss.min() * np.sqrt(curve.parabola.shape[2, 2])
            bend = float(curve.parabola.coefficients[2]) / error
            if bend < -CURVED:
                curve = replace(curve, problem=Status.UPSIDE_DOWN)
        screened.append(curve)
    return screened


def _parabola_noise(curves: list[_Curve]) -> float:
    """Scatter of ln loss around the parabolas."""
    given = [curve for curve in curves if curve.parabola is not None]
    squares = sum(curve.parabola.squares / curve.loss.min() ** 2 for curve in given if curve.parabola is not None)
    spare = sum(len(curve.rows) - 3 for curve in given)
    return float(np.sqrt(pool_variance(EXPECTED_NOISE_LOG, EXPECTED_DOF, squares, spare)[0]))


def _fit_profiles(runs: Observations, curves: list[_Curve], draws: int, seed: int) -> tuple[Valleys, Solution]:
    """All budgets in one robust fit; the points of one labelled run err together."""
    best = [int(np.argmin(curve.loss)) for curve in curves]
    valleys = Valleys(
        np.array([curve.ln_size[i] for curve, i in zip(curves, best, strict=True)]),
        np.array([curve.loss[i] for curve, i in zip(curves, best, strict=True)]),
    )
    rows = np.concatenate([curve.rows for curve in curves])
    columns = {
        "budget": np.repeat(np.arange(len(curves), dtype=np.float64), [len(curve.rows) for curve in curves]),
        "ln_size": np.log(runs.params_non_embedding[rows]),
        "beside": np.concatenate([np.log(runs.compute[curve.rows] / curve.budget) for curve in curves]),
    }
    groups = None
    if runs.label is not None:
        groups = np.unique(np.array(runs.label)[rows], return_inverse=True)[1].astype(np.float64)
    noise = Noise(EXPECTED_NOISE_LOG)
    losses = np.log(runs.loss[rows])
    return valleys, solve(valleys, columns, losses, valleys.start(), noise, groups=groups, draws=draws, seed=seed)


@dataclass(frozen=True, eq=False)
class _Found:
    """ln N* and loss of one budget, point and draws."""

    ln_size: float
    loss: float
    size_draws: FloatArray
    loss_draws: FloatArray
    bias_log: float
    flat: bool
    shape: FloatArray
    """(3,): loss, curvature and ln N at the optimum of the profile."""


def _read_profiles(fitted: list[_Curve], valleys: Valleys, solution: Solution) -> list[_Found]:
    shapes = np.stack([part[0] for part in valleys.split(solution.values[None])], axis=1)
    loss_draws, _, size_draws = valleys.split(solution.draws)
    found = []
    for k, curve in enumerate(fitted):
        runs = len(curve.rows)
        columns = {"budget": np.full(runs, float(k)), "ln_size": curve.ln_size, "beside": np.zeros(runs)}
        fitted_log = valleys.evaluate(solution.values[None], columns)[0][0]
        loss, _, size = (float(part) for part in shapes[k])
        bias = Parabola.through(curve.ln_size, np.exp(fitted_log)).vertex - size
        flat = float(fitted_log.var()) * runs < TOLD_FROM_FLAT * solution.noise**2
        drawn = curve.limit(size_draws[:, k])
        found.append(_Found(size, loss, drawn, loss_draws[:, k], bias, flat, shapes[k]))
    return found


def _read_parabolas(fitted: list[_Curve], profiles: list[_Found], noise: float, seed: int) -> list[_Found]:
    rng, found = np.random.default_rng(seed), []
    for curve, profile in zip(fitted, profiles, strict=True):
        parabola = curve.parabola
        assert parabola is not None
        vertex, loss_draws = parabola.draw(noise * curve.loss.min(), len(profile.size_draws), rng)
        size_draws = curve.limit(vertex)
        point = replace(profile, ln_size=parabola.vertex, loss=parabola.depth)
        found.append(replace(point, size_draws=size_draws, loss_draws=loss_draws))
    return found


def _finish(
    runs: Observations, curves: list[_Curve], method: Method, found: list[_Found], solution: Solution, level: float
) -> Isoflops:
    draws = np.full((len(solution.draws), len(curves)), np.nan)
    shapes = np.full((len(curves), 3), np.nan)
    optima, remaining = [], iter(found)
    for k, curve in enumerate(curves):
        if curve.problem is not None:
            optima.append(_refuse(curve))
            continue
        each = next(remaining)
        draws[:, k], shapes[k] = each.size_draws, each.shape
        optima.append(_judge(curve, each, level))
    exponents = {
        name: Estimate.from_draws(solution.draws[:, j], level, value=float(solution.values[j]))
        for j, name in enumerate(("alpha", "beta"))
    }
    budget = np.empty(len(runs))
    for curve in curves:
        budget[curve.rows] = curve.budget
    warnings = () if solution.converged else (Status.NOT_CONVERGED.value,)
    return Isoflops(method, tuple(optima), draws, exponents, solution.noise, runs, budget, shapes, level, warnings)


def _judge(curve: _Curve, found: _Found, level: float) -> IsoflopOptimum:
    """The optimum with its status: an optimum at or beyond the outermost size is only a bound."""
    low, high = curve.span
    size, at = np.exp(found.ln_size), np.exp(found.size_draws)
    params = Estimate.from_draws(at, level, value=float(size))
    pairs = curve.budget / curve.flops_per_pair
    tokens = Estimate.from_draws(pairs / at, level, value=float(pairs / size), unit="tokens")
    loss = Estimate.from_draws(found.loss_draws, level, value=found.loss, unit="nats")
    status = Status.CONVERGED
    assert params.low is not None
    assert params.high is not None
    if found.flat or (params.low <= np.exp(low) and params.high >= np.exp(high)):
        status = Status.FLAT
    elif found.ln_size <= low:
        status, params, tokens = Status.EDGE_LOW, replace(params, low=None), replace(tokens, high=None)
    elif found.ln_size >= high:
        status, params, tokens = Status.EDGE_HIGH, replace(params, high=None), replace(tokens, low=None)
    return IsoflopOptimum(
        curve.budget, params, tokens, loss, count_levels(np.exp(curve.ln_size)), found.bias_log, status,
        f"{curve.budget:.3g} FLOPs: {status.value}",
    )  # fmt: skip


def _refuse(curve: _Curve) -> IsoflopOptimum:
    """What is known of a budget that holds no optimum."""
    assert curve.problem is not None
    sizes = count_levels(np.exp(curve.ln_size))
    reason = f" ({sizes} sizes; {FEWEST_SIZES} needed)" if curve.problem is Status.TOO_FEW_POINTS else ""
    nothing = Estimate(np.nan)
    message = f"{curve.budget:.3g} FLOPs: {curve.problem.value}{reason}"
    return IsoflopOptimum(curve.budget, nothing, nothing, nothing, sizes, np.nan, curve.problem, message)
