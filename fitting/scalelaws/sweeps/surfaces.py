"""One joint response surface of learning rate and batch over all cells of (N, D), and what it says anywhere.

Legend (shapes):  c cells, r runs, p parameters of the surface
    n, d   ln N and ln D of a cell, less their means over the cells
    u, v   ln learning rate and ln batch of a run, less the optimum of its cell
    y      ln loss                                  f, delta, eta, h, s   effects of a cell (below)
    phi_k(t) = (exp(k t) - 1 - k t) / k^2           `basins.bend`: flat on one side, steep on the other

    y = f + exp(h) exp(s_lr u + s_batch v) [ K_1 phi_k1(u - rho_1 v) + K_2 phi_k2(v - rho_2 u) ]
    u = ln lr - (a + b n + c d + delta)             v = ln B - (a' + b' n + c' d + eta)
    h = h_n n + h_d d + effect of the cell          the depth of the basin; s: a tilt of its shape in that cell

Both bends and their slopes vanish at u = v = 0, so the centre is the optimum whatever the shape. A cell has six effects
(four without batches): its floor f, its scatter delta and eta around the laws of the optimum, its depth and its tilts;
those but f are shrunk towards 0. Cells of one size share a part of delta and eta, as in `hierarchy`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from scalelaws.engines.hierarchy import SHARED
from scalelaws.observations import FloatArray
from scalelaws.results import find_horizon_path
from scalelaws.sweeps.basins import bend, bend_slope

SLOPE_SD = 0.5
"""Exponents of the optimum are pulled towards 0 by this standard deviation (an assumption, as `prior_slope_sd`)."""
CURVATURE_PRIOR = (float(np.log(0.02)), 1.5)
"""ln K: centre and standard deviation; an assumption that reaches from .001 to .4 (published runs: .010 to .014)."""
SKEW_PRIOR = ((1.0, 1.0), (0.0, 1.0))
"""k of the learning rate and of the batch: assumptions. Too high a rate costs more (Li et al. 2025); the cells
published with Step Law give 1.1 and -.6."""
SHEAR_SD = 1.0
"""rho is pulled towards 0 by this standard deviation (an assumption): -1 to 1 reaches a rule lr ~ B or B ~ lr."""
DEPTH_SLOPE_SD = 0.2
"""h_n and h_d (an assumption): a tenfold scale changes the depth of the basin by a factor of 1.6 or less."""
DEPTH_SD = 0.05
"""Depth of a cell's basin around its law; measured over the cells published with Step Law: .03 to .05."""
TILT_SD = 0.1
"""Tilt of a cell's basin; measured over the same cells: .04 to .13. The wings of a basin then say less about its
optimum than the valley does."""
SHAPE_SCATTER = 0.04
"""How far the optimum of a cell under a shape of its own lies from that under the common one, in ln. Measured over the
cells published with Step Law: rms .049 between the two, of which .03 is the error of a single cell's own fit."""
FLOOR_SD = 1.0
"""A cell's floor is its own: nothing is asked of it but to lie within a factor of e of the others."""
HELD_SD = 1e-6
"""Standard deviation of what the runs did not vary and what is therefore held at 0."""
SAME_SIZE = 1e-3
"""Cells whose ln N differ by less are of one size, and so for ln D."""
BEND_SPAN = 20.0
"""A bend is not followed beyond this exponent: its excess is astronomical there, and weighs nothing."""


@dataclass(frozen=True, eq=False)
class SurfaceRuns:
    """Runs in logs with their cells' numbers."""

    ln_lr: FloatArray
    ln_batch: FloatArray | None
    ln_loss: FloatArray
    cell: np.ndarray


