"""The loss of runs that repeat their data: later passes and surplus parameters are worth less and less.

Legend: N parameters, D tokens, C training FLOPs, U_D = min(D, distinct tokens)
    R_D = D / U_D - 1 repeats,  D' = U_D (1 + R*_D (1 - exp(-R_D / R*_D)))
    U_N = min(N, N_opt(U_D)),  N_opt(D) = (alpha A D^beta / (beta B))^(1 / alpha): the best size for D fresh tokens
    R_N = N / U_N - 1 surplus,  N' = U_N (1 + R*_N (1 - exp(-R_N / R*_N)))
    L = E + A / N'^alpha + B / D'^beta
Source: Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv 2305.16264, section 3.1 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from scalelaws.engines.nonlinear import RUNS_PER_PARAMETER, Columns, Noise, Parameter, Task, find_best
from scalelaws.engines.weighting import expect_drift
from scalelaws.laws.smooth import EXPECTED_NOISE_LOG, SmoothLaw
from scalelaws.laws.terms import FLOOR, add_terms, coefficient, exponent, start_terms
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, BoolArray, FloatArray, Observations
from scalelaws.results import Status

PUBLISHED_REPETITION = (
    float(np.exp(0.6254804)), float(np.exp(6.255414)), float(np.exp(7.3049974)), 0.3526596, 0.3526596, 15.387756,
    5.309743,
)  # fmt: skip
"""(E, A, B, alpha, beta, R_D, R_N) of Muennighoff et al. 2023, as in their repository huggingface/datablations."""
REPEATS_SD = 1.0
"""Of ln R*_D and ln R*_N around the published values: 90 % lie within a factor of five (an assumption)."""
ONE_PASS = 1.0 + 1e-3
"""Passes up to which a run counts as repeating nothing (published tables round tokens to three digits)."""
FEWEST_ONE_PASS, FEWEST_REPEATED = 4, 3
"""Runs on fresh and on repeated data without which the two cannot be told apart (an assumption)."""
WORSE_BY = 0.01
"""A loss this far (in ln) above that of a run with no more parameters, tokens and distinct tokens has turned upwards,
which the law cannot say; reruns of one setting differ by .001 to .004 (measured on the runs of Muennighoff et al.)."""
START_REPEATS = (5.0, 15.0, 50.0)
PUBLISHED_DELTA = 1e-3
"""Huber's delta of both published stages."""
SEARCHED = 10.0
"""The best size is sought within this of ln sqrt(C / 6): nine decades."""
GRID, NARROWINGS = 101, 6
"""Sizes of one grid, and grids, each narrower by 2 / GRID: ln N to 1e-9."""


