"""The three ways to a compute-optimal size, side by side: where they agree, and from where on they do not.

Legend: N* optimal parameters, C training FLOPs, a exponent of N*(C). The approaches are those of Hoffmann et al. 2022:
1 the envelope of training curves, 2 the optimum of each isoFLOP curve, 3 a law of the loss in parameters and tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalelaws.estimation import fit
from scalelaws.forecasting import forecast, measure_extrapolation
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, Observations
from scalelaws.results import Allocation, Estimate, Fit, FitError, Target
from scalelaws.splits.envelopes import trace_envelope
from scalelaws.splits.isoflops import Isoflops, find_isoflop_optima
from scalelaws.splits.size_laws import SizeLaw, combine_size_laws, derive_size_law, fit_size_law

if TYPE_CHECKING:
    import pandas as pd

FURTHEST = 1e4
"""How far beyond the largest budget the approaches are compared, as a factor of compute."""


@dataclass(frozen=True, eq=False)
class Approaches:
    """What each approach says, and how they compare."""

    laws: tuple[SizeLaw, ...]
    """Those that the runs could hold; the last is the mean of approaches 2 and 3 where both could be had."""
    isoflops: Isoflops | None
    loss_fit: Fit | None
    sentences: tuple[str, ...]
    """Who agrees with whom, from where on they differ, and why an approach is missing."""
    flops_per_pair: float = FLOPS_PER_PARAM_TOKEN
    """Training FLOPs per parameter and token of the runs, 6 unless they were counted otherwise."""

    @property
    def best(self) -> SizeLaw:
        """The one to use: the mean of approaches 2 and 3, or whichever there is."""
        return self.laws[-1]

    @property
    def holds_profiles(self) -> bool:
        """Whether the runs hold enough isoFLOP curves for approach 2."""
        return any(law.approach.startswith("isoflop") for law in self.laws)

    def allocate(self, compute_flops: float, loss_fit: Fit) -> Allocation:
        """The split of a budget, counted as the runs count theirs, by `best`; its loss is what `loss_fit` says of it.

        The interval of N* is for the optimum that one would measure there. Raises FitError for a fit that is not ok.
        """
        if not (np.isfinite(compute_flops) and compute_flops > 0):
            raise ValueError(f"compute_flops must be positive and finite; got {compute_flops}")
        size, pairs = self.best.predict(compute_flops), compute_flops / self.flops_per_pair
        target = Target(size.value, pairs / size.value, compute_flops=compute_flops)
        said = forecast(loss_fit, target)
        counted = "6ND" if abs(self.flops_per_pair - FLOPS_PER_PARAM_TOKEN) < 0.01 else f"{self.flops_per_pair:.4g}ND"
        return Allocation(
            compute_flops, size, _invert(size, pairs, 1, "tokens"), _invert(size, pairs, 2, ""),
            said.loss or Estimate(np.nan, unit="nats"), self.best.level,
            measure_extrapolation(loss_fit.evidence, target), f"compare_approaches: {self.best.approach}",
            loss_fit.status, "; ".join(self.sentences), {**loss_fit.scope, "compute_convention": counted},
            said.warnings,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The approaches as plain data; the last one is the one to use."""
        optima = () if self.isoflops is None else self.isoflops.optima
        return {
            "best": self.best.approach,
            "approaches": [_describe(law) for law in self.laws],
            "optima": [
                {"compute_flops": item.compute_flops, "params": item.params.to_dict(), "status": item.message}
                for item in optima
            ],
            "loss_fit": None if self.loss_fit is None else self.loss_fit.to_dict(),
            "flops_per_pair": self.flops_per_pair,
            "sentences": list(self.sentences),
        }

    def table(self, *compute_flops: float) -> pd.DataFrame:
        """One row per approach and budget; the interval of N* is for the optimum that one would measure there."""
        import pandas as pd

        rows = []
        for law in self.laws:
            for compute in compute_flops:
                size, a = law.predict(compute), law.exponent
                tokens = compute / self.flops_per_pair / size.value
                rows.append((law.approach, compute, a.value, a.low, a.high, size.value, size.low, size.high, tokens,
                             tokens / size.value))  # fmt: skip
        names = ("approach", "compute_flops", "exponent", "exponent_low", "exponent_high", "params", "params_low",
                 "params_high", "tokens", "tokens_per_param")  # fmt: skip
        return pd.DataFrame(rows, columns=list(names))


def _describe(law: SizeLaw) -> dict[str, Any]:
    return {
        "approach": law.approach,
        "exponent": law.exponent.to_dict(),
        "coefficient": law.coefficient.to_dict(),
        "scatter_log": law.scatter_log,
        "compute_range": list(law.compute_range),
        "level": law.level,
        "params_convention": law.params_convention,
    }