@dataclass(frozen=True, eq=False)
class Layout:
    """Which cells and which parameters a surface has, and in which order."""

    ln_params: FloatArray
    """(c,) of the cells."""
    ln_tokens: FloatArray
    batched: bool
    """Whether the batch is part of the surface."""
    origin: tuple[float, float]
    """ln N and ln D at which the laws are centred."""
    slopes_held: tuple[bool, bool] = (False, False)
    """Whether the exponents in N, in D are held at 0: the runs did not vary them on their own."""
    slope_sd: float = SLOPE_SD

    @property
    def shape_names(self) -> tuple[str, ...]:
        """Parameters of the basin."""
        first = ("lr_ln_curvature", "lr_skew")
        return (*first, "lr_shear", "batch_ln_curvature", "batch_skew", "batch_shear") if self.batched else first

    @property
    def law_names(self) -> tuple[str, ...]:
        """Parameters of the basin, of its depth and of the laws of the optimum."""
        terms = ("intercept", "exponent_params", "exponent_tokens")
        settings = ("lr", "batch") if self.batched else ("lr",)
        laws = tuple(f"{setting}_{term}" for setting in settings for term in terms)
        return (*self.shape_names, "depth_exponent_params", "depth_exponent_tokens", *laws)

    @property
    def effect_names(self) -> tuple[str, ...]:
        """Effects of a cell."""
        return ("floor", "depth", "lr", "lr_tilt", "batch", "batch_tilt") if self.batched else _LR_EFFECTS

    @property
    def settings(self) -> int:
        """Number of settings that have an optimum."""
        return 2 if self.batched else 1

    @property
    def cells(self) -> int:
        """Number of cells."""
        return len(self.ln_params)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.law_names) + len(self.effect_names) * self.cells

    def at(self, name: str) -> int:
        """Place of a parameter of the laws."""
        return self.law_names.index(name)

    def effects(self, name: str) -> slice:
        """Places of one effect of all cells."""
        start = len(self.law_names) + self.effect_names.index(name) * self.cells
        return slice(start, start + self.cells)

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of every parameter; an effect carries the number of its cell."""
        return (*self.law_names, *(f"{name}[{cell}]" for name in self.effect_names for cell in range(self.cells)))

    @property
    def same_size(self) -> FloatArray:
        """(c, c) correlation of the scatter of two cells."""
        group = np.isclose(self.ln_params[:, None], self.ln_params[None, :], rtol=0, atol=SAME_SIZE)
        return np.asarray(SHARED * group + (1 - SHARED) * np.eye(self.cells))

    def centred(self, ln_params: FloatArray | float, ln_tokens: FloatArray | float) -> tuple[FloatArray, FloatArray]:
        """n and d."""
        return np.asarray(ln_params) - self.origin[0], np.asarray(ln_tokens) - self.origin[1]

    def prior(self, scatter: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
        """Centre (p,) and precision (p, p); `scatter` is that of the learning rate (and of the batch)."""
        centre, sd = np.zeros(self.size), np.full(self.size, np.inf)
        settings = ("lr", "batch") if self.batched else ("lr",)
        for setting, skew in zip(settings, SKEW_PRIOR, strict=False):
            centre[self.at(f"{setting}_ln_curvature")], sd[self.at(f"{setting}_ln_curvature")] = CURVATURE_PRIOR
            centre[self.at(f"{setting}_skew")], sd[self.at(f"{setting}_skew")] = skew
            if self.batched:
                sd[self.at(f"{setting}_shear")] = SHEAR_SD
        for place, held in zip(("params", "tokens"), self.slopes_held, strict=True):
            sd[self.at(f"depth_exponent_{place}")] = HELD_SD if held else DEPTH_SLOPE_SD
            for setting in settings:
                sd[self.at(f"{setting}_exponent_{place}")] = HELD_SD if held else self.slope_sd
        sd[self.effects("floor")] = FLOOR_SD
        sd[self.effects("depth")] = DEPTH_SD
        precision = np.diag(1 / sd**2)
        inverse = np.linalg.inv(self.same_size)
        for setting, spread in zip(settings, scatter, strict=True):
            tilt, own = self.effects(f"{setting}_tilt"), self.effects(setting)
            precision[tilt, tilt] = np.eye(self.cells) / TILT_SD**2
            precision[own, own] = inverse / spread**2
        return centre, precision


_LR_EFFECTS = ("floor", "depth", "lr", "lr_tilt")


@dataclass(frozen=True, eq=False)
class Response:
    """The surface at some runs."""

    floor: FloatArray
    excess: FloatArray
    """(r,) excess of ln loss over the floor of the cell."""
    rows: FloatArray
    """(r, p) derivatives of ln loss by the parameters."""


def respond(layout: Layout, theta: FloatArray, runs: SurfaceRuns) -> Response:
    """ln loss of runs and its exact derivatives by every parameter."""
    cell = runs.cell
    n, d = layout.centred(layout.ln_params[cell], layout.ln_tokens[cell])
    rows = np.zeros((len(cell), layout.size))
    effect = {name: theta[layout.effects(name)][cell] for name in layout.effect_names}
    settings = {"lr": runs.ln_lr, "batch": runs.ln_batch}
    offsets: dict[str, FloatArray] = {}
    for name, value in settings.items():
        if value is not None and (name == "lr" or layout.batched):
            at = layout.at(f"{name}_intercept")
            offsets[name] = value - (theta[at] + theta[at + 1] * n + theta[at + 2] * d + effect[name])
    depth = effect["depth"] + theta[layout.at("depth_exponent_params")] * n
    depth = depth + theta[layout.at("depth_exponent_tokens")] * d
    for name, offset in offsets.items():
        depth = depth + effect[f"{name}_tilt"] * offset
    depth = np.exp(np.clip(depth, -BEND_SPAN, BEND_SPAN))
    excess, slopes = _add_bends(layout, theta, offsets, depth, rows)
    for name, offset in offsets.items():
        _scatter(rows, layout.effects(f"{name}_tilt"), cell, excess * offset)
        pull = -(slopes[name] + effect[f"{name}_tilt"] * excess)
        at = layout.at(f"{name}_intercept")
        rows[:, at : at + 3] = np.stack([pull, pull * n, pull * d], axis=1)
        _scatter(rows, layout.effects(name), cell, pull)
    rows[:, layout.at("depth_exponent_params")], rows[:, layout.at("depth_exponent_tokens")] = excess * n, excess * d
    _scatter(rows, layout.effects("depth"), cell, excess)
    _scatter(rows, layout.effects("floor"), cell, np.ones(len(cell)))
    return Response(effect["floor"], excess, rows)


def _scatter(rows: FloatArray, place: slice, cell: np.ndarray, values: FloatArray) -> None:
    rows[np.arange(len(cell)), place.start + cell] = values


def _add_bends(
    layout: Layout, theta: FloatArray, offsets: dict[str, FloatArray], depth: FloatArray, rows: FloatArray
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Excess, its slope along each setting at fixed depth, and the columns of the basin's shape."""
    excess = np.zeros(len(depth))
    slopes = {name: np.zeros(len(depth)) for name in offsets}
    for name, offset in offsets.items():
        other = "batch" if name == "lr" else "lr"
        shear = theta[layout.at(f"{name}_shear")] if layout.batched else 0.0
        along = offset - shear * offsets[other] if layout.batched else offset
        skew = theta[layout.at(f"{name}_skew")]
        limit = BEND_SPAN / max(abs(float(skew)), 1e-9)
        along = np.clip(along, -limit, limit)
        height = depth * np.exp(theta[layout.at(f"{name}_ln_curvature")])
        lift, slope = height * bend(along, skew), height * bend_slope(along, skew)
        excess += lift
        slopes[name] += slope
        rows[:, layout.at(f"{name}_ln_curvature")] = lift
        rows[:, layout.at(f"{name}_skew")] = height * bend_by_skew(along, skew)
        if layout.batched:
            slopes[other] -= shear * slope
            rows[:, layout.at(f"{name}_shear")] = -slope * offsets[other]
    return excess, slopes


