"""The critical batch grows with the data: B_crit = c D_min^m, from runs of several batches and horizons.

Legend: N parameters, D tokens, B batch in tokens, l a loss, D_B tokens that batch B needs to reach l, D_min their limit
for small batches, E, K, beta constants of one batch
    1. tuned loss of every (N, D, B): that of the best learning rate
    2. for each N and B: L_B(D) = E + K / D^beta
    3. for each N and l: D_B where L_B(D_B) = l
    4. for each N and l: D_B = D_min (1 + B / B_crit), see `critical_batch`
    5. ln B_crit = ln c + m ln D_min + scatter between (N, l)
No schedule has to be constant: each horizon is a run of its own. A batch of x B_crit costs x more tokens than D_min
(Zhang et al. call x = .2 critical). Batches below the one that needs the fewest tokens are left out: there a smaller
batch needs more tokens, which the curve of step 4 does not describe.
Source: Bergsma et al. 2025, Power Lines, arXiv 2505.13738, section 4; law: Zhang et al. 2024, arXiv 2410.21676.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from scalelaws.critical_batch import Tradeoff, fit_tradeoff
from scalelaws.engines.nonlinear import Columns, Noise, Parameter, Task, find_best
from scalelaws.laws.base import FitOptions, Law
from scalelaws.laws.two_stages import Setting, estimate_parameters, regress_setting
from scalelaws.observations import FloatArray, Observations
from scalelaws.results import ON_PATH_TOLERANCE, Estimate, Evidence, Fit, Status, Target

LEVELS_NEEDED = 3
"""Estimates of the critical batch; two always lie on a line."""
HORIZONS_NEEDED = 3
"""Horizons of one batch; its curve has three constants."""
RUN_NOISE_LOG = 0.001
"""Expected misfit of ln loss of a tuned run (an assumption; published reruns differ by .0002 to .0011)."""
REACH = 1.25
"""Assumption: a batch's curve is read up to a quarter beyond its longest horizon."""
WITHIN = 3.0
"""Assumption: a critical batch beyond three times the largest batch, whose overhead then stays below a third, rests on
the priors of `critical_batch` (planted ones were missed by a factor of ten); likewise below a third of the smallest."""
SETTING = Setting("critical", "the critical batch", ("tokens",))


@dataclass(frozen=True, eq=False)
class CriticalBatch:
    """The critical batch of one size at one loss."""

    params: float
    loss: float
    batch_tokens: FloatArray
    """Batches that were compared."""
    tokens: FloatArray
    """Tokens that each of them needs."""
    tradeoff: Tradeoff

    @property
    def refusal(self) -> str:
        """Why it must not be used, or an empty string."""
        if not self.tradeoff.status.ok:
            return self.tradeoff.message
        found = self.tradeoff.critical_batch_tokens.value
        low, high = float(self.batch_tokens.min()), float(self.batch_tokens.max())
        if low / WITHIN <= found <= high * WITHIN:
            return ""
        return f"B_crit near {found:.3g} lies beyond the batches, {low:.3g} to {high:.3g} tokens; add batches there"


