"""Laws of settings in two stages: the optimum of every cell, then a regression of its logarithm on scales.

Legend: N parameters, D tokens, C training FLOPs, s* optimal setting of a cell, x scale of the cell (N, D, C or D / N)
    ln s* = ln coefficient + sum over scales of exponent ln x + scatter between cells

A new law of this kind is one subclass: which settings, on which scales, and how a cell's optimum is found.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from scalelaws.engines.hierarchy import Regression, regress
from scalelaws.laws.base import FitOptions, SettingsLaw
from scalelaws.laws.loss import fit_minima
from scalelaws.observations import Exclusion, FloatArray, Observations, count_levels
from scalelaws.optima import Optimum
from scalelaws.results import Estimate, Evidence, Fit, Status, Target, find_horizon_path

CELLS_NEEDED = 3
"""Two cells always lie on a line; the third is the first that can contradict it."""
UNUSED = "not at the best batch of a cell with fewer than three batches"


@dataclass(frozen=True)
class Scale:
    """One scale of a cell, and how sentences name it."""

    plural: str
    singular: str


SCALES: Mapping[str, Scale] = {
    "params": Scale("sizes", "size"),
    "tokens": Scale("tokens", "the horizon"),
    "compute": Scale("budgets", "compute"),
    "tokens_per_param": Scale("tokens per parameter", "tokens per parameter"),
}


@dataclass(frozen=True)
class Setting:
    """One setting and the scales that its optimum is a power of."""

    name: str
    """Prefix of its parameters."""
    words: str
    """How sentences name it."""
    scales: tuple[str, ...]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Coefficient, exponents, scatter between cells."""
        exponents = (f"{self.name}_exponent_{scale}" for scale in self.scales)
        return (f"{self.name}_coefficient", *exponents, f"{self.name}_scatter")


@dataclass(frozen=True, eq=False)
class CellOptimum:
    """The optimum of one cell and the runs that it came from."""

    params: float
    tokens: float
    rows: np.ndarray
    optimum: Optimum
    batch_levels: int