def bend_by_skew(x: FloatArray, skew: float) -> FloatArray:
    """The derivative of phi_k(x) by k: x^3 ((r - 2) e^r + r + 2) / r^3 at r = k x, with its limit at r = 0."""
    r = skew * x
    small = np.abs(r) < 1e-2
    safe = np.where(small, 1.0, r)
    series = 1 / 6 + r / 12 + r * r / 40 + r**3 / 180
    return np.asarray(x**3 * np.where(small, series, ((safe - 2) * np.exp(safe) + safe + 2) / safe**3))


@dataclass(frozen=True, eq=False)
class Surface:
    """A fitted surface: parameters with their posterior, and what they say of targets and of candidate runs."""

    layout: Layout
    parameters: FloatArray
    """(p,) in the coordinates of `layout.labels`."""
    covariance: FloatArray
    """(p, p) posterior covariance, integrated over the scatter between cells."""
    data_information: FloatArray
    """(p, p) what the runs alone say: sum of row row^T / noise variance."""
    scatter: tuple[float, ...]
    """Standard deviation of delta (and eta): root of the posterior mean square."""
    noise_log: float
    """Standard deviation of ln loss of a run in the valley."""
    draws: FloatArray = field(repr=False)
    """(draws, p)."""
    scatter_draws: FloatArray = field(repr=False)
    """(draws, 1 or 2)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.layout.labels

    @property
    def information(self) -> FloatArray:
        """(p, p) posterior precision at `scatter`: further runs add row row^T / noise variance to it."""
        return np.asarray(self.data_information + self.layout.prior(self.scatter)[1])

    def locate(self, params: float, tokens: float) -> tuple[FloatArray, FloatArray]:
        """Rows (k, p) that give (ln lr*, ln B*) of a cell from the parameters, and the variances (k,) they leave open.

        A cell of the surface has its own effects; a new cell has those that its size shares, and the rest is open. In
        either the shape is only roughly the common one, which moves the optimum by `SHAPE_SCATTER`.
        """
        layout, rows, unknown = self.layout, [], []
        n, d = layout.centred(np.log(params), np.log(tokens))
        shared, open_share = self._share(params, tokens)
        for setting, spread in zip(("lr", "batch"), self.scatter, strict=False):
            row = np.zeros(layout.size)
            at = layout.at(f"{setting}_intercept")
            row[at : at + 3] = 1.0, float(n), float(d)
            row[layout.effects(setting)] = shared
            rows.append(row)
            unknown.append(open_share * spread**2 + SHAPE_SCATTER**2)
        return np.array(rows), np.array(unknown)

    def find_cell(self, params: float, tokens: float) -> int | None:
        """The number of the cell of that size and horizon (within .1 %), or None."""
        near = np.abs(self.layout.ln_params - np.log(params)) + np.abs(self.layout.ln_tokens - np.log(tokens))
        return int(np.argmin(near)) if near.min() < SAME_SIZE else None

    def _share(self, params: float, tokens: float) -> tuple[FloatArray, float]:
        """What the cells' effects say of this cell's (c,), and the share of the variance that is left."""
        known = self.find_cell(params, tokens)
        if known is not None:
            return np.eye(self.layout.cells)[known], 0.0
        like = SHARED * np.isclose(self.layout.ln_params, np.log(params), rtol=0, atol=SAME_SIZE)
        weights = np.linalg.solve(self.layout.same_size, like)
        return np.asarray(weights), float(1 - weights @ like)

    def predict(self, params: float, tokens: float) -> tuple[FloatArray, FloatArray]:
        """(ln lr*, ln B*) of a cell (k,) and their covariance (k, k), with the scatter of a new cell."""
        rows, unknown = self.locate(params, tokens)
        return rows @ self.parameters, rows @ self.covariance @ rows.T + np.diag(unknown)

    def draw_optima(self, params: float, tokens: float, rng: np.random.Generator) -> FloatArray:
        """(draws, k) of (ln lr*, ln B*), with the scatter of a new cell."""
        rows, _ = self.locate(params, tokens)
        spread = np.sqrt(self._share(params, tokens)[1] * self.scatter_draws**2 + SHAPE_SCATTER**2)
        return np.asarray(self.draws @ rows.T + spread * rng.standard_normal(spread.shape))

    def draw_shapes(self, params: float, tokens: float) -> dict[str, FloatArray]:
        """Draws of the shape at a target: curvatures with the depth there, skews, shears."""
        layout, draws = self.layout, self.draws
        n, d = layout.centred(np.log(params), np.log(tokens))
        depth = draws[:, layout.at("depth_exponent_params")] * n + draws[:, layout.at("depth_exponent_tokens")] * d
        shapes = {name: draws[:, layout.at(name)] for name in layout.shape_names}
        for name in [name for name in shapes if name.endswith("_ln_curvature")]:
            shapes[name.replace("_ln", "")] = np.exp(shapes.pop(name) + depth)
        return shapes

    def curvature(self, params: float, tokens: float) -> FloatArray:
        """(k, k) second derivatives of ln loss by (ln lr, ln B) at the optimum of a target."""
        layout, theta = self.layout, self.parameters
        n, d = layout.centred(np.log(params), np.log(tokens))
        depth = theta[layout.at("depth_exponent_params")] * n + theta[layout.at("depth_exponent_tokens")] * d
        first = float(np.exp(theta[layout.at("lr_ln_curvature")] + depth))
        if not layout.batched:
            return np.array([[first]])
        second = float(np.exp(theta[layout.at("batch_ln_curvature")] + depth))
        along = np.array([[1.0, -theta[layout.at("lr_shear")]], [-theta[layout.at("batch_shear")], 1.0]])
        return np.asarray(along.T @ np.diag([first, second]) @ along)

    def differentiate(
        self, params: FloatArray, tokens: FloatArray, peak_lr: FloatArray, batch_tokens: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Rows (r, p) of derivatives of ln loss of candidate runs, and the variance (r,) of its noise there.

        The candidates' cells must be cells of the surface: see `extend`. Raises ValueError otherwise.
        """
        places = [self.find_cell(float(n), float(d)) for n, d in zip(params, tokens, strict=True)]
        if None in places:
            missing = places.index(None)
            raise ValueError(
                f"the cell N = {params[missing]:.4g}, D = {tokens[missing]:.4g} is not part of the surface; "
                "extend the surface by it first"
            )
        ln_batch = None if batch_tokens is None else np.log(batch_tokens)
        runs = SurfaceRuns(np.log(peak_lr), ln_batch, np.zeros(len(places)), np.array(places, dtype=np.int64))
        answer = respond(self.layout, self.parameters, runs)
        return answer.rows, vary(answer.excess, self.noise_log)

    def extend(self, params: FloatArray, tokens: FloatArray) -> Surface:
        """The same surface with further cells, whose effects are what is known of them before any run.

        Exponents that were held because the runs did not vary them are set free (to their prior) where the further
        cells vary them. Cells that the surface has already are left out.
        """
        pairs = [(float(n), float(d)) for n, d in zip(params, tokens, strict=True)]
        fresh = [pair for pair in dict.fromkeys(pairs) if self.find_cell(*pair) is None]
        if not fresh:
            return self
        logs = np.log(np.array(fresh))
        old = self.layout
        wider = (np.concatenate([old.ln_params, logs[:, 0]]), np.concatenate([old.ln_tokens, logs[:, 1]]))
        layout = replace(old, ln_params=wider[0], ln_tokens=wider[1], slopes_held=hold_slopes(*wider))
        kept = _places_of(old, layout)
        centre, precision = layout.prior(self.scatter)
        data = np.zeros_like(precision)
        data[np.ix_(kept, kept)] = self.data_information
        covariance = np.asarray(np.linalg.inv(precision + data), dtype=np.float64)
        shift = precision @ centre
        shift[kept] += self.information @ self.parameters - old.prior(self.scatter)[1] @ old.prior(self.scatter)[0]
        parameters = covariance @ shift
        parameters[layout.effects("floor")][old.cells :] = float(np.mean(self.parameters[old.effects("floor")]))
        wiggle = np.random.default_rng(0).standard_normal((len(self.draws), layout.size))
        draws = parameters + wiggle @ np.linalg.cholesky(covariance).T
        return replace(
            self, layout=layout, parameters=parameters, covariance=covariance, data_information=data, draws=draws
        )