@dataclass(frozen=True, kw_only=True)
class Repetition(SmoothLaw):
    """Chinchilla's law in effective parameters and effective data; all seven constants are fitted jointly."""

    name: str = "repetition"
    formula: str = "L = E + A / N'^alpha + B / D'^beta, X' = U_X (1 + R_X (1 - exp(-(X / U_X - 1) / R_X)))"
    scope: str = "well-tuned runs on fresh and on repeated data of one source"
    source: str = "Muennighoff et al. 2023, arXiv 2305.16264, equation 11; fitted jointly instead of in two stages"
    parameters: tuple[Parameter, ...] = (
        FLOOR, coefficient("A", 500.0), coefficient("B", 1500.0), exponent("alpha"), exponent("beta"),
        Parameter("R_D", PUBLISHED_REPETITION[5], REPEATS_SD, "repeats"),
        Parameter("R_N", PUBLISHED_REPETITION[6], REPEATS_SD, "repeats", needed=False),
    )  # fmt: skip
    needs: tuple[str, ...] = ("params_non_embedding", "tokens", "unique_tokens")
    varied: tuple[str, ...] = ("params_non_embedding", "tokens")

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss (B, n) and its derivatives (B, n, 7)."""
        n, d = columns["params_non_embedding"], columns["tokens"]
        unique = np.minimum(columns["unique_tokens"], d)
        tokens = saturate(d, unique, values[:, 5:6])
        best = find_best_size(values, unique)
        params = saturate(n, np.minimum(best, n), values[:, 6:7])
        ln_loss, slopes, (by_params, by_tokens) = add_terms(values[:, :5], (params.effective, tokens.effective))
        through = by_params * np.where(best < n, params.by_ln_unique, 0.0)
        slopes = slopes + through[..., None] * _differentiate_best_size(values, unique, best)
        rates = np.stack([by_tokens * tokens.by_scale, by_params * params.by_scale], axis=-1)
        return ln_loss, np.concatenate([slopes, rates], axis=-1)

    def starts(self, columns: Columns, measured: FloatArray) -> FloatArray:
        """The base law on data discounted at several rates."""
        n, d, unique = (columns[name] for name in self.needs)
        unique = np.minimum(unique, d)
        found = []
        for rate in START_REPEATS:
            base = start_terms((n, saturate(d, unique, rate).effective), measured)
            found.append(np.hstack([base, np.tile((rate, PUBLISHED_REPETITION[6]), (len(base), 1))]))
        return np.concatenate(found)

    def weigh(self, observations: Observations) -> FloatArray:
        """Less weight for the small runs, which the law is expected to miss by its drift per e-fold of compute.

        Equal weights for runs too few to be resampled: perturbed data would take the weights for unequal noise, and
        the intervals would be too narrow. The mean is 1. Effect: benchmarks/fitting/repetition.
        """
        if len(np.unique(self.group(observations))) < RUNS_PER_PARAMETER * len(self.parameters):
            return np.ones(len(observations))
        misfit = expect_drift(observations.compute) ** 2
        weights = 1 / (EXPECTED_NOISE_LOG**2 + misfit)
        return np.asarray(weights / weights.mean())

    def admit(self, observations: Observations) -> Observations:
        """Tuned runs whose loss has not turned upwards; those left out are counted."""
        tuned = super().admit(observations)
        turned = find_turned(tuned)
        return tuned.select(~turned, "worse than a run with no more parameters, tokens and distinct tokens")

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Needs runs on fresh and on repeated data."""
        passes = observations.tokens / observations.column("unique_tokens")
        fresh = int((passes <= ONE_PASS).sum())
        for count, needed, kind in (
            (fresh, FEWEST_ONE_PASS, "within one pass over their data"),
            (len(passes) - fresh, FEWEST_REPEATED, "that repeat their data"),
        ):
            if count < needed:
                return Status.NOT_IDENTIFIED, f"{self.name} needs >= {needed} runs {kind} (have {count})"
        return super().refuse(observations)


def find_turned(observations: Observations) -> BoolArray:
    """Runs (n,) whose loss has risen again under too many passes or parameters; diverged runs are not judged."""
    scales = [observations.params_non_embedding, observations.tokens, observations.column("unique_tokens")]
    ln_loss = np.log(np.where(observations.diverged, np.inf, observations.loss))
    no_more = np.all([scale[None, :] <= scale[:, None] for scale in scales], axis=0)
    best = np.where(no_more, ln_loss[None, :], np.inf).min(axis=1)
    return np.asarray((ln_loss > best + WORSE_BY) & ~observations.diverged)


class Effective(NamedTuple):
    """An effective amount and the derivatives of its logarithm."""

    effective: FloatArray
    by_scale: FloatArray
    """By the scale R* of its decay."""
    by_ln_unique: FloatArray
    """By ln of the distinct amount, with the total held."""


def saturate(total: ArrayLike, unique: ArrayLike, scale: ArrayLike) -> Effective:
    """unique (1 + scale (1 - exp(-repeats / scale))), repeats = total / unique - 1: D' and N' of the law."""
    amount, once, rate = (np.asarray(item, dtype=np.float64) for item in (total, unique, scale))
    repeats = amount / once - 1
    left = np.exp(-repeats / rate)
    multiple = 1 - rate * np.expm1(-repeats / rate)
    by_scale = (1 - left - left * repeats / rate) / multiple
    return Effective(once * multiple, by_scale, 1 - left * (repeats + 1) / multiple)


def find_best_size(values: FloatArray, tokens: FloatArray) -> FloatArray:
    """N_opt(D) (B, n) of the base law for D fresh tokens (n,), for each row (E, A, B, alpha, beta, ...)."""
    a, b, alpha, beta = (values[:, j : j + 1] for j in range(1, 5))
    return np.asarray(np.exp((np.log(alpha * a / (beta * b)) + beta * np.log(tokens)) / alpha))


