"""The score of a large model from the pass rates of small ones, item by item: items of like difficulty rise together.

Source: clustering on difficulty, Xu et al. 2025 (arXiv:2502.17262): cluster the items by their pass rates over the
small models, fit one curve per cluster, keep the clusters whose curve can be extrapolated, and map their score to that
of all items.
Legend: y pass rate, C training FLOPs, x = C / (a thousandth of the smallest C), g chance, a, b, c of the curve

    y = g + (1 - g) exp(-a x^-b - c)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalelaws.engines.nonlinear import Columns, Noise, Parameter, Solution, solve
from scalelaws.observations import BoolArray, FloatArray
from scalelaws.results import Estimate, FitError, Status

Index = NDArray[np.int64]

MAX_DIAMETER = 0.3
"""Assumption: two items of one cluster differ by at most this in pass rate (root mean square over the models); 100
answers per item leave .07 between equals."""
FEWEST_ITEMS = 10
"""Smaller clusters are outliers (Xu et al. 2025)."""
FEWEST_MODELS = 5
"""One more than the parameters of a curve."""
LEAST_EXPONENT = 0.1
LEAST_RATE = 1.0
MOST_LOSS = 1.0
"""A curve is kept when a > 1, b > 0.1 and c < 1 (Xu et al. 2025); a counts at a thousandth of the smallest
compute (an assumption, the source names no unit), so that a > 1 needs a rise to begin near the small models."""
LEAST_RISE = 0.05
"""Assumption: a cluster whose mean pass rate spans less over the small models shows no curve yet."""
SHIFTS = 100
MAP_TOLERANCE = 0.005
"""Knots are added until the map to the full set misses by less (Xu et al. 2025)."""
EXPECTED_NOISE = 0.02
"""Expected misfit of a cluster's mean pass rate (an assumption)."""
DRIFT_PER_EFOLD = 0.005
"""Expected drift of the score per e-fold of compute beyond the small models (an assumption: that of the sigmoid in
`laws.downstream`, for no published table of items was at hand)."""
DRIFT_DOF = 2.0
"""How many held-out models that is worth (an assumption)."""
LEAST_CHANCE = 1e-6
FAR = 100.0
"""Beyond this many times the largest small model a forecast carries a warning (an assumption)."""


@dataclass(frozen=True, eq=False)
class ItemScores:
    """Pass rates of the small models on every item."""

    pass_rates: FloatArray
    """(models, items), shares of right answers, 0 to 1."""
    compute_flops: FloatArray
    """(models,) training FLOPs."""

    def __post_init__(self) -> None:
        """Refuses what is no table of shares."""
        rates, compute = np.array(self.pass_rates, dtype=np.float64), np.array(self.compute_flops, dtype=np.float64)
        if rates.ndim != 2 or compute.shape != (len(rates),):
            raise ValueError(
                f"pass_rates are (models, items) and compute_flops (models,); got {rates.shape}, {compute.shape}"
            )
        if not ((rates >= 0) & (rates <= 1)).all():
            raise ValueError("pass_rates are shares, 0 to 1, without gaps; leave out items that a model was not asked")
        if not (np.isfinite(compute) & (compute > 0)).all():
            raise ValueError("compute_flops must be positive and finite")
        if len(np.unique(compute)) < FEWEST_MODELS:
            raise ValueError(
                f"difficulty needs >= {FEWEST_MODELS} models of distinct compute; got {len(np.unique(compute))}"
            )
        for name, values in (("pass_rates", rates), ("compute_flops", compute)):
            values.setflags(write=False)
            object.__setattr__(self, name, values)


@dataclass(frozen=True, eq=False)
class Cluster:
    """Items of like difficulty and the curve of their mean pass rate."""

    items: Index
    """Numbers of the items."""
    mean: FloatArray
    """(models,) mean pass rate."""
    values: FloatArray
    """g, a, b, c."""
    draws: FloatArray
    """(draws, 4)."""
    noise: float
    """Standard deviation of the mean pass rate of one model around the curve."""
    problem: str
    """Why the curve cannot be extrapolated; empty where it can."""