@dataclass(frozen=True, kw_only=True)
class TwoStageLaw(SettingsLaw):
    """The optimum of every cell with its uncertainty, then a regression with scatter between cells."""

    name: str = ""
    formula: str = ""
    scope: str = ""
    source: str = ""
    settings: tuple[Setting, ...] = ()
    """The first one is the law's main setting: its residuals and its scatter are those of the fit."""
    shape: tuple[str, ...] = ("lr_curvature", "lr_skew", "batch_curvature")
    """Names of the typical basin's coefficients, in the order of `Optimum.curvature_draws`."""

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Coefficients and exponents of every setting, their scatter between cells, and the typical basin."""
        return (*(name for setting in self.settings for name in setting.parameter_names), *self.shape)

    @abstractmethod
    def find_cells(self, observations: Observations, options: FitOptions) -> tuple[CellOptimum, ...]:
        """The cells with their optima, refused ones included; ValueError where a column is missing."""

    @abstractmethod
    def respond(self, setting: Setting, observations: Observations, cell: CellOptimum) -> FloatArray | None:
        """Draws of the logarithm of a setting's optimum in one cell; None where it was not searched there."""

    def prepare(self, observations: Observations) -> Observations:
        """The runs that the law can read; what it leaves out is recorded."""
        return observations

    def warn(self, observations: Observations, cells: tuple[CellOptimum, ...], absent: tuple[str, ...]) -> list[str]:
        """Warnings of this law beside those about scales; `absent` names settings that were not searched."""
        return []

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Finds the cells' optima and fits them; refused cells are listed as exclusions."""
        started = time.perf_counter()
        runs = self.prepare(observations)
        cells = self.find_cells(runs, options)
        usable = tuple(cell for cell in cells if cell.optimum.status.ok)
        excluded = (*runs.excluded, *_list_refused(runs, cells))
        if len(usable) < CELLS_NEEDED:
            return self._unfitted(runs, usable, excluded, options, time.perf_counter() - started)
        fit = _Stage.of(self, runs, usable, options).finish(excluded)
        return replace(fit, seconds=time.perf_counter() - started)

    def _unfitted(
        self,
        observations: Observations,
        usable: tuple[CellOptimum, ...],
        excluded: tuple[Exclusion, ...],
        options: FitOptions,
        seconds: float,
    ) -> Fit:
        refused = "; ".join(sorted({f"{item.reason} ({item.runs} runs)" for item in excluded})) or "none"
        message = (
            f"{Status.TOO_FEW_SCALES.value}: {self.name} needs >= {CELLS_NEEDED} cells of (N, D) with an optimum "
            f"inside the grid (have {len(usable)}); refused: {refused}"
        )
        evidence = replace(Evidence.of(observations, excluded), cells=len(usable))
        unknown = {name: Estimate(np.nan) for name in self.parameter_names}
        return Fit(
            self.name, self.formula, unknown, np.empty((0, len(unknown))), "none", np.nan, Status.TOO_FEW_SCALES,
            message, np.nan, np.nan, evidence, seconds, options.level, dict(observations.scope),
        )  # fmt: skip

    def read_draws(self, fit: Fit) -> dict[str, FloatArray]:
        """The draws by the parameters' names; ValueError for a fit of another law."""
        self.require_own(fit)
        return dict(zip(self.parameter_names, fit.draws.T, strict=True))

    def require_own(self, fit: Fit) -> None:
        """Raises ValueError for a fit of another law, whose numbers mean other things."""
        if fit.law != self.name:
            raise ValueError(f"{self.name} cannot read a fit of {fit.law}; use the law that was fitted")

    def draw_optima(self, fit: Fit, target: Target, rng: np.random.Generator) -> list[FloatArray]:
        """Draws of the logarithm of every setting's optimum in a new cell at the target; NaN where none was fitted."""
        value, at = self.read_draws(fit), _scales_of(target.params_non_embedding, target.tokens, target.compute)
        noise = rng.standard_normal((len(self.settings), len(fit.draws)))
        return [self._draw_one(setting, value, at, row) for setting, row in zip(self.settings, noise, strict=True)]

    def _draw_one(
        self, setting: Setting, value: Mapping[str, FloatArray], at: Mapping[str, float], noise: FloatArray
    ) -> FloatArray:
        coefficient, *exponents, scatter = (value[name] for name in setting.parameter_names)
        ln = np.log(coefficient) + scatter * noise
        for name, exponent in zip(setting.scales, exponents, strict=True):
            ln = ln + exponent * np.log(at[name])
        return np.asarray(ln)


def _scales_of(params: float, tokens: float, compute: float) -> dict[str, float]:
    return {"params": params, "tokens": tokens, "compute": compute, "tokens_per_param": tokens / params}


def _list_refused(observations: Observations, cells: tuple[CellOptimum, ...]) -> list[Exclusion]:
    """One exclusion for every refused cell, and one for each reason to leave runs of a usable cell out."""
    refused = [
        Exclusion(f"cell N={cell.params:.4g}, D={cell.tokens:.4g}: {cell.optimum.message}", len(cell.rows))
        for cell in cells
        if not cell.optimum.status.ok
    ]
    counts = {UNUSED: len(observations)}
    for cell in cells:
        counts[UNUSED] -= len(cell.rows)
        for reason, runs in cell.optimum.left_out if cell.optimum.status.ok else ():
            counts[reason] = counts.get(reason, 0) + runs
    return [*refused, *(Exclusion(reason, runs) for reason, runs in counts.items() if runs)]


