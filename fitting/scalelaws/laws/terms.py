"""A floor plus powers of effective scales: what several laws of the loss share.

Legend (shapes): B rows of parameters, n runs, T terms
    ln L = ln( E + sum_j A_j x_j^-alpha_j );  x_j (B, n) or (n,) is the j-th scale, which may depend on parameters
    p (B, n) share of a term in the loss
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scalelaws.engines.nonlinear import Parameter
from scalelaws.engines.powers import project_starts
from scalelaws.observations import FloatArray
from scalelaws.results import Status, find_horizon_path

START_EXPONENTS = np.array([0.15, 0.3, 0.5])
"""Starts of the exponents; published ones lie between (Hoffmann et al. 2022; Besiroglu et al. 2024)."""

FLOOR = Parameter("E", 1.8, 1.0, "nats")
"""Published floors of text lie in 1.69 to 1.87 (Hoffmann; Besiroglu; Muennighoff); the width, a factor of e, is an
assumption that other data and tokenizers need."""


def coefficient(name: str, centre: float) -> Parameter:
    """A coefficient: wide enough (a factor of e^5) that the exponent alone is held."""
    return Parameter(name, centre, 5.0, "nats")


def exponent(name: str, centre: float = 0.3) -> Parameter:
    """An exponent: 90 % of the prior lies within a factor of 2.3 of the centre (an assumption)."""
    return Parameter(name, centre, 0.5)


def refuse_path(name: str, params: FloatArray, tokens: FloatArray) -> tuple[Status, str] | None:
    """A refusal where tokens moved in step with parameters, so that the two terms cannot be told apart."""
    if find_horizon_path(params, tokens) is None:
        return None
    advice = "add horizons at one size, or fit power_law_compute along this path"
    return Status.NOT_IDENTIFIED, f"{name} cannot tell N from D: tokens moved in step with parameters; {advice}"


def add_terms(
    values: FloatArray, scales: Sequence[FloatArray]
) -> tuple[FloatArray, FloatArray, tuple[FloatArray, ...]]:
    """ln L (B, n), its derivatives (B, n, 2 T + 1), and those by each ln x_j (B, n).

    `values` (B, 2 T + 1) are E, the coefficients A_j, the exponents alpha_j.
    """
    count = len(scales)
    floor, factor, power = values[:, :1], values[:, 1 : 1 + count], values[:, 1 + count :]
    logs = [np.log(scale) for scale in scales]
    terms = [factor[:, j : j + 1] * np.exp(-power[:, j : j + 1] * logs[j]) for j in range(count)]
    total = floor + sum(terms)
    shares = [term / total for term in terms]
    slopes = [1 / total, *(p / factor[:, j : j + 1] for j, p in enumerate(shares))]
    slopes += [-p * ln_x for p, ln_x in zip(shares, logs, strict=True)]
    by_scale = tuple(-power[:, j : j + 1] * p for j, p in enumerate(shares))
    return np.log(total), np.stack(slopes, axis=-1), by_scale


def start_terms(scales: Sequence[FloatArray], loss: FloatArray) -> FloatArray:
    """Starts (3^T, 2 T + 1): the exponents on a grid, floor and coefficients by linear least squares."""
    logs = np.log(np.stack(scales, axis=1))
    centre = logs.mean(axis=0)
    found = project_starts(logs - centre, np.log(loss), np.ones(len(loss)), START_EXPONENTS)
    count = len(scales)
    powers = found[:, 1 + count :]
    return np.concatenate([np.exp(found[:, :1]), np.exp(found[:, 1 : 1 + count] + powers * centre), powers], axis=1)