@dataclass(frozen=True)
class _Descent:
    """ln(E + K D^-beta), D in units of the shortest horizon."""

    parameters: tuple[Parameter, ...]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (R, n) and its derivatives by E, K, beta (R, n, 3)."""
        floor, gain, exponent = (values[:, j : j + 1] for j in range(3))
        ln_d = columns["ln_tokens"]
        term = np.exp(-exponent * ln_d)
        loss = floor + gain * term
        slopes = np.stack([np.ones_like(loss), term + 0 * loss, -gain * ln_d * term], axis=-1)
        return np.log(loss), slopes / loss[..., None]


@dataclass(frozen=True, kw_only=True)
class CriticalBatchLaw(Law[Observations]):
    """B_crit against the tokens that a small batch needs; size does not enter."""

    name: str = "critical_batch"
    formula: str = "critical_batch_tokens = critical_coefficient * D^critical_exponent_tokens"
    scope: str = "runs of three or more batches and horizons at one size or more, learning rate tuned for each"
    source: str = "Bergsma et al. 2025, arXiv 2505.13738; Zhang et al. 2024, arXiv 2410.21676"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """Coefficient (tokens), exponent, scatter between sizes and losses."""
        return SETTING.parameter_names

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits the critical batches that the runs hold; ValueError where the batch is not recorded."""
        started = time.perf_counter()
        found = find_critical_batches(observations, level=options.level, seed=options.seed)
        usable = [item for item in found if not item.refusal]
        runs = (
            observations.select(~observations.diverged, "diverged") if not observations.diverged.all() else observations
        )
        if len(usable) < LEVELS_NEEDED:
            return self._unfitted(runs, found, len(usable), options, started)
        sizes = [item.params for item in usable]
        runs = runs.select(np.isin(runs.params_non_embedding, sizes), "of a size without a critical batch")
        ln_scales = {
            "params": np.log(sizes),
            "tokens": np.array([np.median(np.log(item.tradeoff.draws[:, 1])) for item in usable]),
        }
        answers = [np.log(item.tradeoff.draws[:, 2]) for item in usable]
        part = regress_setting(SETTING, answers, ln_scales, ("tokens",), (), options.prior_slope_sd)
        draws = np.stack(part.draw(options.bootstrap, np.random.default_rng(options.seed)), axis=1)
        return Fit(
            law=self.name, formula=self.formula, draws=draws,
            parameters=estimate_parameters(self.parameter_names, draws, options.level, [part]),
            objective="posterior of ln critical batches with scatter; prior: exponent ~ normal(0, "
            f"{options.prior_slope_sd:g})",
            objective_value=float(part.residual @ part.residual), status=Status.CONVERGED,
            message=Status.CONVERGED.value, rmse_log=float(np.sqrt(np.mean(part.residual**2))),
            scatter_log=part.scatter, evidence=Evidence.of(runs, runs.excluded),
            seconds=time.perf_counter() - started, level=options.level, scope=dict(observations.scope),
            warnings=tuple(_warn(found, ln_scales["tokens"])),
        )  # fmt: skip

    def predict_critical_batch(self, fit: Fit, target: Target, level: float, rng: np.random.Generator) -> Estimate:
        """The critical batch at the target's horizon, with the scatter of one new size and loss."""
        coefficient, exponent, scatter = fit.draws.T
        noise = scatter * rng.standard_normal(len(coefficient))
        return Estimate.from_draws(coefficient * target.tokens**exponent * np.exp(noise), level, unit="tokens")

    def _unfitted(
        self, runs: Observations, found: tuple[CriticalBatch, ...], usable: int, options: FitOptions, started: float
    ) -> Fit:
        reasons = "; ".join(sorted({item.refusal for item in found if item.refusal}))
        said = reasons or "no size has three batches with three horizons each whose losses overlap"
        message = (
            f"{Status.TOO_FEW_SCALES.value}: {self.name} needs >= {LEVELS_NEEDED} sizes or losses with a critical "
            f"batch (have {usable}); {said}"
        )
        unknown = {name: Estimate(np.nan) for name in self.parameter_names}
        return Fit(
            self.name, self.formula, unknown, np.empty((0, len(unknown))), "none", np.nan, Status.TOO_FEW_SCALES,
            message, np.nan, np.nan, Evidence.of(runs, runs.excluded), time.perf_counter() - started, options.level,
            dict(runs.scope),
        )  # fmt: skip


def find_critical_batches(
    observations: Observations, *, level: float = 0.9, seed: int = 0
) -> tuple[CriticalBatch, ...]:
    """One critical batch for each size and each loss that its batches reach in common (steps 1 to 4)."""
    if observations.batch_tokens is None:
        raise ValueError("critical_batch needs batch_tokens in the observations; this table has none")
    if observations.diverged.all():
        return ()
    runs = observations.rows(np.flatnonzero(~observations.diverged))
    sizes = np.unique(runs.params_non_embedding)
    return tuple(item for size in sizes for item in _find_at_size(runs, float(size), level, seed))


