"""The law of steps, sizes and mixtures at once: each part of a Chinchilla law is log-linear in the shares.

Legend: L loss, nats; r_j share of domain j; N parameters; D tokens; c floor, nats; alpha, beta exponents.
    k_j, A_j, B_j   the three excesses after training on domain j alone, nats: what no scale removes, what remains of
                    the size at 1e8 parameters, what remains of the horizon at 1e9 tokens
Ye et al. fit the curves over steps, then over sizes, then the mixing law to what these extrapolate to, with exponents
shared by all mixtures. Here the same three laws are one formula and one fit, so that the error of each step is seen by
the others and the draws carry all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.mixture import EXPONENT, EXPONENT_SD, PARAMS_UNIT, TOKENS_UNIT, MixtureLaw, average_logs
from scalelaws.observations import FloatArray, Observations, count_levels
from scalelaws.results import Status

SCALES: tuple[tuple[str, float], ...] = (("params_non_embedding", PARAMS_UNIT), ("tokens", TOKENS_UNIT))
SCALE_SHARE = 0.2
"""Expected share of the lowest loss that size, and horizon, still leave at their units (an assumption; wide prior)."""


@dataclass(frozen=True, kw_only=True)
class ScaledMixtureLaw(MixtureLaw):
    """A law of mixture, size and horizon; checkpoints of one run are resampled together."""

    one_scale: bool = False
    needs: tuple[str, ...] = ("params_non_embedding", "tokens", "mixture")

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Beside the usual reasons: one size, or fewer than three horizons."""
        for name, fewest in (("params_non_embedding", 2), ("tokens", 3)):
            levels = count_levels(observations.column(name))
            if levels < fewest:
                return Status.TOO_FEW_SCALES, f"{self.name} needs >= {fewest} levels of {name} (have {levels})"
        return super().refuse(observations)

    def group(self, observations: Observations) -> FloatArray:
        """Runs of one size and mixture: the checkpoints of a run err together."""
        return self.number(observations, ("params_non_embedding",))

    def describe_exponents(self) -> tuple[Parameter, ...]:
        """alpha and beta."""
        return tuple(Parameter(name, EXPONENT, EXPONENT_SD, needed=False) for name in ("alpha", "beta"))

    def starts(self, columns: Columns, loss: FloatArray) -> FloatArray:
        """The centres of the priors, and steeper curves over a higher floor."""
        centre = np.array([item.centre for item in self.parameters])
        steep = centre.copy()
        steep[0], steep[-2:] = 1.2 * centre[0], 2 * centre[-2:]
        return np.stack([centre, steep])


def raise_scale(columns: Columns, scale: tuple[str, float], exponent: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(x / unit)^-exponent (B, n) and ln(x / unit) (n,)."""
    logs = np.log(columns[scale[0]] / scale[1])
    return np.exp(-exponent * logs), logs


@dataclass(frozen=True, kw_only=True)
class NestedMixture(ScaledMixtureLaw):
    """Floor, size term and horizon term each log-linear in the shares, exponents shared by all mixtures."""

    name: str = "nested_mixture"
    formula: str = "L = c + prod_j k_j^r_j + prod_j A_j^r_j (N / 1e8)^-alpha + prod_j B_j^r_j (D / 1e9)^-beta"
    scope: str = "one validation loss over mixtures, sizes and horizons (checkpoints of a constant learning rate)"
    source: str = "Ye et al. 2024 (2403.16952), section 4 (nested scaling laws), as one formula"

    def describe(self) -> tuple[Parameter, ...]:
        """c, k_j, A_j, B_j, alpha, beta."""
        parts = [item for symbol in "AB" for item in self.describe_excess(symbol, SCALE_SHARE)]
        return (self.describe_floor(), *self.describe_excess("k", SCALE_SHARE), *parts, *self.describe_exponents())

    def _split(self, values: FloatArray) -> list[FloatArray]:
        d = len(self.domains)
        return [values[:, 1 + part * d : 1 + (part + 1) * d] for part in range(3)]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss and its derivatives by the parameters."""
        shares, parts = self.read_shares(columns), self._split(values)
        loss, slopes = average_logs(parts[0], shares)
        loss, found, exponents = loss + values[:, :1], [np.ones((*loss.shape, 1)), slopes], []
        for part, scale, exponent in zip(parts[1:], SCALES, (values[:, -2:-1], values[:, -1:]), strict=True):
            power, logs = raise_scale(columns, scale, exponent)
            height, slopes = average_logs(part, shares)
            loss = loss + height * power
            found.append(slopes * power[..., None])
            exponents.append((-height * power * logs)[..., None])
        return np.log(loss), np.concatenate([*found, *exponents], axis=2) / loss[..., None]

    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the shares."""
        shares, parts = self.read_shares(columns), self._split(values)
        exponents = (values[:, -2:-1], values[:, -1:])
        powers = [raise_scale(columns, scale, exponent)[0] for scale, exponent in zip(SCALES, exponents, strict=True)]
        slope = np.zeros((len(values), *shares.shape))
        for part, power in zip(parts, [np.ones_like(powers[0]), *powers], strict=True):
            slope += (average_logs(part, shares)[0] * power)[..., None] * np.log(part)[:, None, :]
        return np.asarray(slope / np.exp(self.evaluate(values, columns)[0])[..., None])
