"""N*(C) = G C^a: the compute-optimal size as a power of compute, with its uncertainty, from any of the approaches.

Legend: N* optimal parameters, C training FLOPs, a exponent, C_0 a reference compute at the middle of the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.engines.hierarchy import regress
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, FloatArray
from scalelaws.results import Estimate, Fit
from scalelaws.splits.isoflops import Isoflops

EXPONENT_PRIOR = (0.5, 0.2)
"""Mean and standard deviation of the prior of a where budgets are few: published exponents lie between .46 (approach 3
of Hoffmann et al. 2022) and .73 to .88 (Kaplan et al. 2020, and their reproduction by Porian et al. 2024)."""

SIZE_DRIFT_LOG_PER_EFOLD = 0.08
"""Standard deviation by which ln N* leaves a power law per e-fold of compute beyond the largest budget. Measured by
backtests over eight published sets, each counted once (benchmarks/fitting/allocation): .08, and 0 to .09 with one of
them left out. Alone, six sets show .06 or less, and the two that were read from figures .15 and .17."""


@dataclass(frozen=True, eq=False)
class SizeLaw:
    """The optimal size against compute."""

    approach: str
    point: FloatArray
    """(2,): ln N* at the reference compute, and the exponent."""
    draws: FloatArray
    """(draws, 2) likewise."""
    ln_reference: float
    """ln C_0."""
    scatter_log: float
    """Scatter of a single budget's ln N* around the law."""
    compute_range: tuple[float, float]
    """Smallest and largest budget behind it, FLOPs."""
    level: float
    params_convention: str

    @property
    def exponent(self) -> Estimate:
        """a, with its interval."""
        return Estimate.from_draws(self.draws[:, 1], self.level, value=float(self.point[1]))

    @property
    def coefficient(self) -> Estimate:
        """G, parameters at one FLOP: far outside of the evidence, hence wide."""
        draws = np.exp(self.draws[:, 0] - self.draws[:, 1] * self.ln_reference)
        value = float(np.exp(self.point[0] - self.point[1] * self.ln_reference))
        return Estimate.from_draws(draws, self.level, value=value)

    def draw(self, compute_flops: float) -> FloatArray:
        """Draws of ln N* at a budget."""
        return np.asarray(self.draws[:, 0] + self.draws[:, 1] * (np.log(compute_flops) - self.ln_reference))

    def predict_mean(self, compute_flops: float) -> Estimate:
        """N* that the law gives at a budget, with the interval of the law alone."""
        return Estimate.from_draws(np.exp(self.draw(compute_flops)), self.level, value=self._read(compute_flops))

    def predict(self, compute_flops: float, *, seed: int = 0) -> Estimate:
        """N* at a budget, with the interval for the optimum one would measure there: law, scatter of budgets, drift."""
        beyond = max(float(np.log(compute_flops / self.compute_range[1])), 0.0)
        spread = float(np.hypot(self.scatter_log, SIZE_DRIFT_LOG_PER_EFOLD * beyond))
        noise = spread * np.random.default_rng(seed).standard_normal(len(self.draws))
        drawn = np.exp(self.draw(compute_flops) + noise)
        return Estimate.from_draws(drawn, self.level, value=self._read(compute_flops))

    def _read(self, compute_flops: float) -> float:
        return float(np.exp(self.point[0] + self.point[1] * (np.log(compute_flops) - self.ln_reference)))