def _find_at_size(runs: Observations, size: float, level: float, seed: int) -> list[CriticalBatch]:
    here = np.flatnonzero(runs.params_non_embedding == size)
    curves = _fit_curves(runs.rows(here))
    if len(curves) < 3:
        return []
    found = []
    for horizon in _list_horizons(curves)[:-1]:
        there = [curve for curve in curves.values() if np.abs(np.log(curve[0] / horizon)).min() <= ON_PATH_TOLERANCE]
        loss = min(_read_curve(values, tokens, horizon) for tokens, _, values in there)
        pairs = [(batch, _invert(values, tokens, loss)) for batch, (tokens, _, values) in curves.items()]
        reached = [(batch, need) for batch, need in pairs if need is not None]
        reached = [pair for pair in reached if pair[0] >= min(reached, key=lambda p: p[1])[0]]
        if len(reached) < 3:
            continue
        batch, need = np.array(reached).T
        tradeoff = fit_tradeoff(need / batch, need, level=level, seed=seed, throw=False)
        found.append(CriticalBatch(size, float(loss), batch, need, tradeoff))
    return found


Curve = tuple[FloatArray, FloatArray, FloatArray]
"""Horizons, tuned losses, (E, K, beta)."""


def _list_horizons(curves: dict[float, Curve]) -> FloatArray:
    """The horizons of all batches, ascending; those that differ by the rounding of steps are one."""
    every = np.unique(np.concatenate([tokens for tokens, _, _ in curves.values()]))
    new = np.concatenate([[True], np.diff(np.log(every)) > ON_PATH_TOLERANCE])
    return np.asarray(every[new])


def _fit_curves(runs: Observations) -> dict[float, Curve]:
    """For each batch with enough horizons, the constants of its loss over the horizon."""
    assert runs.batch_tokens is not None
    curves: dict[float, Curve] = {}
    for batch in np.unique(runs.batch_tokens):
        rows = np.flatnonzero(runs.batch_tokens == batch)
        tokens = np.unique(runs.tokens[rows])
        if len(tokens) < HORIZONS_NEEDED:
            continue
        loss = np.array([runs.loss[rows[runs.tokens[rows] == one]].min() for one in tokens])
        curves[float(batch)] = (tokens, loss, _fit_curve(tokens, loss))
    return curves


def _fit_curve(tokens: FloatArray, loss: FloatArray) -> FloatArray:
    columns = {"ln_tokens": np.log(tokens / tokens[0])}
    middle, fall = 0.7 * float(loss.min()), 0.3 * float(loss.max())
    model = _Descent((Parameter("E", middle, 0.5), Parameter("K", fall, 1.5), Parameter("beta", 0.35, 0.7)))
    task = Task(model, columns, np.log(loss), np.ones(len(loss)), Noise(RUN_NOISE_LOG))
    starts = np.array([[middle, fall, beta] for beta in (0.15, 0.35, 0.7)])
    return np.asarray(find_best(task, starts))


def _read_curve(values: FloatArray, tokens: FloatArray, at: float) -> float:
    floor, gain, exponent = values
    return float(floor + gain * (at / tokens[0]) ** -exponent)


def _invert(values: FloatArray, tokens: FloatArray, loss: float) -> float | None:
    """Tokens at which the curve reaches the loss, or None where that lies outside of its horizons."""
    floor, gain, exponent = values
    if loss <= floor:
        return None
    need = float(tokens[0] * (gain / (loss - floor)) ** (1 / exponent))
    return need if tokens[0] / REACH <= need <= tokens[-1] * REACH else None


def _warn(found: tuple[CriticalBatch, ...], ln_tokens: FloatArray) -> list[str]:
    refused = sum(bool(item.refusal) for item in found)
    warnings = []
    if refused:
        warnings.append(f"{refused} of {len(found)} sizes and losses have no critical batch inside their batches")
    if np.ptp(ln_tokens) < np.log(4):
        warnings.append(
            f"the horizons span a factor of {np.exp(np.ptp(ln_tokens)):.2g}: the exponent hangs on its prior"
        )
    return warnings
