"""The vocabulary of search spaces: what a study may vary, and the values that a grid takes from it.

A number is given by a list of values, by real bounds on a logarithmic or linear axis, or by a named rule from another
number; a text by a list; a data mixture by a list or by bounds on the simplex.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from foretune.quantities import Quantity

ROUNDING = 1e-9
"""Part of a step by which a grid may miss its upper bound and still reach it: the rounding of doubles."""
SHARES_SUM_WITHIN = 1e-6
"""Most that the shares of a mixture may sum away from 1, as in `[data] mixture`."""


class _Vocabulary(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


class LogRange(_Vocabulary):
    """Real bounds on a logarithmic axis, with the factor between neighbours of a grid."""

    low: Quantity = Field(gt=0)
    """Smallest value, included; positive."""
    high: Quantity = Field(gt=0)
    """Largest value, included; above low. A grid reaches it only where it lies on the grid."""
    factor: Quantity = Field(default=2.0, gt=1)
    """Ratio between neighbouring values of a grid; above 1. Whole numbers take no values but these in any search."""
    scale: Literal["log"] = "log"
    """A logarithmic axis."""

    @model_validator(mode="after")
    def _check_order(self) -> LogRange:
        _check_bounds(self.low, self.high)
        return self

    def grid(self) -> tuple[float, ...]:
        """The values low, low x factor, ... up to high.

        >>> LogRange(low=1e-3, high=8e-3).grid()
        (0.001, 0.002, 0.004, 0.008)
        """
        steps = math.floor(math.log(self.high / self.low) / math.log(self.factor) + ROUNDING)
        return tuple(self.low * self.factor**step for step in range(steps + 1))

    def place(self, share: float) -> float:
        """The value at a share in [0, 1] of the way from low to high.

        >>> round(LogRange(low=1e-4, high=1e-2).place(0.5), 12)
        0.001
        """
        return _within(self.low * (self.high / self.low) ** share, self.low, self.high)


class LinearRange(_Vocabulary):
    """Real bounds on a linear axis, with the step between neighbours of a grid."""

    low: Quantity
    """Smallest value, included."""
    high: Quantity
    """Largest value, included; above low. A grid reaches it only where it lies on the grid."""
    step: Quantity = Field(default=0.0, ge=0)
    """Difference of neighbouring values of a grid; 0: whole numbers go by ones, others have no grid."""
    scale: Literal["linear"]
    """A linear axis."""

    @model_validator(mode="after")
    def _check_order(self) -> LinearRange:
        _check_bounds(self.low, self.high)
        return self

    def grid(self) -> tuple[float, ...]:
        """The values low, low + step, ... up to high; none without a step.

        >>> LinearRange(low=0.9, high=0.99, step=0.03, scale="linear").grid()
        (0.9, 0.93, 0.96, 0.99)
        """
        if not self.step:
            return ()
        steps = math.floor((self.high - self.low) / self.step + ROUNDING)
        return tuple(float(f"{self.low + self.step * step:.15g}") for step in range(steps + 1))

    def place(self, share: float) -> float:
        """The value at a share in [0, 1] of the way from low to high."""
        return _within(self.low + (self.high - self.low) * share, self.low, self.high)


class Choice(_Vocabulary):
    """A finite list of values, tried in the order given."""

    values: tuple[Any, ...] = Field(min_length=1)
    """The values; at least one, none twice."""

    @model_validator(mode="after")
    def _check_distinct(self) -> Choice:
        doubles = sorted({str(value) for value in self.values if self.values.count(value) > 1})
        if doubles:
            raise ValueError(f"values must differ, got {', '.join(doubles)} more than once; remove the repeats")
        return self

    @model_serializer
    def _as_list(self) -> list[Any]:
        """As the study file writes it."""
        return list(self.values)

    def grid(self) -> tuple[Any, ...]:
        """All values.

        >>> Choice(values=("mup", "standard")).grid()
        ('mup', 'standard')
        """
        return self.values


class Simplex(_Vocabulary):
    """All data mixtures: a share for every domain, together 1, each within its bounds."""

    minimum: dict[str, Quantity] = Field(default_factory=dict)
    """Smallest share of a domain, in [0, 1]; 0 for those that are not named."""
    maximum: dict[str, Quantity] = Field(default_factory=dict)
    """Largest share of a domain, in [0, 1]; 1 for those that are not named."""
    points: int = Field(default=0, ge=0, le=10_000)
    """Mixtures of a grid, spread evenly by a sequence that more points only prolong; 0: a search without a grid."""

    @model_validator(mode="after")
    def _check_shares(self) -> Simplex:
        for key, bounds in (("minimum", self.minimum), ("maximum", self.maximum)):
            for name, share in bounds.items():
                if not 0 <= share <= 1:
                    raise ValueError(f"{key}.{name}: a share must lie in [0, 1], got {share:g}")
        for name in self.minimum.keys() & self.maximum.keys():
            if self.minimum[name] > self.maximum[name]:
                raise ValueError(
                    f"minimum.{name}: must not be above the maximum {self.maximum[name]:g}, got "
                    f"{self.minimum[name]:g}; swap them"
                )
        if math.fsum(self.minimum.values()) > 1 + SHARES_SUM_WITHIN:
            raise ValueError(f"minimum: the shares sum to {math.fsum(self.minimum.values()):g}, above 1; lower some")
        return self

    def find_problems(self, domains: Sequence[str]) -> list[str]:
        """What speaks against these bounds over the domains of a corpus."""
        unknown = sorted({*self.minimum, *self.maximum} - set(domains))
        if unknown:
            key = "minimum" if unknown[0] in self.minimum else "maximum"
            return [f"{key}: no domain {unknown[0]!r} in the corpus; it has {', '.join(domains)}"]
        if len(domains) < 2:
            return [f"maximum: one domain ({', '.join(domains)}) leaves nothing to search; remove the mixture"]
        most = math.fsum(self.maximum.get(name, 1.0) for name in domains)
        return [f"maximum: the shares sum to {most:g}, below 1; raise some"] if most < 1 - SHARES_SUM_WITHIN else []

    def place(self, shares: Sequence[float], domains: Sequence[str]) -> dict[str, float]:
        """The mixture at a point of the unit cube with one dimension fewer than there are domains.

        A stick is broken domain by domain, each within what its bounds and those of the later ones leave: every mixture
        within the bounds is reached, none outside. Without bounds, a uniform point of the cube becomes a uniform point
        of the simplex (Devroye 1986, chapter XI, theorem 4.1: the first of k spacings has distribution function
        1 - (1 - x)^(k - 1)).

        >>> Simplex(minimum={"code": 0.5}).place([0.0, 1.0], ["code", "docs", "web"])
        {'code': 0.5, 'docs': 0.5, 'web': 0.0}
        """
        mixture, rest = {}, 1.0
        for place, (name, share) in enumerate(zip(domains[:-1], shares, strict=True)):
            later = domains[place + 1 :]
            low = max(self.minimum.get(name, 0.0), rest - math.fsum(self.maximum.get(other, 1.0) for other in later))
            high = min(self.maximum.get(name, 1.0), rest - math.fsum(self.minimum.get(other, 0.0) for other in later))
            broken = -math.expm1(math.log1p(-share) / len(later)) if share < 1 else 1.0
            mixture[name] = _within(low + (high - low) * broken, low, high)
            rest -= mixture[name]
        return {**mixture, domains[-1]: max(0.0, rest)}

    def grid(self) -> tuple[Any, ...]:
        """None before the domains are known; see `foretune.search.sampling.list_mixtures`."""
        return ()


class Derived(_Vocabulary):
    """A number that follows from another by a named rule: coefficient x (the other / reference) ^ exponent."""

    rule: Literal["power", "sqrt", "linear"]
    """`linear` has exponent 1, `sqrt` 0.5, and `power` the one given."""
    of: str
    """What it follows: another number of the space or of `[training]`, or a rung's `tokens`, `width`, `depth` or
    `params_non_embedding`."""
    coefficient: Quantity = Field(gt=0)
    """The value at the reference; positive."""
    reference: Quantity = Field(default=1.0, gt=0)
    """The value of the other at which it is the coefficient; positive."""
    exponent: Quantity = 0.0
    """Exponent of the rule `power`, which needs one; not 0."""

    @model_validator(mode="after")
    def _check_exponent(self) -> Derived:
        if (self.rule == "power") != bool(self.exponent):
            raise ValueError(f'exponent: is needed with rule = "power", and only then, got {self.exponent:g}')
        return self

    def follow(self, other: float) -> float:
        """The value for a value of what it follows.

        >>> Derived(rule="sqrt", of="batch_tokens", coefficient=0.004, reference=1024).follow(4096)
        0.008
        """
        return float(self.coefficient * (other / self.reference) ** self.power)

    @property
    def power(self) -> float:
        """The exponent of the rule, whatever its name."""
        return {"linear": 1.0, "sqrt": 0.5}.get(self.rule, self.exponent)

    def grid(self) -> tuple[Any, ...]:
        """None: it is not searched."""
        return ()


Dimension = Choice | LogRange | LinearRange | Simplex | Derived
"""What a space gives of one key."""


def check_mixture(shares: Mapping[str, float]) -> None:
    """Refuse shares that are no mixture."""
    if not shares or any(share < 0 or not math.isfinite(share) for share in shares.values()):
        raise ValueError(f"a mixture gives every domain a share that is not negative, got {dict(shares)}")
    total = math.fsum(shares.values())
    if abs(total - 1) > SHARES_SUM_WITHIN:
        fixed = ", ".join(f"{name} = {share / total:.6g}" for name, share in shares.items()) if total else "?"
        raise ValueError(f"mixture shares must sum to 1, got {total:g}; normalised: {fixed}")


def _check_bounds(low: float, high: float) -> None:
    if low >= high:
        remedy = "swap them" if low > high else f"take [{low:g}] for that value alone"
        raise ValueError(f"low must be below high, got low={low:g}, high={high:g}; {remedy}")


def _within(value: float, low: float, high: float) -> float:
    """The value, held in its bounds against the rounding of powers and sums."""
    return min(max(value, low), high)