def _differentiate_best_size(values: FloatArray, tokens: FloatArray, best: FloatArray) -> FloatArray:
    """Derivatives (B, n, 5) of ln N_opt by E, A, B, alpha, beta."""
    a, b, alpha, beta = (values[:, j : j + 1] for j in range(1, 5))
    by_exponents = (1 / alpha - np.log(best)) / alpha, (np.log(tokens) - 1 / beta) / alpha
    slopes = [np.zeros_like(a), 1 / (alpha * a), -1 / (alpha * b), *by_exponents]
    return np.stack([np.broadcast_to(item, best.shape) for item in slopes], axis=-1)


class RepeatedOptimum(NamedTuple):
    """Where a budget is best spent when the data are limited; one entry per row of parameters."""

    params: FloatArray
    tokens: FloatArray
    passes: FloatArray
    loss: FloatArray


def find_repeated_optimum(values: FloatArray, compute_flops: float, unique_tokens: float) -> RepeatedOptimum:
    """N and D of least loss with 6 N D = C and `unique_tokens` distinct tokens, for each row (B, 7) of parameters.

    With U_D held there is no closed form: ln N is searched on a grid that narrows around its best point.
    """
    budget = compute_flops / FLOPS_PER_PARAM_TOKEN
    grid = np.linspace(-SEARCHED, SEARCHED, GRID)
    ln_n, width = np.full(len(values), 0.5 * np.log(budget)), 1.0
    for _ in range(NARROWINGS):
        sizes = np.exp(ln_n[:, None] + width * grid)
        columns = {"params_non_embedding": sizes, "tokens": budget / sizes, "unique_tokens": np.array([unique_tokens])}
        ln_loss = Repetition().evaluate(values, columns)[0]
        best = np.argmin(ln_loss, axis=1)
        ln_n = ln_n + width * grid[best]
        width *= 2 / GRID
    tokens = budget / np.exp(ln_n)
    return RepeatedOptimum(np.exp(ln_n), tokens, tokens / unique_tokens, np.exp(ln_loss.min(axis=1)))


@dataclass(frozen=True, kw_only=True)
class _Base:
    """Stage one as published: Chinchilla's law with one exponent for both terms."""

    parameters: tuple[Parameter, ...] = (FLOOR, coefficient("A", 500.0), coefficient("B", 1500.0), exponent("alpha"))

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        scales = (columns["params_non_embedding"], columns["tokens"])
        ln_loss, slopes, _ = add_terms(np.hstack([values, values[:, 3:]]), scales)
        return ln_loss, np.concatenate([slopes[..., :3], slopes[..., 3:].sum(axis=-1, keepdims=True)], axis=-1)


@dataclass(frozen=True, kw_only=True)
class _Decay:
    """Stage two as published: R*_D and R*_N above a base that is held."""

    base: FloatArray
    parameters: tuple[Parameter, ...] = Repetition().parameters[5:]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        whole = np.hstack([np.tile(self.base, (len(values), 1)), values])
        ln_loss, slopes = Repetition().evaluate(whole, columns)
        return ln_loss, slopes[..., 5:]


def fit_in_stages(observations: Observations) -> FloatArray:
    """(E, A, B, alpha, beta, R_D, R_N) by the published procedure, for comparison with the joint fit.

    The base from runs within one pass, with alpha = beta; then R_D and R_N from all runs; Huber's delta 1e-3 in both
    (Muennighoff et al. 2023, appendix A). No intervals: the second stage knows nothing of the first one's errors.
    """
    observations = observations.select(~observations.diverged, "diverged (the loss is not finite)")
    columns = {name: observations.column(name) for name in Repetition().needs}
    fresh = columns["tokens"] <= ONE_PASS * columns["unique_tokens"]
    noise, ln_loss = Noise(EXPECTED_NOISE_LOG, PUBLISHED_DELTA), np.log(observations.loss)
    once = {name: values[fresh] for name, values in columns.items()}
    starts = start_terms((once["params_non_embedding"], once["tokens"]), observations.loss[fresh])[:, :4]
    base = find_best(Task(_Base(), once, ln_loss[fresh], np.ones(int(fresh.sum())), noise), starts)
    whole = np.append(base, base[3])
    decays = np.array([(rate, PUBLISHED_REPETITION[6]) for rate in START_REPEATS])
    return np.append(whole, find_best(Task(_Decay(base=whole), columns, ln_loss, np.ones(len(ln_loss)), noise), decays))
