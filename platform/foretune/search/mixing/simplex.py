"""The mixtures that are allowed: shares that add up to 1, each within its bounds, under linear limits if there are any.

Legend: d domains, n mixtures, q limits
    low <= x <= high (d,)     sum x = 1     limits x <= ceilings  (q, d), (q,)
Samples come from hit-and-run chains along pairs of domains (Smith 1984), which need no rejection: at 17 domains under
caps nearly every Dirichlet draw is outside of the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretune.errors import InputError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
SLACK = 1e-9
"""Rounding that bounds may miss a sum of 1 by, and a mixture a limit."""
SWEEPS = 6
"""Steps of a chain, in domains: each moves tokens from one domain to another. At 17 domains the spread is then within
1 % of the uniform law's, and within 11 % after twice as many steps in directions of all domains at once."""
BISECTIONS = 60
"""Halvings of the shift in a projection: its error is 2^-60."""


@dataclass(frozen=True, eq=False)
class ShareRegion:
    """A bounded simplex, perhaps with linear limits. `build_region` checks that it is not empty."""

    low: FloatArray
    """(d,) lowest share of each domain."""
    high: FloatArray
    """(d,) highest share of each domain."""
    limits: FloatArray
    """(q, d) coefficients of linear limits; q may be 0."""
    ceilings: FloatArray
    """(q,) what `limits @ shares` may be at most."""
    centre: FloatArray
    """(d,) a mixture inside, as far from the nearest bound and limit as can be."""

    def holds(self, shares: FloatArray) -> BoolArray:
        """Whether mixtures (n, d) are allowed."""
        within = ((shares >= self.low - SLACK) & (shares <= self.high + SLACK)).all(axis=1)
        summed = np.abs(shares.sum(axis=1) - 1) <= 1e-6
        return np.asarray(within & summed & (shares @ self.limits.T <= self.ceilings + SLACK).all(axis=1))

    def project(self, shares: FloatArray) -> FloatArray:
        """The nearest mixtures within the bounds (n, d); under limits, pulled towards the centre until they hold."""
        reach = 1.0 + np.abs(shares).max(axis=1, keepdims=True)
        below, above = -reach, reach
        for _ in range(BISECTIONS):
            middle = (below + above) / 2
            short = np.clip(shares + middle, self.low, self.high).sum(axis=1, keepdims=True) < 1
            below, above = np.where(short, middle, below), np.where(short, above, middle)
        return self._pull(np.clip(shares + above, self.low, self.high))

    def _pull(self, shares: FloatArray) -> FloatArray:
        """The farthest mixtures that keep the limits on the way from the centre to mixtures within the bounds."""
        if not len(self.limits):
            return shares
        room = self.ceilings - self.limits @ self.centre
        rise = (shares - self.centre) @ self.limits.T
        steps = np.where(rise > room, room / np.where(rise > room, rise, 1.0), 1.0).min(axis=1, keepdims=True)
        return np.asarray(self.centre + steps * (shares - self.centre))

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Mixtures (count, d), uniform in the region: one hit-and-run chain each."""
        free = self.high - self.low > SLACK
        if free.sum() < 2:
            return np.tile(self.centre, (count, 1))
        shares = self.project(self.low + (1 - self.low.sum()) * rng.dirichlet(np.ones(len(free)), count))
        for _ in range(SWEEPS * len(free)):
            pairs = np.argsort(rng.random(shares.shape) - free, axis=1)[:, :2]
            directions = np.zeros_like(shares)
            np.put_along_axis(directions, pairs, np.array([[1.0, -1.0]]), axis=1)
            back, forth = self._measure_chord(shares, directions)
            shares = shares + rng.uniform(back, forth)[:, None] * directions
        return self.project(shares)

    def _measure_chord(self, shares: FloatArray, directions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """How far (n,) one may go against and along directions (n, d) from mixtures inside."""
        one = np.eye(len(self.low))
        walls = np.concatenate([one, -one, self.limits])
        room = np.concatenate([self.high, -self.low, self.ceilings]) - shares @ walls.T
        speed = directions @ walls.T
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.maximum(room, 0.0) / speed
        forth = np.where(speed > 0, times, np.inf).min(axis=1)
        back = np.where(speed < 0, times, -np.inf).max(axis=1)
        return back, forth

    def draw_vertices(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Corners (count, d) of the bounds: domains in random order filled to their maximum until the sum is 1."""
        orders = np.argsort(rng.random((count, len(self.low))), axis=1)
        room = np.take_along_axis(np.tile(self.high - self.low, (count, 1)), orders, axis=1)
        filled = np.minimum(np.cumsum(room, axis=1), 1 - self.low.sum())
        added = np.diff(filled, axis=1, prepend=0.0)
        shares = np.tile(self.low, (count, 1))
        np.put_along_axis(shares, orders, np.take_along_axis(shares, orders, axis=1) + added, axis=1)
        return self._pull(shares)


