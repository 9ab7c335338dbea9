"""How parameters are counted, and how far the compute-optimal split moves with it.

Legend: N non-embedding parameters, l layers, d width, V vocabulary, C training FLOPs, D tokens, a = d / l aspect ratio.
    non_embedding  N = 12 l d^2                 the matrices of the layers (Kaplan et al. 2020, table 1)
    with_head      N + V d                      what costs FLOPs: the last layer multiplies, looking up does not (Porian
                                                et al. 2024, section 3.1)
    total          N + V d, or N + 2 V d untied all that is stored (Hoffmann et al. 2022 count so)
The same runs, counted with and without V d, give exponents of N*(C) that differ most where V d is not small against N:
that is the larger part of the way from Kaplan's law to Chinchilla's (Pearce and Song 2024; Porian et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from scalelaws.estimation import fit
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN, FloatArray, Observations, ParamsConvention
from scalelaws.results import Estimate, Fit
from scalelaws.splits.size_laws import SizeLaw, derive_size_law

if TYPE_CHECKING:
    import pandas as pd

Counting = Literal["non_embedding", "with_head", "total"]

MATRICES = 12.0
"""Parameters of a layer over width squared: 4 of attention, 8 of feed-forward of ratio 4 (Kaplan et al. 2020)."""
ROUNDS = 60
"""Halvings of the bracket of ln width: 1e-16 of it."""
CONVENTIONS: Mapping[Counting, ParamsConvention] = {
    "non_embedding": "non_embedding", "with_head": "unspecified", "total": "total",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What ties the three counts together: the vocabulary, and how width goes with size."""

    vocabulary: int
    """Rows of the embedding."""
    aspect: float = 100.0
    """Width over layers. Assumption where it is not given: GPT-3 spans 64 to 128 (Brown et al. 2020, table 2.1)."""
    tied: bool = True
    """Whether embedding and last layer are one matrix."""

    def __post_init__(self) -> None:
        """Refuses what is not positive."""
        for name in ("vocabulary", "aspect"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")

    def tables(self, counting: Counting) -> int:
        """How many V x d matrices the count holds."""
        if counting not in get_args(Counting):
            raise ValueError(f"parameters are counted as {', '.join(get_args(Counting))}; got {counting!r}")
        return {"non_embedding": 0, "with_head": 1, "total": 1 if self.tied else 2}[counting]

    def width(self, params_non_embedding: FloatArray) -> FloatArray:
        """d of a model whose layers hold N parameters: N = 12 d^3 / aspect."""
        return np.asarray((params_non_embedding * self.aspect / MATRICES) ** (1 / 3))


def recount(
    params: FloatArray | float, given: Counting, wanted: Counting, shape: Shape, *, width: FloatArray | None = None
) -> FloatArray:
    """Parameters counted in another way, (n,); exact where the widths are given, else by the shape's aspect ratio.

    Raises ValueError where a count is smaller than its own embedding.
    """
    counts = np.atleast_1d(np.asarray(params, dtype=np.float64))
    if not (np.isfinite(counts) & (counts > 0)).all():
        raise ValueError(f"params must be positive and finite; got {counts[~(np.isfinite(counts) & (counts > 0))][0]}")
    if width is None:
        layers = _strip(counts, shape.tables(given) * shape.vocabulary, shape)
        return layers + shape.tables(wanted) * shape.vocabulary * shape.width(layers)
    rows = shape.vocabulary * np.asarray(width, dtype=np.float64)
    layers = counts - shape.tables(given) * rows
    if not (layers > 0).all():
        row = int(np.argmin(layers))
        raise ValueError(f"row {row}: {counts[row]:.4g} parameters are fewer than the embedding's {rows[row]:.4g}")
    return np.asarray(layers + shape.tables(wanted) * rows)


def _strip(counts: FloatArray, rows: int, shape: Shape) -> FloatArray:
    """N with N + rows width(N) = counts, by halving in ln N: the left side grows with N."""
    if rows == 0:
        return counts
    low, high = np.full_like(counts, np.log(1e-6)), np.log(counts)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        layers = np.exp(middle)
        over = layers + rows * shape.width(layers) > counts
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return np.asarray(np.exp((low + high) / 2))


@dataclass(frozen=True, eq=False)
class CountedSplit:
    """The compute-optimal split of one budget under one way of counting."""

    counting: Counting
    compute_flops: float
    """6 x parameters x tokens, the parameters counted this way."""
    exponent: Estimate
    """Of N*(C), both counted this way."""
    params: Estimate
    """N*, counted this way."""
    params_non_embedding: float
    """The same model, counted without embeddings: what the rows of a comparison have in common."""
    tokens: float
    tokens_per_param: float
    """Tokens per non-embedding parameter."""
    fit: Fit


def compare_countings(
    observations: Observations,
    given: Counting,
    compute_flops: float,
    shape: Shape,
    *,
    bootstrap: int = 400,
    level: float = 0.9,
    seed: int = 0,
) -> tuple[CountedSplit, ...]:
    """One budget split by Chinchilla fitted to the same runs under each way of counting parameters.

    `given` says how the runs count. Widths are read from the runs where they have them. The budget means 6 x counted
    parameters x tokens in each row, so the rows also show what the counting does to the FLOPs. Raises FitError where a
    fit fails.
    """
    found = []
    for counting in get_args(Counting):
        counted = recount_runs(observations, given, counting, shape)
        fitted = fit("chinchilla", counted, objective="map", bootstrap=bootstrap, level=level, seed=seed)
        found.append(_split(fitted, derive_size_law(fitted), counting, compute_flops, shape))
    return tuple(found)


def recount_runs(observations: Observations, given: Counting, wanted: Counting, shape: Shape) -> Observations:
    """The runs with their parameters counted in another way, and their compute as 6 x these x tokens."""
    params = recount(observations.params_non_embedding, given, wanted, shape, width=observations.width)
    return replace(observations, params_non_embedding=params, compute_flops=None, params_convention=CONVENTIONS[wanted])


def _split(fitted: Fit, law: SizeLaw, counting: Counting, compute_flops: float, shape: Shape) -> CountedSplit:
    params = law.predict_mean(compute_flops)
    tokens = compute_flops / FLOPS_PER_PARAM_TOKEN / params.value
    common = float(recount(params.value, counting, "non_embedding", shape)[0])
    return CountedSplit(counting, compute_flops, law.exponent, params, common, tokens, tokens / common, fitted)


def tabulate_countings(splits: tuple[CountedSplit, ...]) -> pd.DataFrame:
    """One row for each way of counting."""
    import pandas as pd

    names = ("counting", "compute_flops", "params_non_embedding", "tokens", "tokens_per_param")
    rows = [{name: getattr(split, name) for name in names} for split in splits]
    for row, split in zip(rows, splits, strict=True):
        row["params"], row["exponent"] = split.params.value, split.exponent.value
        row["exponent_low"], row["exponent_high"] = split.exponent.low, split.exponent.high
    return pd.DataFrame(rows)