@dataclass(frozen=True, eq=False)
class _Stage:
    """The second stage: regression of the usable cells' optima."""

    law: TwoStageLaw
    observations: Observations
    cells: tuple[CellOptimum, ...]
    options: FitOptions
    ln_scales: Mapping[str, FloatArray]

    @classmethod
    def of(
        cls, law: TwoStageLaw, observations: Observations, cells: tuple[CellOptimum, ...], options: FitOptions
    ) -> _Stage:
        compute = observations.compute
        rows = [_scales_of(cell.params, cell.tokens, float(compute[cell.rows].mean())) for cell in cells]
        return cls(law, observations, cells, options, {key: np.log([row[key] for row in rows]) for key in SCALES})

    def finish(self, excluded: tuple[Exclusion, ...]) -> Fit:
        law, rng, level = self.law, np.random.default_rng(self.options.seed), self.options.level
        parts = [self._regress(setting) for setting in law.settings]
        columns = [column for part in parts for column in part.draw(self.options.bootstrap, rng)]
        draws = np.stack([*columns, *self._pool(rng)], axis=1)
        used = self.observations.rows(np.concatenate([cell.rows[cell.optimum.used] for cell in self.cells]))
        residual = parts[0].residual
        return Fit(
            law=law.name, formula=law.formula, draws=draws,
            parameters=estimate_parameters(law.parameter_names, draws, level, parts),
            objective=self._describe(), objective_value=float(residual @ residual), status=Status.CONVERGED,
            message=Status.CONVERGED.value, rmse_log=float(np.sqrt(np.mean(residual**2))),
            scatter_log=parts[0].scatter, evidence=Evidence.of(used, excluded), seconds=0.0, level=level,
            scope=dict(self.observations.scope), warnings=tuple(self._warn(parts)), loss_fit=self._fit_loss(),
        )  # fmt: skip

    def _regress(self, setting: Setting) -> ScaleRegression:
        """Regression of one setting on the scales that varied; one that moves in step with another is left out."""
        answers = [self.law.respond(setting, self.observations, cell) for cell in self.cells]
        found = [answer for answer in answers if answer is not None]
        if len(found) < len(answers):
            return ScaleRegression(setting)
        used, tied = self._choose_scales(setting)
        return regress_setting(setting, found, self.ln_scales, used, tied, self.options.prior_slope_sd)

    def _choose_scales(self, setting: Setting) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The scales that varied on their own, and those that moved in step with an earlier one."""
        used: list[str] = []
        tied: list[str] = []
        for name in setting.scales:
            values = np.exp(self.ln_scales[name])
            if count_levels(values) < 2:
                continue
            in_step = any(find_horizon_path(np.exp(self.ln_scales[other]), values) is not None for other in used)
            (tied if in_step else used).append(name)
        return tuple(used), tuple(tied)

    def _pool(self, rng: np.random.Generator) -> list[FloatArray]:
        """Shapes of the basin: a draw of a random cell each, so that their spread between cells is kept."""
        count = self.options.bootstrap
        cell = rng.integers(len(self.cells), size=count)
        picked = [self.cells[i].optimum.curvature_draws for i in cell]
        row = rng.integers(min(len(item) for item in picked), size=count)
        shapes = [item[i] for item, i in zip(picked, row, strict=True)]
        known = min(len(shape) for shape in shapes)
        return [
            np.array([shape[j] for shape in shapes]) if j < known else np.full(count, np.nan)
            for j in range(len(self.law.shape))
        ]

    def _fit_loss(self) -> Fit | None:
        """The loss law that the cells' minima can hold, if any; of cells of one size and horizon the lowest counts."""
        centre, variance = _summarise([cell.optimum.draws[:, 1] for cell in self.cells])
        best = {
            (cell.params, cell.tokens): row for row, cell in sorted(enumerate(self.cells), key=lambda p: -centre[p[0]])
        }
        keep = np.array(sorted(best.values()))
        minima = Observations(
            params_non_embedding=np.exp(self.ln_scales["params"][keep]), tokens=np.exp(self.ln_scales["tokens"][keep]),
            loss=np.exp(centre[keep]), compute_flops=np.exp(self.ln_scales["compute"][keep]),
            loss_se_log=np.maximum(np.sqrt(variance[keep]), 1e-6), scope=self.observations.scope,
            params_convention=self.observations.params_convention, loss_unit=self.observations.loss_unit,
        )  # fmt: skip
        return fit_minima(minima, self.options)

    def _warn(self, parts: list[ScaleRegression]) -> Iterator[str]:
        for part in parts:
            yield from self._warn_scales(part)
        absent = tuple(part.setting.name for part in parts if part.fitted is None)
        yield from self.law.warn(self.observations, self.cells, absent)

    def _warn_scales(self, part: ScaleRegression) -> Iterator[str]:
        if part.fitted is None:
            return
        for name in part.setting.scales:
            scale, levels = SCALES[name], count_levels(np.exp(self.ln_scales[name]))
            if name in part.tied:
                yield f"{scale.plural} moved in step with parameters: the law holds along that path only"
            elif levels < 2:
                yield (
                    f"{scale.plural} were not varied: the dependence of {part.setting.words} on {scale.singular} is "
                    "unknown"
                )
            elif levels == 2 and name != "tokens":
                yield f"only two {scale.plural}: the exponent in {scale.singular} is not checked by a third"

    def _describe(self) -> str:
        return (
            "posterior of ln optima with scatter between cells; priors: exponents ~ normal(0, "
            f"{self.options.prior_slope_sd:g}), scatter ~ half normal"
        )


