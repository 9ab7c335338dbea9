"""Laws of the data mixture: the loss of one validation set as a function of the shares of the training domains.

Legend: L loss, nats; r_j share of domain j in the training tokens (the shares of a run add up to 1); D tokens.
    c       loss that no mixture goes below, nats
    k_j     excess over c after training on domain j alone, nats (without diminishing returns)
    e       share from which on more of a domain brings diminishing returns;  a_j  exponent of those returns
Since the shares add up to 1, prod_j k_j^r_j is the k exp(sum_j t_j r_j) of Ye et al. with k_j = k exp(t_j); k and the
t_j by themselves are not determined, the k_j are.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from scalelaws.engines.nonlinear import Columns, Parameter
from scalelaws.laws.base import FitOptions
from scalelaws.laws.smooth import SmoothLaw
from scalelaws.observations import MIXTURE_PREFIX, MIXTURE_SUM_TOLERANCE, FloatArray, Observations
from scalelaws.results import Fit, Status, Target

FLOOR_SHARE = 0.7
"""Expected share of the lowest loss that no mixture can remove (an assumption; its prior is wide)."""
FLOOR_SD = 0.3
EXCESS_SD = 1.5
"""Prior of ln k_j around half of the lowest loss: 90 % lie within a factor of 12 (an assumption). The domains share
the centre, so that one seldom used is pulled to what is usual."""
KNEE_SHARE = 0.01
"""Expected share from which returns diminish, within a factor of 12 (an assumption, cross-validated on 64 and on 410
mixtures of RegMix's 1M proxies)."""
RETURNS_SD = 0.1
"""Prior of a_j around 0. Published exponents of a domain's own share lie near .1 (Ge et al. 2024); same check."""
MIXTURES_NEEDED = 3
"""Fewest distinct mixtures."""
TOKENS_UNIT = 1e9
"""Coefficients of tokens are the excess at this horizon, so that they carry a unit and are near 1."""
PARAMS_UNIT = 1e8
"""Likewise for parameters."""
EXPONENT, EXPONENT_SD = 0.3, 0.5
"""Prior of exponents of size and horizon, as in `laws.loss`."""


@dataclass(frozen=True, kw_only=True)
class MixtureLaw(SmoothLaw):
    """A law with parameters for each domain; the domains are those of the runs, in alphabetic order."""

    domains: tuple[str, ...] = ("DOMAIN",)
    """Names of the domains; a stand-in until the law is bound to runs."""
    lowest_loss: float = 1.0
    """Lowest loss of the runs, nats: the priors of losses are centred by it."""
    one_scale: bool = True
    """Whether the law says nothing of size and horizon, so that the runs must agree in both."""
    needs: tuple[str, ...] = ("mixture",)

    def __post_init__(self) -> None:
        """Writes down the parameters of the domains at hand."""
        object.__setattr__(self, "parameters", self.describe())

    @abstractmethod
    def describe(self) -> tuple[Parameter, ...]:
        """The parameters with their priors, for `domains` and `lowest_loss`."""

    @abstractmethod
    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the shares: (B, n, domains)."""

    def bind(self, mixture: Mapping[str, object], loss: FloatArray | None = None) -> Self:
        """This law for the domains of a mixture (and for the level of these losses)."""
        domains = self.name_domains(mixture) or self.domains
        finite = np.array([]) if loss is None else loss[np.isfinite(loss)]
        lowest = float(finite.min()) if len(finite) else self.lowest_loss
        return replace(self, domains=domains, lowest_loss=lowest)

    def name_domains(self, mixture: Mapping[str, object]) -> tuple[str, ...]:
        """The domains of a mixture that this law has parameters for."""
        return tuple(sorted(mixture))

    def estimate(self, observations: Observations, options: FitOptions) -> Fit:
        """Fits the law for the domains of the runs."""
        bound = self.bind(observations.mixture, observations.loss)
        missing = [name for name in bound.domains if name not in observations.mixture]
        if missing:
            told = f"{self.name} needs the shares of the domains: add a column mix/{missing[0]}"
            return bound._unfitted(observations, options, (Status.NOT_IDENTIFIED, told), time.perf_counter())
        return super(MixtureLaw, bound).estimate(observations, options)

    def predict_loss(self, values: FloatArray, target: Target) -> FloatArray:
        """Loss of the target for each row of parameter values; the target names every domain, unused ones with 0."""
        bound = self.bind(target.mixture)
        bound.check_shares(target.mixture)
        if target.mixture and values.shape[1] != len(bound.parameters):
            raise ValueError(
                f"{self.name}: {values.shape[1]} parameters do not fit the {len(bound.domains)} domains of the "
                f"target's mixture ({', '.join(bound.domains)}); give every domain of the runs, 0 where it is unused"
            )
        return super(MixtureLaw, bound).predict_loss(values, target)

    def check_shares(self, mixture: Mapping[str, float]) -> None:
        """Raises ValueError for a target's shares that are no mixture."""
        shares = np.array(list(mixture.values()))
        if len(shares) and not (np.all(shares >= 0) and abs(shares.sum() - 1) <= MIXTURE_SUM_TOLERANCE):
            raise ValueError(f"{self.name}: the shares of a target must be >= 0 and add up to 1; got {dict(mixture)}")

    def require_domains(self, fit: Fit, target: Target) -> None:
        """Raises ValueError where a fit of this law and a target name other domains: columns go by their order."""
        names = self.bind(target.mixture).parameter_names
        if target.mixture and names != tuple(fit.parameters):
            wrong = sorted(set(names) ^ set(fit.parameters))
            raise ValueError(
                f"{self.name}: the target's mixture ({', '.join(sorted(target.mixture))}) has other domains than the "
                f"fit; {', '.join(wrong[:4])} are not in both. Give every domain of the runs by its name, 0 if unused"
            )

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Beside the usual reasons: too few distinct mixtures, or runs of several sizes and horizons."""
        distinct = len(np.unique(np.round(self.read_shares(_prefix(observations.mixture)), 9), axis=0))
        if distinct < MIXTURES_NEEDED:
            return Status.TOO_FEW_POINTS, f"{self.name} needs >= {MIXTURES_NEEDED} distinct mixtures (have {distinct})"
        if self.one_scale and len(observations.cells()) > 1:
            return Status.NOT_IDENTIFIED, (
                f"{self.name} holds at one size and horizon (have {len(observations.cells())}): select one, or fit "
                "nested_mixture or additive_mixture"
            )
        return super().refuse(observations)

    def group(self, observations: Observations) -> FloatArray:
        """Runs of one mixture, size and horizon are resampled together."""
        return self.number(observations, tuple(name for name in self.needs if name != "mixture"))

    def number(self, observations: Observations, scales: tuple[str, ...]) -> FloatArray:
        """A number for each distinct mixture and value of these columns; the order of the domains does not matter."""
        shares = self.read_shares(_prefix(observations.mixture))
        keys = np.column_stack([shares, *(np.log(observations.column(name)) for name in scales)])
        return np.unique(np.round(keys, 9), axis=0, return_inverse=True)[1].reshape(-1).astype(np.float64)

    def warn(self, observations: Observations) -> tuple[str, ...]:
        """Names the domains that no run has used."""
        unused = [name for name in self.domains if not np.any(observations.mixture[name] > 0)]
        return tuple(f"no run has used the domain {name}: nothing is known of it" for name in unused)

    def read_shares(self, columns: Columns) -> FloatArray:
        """Shares (n, domains)."""
        missing = [name for name in self.domains if MIXTURE_PREFIX + name not in columns]
        if missing:
            raise ValueError(f"{self.name} needs the share of {missing[0]!r}; give it in the mixture, 0 if unused")
        return np.stack([columns[MIXTURE_PREFIX + name] for name in self.domains], axis=1)

    def name_parameters(self, symbol: str) -> tuple[str, ...]:
        """One name per domain."""
        return tuple(f"{symbol}_{domain}" for domain in self.domains)

    def describe_floor(self, name: str = "c") -> Parameter:
        """The prior of the part of the loss that no mixture removes."""
        return Parameter(name, FLOOR_SHARE * self.lowest_loss, FLOOR_SD, "nats", needed=False)

    def describe_excess(self, symbol: str, share: float = 0.5) -> tuple[Parameter, ...]:
        """The priors of an excess for each domain, centred at a share of the lowest loss."""
        centre = share * self.lowest_loss
        return tuple(Parameter(name, centre, EXCESS_SD, "nats", needed=False) for name in self.name_parameters(symbol))

    def starts(self, columns: Columns, loss: FloatArray) -> FloatArray:
        """The centres of the priors, with a higher and a lower floor."""
        centre = np.array([item.centre for item in self.parameters])
        return np.stack([centre, *(np.r_[factor * centre[0], centre[1:]] for factor in (0.6, 1.3))])


def _prefix(mixture: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    return {MIXTURE_PREFIX + name: shares for name, shares in mixture.items()}


def average_logs(k: FloatArray, shares: FloatArray) -> tuple[FloatArray, FloatArray]:
    """prod_j k_j^r_j (B, n), for k (B, d) and shares (n, d), and its derivatives by k (B, n, d)."""
    mean = np.exp(np.log(k) @ shares.T)
    return mean, mean[..., None] * shares / k[:, None, :]


@dataclass(frozen=True, kw_only=True)
class LogLinearMixture(MixtureLaw):
    """Log-linear in the shares above a floor."""

    name: str = "log_linear_mixture"
    formula: str = "L = c + prod_j k_j^r_j  (= c + k exp(sum_j t_j r_j), k_j = k exp(t_j))"
    scope: str = "one validation loss at one size and horizon; ranks mixtures at others as far as their order is kept"
    source: str = "Ye et al. 2024 (2403.16952), equation 6"

    def describe(self) -> tuple[Parameter, ...]:
        """c, k_j."""
        return (self.describe_floor(), *self.describe_excess("k"))

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss and its derivatives by the parameters."""
        excess, slopes = average_logs(values[:, 1:], self.read_shares(columns))
        loss = values[:, :1] + excess
        one = np.ones_like(loss)[..., None]
        return np.log(loss), np.concatenate([one, slopes], axis=2) / loss[..., None]

    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the shares."""
        excess, _ = average_logs(values[:, 1:], self.read_shares(columns))
        relative = excess / (values[:, :1] + excess)
        return np.asarray(relative[..., None] * np.log(values[:, None, 1:]))


@dataclass(frozen=True, kw_only=True)
class DiminishingMixture(MixtureLaw):
    """Log-linear, times a power of each share beyond a knee: the first tokens of a domain count most.

    It nests the log-linear law (a = 0) and, in a domain's own share, BiMix's power. Chosen by cross-validation within
    the 1M proxies of RegMix (rank correlation on held-out mixtures, mean of 13 losses): .973 from 64 mixtures and
    .985 from 410, where the log-linear law has .888 and .941; a knee for each domain has .967 and .985.
    """

    name: str = "diminishing_mixture"
    formula: str = "L = c + prod_j k_j^r_j (1 + r_j / e)^-a_j"
    scope: str = "as log_linear_mixture, with shares down to 0"
    source: str = "this package; nests Ye et al. 2024 and the own-share power of Ge et al. 2024"

    def describe(self) -> tuple[Parameter, ...]:
        """c, k_j, e, a_j."""
        knee = Parameter("e", KNEE_SHARE, EXCESS_SD, needed=False)
        returns = (Parameter(name, 0.0, RETURNS_SD, kind="real", needed=False) for name in self.name_parameters("a"))
        return (self.describe_floor(), *self.describe_excess("k"), knee, *returns)

    def _split(self, values: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        d = len(self.domains)
        return values[:, :1], values[:, 1 : 1 + d], values[:, 1 + d : 2 + d], values[:, 2 + d :]

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss and its derivatives by the parameters."""
        floor, k, knee, returns = self._split(values)
        shares = self.read_shares(columns)
        along, along_k = average_logs(k, shares)
        ratio = shares / knee[:, :, None]
        logs = np.log1p(ratio)
        power = np.exp(-np.einsum("bnd,bd->bn", logs, returns))
        excess = along * power
        by_knee = excess * np.einsum("bnd,bd->bn", ratio / (1 + ratio), returns) / knee
        slopes = [
            np.ones((*excess.shape, 1)),
            along_k * power[..., None],
            by_knee[..., None],
            -excess[..., None] * logs,
        ]
        loss = floor + excess
        return np.log(loss), np.concatenate(slopes, axis=2) / loss[..., None]

    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the shares."""
        floor, k, knee, returns = self._split(values)
        loss = np.exp(self.evaluate(values, columns)[0])
        slope = np.log(k)[:, None, :] - returns[:, None, :] / (knee[:, :, None] + self.read_shares(columns))
        return np.asarray(((loss - floor) / loss)[..., None] * slope)


@dataclass(frozen=True, kw_only=True)
class BiMix(MixtureLaw):
    """A domain's loss from its own share and the horizon alone; the coefficient A is absorbed in B and C."""

    name: str = "bimix"
    formula: str = "L = r^-a (B (D / 1e9)^-b + C), r the share of the domain that the loss is of"
    scope: str = "the loss of a training domain that every run has used, over horizons of one size"
    source: str = "Ge et al. 2024 (2405.14908)"
    domain: str = "own"
    """The training domain that the loss is of."""
    one_scale: bool = False
    needs: tuple[str, ...] = ("tokens", "mixture")
    varied: tuple[str, ...] = ("tokens",)

    def __post_init__(self) -> None:
        """The law has parameters for its own domain only."""
        object.__setattr__(self, "domains", (self.domain,))
        super().__post_init__()

    def name_domains(self, mixture: Mapping[str, object]) -> tuple[str, ...]:
        """The one domain that the law reads."""
        return (self.domain,)

    def check_shares(self, mixture: Mapping[str, float]) -> None:
        """Raises ValueError where the own share of a target is none: the law says an infinite loss there."""
        share = mixture.get(self.domain)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"bimix: the share of {self.domain} must be > 0 and at most 1; got {share}")

    def describe(self) -> tuple[Parameter, ...]:
        """a, B, b, C."""
        return (
            Parameter("a", 0.1, 1.0),
            Parameter("B", 0.4 * self.lowest_loss, EXCESS_SD, "nats"),
            Parameter("b", EXPONENT, EXPONENT_SD),
            Parameter("C", FLOOR_SHARE * self.lowest_loss, FLOOR_SD, "nats", needed=False),
        )

    def refuse(self, observations: Observations) -> tuple[Status, str] | None:
        """Beside the usual reasons: runs without the domain, of which the law says an infinite loss, or other sizes."""
        shares = observations.mixture.get(self.domain)
        if shares is not None and not np.all(shares > 0):
            absent = int((shares <= 0).sum())
            return Status.NOT_IDENTIFIED, f"bimix: {absent} runs have no {self.domain}; leave them out with select"
        if len(np.unique(observations.params_non_embedding)) > 1:
            return Status.NOT_IDENTIFIED, "bimix holds at one size; select one, or fit nested_mixture"
        return super().refuse(observations)

    def evaluate(self, values: FloatArray, columns: Columns) -> tuple[FloatArray, FloatArray]:
        """ln loss and its derivatives by the parameters."""
        a, b_scale, b, floor = (values[:, i : i + 1] for i in range(4))
        share, logs = self.read_shares(columns)[:, 0], np.log(columns["tokens"] / TOKENS_UNIT)
        power = np.exp(-b * logs)
        inner = b_scale * power + floor
        own = np.broadcast_to(-np.log(share), power.shape)
        slopes = [own, power / inner, -b_scale * power * logs / inner, 1 / inner]
        return np.log(inner) - a * np.log(share), np.stack(slopes, axis=2)

    def differentiate(self, values: FloatArray, columns: Columns) -> FloatArray:
        """Derivatives of ln loss by the own share."""
        return np.asarray(-values[:, 0, None, None] / self.read_shares(columns), dtype=np.float64)

    def starts(self, columns: Columns, loss: FloatArray) -> FloatArray:
        """The centres of the priors, and a flatter and a steeper curve."""
        centre = np.array([item.centre for item in self.parameters])
        return np.asarray(centre * np.array([[1, 1, 1, 1], [1, 1, 2, 1], [1, 2, 0.5, 0.5]]))
