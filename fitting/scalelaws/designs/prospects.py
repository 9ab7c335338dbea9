"""What candidate runs would tell of a target: rank-one updates of the posterior of a response surface.

Legend (shapes):  s scenarios, r candidate runs, p parameters of the surface, k settings (ln lr*, and ln B* if searched)
    V (s, p, p) posterior covariance     x (r, p) derivatives of a run's ln loss     v its noise variance
    G (k, p) from the parameters to the target's optimum, C = G V G^T its covariance, H (k, k) the curvature there
    a run moves V to V - V x x^T V / (v + x^T V x)                       (Sherman and Morrison 1950)
    expected regret = tr(H C) / 2

The last line is exact for the surface's asymmetric basin at the settings of least expected excess: where
u ~ normal(m, s^2), E phi_k(u) is least at m = -k s^2 / 2 and is s^2 / 2 there for every skew k; with two settings the
offsets u - rho_1 v and v - rho_2 u can be shaded one by one.

The surface is bent, so what a run tells depends on where the optimum is. Scenarios are draws of the posterior: a run's
worth is its mean over them. Cells far from the target are trusted less: the optimum of a cell wanders from its law as a
random walk that starts at the target, in ln N and in ln D. Two cells equally far share their walk, so ten tiny cells do
not average it away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.designs.candidates import Candidates, Precision
from scalelaws.engines.hierarchy import SHARED
from scalelaws.observations import FloatArray
from scalelaws.results import Target
from scalelaws.sweeps.surfaces import SAME_SIZE, Layout, Surface, SurfaceRuns, respond, vary

SCENARIOS = 12
"""Draws of the posterior that a run's worth is averaged over; `benchmarks/fitting/design.py` shows what 3 and 48 do."""
NORMAL_90 = 1.6448536269514722
"""The 95 % quantile of the normal distribution."""


@dataclass(eq=False)
class Prospects:
    """The posterior in every scenario, and what the candidates would tell; `learn` moves it."""

    rows: FloatArray
    """(s, r, p)."""
    noise: FloatArray
    """(s, r) noise variances."""
    aim: FloatArray
    """(k, p) G."""
    unknown: FloatArray
    """(k,) variances of the target's optimum that no parameter holds."""
    bend: FloatArray
    """(k, k) H."""
    covariance: FloatArray
    """(s, p, p) V."""
    spread: FloatArray
    """(s, r) x^T V x."""
    reach: FloatArray
    """(s, r, k) x^T V G^T."""

    def copy(self) -> Prospects:
        """The same prospects, to be moved on their own."""
        return self.restrict(np.arange(self.noise.shape[1]))

    def restrict(self, index: np.ndarray) -> Prospects:
        """A copy that knows only some candidates."""
        return Prospects(
            self.rows[:, index], self.noise[:, index], self.aim, self.unknown, self.bend, self.covariance.copy(),
            self.spread[:, index], self.reach[:, index],
        )  # fmt: skip

    def learn(self, run: int, *, forget: bool = False) -> None:
        """Adds the run to the posterior; `forget` takes one away that was added before."""
        weight = -self.noise[:, run] if forget else self.noise[:, run]
        moved = np.einsum("spq,sq->sp", self.covariance, self.rows[:, run])
        weight = weight + np.einsum("sp,sp->s", self.rows[:, run], moved)
        across = np.einsum("srp,sp->sr", self.rows, moved)
        toward = moved @ self.aim.T
        self.covariance -= moved[:, :, None] * (moved / weight[:, None])[:, None, :]
        self.spread = self.spread - across**2 / weight[:, None]
        self.reach = self.reach - across[:, :, None] * (toward / weight[:, None])[:, None, :]

    @property
    def optimum(self) -> FloatArray:
        """(s, k, k) covariance of the target's optimum, but for what no parameter holds."""
        return np.asarray(self.aim @ self.covariance @ self.aim.T)

    def value(self, objective: str) -> FloatArray:
        """(r,) by how much each candidate alone would lower the objective."""
        narrowed = self.reach[..., :, None] * self.reach[..., None, :] / (self.noise + self.spread)[..., None, None]
        if objective == "regret":
            return np.asarray(0.5 * np.einsum("kl,srkl->r", self.bend, narrowed) / len(self.rows))
        before = np.einsum("skk->sk", self.optimum) + self.unknown
        after = np.maximum(before[:, None] - np.einsum("srkk->srk", narrowed), 0.0)
        return np.asarray(2 * NORMAL_90 * (np.sqrt(before)[:, None] - np.sqrt(after)).sum(axis=2).mean(axis=0))

    def measure(self) -> Precision:
        """What is known now."""
        covariance = self.optimum + np.diag(self.unknown)
        widths = 2 * NORMAL_90 * np.sqrt(np.einsum("skk->sk", covariance)).mean(axis=0)
        regret = 0.5 * float(np.einsum("kl,slk->", self.bend, covariance)) / len(self.rows)
        return Precision(regret, float(widths[0]), float(widths[1]) if len(widths) > 1 else None)


