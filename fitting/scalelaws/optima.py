"""The optimum of a basin with its uncertainty; a basin without one is refused by its status, with what to try."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.observations import BoolArray, FloatArray
from scalelaws.results import Estimate, Status
from scalelaws.sweeps.basins import (
    OVERHANG,
    SKEW_GRID,
    Basin,
    BasinDraws,
    Posterior,
    draw_optima,
    integrate,
    weigh,
)
from scalelaws.sweeps.surfaces import vary

EXCESS_KEPT = 0.05
"""Runs more than 5 % above the lowest in ln loss are left out: on published runs that is where training breaks."""
POINTS_NEEDED = 4
"""Distinct learning rates that a basin needs; the lowest four are kept even beyond `EXCESS_KEPT`."""
SURFACE_POINTS_NEEDED = 8
"""Distinct settings that a surface of six coefficients needs."""
SURFACE_LEVELS_NEEDED = 3
"""Distinct batches that a surface needs."""
RUN_NOISE_LOG = 0.001
"""Assumed standard deviation of ln loss between repeats: .0002-.0006 in published reruns, more in small proxies."""
RUN_NOISE_DOF = 2.0
"""How many residuals that assumption is worth."""
KNOWN_NOISE_DOF = 50.0
"""How many residuals a noise is worth that the caller states."""
CONVEX_NEEDED = 0.95
"""A basin counts as one when at least this share of the draws bends upwards."""
HILL_CLEARANCE = 2.0
"""Assumption: the middle of a hill stands above both of its ends by this many standard deviations of a run."""
REWEIGHTINGS = 4
"""Rounds in which the weights of the wings follow the noise found."""
DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Optimum:
    """Where a basin is lowest, or why that cannot be said."""

    peak_lr: Estimate
    """With status EDGE only the bound that is known is given."""
    batch_tokens: Estimate | None
    """None when the batch was not part of the search."""
    loss: Estimate | None
    """Loss at the optimum."""
    curvature: Estimate | None
    """Second derivative of ln loss by ln learning rate at the optimum."""
    batch_curvature: Estimate | None
    skew: float
    """Median skew of the basin per unit of ln learning rate (see `basins`)."""
    status: Status
    message: str
    """The status with numbers, and what to try."""
    level: float
    draws: FloatArray
    """(draws, 2): ln optimal learning rate, ln loss there; with a batch (draws, 3): ln optimal batch last."""
    curvature_draws: FloatArray
    """(draws, 2): curvature and skew; with a batch (draws, 3): curvature by ln batch last."""
    used: BoolArray
    """The runs that shaped the basin."""
    left_out: tuple[tuple[str, int], ...]
    """Reason and number of the others."""
    suggested_extension: tuple[float, ...] = ()
    """Learning rates that would turn a bound into an estimate."""
    basin: Basin | None = field(default=None, repr=False)
    """The most probable shape, for figures."""

    @property
    def value(self) -> float:
        """The optimal learning rate (of a refused basin: the best one measured)."""
        return self.peak_lr.value

    @property
    def low(self) -> float | None:
        """Lower end of the interval of the optimal learning rate."""
        return self.peak_lr.low

    @property
    def high(self) -> float | None:
        """Upper end of the interval of the optimal learning rate."""
        return self.peak_lr.high


def find_basin_optimum(
    peak_lr: ArrayLike, loss: ArrayLike, *, noise_log: float | None = None, level: float = 0.9, seed: int = 0
) -> Optimum:
    """The optimal learning rate of one sweep; repeats welcome, NaN or +inf for diverged runs.

    `noise_log` is the standard deviation of ln loss between repeats, if known. Raises ValueError for unusable input.
    """
    sweep = _Sweep.of(peak_lr, None, loss, noise_log, level)
    return sweep.find(seed)


def find_surface_optimum(
    peak_lr: ArrayLike,
    batch_tokens: ArrayLike,
    loss: ArrayLike,
    *,
    noise_log: float | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Optimum:
    """The optimal learning rate and batch of one grid of both; otherwise as `find_basin_optimum`."""
    sweep = _Sweep.of(peak_lr, batch_tokens, loss, noise_log, level)
    return sweep.find(seed)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """The runs of one basin in logs; `ln_batch` is None in one dimension."""

    ln_lr: FloatArray
    ln_batch: FloatArray | None
    y: FloatArray
    noise: tuple[float, float]
    level: float

    @classmethod
    def of(
        cls, peak_lr: ArrayLike, batch: ArrayLike | None, loss: ArrayLike, noise_log: float | None, level: float
    ) -> _Sweep:
        rates, losses = _positive("peak_lr", peak_lr), np.asarray(loss, dtype=np.float64)
        batches = None if batch is None else _positive("batch_tokens", batch)
        for name, values in (("loss", losses), ("batch_tokens", batches)):
            if values is not None and values.shape != rates.shape:
                raise ValueError(f"{name} must have one entry per learning rate ({rates.shape}); got {values.shape}")
        if (losses <= 0).any():
            raise ValueError(f"loss must be positive (NaN or +inf: diverged); got {losses[losses <= 0][0]:g}")
        if noise_log is not None and not noise_log > 0:
            raise ValueError(f"noise_log must be positive; got {noise_log}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}")
        y = np.log(np.where(np.isfinite(losses), losses, np.inf))
        noise = (RUN_NOISE_LOG, RUN_NOISE_DOF) if noise_log is None else (noise_log, KNOWN_NOISE_DOF)
        return cls(np.log(rates), None if batches is None else np.log(batches), y, noise, level)

    def find(self, seed: int) -> Optimum:
        """The optimum, or the refusal."""
        finite = np.isfinite(self.y)
        shortage = self._count(finite)
        if shortage:
            return self._refuse(Status.TOO_FEW_POINTS, shortage)
        used = self._window(finite)
        posterior = self._shape(used)
        draws = draw_optima(posterior, self._span(), DRAWS, np.random.default_rng(seed), self._batch_span())
        return self._judge(used, posterior, draws)

    def _count(self, finite: BoolArray) -> str:
        """What is missing, if anything."""
        rates = len(np.unique(self.ln_lr[finite].round(9)))
        if self.ln_batch is None:
            if rates >= POINTS_NEEDED:
                return ""
            return f"needs >= {POINTS_NEEDED} learning rates that did not diverge (have {rates})"
        pairs = len(np.unique(np.stack([self.ln_lr, self.ln_batch])[:, finite].round(9), axis=1).T)
        batches = len(np.unique(self.ln_batch[finite].round(9)))
        if rates >= POINTS_NEEDED and batches >= SURFACE_LEVELS_NEEDED and pairs >= SURFACE_POINTS_NEEDED:
            return ""
        return (
            f"needs >= {SURFACE_POINTS_NEEDED} settings with >= {POINTS_NEEDED} learning rates and >= "
            f"{SURFACE_LEVELS_NEEDED} batches (have {pairs}, {rates}, {batches})"
        )

    @property
    def _lowest(self) -> int:
        return int(np.argmin(self.y))

    def _window(self, finite: BoolArray) -> BoolArray:
        """Runs within `EXCESS_KEPT` of the lowest, and enough of the next ones to shape a basin."""
        needed = POINTS_NEEDED if self.ln_batch is None else SURFACE_POINTS_NEEDED
        ordered = np.sort(self.y[finite])
        least = ordered[min(needed, len(ordered)) - 1]
        return np.asarray(finite & (self.y <= max(least, ordered[0] + EXCESS_KEPT)))

    def _shape(self, used: BoolArray) -> Posterior:
        x, z = self._relative()
        x, z, y = x[used], None if z is None else z[used], self.y[used]
        noise_log = self.noise[0]
        for _ in range(REWEIGHTINGS):
            weight = weigh(y, noise_log) if z is None else weigh_grid(y, noise_log)
            posterior = integrate(x, z, y, weight, self.noise)
            noise_log = posterior.noise_log
        return posterior

    def _relative(self) -> tuple[FloatArray, FloatArray | None]:
        z = None if self.ln_batch is None else self.ln_batch - self.ln_batch[self._lowest]
        return self.ln_lr - self.ln_lr[self._lowest], z

    def _span(self) -> tuple[float, float]:
        """How far the optimum is followed: beyond the grid, but not beyond a diverged run."""
        x, _ = self._relative()
        broken = x[~np.isfinite(self.y) & (x > 0)]
        high = float(broken.min()) if len(broken) else float(x[np.isfinite(self.y)].max()) + OVERHANG
        return float(x.min()) - OVERHANG, high

    def _batch_span(self) -> tuple[float, float]:
        """How far the optimal batch is followed beyond the grid."""
        _, z = self._relative()
        return (-np.inf, np.inf) if z is None else (float(z.min()) - OVERHANG, float(z.max()) + OVERHANG)

    def _edge(self, x: float) -> Status | None:
        """Whether the lowest run or the vertex lies at an edge of the finite grid that no diverged run guards."""
        relative, _ = self._relative()
        finite = relative[np.isfinite(self.y)]
        guarded = bool((~np.isfinite(self.y) & (relative > 0)).any())
        if finite.min() >= 0 or x <= finite.min():
            return Status.EDGE_LOW
        if (finite.max() <= 0 or x >= finite.max()) and not guarded:
            return Status.EDGE_HIGH
        return None

    def _is_hill(self, noise_log: float) -> bool:
        """Whether the losses in the middle of the grid stand clear above those at both of its ends.

        The lowest run of a hill lies at an edge by necessity, and no wider grid would find a basin there. A sweep that
        falls all the way to one edge is no hill: there the optimum may lie beyond. In a grid, whose fit looks away from
        the wings, this alone decides.
        """
        here = np.isfinite(self.y)
        if self.ln_batch is not None:
            here &= np.isclose(self.ln_batch, self.ln_batch[self._lowest])
        rates = np.unique(self.ln_lr[here].round(9))
        if len(rates) < POINTS_NEEDED:
            return False
        means = np.array([self.y[here & (self.ln_lr.round(9) == rate)].mean() for rate in rates])
        beside = 2 if len(rates) >= 6 else 1
        ends = max(means[:beside].mean(), means[-beside:].mean())
        return bool(means[beside:-beside].mean() > ends + HILL_CLEARANCE * noise_log)

    def _judge(self, used: BoolArray, posterior: Posterior, draws: BasinDraws) -> Optimum:
        bent_down = self.ln_batch is not None or draws.share_convex < 1 - CONVEX_NEEDED
        if bent_down and self._is_hill(posterior.noise_log):
            return self._refuse(Status.UPSIDE_DOWN, _HILL_ADVICE, used)
        edge = self._edge(float(np.median(draws.x)) if len(draws.x) else 0.0)
        if edge is not None:
            return self._bound(edge, used)
        if draws.share_convex < 1 - CONVEX_NEEDED:
            return self._refuse(Status.UPSIDE_DOWN, _HILL_ADVICE, used)
        if draws.share_convex < CONVEX_NEEDED:
            side = self._lowest_batch_edge()
            if side is not None:
                return self._refuse(side, _BATCH_ADVICE, used)
            return self._refuse(Status.FLAT, _FLAT_ADVICE.format(100 * draws.share_convex), used)
        low, high = np.quantile(draws.x, [(1 - self.level) / 2, (1 + self.level) / 2])
        if high - low >= np.ptp(self.ln_lr[np.isfinite(self.y)]):
            return self._refuse(Status.FLAT, "the optimum may lie anywhere on the grid; widen it or add repeats", used)
        problem = self._batch_edge(draws)
        if problem:
            return self._refuse(problem[0], problem[1], used)
        return self._accept(used, posterior, draws)

    def _batch_edge(self, draws: BasinDraws) -> tuple[Status, str] | None:
        """Whether the optimal batch lies beyond the batches that were tried."""
        _, z = self._relative()
        if z is None or draws.z is None:
            return None
        middle, finite = float(np.median(draws.z)), z[np.isfinite(self.y)]
        if finite.min() < middle < finite.max():
            return None
        side = Status.EDGE_LOW if middle <= finite.min() else Status.EDGE_HIGH
        return side, _BATCH_ADVICE

    def _lowest_batch_edge(self) -> Status | None:
        """Whether the lowest run has the smallest or largest batch of all."""
        _, z = self._relative()
        if z is None:
            return None
        finite = z[np.isfinite(self.y)]
        if finite.min() >= 0:
            return Status.EDGE_LOW
        return Status.EDGE_HIGH if finite.max() <= 0 else None

    def _accept(self, used: BoolArray, posterior: Posterior, draws: BasinDraws) -> Optimum:
        here = self._lowest
        ln_lr, batch, columns = draws.x + self.ln_lr[here], None, [draws.curvature_x, draws.skew]
        optima = [ln_lr, draws.y]
        if self.ln_batch is not None and draws.z is not None and draws.curvature_z is not None:
            optima.append(draws.z + self.ln_batch[here])
            batch = Estimate.from_draws(np.exp(optima[2]), self.level, unit="tokens")
            columns.append(draws.curvature_z)
        return Optimum(
            peak_lr=Estimate.from_draws(np.exp(ln_lr), self.level),
            batch_tokens=batch,
            loss=Estimate.from_draws(np.exp(draws.y), self.level, unit="nats"),
            curvature=Estimate.from_draws(draws.curvature_x, self.level),
            batch_curvature=None if len(columns) == 2 else Estimate.from_draws(columns[2], self.level),
            skew=float(np.median(draws.skew)),
            status=Status.CONVERGED,
            message=f"an optimum inside the grid, from {int(used.sum())} runs",
            level=self.level,
            draws=np.stack(optima, axis=1),
            curvature_draws=np.stack(columns, axis=1),
            used=used,
            left_out=self._left_out(used),
            basin=self._basin(posterior),
        )

    def _basin(self, posterior: Posterior) -> Basin:
        here, mode = self._lowest, posterior.mode
        batch = None if self.ln_batch is None else float(self.ln_batch[here])
        return Basin(float(self.ln_lr[here]), batch, float(SKEW_GRID[mode]), posterior.coefficients[mode])

    def _bound(self, status: Status, used: BoolArray) -> Optimum:
        """An optimum at the edge: the edge bounds it on one side, and the grid wants two more steps on the other."""
        rates = np.unique(self.ln_lr[np.isfinite(self.y)].round(9))
        step = float(np.median(np.diff(rates)))
        if status is Status.EDGE_LOW:
            edge, steps = rates[0], (-2, -1)
            estimate = Estimate(float(np.exp(self.ln_lr[self._lowest])), None, float(np.exp(rates[1])))
        else:
            edge, steps = rates[-1], (1, 2)
            estimate = Estimate(float(np.exp(self.ln_lr[self._lowest])), float(np.exp(rates[-2])), None)
        wanted = tuple(float(np.exp(edge + step * count)) for count in steps)
        advice = "add runs at learning rates " + ", ".join(f"{value:.3g}" for value in wanted)
        return self._refuse(status, advice, used, estimate, wanted)

    def _refuse(
        self,
        status: Status,
        advice: str,
        used: BoolArray | None = None,
        estimate: Estimate | None = None,
        wanted: tuple[float, ...] = (),
    ) -> Optimum:
        shaped = np.zeros(len(self.y), dtype=bool) if used is None else used
        best = Estimate(float(np.exp(self.ln_lr[self._lowest]))) if estimate is None else estimate
        columns = 2 if self.ln_batch is None else 3
        empty = np.empty((0, columns))
        return Optimum(
            best, None, None, None, None, float("nan"), status, f"{status.value}; {advice}", self.level, empty, empty,
            shaped, self._left_out(shaped), wanted,
        )  # fmt: skip

    def _left_out(self, used: BoolArray) -> tuple[tuple[str, int], ...]:
        broken = ~np.isfinite(self.y)
        counts = {
            "diverged (the loss is not finite): kept as a bound of the basin": int(broken.sum()),
            f"more than {100 * EXCESS_KEPT:g} % above the lowest run of the cell": int((~broken & ~used).sum()),
        }
        return tuple((reason, count) for reason, count in counts.items() if count)


def weigh_grid(y: FloatArray, noise_log: float) -> FloatArray:
    """Weights of the runs of a grid of learning rates and batches: as in a joint surface the wings say little.

    A sweep needs its wings; a grid has runs enough in its valley, and its wings bend along other axes than its valley.
    Measured over the cells published with Step Law: with the weights of a sweep the optimum lay .19 too low in ln lr.
    """
    return noise_log**2 / vary(y - y.min(), noise_log)


_BATCH_ADVICE = "the optimal batch lies beyond the batches that were tried; widen them on that side"
_HILL_ADVICE = "the losses bend downwards; look at the runs one by one"
_FLAT_ADVICE = "only {:.0f} % of the draws bend upwards; widen the grid or add repeats"


def _positive(name: str, values: ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} must be a list of numbers, one per run; got shape {array.shape}")
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        raise ValueError(f"{name} must be positive and finite; entry {np.flatnonzero(bad)[0]} is {array[bad][0]:g}")
    return array