@dataclass(frozen=True, eq=False)
class ItemForecast:
    """The score of the target on all items, by way of the items that can be predicted."""

    score: Estimate
    """A share, 0 to 1; the interval is for one new model."""
    subset_score: Estimate
    """The same on the predictable items alone."""
    share_predictable: float
    """Share of the items that lie in clusters whose curve can be extrapolated."""
    outliers: int
    """Items in no cluster."""
    clusters: tuple[Cluster, ...]
    map_knots: FloatArray
    """(knots, 2): score on the predictable items, score on all; the map runs through them, monotone."""
    compute_flops: float
    level: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The forecast as plain data."""
        return {
            "score": self.score.to_dict(), "subset_score": self.subset_score.to_dict(),
            "share_predictable": self.share_predictable, "outliers": self.outliers, "level": self.level,
            "clusters": [{"items": len(item.items), "problem": item.problem} for item in self.clusters],
            "compute_flops": self.compute_flops, "warnings": list(self.warnings),
        }  # fmt: skip


@dataclass(frozen=True)
class PassCurve:
    """y = g + (1 - g) exp(-a x^-b - c)."""

    parameters: tuple[Parameter, ...]

    @classmethod
    def of(cls, chance: float | None) -> PassCurve:
        """With weak priors; a chance level that is given is held."""
        guess = Parameter("g", 0.05, 1.0) if chance is None else Parameter("g", max(chance, LEAST_CHANCE), 1e-3)
        return cls((guess, Parameter("a", 10.0, 2.5), Parameter("b", 0.3, 0.6), Parameter("c", 0.05, 1.5)))

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """y (B, n) and its derivatives by the parameters (B, n, 4)."""
        g, a, b, c = (values[:, j, None] for j in range(4))
        x = np.log(columns["x"])
        power = np.exp(-b * x)
        solved = np.exp(-a * power - c)
        slopes = (1 - solved, -(1 - g) * solved * power, (1 - g) * solved * a * power * x, -(1 - g) * solved)
        return g + (1 - g) * solved, np.stack(slopes, axis=2)

    def starts(self) -> FloatArray:
        """Curves that are half solved below, amid and above the small models."""
        g, c = self.parameters[0].centre, self.parameters[3].centre
        return np.array([[g, 0.7 * middle**0.3, 0.3, c] for middle in (1e3, 1e4, 1e5, 1e7)])


def cluster_items(pass_rates: ArrayLike, *, max_diameter: float = MAX_DIAMETER, fewest: int = FEWEST_ITEMS) -> Index:
    """The cluster of every item (-1: outlier) from pass rates (models, items).

    Mean shift with a flat kernel from the densest point, whose ball is then taken out, until no ball holds `fewest`
    items: no cluster is wider than `max_diameter`, the root mean square difference over the models.
    """
    points = np.asarray(pass_rates, dtype=np.float64).T
    labels, left, radius = np.full(len(points), -1, dtype=np.int64), np.ones(len(points), dtype=bool), max_diameter / 2
    near = np.stack([_measure_distances(points, point) <= radius for point in points])
    counts = near.sum(axis=1)
    for label in range(len(points)):
        inside = _shift(points, left, near[int(np.argmax(counts * left))] & left, radius)
        if inside.sum() < fewest:
            break
        labels[inside], left = label, left & ~inside
        counts = counts - near[:, inside].sum(axis=1)
    return labels


def forecast_by_difficulty(
    scores: ItemScores, compute_flops: float, *, chance: float | None = None, max_diameter: float = MAX_DIAMETER,
    level: float = 0.9, draws: int = 400, seed: int = 0,
) -> ItemForecast:  # fmt: skip
    """The score of a model of `compute_flops` on all items.

    With `max_diameter=inf` all items form one cluster: the usual single curve. The draws of all clusters share their
    noise, for a model that is better than its compute says is better everywhere. Raises FitError where no cluster can
    be extrapolated.
    """
    if not (np.isfinite(compute_flops) and compute_flops > 0):
        raise ValueError(f"compute_flops of the target must be positive and finite; got {compute_flops}")
    if chance is not None and not 0 <= chance < 1:
        raise ValueError(f"chance is a share, 0 <= chance < 1, for example 0.25; got {chance}")
    fitted = _fit(scores, chance, max_diameter, draws, seed)
    if not fitted.kept:
        reasons = "; ".join(sorted({cluster.problem for cluster in fitted.clusters})) or "no cluster is large enough"
        raise FitError(Status.NOT_IDENTIFIED, f"difficulty: no cluster of items can be extrapolated ({reasons})")
    rng = np.random.default_rng(seed + 1)
    subset, score = _predict(fitted, compute_flops)
    drawn, spread = _draw(fitted, compute_flops, rng)
    drift = _measure_drift(scores, lambda earlier: _fit(earlier, chance, max_diameter, 1, seed))
    reach = max(float(np.log(compute_flops / scores.compute_flops.max())), 0.0)
    spread = np.clip(spread + drift * reach * rng.standard_normal(len(spread)), 0.0, 1.0)
    return ItemForecast(
        Estimate.from_draws(spread, level, value=score, unit="share"),
        Estimate.from_draws(drawn, level, value=subset, unit="share"),
        len(fitted.subset) / scores.pass_rates.shape[1], fitted.outliers, fitted.clusters, fitted.knots, compute_flops,
        level, tuple(_warn(fitted, compute_flops, subset)),
    )  # fmt: skip


def fit_score_map(subset: FloatArray, full: FloatArray) -> tuple[FloatArray, float]:
    """Knots (m, 2) of a monotone map through (0, 0) and (1, 1), and the root mean square by which it misses a model.

    Knots are means of neighbouring models, one more at a time until the map misses by less than `MAP_TOLERANCE`.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(subset, kind="stable")
    x, y = subset[order], np.asarray(isotonic_regression(full[order]).x)
    for count in range(1, len(x) + 1):
        parts = np.array_split(np.arange(len(x)), count)
        inner = [(x[part].mean(), y[part].mean()) for part in parts]
        knots = np.array([(0.0, 0.0), *(pair for pair in inner if 0 < pair[0] < 1), (1.0, 1.0)])
        knots = knots[np.concatenate([[True], np.diff(knots[:, 0]) > 1e-6])]
        miss = float(np.sqrt(np.mean((_interpolate(knots)(x) - full[order]) ** 2)))
        if miss < MAP_TOLERANCE:
            break
    return knots, miss