def fit_size_law(isoflops: Isoflops, *, seed: int = 0) -> SizeLaw:
    """The power law through the optima of the budgets, which scatter around it by more than their own errors.

    Weighs each budget by its standard error and the scatter between budgets (`hierarchy`), with a weak prior on the
    exponent. Raises ValueError where fewer than two budgets hold an optimum.
    """
    usable = list(isoflops.usable)
    if len(usable) < 2:
        listed = "; ".join(item.message for item in isoflops.optima)
        raise ValueError(f"a law of the optimal size needs >= 2 budgets with an optimum (have {len(usable)}: {listed})")
    ln_compute = np.log([isoflops.optima[k].compute_flops for k in usable])
    ln_size = np.log([isoflops.optima[k].params.value for k in usable])
    reference, (centre, sd) = float(ln_compute.mean()), EXPONENT_PRIOR
    reach = ln_compute - reference
    variance = np.maximum(isoflops.draws[:, usable].var(axis=0), 1e-12)
    design = np.stack([np.ones_like(reach), reach], axis=1)
    found = regress(
        design, ln_size - centre * reach, variance, np.array([np.inf, sd]), np.arange(len(usable), dtype=np.float64)
    )
    draws, _ = found.draw(len(isoflops.draws), np.random.default_rng(seed))
    span = float(np.exp(ln_compute.min())), float(np.exp(ln_compute.max()))
    shift = np.array([0.0, centre])
    return SizeLaw(
        f"isoflop {isoflops.method}", found.coefficients + shift, draws + shift, reference, found.scatter, span,
        isoflops.level, isoflops.runs.params_convention,
    )  # fmt: skip


def derive_size_law(fit: Fit, *, flops_per_pair: float = FLOPS_PER_PARAM_TOKEN) -> SizeLaw:
    """N*(C) of a fitted Chinchilla law: a = beta / (alpha + beta), exactly (Hoffmann et al. 2022, equation 4).

    `flops_per_pair` are the training FLOPs per parameter and token of the runs, where these were not counted as 6ND.
    """
    if fit.law != "chinchilla":
        raise ValueError(f"only chinchilla gives N*(C) as a power of compute; got {fit.law}. Use allocate")
    reference = float(np.log(fit.evidence.compute_flops).mean())
    usable = fit.draws[(fit.draws[:, 1:] > 0).all(axis=1)]
    point, draws = (_read_law(values, reference - np.log(flops_per_pair)) for values in (fit.values[None], usable))
    return SizeLaw(
        "law", point[0], draws, reference, 0.0, fit.evidence.compute_flops, fit.level, fit.evidence.params_convention
    )


def _read_law(values: FloatArray, ln_pairs: float) -> FloatArray:
    """(draws, 2): ln N* where ln(N D) = `ln_pairs`, and the exponent, of rows (E, A, B, alpha, beta)."""
    _, a, b, alpha, beta = values.T
    exponent = beta / (alpha + beta)
    at_one = np.log(alpha * a / (beta * b)) / (alpha + beta)
    return np.stack([at_one + exponent * ln_pairs, exponent], axis=1)


def combine_size_laws(first: SizeLaw, second: SizeLaw, *, seed: int = 0) -> SizeLaw:
    """Between the two: the mean of ln N*; its draws come from either with even odds, so their distance counts.

    Measured in benchmarks/fitting/allocation: against published optima ten and thirty times beyond the runs the mean of
    approaches 2 and 3 errs less than either; on three sets without published optima a law of the loss alone errs less.
    """
    reference = first.ln_reference
    points = [_move(law.point[None], law.ln_reference, reference)[0] for law in (first, second)]
    drawn = [_move(law.draws, law.ln_reference, reference) for law in (first, second)]
    count = min(len(part) for part in drawn)
    from_first = np.random.default_rng(seed).random(count) < 0.5
    draws = np.where(from_first[:, None], drawn[0][:count], drawn[1][:count])
    low, high = zip(first.compute_range, second.compute_range, strict=True)
    return SizeLaw(
        f"{first.approach} and {second.approach}", (points[0] + points[1]) / 2, draws, reference,
        max(first.scatter_log, second.scatter_log), (min(low), max(high)), first.level, first.params_convention,
    )  # fmt: skip


def _move(lines: FloatArray, old: float, new: float) -> FloatArray:
    """Lines (draws, 2) read at another reference compute."""
    return np.stack([lines[:, 0] + lines[:, 1] * (new - old), lines[:, 1]], axis=1)
