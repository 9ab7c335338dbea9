"""What is believed of the surface before any run: a prior of the optimum, from the candidates or a published law.

Legend: N parameters, D tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scalelaws.designs.candidates import Candidates
from scalelaws.laws.published import PublishedSettings
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import Target
from scalelaws.sweeps.surface_fits import NOISE_PRIOR, START_SCATTER, fit_surface
from scalelaws.sweeps.surfaces import SLOPE_SD, Layout, Surface, SurfaceRuns

PUBLISHED_SD = 0.7
"""Assumption: another code base's optimum lies within a factor of three of a published law (90 %)."""
GRID_DEVIATIONS = 1.645
"""The span of the candidates' settings is read as the 90 % interval of the optimum."""


@dataclass(frozen=True)
class StartPrior:
    """What is believed of the optimum before any run: a plane in ln N and ln D for each setting."""

    origin: tuple[float, float]
    """ln N and ln D where the planes are centred."""
    lr: tuple[float, float, float]
    """ln learning rate at the origin, and its exponents in N and D."""
    lr_sd: float
    """Standard deviation of ln learning rate at the origin."""
    batch: tuple[float, float, float] | None = None
    """ln batch in tokens likewise; None where it is not searched."""
    batch_sd: float = PUBLISHED_SD
    exponent_sd: float = SLOPE_SD
    """Standard deviation of each exponent."""
    source: str = ""

    @classmethod
    def from_candidates(cls, candidates: Candidates) -> StartPrior:
        """The middle of the settings that are offered in each cell; their span is taken as a 90 % interval."""
        cells = candidates.cells()
        origin, design = lay_plane(candidates, cells)
        lr, lr_sd = _fit_middle(np.log(candidates.peak_lr), cells, design)
        if candidates.batch_tokens is None or len(np.unique(candidates.batch_tokens)) == 1:
            return cls(origin, lr, lr_sd, source="the middle of the candidates")
        batch, batch_sd = _fit_middle(np.log(candidates.batch_tokens), cells, design)
        return cls(origin, lr, lr_sd, batch, batch_sd, source="the middle of the candidates")

    @classmethod
    def from_law(cls, law: PublishedSettings, candidates: Candidates, sd: float = PUBLISHED_SD) -> StartPrior:
        """A published law around the candidates' cells; exponents by finite differences."""
        origin, _ = lay_plane(candidates, candidates.cells())
        batched = candidates.batch_tokens is not None and len(np.unique(candidates.batch_tokens)) > 1
        planes = {}
        for name, rule in (("lr", law.peak_lr), ("batch", law.batch_tokens)):
            if rule is not None and (name == "lr" or batched):
                points = (origin, (origin[0] + 0.5, origin[1]), (origin[0], origin[1] + 0.5))
                there = [float(np.log(rule(Target(float(np.exp(n)), float(np.exp(d)))))) for n, d in points]
                planes[name] = (there[0], 2 * (there[1] - there[0]), 2 * (there[2] - there[0]))
        if "lr" not in planes or (batched and "batch" not in planes):
            raise ValueError(f"{law.name} gives no learning rate (or no batch); take StartPrior.from_candidates")
        return cls(origin, planes["lr"], sd, planes.get("batch"), sd, source=law.name)


def lay_plane(candidates: Candidates, cells: tuple[np.ndarray, ...]) -> tuple[tuple[float, float], FloatArray]:
    """Mean ln N and ln D of the cells, and the cells' (1, n, d)."""
    firsts = [cell[0] for cell in cells]
    n, d = np.log(candidates.params_non_embedding[firsts]), np.log(candidates.tokens[firsts])
    design = np.stack([np.ones_like(n), n - n.mean(), d - d.mean()], axis=1)
    return (float(n.mean()), float(d.mean())), design


def _fit_middle(
    values: FloatArray, cells: tuple[np.ndarray, ...], design: FloatArray
) -> tuple[tuple[float, float, float], float]:
    middle = np.array([0.5 * (values[cell].min() + values[cell].max()) for cell in cells])
    half = np.array([0.5 * np.ptp(values[cell]) for cell in cells])
    a, b, c = np.linalg.lstsq(design, middle, rcond=None)[0]
    return (float(a), float(b), float(c)), float(max(half.mean() / GRID_DEVIATIONS, 0.1))


@dataclass(frozen=True, eq=False)
class StartLayout(Layout):
    """A layout whose laws of the optimum have a prior of their own."""

    start: StartPrior = field(kw_only=True)

    def prior(self, scatter: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
        """As `Layout.prior`, with the planes of the start prior."""
        centre, precision = super().prior(scatter)
        n, d = self.origin[0] - self.start.origin[0], self.origin[1] - self.start.origin[1]
        spreads = {"lr": (self.start.lr, self.start.lr_sd), "batch": (self.start.batch, self.start.batch_sd)}
        for setting in ("lr", "batch") if self.batched else ("lr",):
            plane, sd = spreads[setting]
            assert plane is not None
            at = self.at(f"{setting}_intercept")
            own = slice(at, at + 3)
            centre[own] = plane[0] + plane[1] * n + plane[2] * d, plane[1], plane[2]
            move = np.array([[1.0, n, d], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
            spread = np.diag([sd, self.start.exponent_sd, self.start.exponent_sd]) ** 2
            precision[own, own] = np.linalg.inv(move @ spread @ move.T)
        return centre, precision


def start_surface(prior: StartPrior, candidates: Candidates, done: Observations | None = None) -> Surface:
    """The surface that the prior, and the runs done so far, imply."""
    if done is not None and bool((~done.diverged).any()):
        return _fit_held(prior, done)
    cells = candidates.cells()
    firsts = [cell[0] for cell in cells]
    ln_n, ln_d = np.log(candidates.params_non_embedding[firsts]), np.log(candidates.tokens[firsts])
    layout = StartLayout(ln_n, ln_d, prior.batch is not None, prior.origin, start=prior)
    scatter = (START_SCATTER,) * (2 if layout.batched else 1)
    centre, precision = layout.prior(scatter)
    covariance = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    return Surface(
        layout, centre, covariance, np.zeros_like(precision), scatter, NOISE_PRIOR[0], np.tile(centre, (2, 1)),
        np.tile(scatter, (2, 1)),
    )  # fmt: skip


def _fit_held(prior: StartPrior, done: Observations) -> Surface:
    """The posterior of the prior and runs that are too few for a fit of their own."""
    kept = done.rows(np.flatnonzero(~done.diverged))
    assert kept.peak_lr is not None
    firsts = [rows[0] for rows in kept.cells()]
    ln_n, ln_d = np.log(kept.params_non_embedding[firsts]), np.log(kept.tokens[firsts])
    batched = prior.batch is not None and kept.batch_tokens is not None
    origin = (float(ln_n.mean()), float(ln_d.mean()))
    layout = StartLayout(ln_n, ln_d, batched, origin, start=prior)
    ln_batch = np.log(kept.batch_tokens) if batched and kept.batch_tokens is not None else None
    runs = SurfaceRuns(np.log(kept.peak_lr), ln_batch, np.log(kept.loss), kept.cell_index())
    return fit_surface(layout, runs, draws=50).surface