def _interpolate(knots: FloatArray) -> Callable[[FloatArray], FloatArray]:
    from scipy.interpolate import PchipInterpolator

    curve = PchipInterpolator(knots[:, 0], knots[:, 1])
    return lambda x: np.asarray(curve(np.clip(x, 0.0, 1.0)), dtype=np.float64)


def _measure_distances(points: FloatArray, centre: FloatArray) -> FloatArray:
    """Root mean square differences (n,) of all points from one."""
    return np.asarray(np.sqrt(((points - centre) ** 2).mean(axis=1)))


def _shift(points: FloatArray, left: BoolArray, inside: BoolArray, radius: float) -> BoolArray:
    """The points of the ball around the mode that the mean shift reaches."""
    for _ in range(SHIFTS):
        if not inside.any():
            break
        centre = points[inside].mean(axis=0)
        found = left & (_measure_distances(points, centre) <= radius)
        if (found == inside).all() or not found.any():
            break
        inside = found
    return inside


def _scale(scores: ItemScores, compute_flops: ArrayLike) -> FloatArray:
    return np.asarray(np.asarray(compute_flops, dtype=np.float64) / (1e-3 * scores.compute_flops.min()))


def _fit_cluster(scores: ItemScores, items: Index, chance: float | None, draws: int, seed: int) -> Cluster:
    curve, mean = PassCurve.of(chance), scores.pass_rates[:, items].mean(axis=1)
    columns = {"x": _scale(scores, scores.compute_flops)}
    solution = solve(curve, columns, mean, curve.starts(), Noise(EXPECTED_NOISE), draws=draws, seed=seed)
    return Cluster(items, mean, solution.values, solution.draws, solution.noise, _find_problem(solution, mean))