def _invert(size: Estimate, pairs: float, power: int, unit: str) -> Estimate:
    """N D over a power of N: tokens, or tokens per parameter."""
    low, high = (None if bound is None else pairs / bound**power for bound in (size.high, size.low))
    return Estimate(pairs / size.value**power, low, high, unit)


def compare_approaches(
    observations: Observations,
    *,
    curves: Observations | None = None,
    draws: int = 400,
    level: float = 0.9,
    seed: int = 0,
) -> Approaches:
    """All three approaches on the same runs, and the mean of the second and the third.

    `curves` holds the points of training curves for approach 1 (runs of one label are one curve); without it the runs
    of one size at rising horizons serve. Approach 3 is the posterior mode with equal weights on the runs that approach
    2 kept: for N*, unlike for the loss, the sides of a valley say as much as its floor. Raises ValueError, with every
    reason, where no approach can be had.
    """
    missing: list[str] = []
    envelope = _try_envelope(observations if curves is None else curves, missing, draws, level, seed)
    isoflops, optima = _try_isoflops(observations, missing, draws, level, seed)
    loss_fit = _try_law(observations if isoflops is None else isoflops.runs, missing, draws, level, seed)
    per_pair = float(np.median(observations.compute / (observations.params_non_embedding * observations.tokens)))
    third = None if loss_fit is None else derive_size_law(loss_fit, flops_per_pair=per_pair)
    laws = [law for law in (envelope, optima, third) if law is not None]
    if not laws:
        raise ValueError("no approach to the optimal size can be had from these runs: " + "; ".join(missing))
    sentences = [_compare(one, other) for i, one in enumerate(laws) for other in laws[i + 1 :]]
    if optima is not None and third is not None:
        laws.append(combine_size_laws(optima, third, seed=seed))
    return Approaches(tuple(laws), isoflops, loss_fit, (*sentences, *missing), per_pair)


def _try_envelope(curves: Observations, missing: list[str], draws: int, level: float, seed: int) -> SizeLaw | None:
    try:
        return trace_envelope(curves, draws=draws, level=level, seed=seed)[0]
    except ValueError as error:
        missing.append(f"no envelope: {error}")
        return None


def _try_isoflops(
    observations: Observations, missing: list[str], draws: int, level: float, seed: int
) -> tuple[Isoflops | None, SizeLaw | None]:
    try:
        isoflops = find_isoflop_optima(observations, draws=draws, level=level, seed=seed)
    except ValueError as error:
        missing.append(f"no isoFLOP curves: {error}")
        return None, None
    try:
        return isoflops, fit_size_law(isoflops, seed=seed)
    except ValueError as error:
        missing.append(f"no law of isoFLOP optima: {error}")
        return isoflops, None


def _try_law(observations: Observations, missing: list[str], draws: int, level: float, seed: int) -> Fit | None:
    try:
        return fit("chinchilla", observations, objective="map", bootstrap=draws, level=level, seed=seed)
    except FitError as error:
        missing.append(f"no law of the loss: {error.message}")
        return None


def _compare(one: SizeLaw, other: SizeLaw) -> str:
    """Whether two exponents agree, and the least compute at which the intervals of N* lie apart."""
    named = " and ".join(f"{law.approach} (a = {_show(law)})" for law in (one, other))
    gap = np.subtract.outer(one.draws[:, 1], other.draws[:, 1]).ravel()
    tail = (1 - one.level) / 2
    low, high = np.quantile(gap, [tail, 1 - tail])
    verdict = "agree on the exponent" if low <= 0 <= high else "disagree on the exponent"
    return f"{named} {verdict}; their intervals of N* {_say_parting(one, other)}"


def _show(law: SizeLaw) -> str:
    a = law.exponent
    return f"{a.value:.3f}, {a.low:.3f} to {a.high:.3f}"


def _say_parting(one: SizeLaw, other: SizeLaw) -> str:
    """Where the intervals of N* do not meet, from the smallest budget up to far beyond the runs."""
    low = min(one.compute_range[0], other.compute_range[0])
    high = FURTHEST * max(one.compute_range[1], other.compute_range[1])
    line = np.geomspace(low, high, 80)
    apart = np.flatnonzero([not _meet(one.predict_mean(c), other.predict_mean(c)) for c in line.tolist()])
    if len(apart) == 0:
        return "meet throughout"
    spans = np.split(apart, np.flatnonzero(np.diff(apart) > 1) + 1)
    told = [f"{line[span[0]]:.2g} to {line[span[-1]]:.2g} FLOPs" for span in spans]
    if apart[-1] == len(line) - 1:
        told[-1] = f"{line[spans[-1][0]]:.2g} FLOPs on"
    return "lie apart from " + " and from ".join(told)


def _meet(first: Estimate, second: Estimate) -> bool:
    assert first.low is not None and first.high is not None  # noqa: PT018
    assert second.low is not None and second.high is not None  # noqa: PT018
    return first.low <= second.high and second.low <= first.high