def look_ahead(
    surface: Surface, candidates: Candidates, target: Target, *, drift: float, scenarios: int = SCENARIOS, seed: int = 0
) -> Prospects:
    """The prospects of candidates under a surface; their cells join it.

    Raises ValueError where the surface has a batch and the candidates give none.
    """
    if surface.layout.batched and candidates.batch_tokens is None:
        raise ValueError("the runs searched the batch, and the candidates give no batch_tokens; add that column")
    wide = surface.extend(candidates.params_non_embedding, candidates.tokens)
    layout, at = wide.layout, (target.params_non_embedding, target.tokens)
    covariance = np.linalg.inv(wide.data_information + _hold(layout, wide.scatter, at, drift))
    aim, unknown = aim_at(wide, at, drift)
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(0.5 * (covariance + covariance.T))
    thetas = wide.parameters + rng.standard_normal((scenarios, layout.size)) @ root.T
    runs = _in_logs(wide, candidates)
    answers = [respond(layout, theta, runs) for theta in thetas]
    rows = np.stack([answer.rows for answer in answers])
    noise = np.stack([vary(answer.excess, wide.noise_log) for answer in answers])
    told = rows @ covariance
    return Prospects(
        rows, noise, aim, unknown, wide.curvature(*at), np.repeat(covariance[None], scenarios, axis=0),
        np.einsum("srp,srp->sr", told, rows), told @ aim.T,
    )  # fmt: skip


def _in_logs(surface: Surface, candidates: Candidates) -> SurfaceRuns:
    places = [
        surface.find_cell(float(n), float(d))
        for n, d in zip(candidates.params_non_embedding, candidates.tokens, strict=True)
    ]
    batched = surface.layout.batched and candidates.batch_tokens is not None
    ln_batch = np.log(candidates.batch_tokens) if batched and candidates.batch_tokens is not None else None
    return SurfaceRuns(
        np.log(candidates.peak_lr), ln_batch, np.zeros(len(candidates)), np.array(places, dtype=np.int64)
    )


def _hold(layout: Layout, scatter: tuple[float, ...], at: tuple[float, float], drift: float) -> FloatArray:
    """Prior precision of the parameters with the walk of the cells' optima away from the target."""
    _, precision = layout.prior(scatter)
    for setting, spread in zip(("lr", "batch"), scatter, strict=False):
        own = layout.effects(setting)
        precision[own, own] = np.linalg.inv(spread**2 * layout.same_size + walk_away(layout, at, drift))
    return precision


def walk_away(layout: Layout, at: tuple[float, float], drift: float) -> FloatArray:
    """(c, c) covariance of the walks: drift^2 times the way from the target that two cells have in common."""
    shared = np.zeros((layout.cells, layout.cells))
    for values, goal in zip((layout.ln_params, layout.ln_tokens), at, strict=True):
        way = values - np.log(goal)
        common = np.minimum(np.abs(way)[:, None], np.abs(way)[None, :])
        shared += np.where(np.sign(way)[:, None] == np.sign(way)[None, :], common, 0.0)
    return np.asarray(drift**2 * shared)


def aim_at(surface: Surface, at: tuple[float, float], drift: float) -> tuple[FloatArray, FloatArray]:
    """G and the variances that are left open: `Surface.locate`, with the walk in what the cells' effects say."""
    layout = surface.layout
    rows, unknown = surface.locate(*at)
    same_n = np.abs(layout.ln_params - np.log(at[0])) < SAME_SIZE
    same = same_n & (np.abs(layout.ln_tokens - np.log(at[1])) < SAME_SIZE)
    like = SHARED * same_n + (1 - SHARED) * same
    walk = walk_away(layout, at, drift)
    for place, (setting, spread) in enumerate(zip(("lr", "batch"), surface.scatter, strict=False)):
        own = layout.effects(setting)
        weights = np.linalg.solve(spread**2 * layout.same_size + walk, spread**2 * like)
        unknown[place] += spread**2 * float(like @ (rows[place, own] - weights))
        rows[place, own] = weights
    return rows, unknown