@dataclass(frozen=True, eq=False)
class ScaleRegression:
    """One setting's regression; `fitted` is None where the setting was not searched in every cell."""

    setting: Setting
    used: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    """Scales that moved in step with a used one."""
    means: Mapping[str, float] = field(default_factory=dict)
    """Mean ln of every used scale, at which the design is centred."""
    fitted: Regression | None = None
    residual: FloatArray = field(default_factory=lambda: np.full(1, np.nan))

    @property
    def scatter(self) -> float:
        """Posterior mean of the scatter between cells."""
        return np.nan if self.fitted is None else self.fitted.scatter

    @property
    def points(self) -> dict[str, float]:
        """Posterior means by the parameters' names; the coefficient is that of the mean logarithm."""
        if self.fitted is None:
            return {}
        first, *slopes = self.fitted.coefficients
        shift = sum(slope * self.means[name] for name, slope in zip(self.used, slopes, strict=True))
        exponents = {
            f"{self.setting.name}_exponent_{name}": float(b) for name, b in zip(self.used, slopes, strict=True)
        }
        return {f"{self.setting.name}_coefficient": float(np.exp(first - shift)), **exponents}

    def draw(self, count: int, rng: np.random.Generator) -> list[FloatArray]:
        """Coefficient, an exponent for every scale of the setting (0 for those left out), scatter."""
        if self.fitted is None:
            return [np.full(count, np.nan)] * len(self.setting.parameter_names)
        t, scatter = self.fitted.draw(count, rng)
        slope = {name: t[:, 1 + i] for i, name in enumerate(self.used)}
        shift = sum((slope[name] * self.means[name] for name in self.used), np.zeros(count))
        return [np.exp(t[:, 0] - shift), *(slope.get(name, np.zeros(count)) for name in self.setting.scales), scatter]


def regress_setting(
    setting: Setting,
    answers: list[FloatArray],
    ln_scales: Mapping[str, FloatArray],
    used: tuple[str, ...],
    tied: tuple[str, ...],
    prior_slope_sd: float,
) -> ScaleRegression:
    """The regression of each cell's draws of ln setting on the `used` scales; cells of one size share some scatter."""
    centre, variance = _summarise(answers)
    means = {name: float(ln_scales[name].mean()) for name in used}
    design = np.stack([np.ones(len(centre)), *(ln_scales[name] - means[name] for name in used)], axis=1)
    prior = np.full(design.shape[1], prior_slope_sd)
    prior[0] = np.inf
    fitted = regress(design, centre, variance, prior, ln_scales["params"])
    return ScaleRegression(setting, used, tied, means, fitted, centre - design @ fitted.coefficients)


def _summarise(answers: list[FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Centre and squared standard error of each cell's draws (robust: from quantiles)."""
    quantiles = np.stack([np.quantile(answer, [0.159, 0.5, 0.841]) for answer in answers])
    return quantiles[:, 1], (0.5 * (quantiles[:, 2] - quantiles[:, 0])) ** 2


def estimate_parameters(
    names: tuple[str, ...], draws: FloatArray, level: float, parts: list[ScaleRegression]
) -> dict[str, Estimate]:
    """Each parameter with its interval: the posterior mean of a regression where it has one, else the median draw."""
    points = {name: value for part in parts for name, value in part.points.items()}
    return {
        name: Estimate.from_draws(column, level, value=points.get(name))
        if np.isfinite(column).all()
        else Estimate(float("nan"))
        for name, column in zip(names, draws.T, strict=True)
    }
