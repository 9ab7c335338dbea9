"""Laws of mixture, size and horizon in which the useful data of each domain add up.

Legend: L loss, nats; r_j share of domain j; N parameters; D tokens; E floor, nats; alpha, beta exponents.
    C_j, g_j   worth of domain j for the loss that no scale removes, 1/nats, and the exponent of its share
    A, B       what remains of the size at 1e8 parameters, and of the horizon at 1e9 tokens, nats
    A_j, B_j   the same after training on domain j alone, each to the power 1 / gA (1 / gB): shares act on their sum
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.mixture import EXCESS_SD
from scalelaws.laws.nested_mixture import SCALE_SHARE, SCALES, ScaledMixtureLaw, raise_scale
from scalelaws.observations import FloatArray

SHARE_EXPONENT, SHARE_EXPONENT_SD = 0.5, 0.7
"""Prior of the exponents of shares: 90 % lie between .16 and 1.6 (an assumption)."""
SUM_EXPONENT_SD = 0.5
"""Prior of gA and gB around 1 (an assumption): where the A_j are equal the runs cannot tell gA from them."""
SMALLEST_SHARE = 1e-9
"""Below this the slope of a power of a share is taken at this share: it is infinite at 0."""


@dataclass(frozen=True, kw_only=True)
class AdditiveMixture(ScaledMixtureLaw):
    """The best mixture does not depend on size and horizon."""

    name: str = "additive_mixture"
    formula: str = "L = E + 1 / sum_j C_j r_j^g_j + A (N / 1e8)^-alpha + B (D / 1e9)^-beta"
    scope: str = "one validation loss over mixtures, sizes and horizons"
    source: str = "Shukor et al. 2025 (2507.09404), additive law"

    def describe(self) -> tuple[Parameter, ...]:
        """E, C_j, g_j, A, B, alpha, beta."""
        return (self.describe_floor("E"), *self._describe_worth(), *self._describe_scales(), *self.describe_exponents())

    def _describe_worth(self) -> tuple[Parameter, ...]:
        worth = 1 / (SCALE_SHARE * self.lowest_loss)
        return (
            *(Parameter(name, worth, EXCESS_SD, "1/nats", needed=False) for name in self.name_parameters("C")),
            *(Parameter(name, SHARE_EXPONENT, SHARE_EXPONENT_SD, needed=False) for name in self.name_parameters("g")),
        )

    def _describe_scales(self) -> tuple[Parameter, ...]:
        centre = SCALE_SHARE * self.lowest_loss
        return tuple(Parameter(name, centre, EXCESS_SD, "nats", needed=False) for name in "AB")

    def _take_block(self, values: FloatArray, which: int) -> FloatArray:
        """The parameters of the size term (0) or the horizon term (1), without its exponent."""
        before = 1 + 2 * len(self.domains)
        width = (values.shape[1] - before - len(SCALES)) // len(SCALES)
        return values[:, before + which * width : before + (which + 1) * width]

    def _measure_height(self, block: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Coefficient of a term (B, n), and its derivatives by the parameters of its block (B, n, .)."""
        height = np.broadcast_to(block, (len(block), len(shares)))
        return height, np.ones((*height.shape, 1))

    def _turn_height(self, block: FloatArray, shares: FloatArray) -> FloatArray:
        """Derivatives of that coefficient by the shares (B, n, domains)."""
        return np.zeros((len(block), *shares.shape))

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss and its derivatives by the parameters."""
        shares, d = self.read_shares(columns), len(self.domains)
        worth, powers, logs = self._weigh(values, shares)
        bent = worth[..., None] ** -2
        found = [np.ones_like(bent), -bent * powers, -bent * values[:, None, 1 : 1 + d] * powers * logs]
        loss, exponents = values[:, :1] + 1 / worth, []
        for which, scale in enumerate(SCALES):
            power, logs = raise_scale(columns, scale, values[:, which - 2][:, None])
            height, slopes = self._measure_height(self._take_block(values, which), shares)
            loss = loss + height * power
            found.append(slopes * power[..., None])
            exponents.append((-height * power * logs)[..., None])
        return np.log(loss), np.concatenate([*found, *exponents], axis=2) / loss[..., None]

    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the shares."""
        shares, d = self.read_shares(columns), len(self.domains)
        worth, powers, _ = self._weigh(values, shares)
        c, g = values[:, None, 1 : 1 + d], values[:, None, 1 + d : 1 + 2 * d]
        floor = np.maximum(shares, SMALLEST_SHARE)
        slope = -(worth[..., None] ** -2) * c * g * np.where(shares > floor / 2, powers, floor**g) / floor
        for which, scale in enumerate(SCALES):
            power, _ = raise_scale(columns, scale, values[:, which - 2][:, None])
            slope = slope + self._turn_height(self._take_block(values, which), shares) * power[..., None]
        return np.asarray(slope / np.exp(self.evaluate(values, columns)[0])[..., None])

    def _weigh(self, values: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """sum_j C_j r_j^g_j (B, n), the powers (B, n, d), and ln r_j (n, d), 0 for an unused domain."""
        d = len(self.domains)
        logs = np.log(np.where(shares > 0, shares, 1.0))
        powers = np.where(shares > 0, np.exp(values[:, None, 1 + d : 1 + 2 * d] * logs), 0.0)
        return np.einsum("bnd,bd->bn", powers, values[:, 1 : 1 + d]), powers, logs


@dataclass(frozen=True, kw_only=True)
class JointMixture(AdditiveMixture):
    """The size and horizon terms move with the mixture too, so the best mixture moves with the scale."""

    name: str = "joint_mixture"
    formula: str = (
        "L = E + 1 / sum_j C_j r_j^g_j + (sum_j A_j r_j)^gA (N / 1e8)^-alpha + (sum_j B_j r_j)^gB (D / 1e9)^-beta"
    )
    source: str = "Shukor et al. 2025 (2507.09404), joint law; the form of A(r), B(r) as recalled, an assumption"

    def _describe_scales(self) -> tuple[Parameter, ...]:
        centre, blocks = SCALE_SHARE * self.lowest_loss, []
        for symbol in "AB":
            names = self.name_parameters(symbol)
            blocks += [Parameter(name, centre, EXCESS_SD, "nats^(1/g)", needed=False) for name in names]
            blocks.append(Parameter(f"g{symbol}", 1.0, SUM_EXPONENT_SD, kind="real", needed=False))
        return tuple(blocks)

    def _measure_height(self, block: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(sum_j A_j r_j)^gA, and its derivatives by the A_j and gA."""
        total, g = block[:, :-1] @ shares.T, block[:, -1:]
        height = total**g
        slopes = (g * height / total)[..., None] * shares
        return height, np.concatenate([slopes, (height * np.log(total))[..., None]], axis=2)

    def _turn_height(self, block: FloatArray, shares: FloatArray) -> FloatArray:
        """Derivatives of that coefficient by the shares."""
        total, g = block[:, :-1] @ shares.T, block[:, -1:]
        return np.asarray((g * total ** (g - 1))[..., None] * block[:, None, :-1])