def build_region(
    domains: tuple[str, ...],
    minimum: Mapping[str, float] | None = None,
    maximum: Mapping[str, float] | None = None,
    limits: tuple[tuple[Mapping[str, float], float], ...] = (),
) -> ShareRegion:
    """The region of the mixtures of `domains`; shares that are not named may be anything from 0 to 1.

    Each of `limits` is (coefficient by domain, ceiling): the weighted sum of the shares stays at or below the ceiling.
    Raises InputError where a domain is unknown, a bound is no share, or no mixture is left.
    """
    named = {"minimum": dict(minimum or {}), "maximum": dict(maximum or {})}
    for what, bounds in named.items():
        _check_bounds(what, bounds, domains)
    low = np.array([named["minimum"].get(name, 0.0) for name in domains])
    high = np.array([named["maximum"].get(name, 1.0) for name in domains])
    _check_room(domains, low, high)
    table = np.array([[weights.get(name, 0.0) for name in domains] for weights, _ in limits]).reshape(-1, len(domains))
    ceilings = np.array([ceiling for _, ceiling in limits], dtype=np.float64)
    return ShareRegion(low, high, table, ceilings, _find_centre(low, high, table, ceilings))


def cap_shares(target_tokens: float, domain_tokens: Mapping[str, float], max_epochs: float) -> dict[str, float]:
    """The highest share of each domain, so that the target sees none of its tokens more than `max_epochs` times.

    share x target_tokens <= max_epochs x domain_tokens (Muennighoff et al. 2023: up to 4 epochs are nearly free).
    Raises InputError where all domains together are too small for the target.
    """
    sizes = {"target_tokens": target_tokens, "max_epochs": max_epochs, **domain_tokens}
    wrong = {name: size for name, size in sizes.items() if not (np.isfinite(size) and size > 0)}
    if wrong:
        raise InputError(f"tokens and epochs must be positive numbers; got {wrong}")
    caps = {name: min(1.0, max_epochs * held / target_tokens) for name, held in domain_tokens.items()}
    if sum(caps.values()) < 1 - SLACK:
        needed = target_tokens / sum(domain_tokens.values())
        told = ", ".join(f"{name} at most {share:.4g}" for name, share in caps.items())
        raise InputError(
            f"max_epochs: within {max_epochs:g} epochs the domains fill {sum(caps.values()):.3g} of the "
            f"{target_tokens:g} target tokens ({told}); allow {needed:.3g} epochs or more, or lower the target's tokens"
        )
    return caps


def _check_bounds(what: str, bounds: Mapping[str, float], domains: tuple[str, ...]) -> None:
    unknown = sorted(set(bounds) - set(domains))
    if unknown:
        raise InputError(f"{what}: there is no domain {unknown[0]!r}; there are {', '.join(domains)}")
    wrong = {name: share for name, share in bounds.items() if not 0 <= share <= 1}
    if wrong:
        raise InputError(f"{what}: a share must lie between 0 and 1; got {wrong}")


def _check_room(domains: tuple[str, ...], low: FloatArray, high: FloatArray) -> None:
    crossed = [f"{name}: {a:g} > {b:g}" for name, a, b in zip(domains, low, high, strict=True) if a > b + SLACK]
    if crossed:
        raise InputError(f"minimum must not exceed maximum; got {', '.join(crossed)}; lower the minimum")
    if low.sum() > 1 + SLACK:
        told = ", ".join(f"{name} {share:g}" for name, share in zip(domains, low, strict=True) if share > 0)
        raise InputError(f"minimum: shares must add up to at most 1, got {low.sum():g} ({told}); lower some")
    if high.sum() < 1 - SLACK:
        told = ", ".join(f"{name} {share:g}" for name, share in zip(domains, high, strict=True))
        raise InputError(f"maximum: shares must add up to at least 1, got {high.sum():g} ({told}); raise some")


def _find_centre(low: FloatArray, high: FloatArray, limits: FloatArray, ceilings: FloatArray) -> FloatArray:
    """The mixture whose distance to the nearest bound and limit is largest (a linear programme).

    Distances to bounds are taken in their own room, so that a domain of little room stays in the middle of it.
    """
    from scipy.optimize import linprog

    d, room = len(low), (high - low) / 2
    one = np.eye(d)
    scale = np.linalg.norm(limits, axis=1, keepdims=True) * float(room.max())
    table = np.block([[one, room[:, None]], [-one, room[:, None]], [limits, scale]])
    cost = np.append(np.zeros(d), -1.0)
    found = linprog(
        cost, A_ub=table, b_ub=np.concatenate([high, -low, ceilings]), A_eq=[np.append(np.ones(d), 0.0)], b_eq=[1.0],
        bounds=[(None, None)] * d + [(0.0, 1.0)], method="highs",
    )  # fmt: skip
    if found.x is None:
        if len(limits):
            raise InputError("limits: no mixture within the bounds keeps them; raise a ceiling or widen the bounds")
        return np.asarray(low + (1 - low.sum()) * _share_out(high - low))  # bounds that meet but for rounding
    return np.asarray(np.clip(found.x[:d], low, high))


def _share_out(room: FloatArray) -> FloatArray:
    return np.asarray(room / room.sum() if room.sum() > 0 else np.zeros(len(room)))