def _places_of(old: Layout, new: Layout) -> np.ndarray:
    """Where the parameters of a surface lie in one that was extended by further cells."""
    effects = [np.arange(new.effects(name).start, new.effects(name).start + old.cells) for name in old.effect_names]
    return np.concatenate([np.arange(len(old.law_names)), *effects])


def hold_slopes(ln_params: FloatArray, ln_tokens: FloatArray) -> tuple[bool, bool]:
    """Which exponents cannot be told from these cells: of a scale that did not vary, or D where it follows N."""
    same_n, same_d = bool(np.ptp(ln_params) < SAME_SIZE), bool(np.ptp(ln_tokens) < SAME_SIZE)
    return same_n, same_d or (not same_n and find_horizon_path(np.exp(ln_params), np.exp(ln_tokens)) is not None)


MISFIT_SHARE = 0.1
"""Assumption: in the valley the shape is right to 10 % of the excess ln loss ..."""
VALLEY = 0.005
"""... and beyond this excess its misfit grows with the square: the wings are where cells differ in shape. Chosen by
leaving out cells published with Step Law: half or twice of either changes the mean regret, .079 %, by .003 or less."""


def vary(excess: FloatArray, noise_log: float) -> FloatArray:
    """Variance of ln loss of a run around the surface."""
    return np.asarray(noise_log**2 + (MISFIT_SHARE * excess) ** 2 * (1 + (excess / VALLEY) ** 2))