def _find_problem(solution: Solution, mean: FloatArray) -> str:
    """Why a curve cannot be extrapolated, or an empty string."""
    _, a, b, c = solution.values
    if not solution.converged:
        return "the fit did not converge"
    if np.ptp(mean) < LEAST_RISE:
        return f"the pass rate spans less than {LEAST_RISE:g} over the small models"
    if not (a > LEAST_RATE and b > LEAST_EXPONENT):
        return "the pass rate hardly rises with compute"
    return "" if c < MOST_LOSS else "the ceiling lies too low to be believed"


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Clusters, the map to the full set, and by how much the map misses a model."""

    scores: ItemScores
    clusters: tuple[Cluster, ...]
    outliers: int
    knots: FloatArray
    miss: float

    @property
    def kept(self) -> list[Cluster]:
        return [cluster for cluster in self.clusters if not cluster.problem]

    @property
    def subset(self) -> Index:
        return np.concatenate([cluster.items for cluster in self.kept])

    @property
    def sizes(self) -> FloatArray:
        """Shares of the predictable items by cluster."""
        return np.array([len(cluster.items) for cluster in self.kept]) / len(self.subset)

    @property
    def scatter(self) -> float:
        """Standard deviation of one model's score around the clusters' curves and the map."""
        return float(np.hypot(self.sizes @ np.array([cluster.noise for cluster in self.kept]), self.miss))


def _fit(scores: ItemScores, chance: float | None, max_diameter: float, draws: int, seed: int) -> _Fitted:
    labels = cluster_items(scores.pass_rates, max_diameter=max_diameter)
    groups = [np.flatnonzero(labels == label).astype(np.int64) for label in range(int(labels.max()) + 1)]
    clusters = tuple(_fit_cluster(scores, items, chance, draws, seed) for items in groups)
    fitted = _Fitted(scores, clusters, int((labels < 0).sum()), np.array([(0.0, 0.0), (1.0, 1.0)]), 0.0)
    if not fitted.kept:
        return fitted
    knots, miss = fit_score_map(scores.pass_rates[:, fitted.subset].mean(axis=1), scores.pass_rates.mean(axis=1))
    return replace(fitted, knots=knots, miss=miss)


def _predict(fitted: _Fitted, compute_flops: float) -> tuple[float, float]:
    """Score on the predictable items and on all; clusters count by their size."""
    columns, curve = {"x": _scale(fitted.scores, [compute_flops])}, PassCurve.of(None)
    points = np.array([curve.evaluate(cluster.values[None], columns)[0][0, 0] for cluster in fitted.kept])
    subset = fitted.sizes @ points
    return float(subset), float(_interpolate(fitted.knots)(np.array([subset]))[0])


def _draw(fitted: _Fitted, compute_flops: float, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Draws of both for one new model, before any drift."""
    columns, curve = {"x": _scale(fitted.scores, [compute_flops])}, PassCurve.of(None)
    drawn = np.stack([curve.evaluate(cluster.draws, columns)[0][:, 0] for cluster in fitted.kept])
    noise = np.array([[cluster.noise] for cluster in fitted.kept])
    subset = np.clip(fitted.sizes @ (drawn + noise * rng.standard_normal(drawn.shape[1])), 0.0, 1.0)
    return subset, _interpolate(fitted.knots)(subset) + fitted.miss * rng.standard_normal(len(subset))


def _measure_drift(scores: ItemScores, fit: Callable[[ItemScores], _Fitted]) -> float:
    """Drift of the score per e-fold beyond the small models: the largest of them, predicted from the others."""
    squares = []
    for held_out in (1, 2):
        edge = np.unique(scores.compute_flops)[-held_out]
        below = scores.compute_flops < edge
        if len(np.unique(scores.compute_flops[below])) < FEWEST_MODELS:
            continue
        fitted = fit(ItemScores(scores.pass_rates[below], scores.compute_flops[below]))
        if not fitted.kept:
            continue
        errors = [_predict(fitted, compute)[1] - rates.mean() for compute, rates in _pair(scores, ~below)]
        reach = np.log(scores.compute_flops[~below] / scores.compute_flops[below].max())
        squares.append(max(float((np.square(errors) - fitted.scatter**2).sum() / (reach**2).sum()), 0.0))
    return float(np.sqrt((DRIFT_DOF * DRIFT_PER_EFOLD**2 + sum(squares)) / (DRIFT_DOF + len(squares))))


def _pair(scores: ItemScores, chosen: BoolArray) -> Iterator[tuple[float, FloatArray]]:
    return zip(scores.compute_flops[chosen], scores.pass_rates[chosen], strict=True)


def _warn(fitted: _Fitted, compute_flops: float, subset: float) -> list[str]:
    scores, found = fitted.scores, []
    reach, share = compute_flops / float(scores.compute_flops.max()), len(fitted.subset) / scores.pass_rates.shape[1]
    seen = float(scores.pass_rates[:, fitted.subset].mean(axis=1).max())
    if reach > FAR:
        found.append(f"the target has {reach:.3g} times the compute of the largest small model")
    if share < 0.5:
        found.append(
            f"only {100 * share:.0f} % of the items can be predicted; the others follow the map to the full set"
        )
    if subset > seen:
        found.append(
            f"the map to the full set is known up to {seen:.3g} on the predictable items, and the target reaches "
            f"{subset:.3g}: beyond, it runs smoothly to (1, 1)"
        )
    return found
