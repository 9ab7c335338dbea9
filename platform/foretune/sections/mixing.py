"""`[search.mixture]`: a search over data mixtures, through small runs to larger ones."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from foretune.quantities import Count, Limit, Quantity
from foretune.sections.base import Name, Section, as_tuple


def _be_unlimited() -> float:
    """A default that is no number of JSON, so a schema must not state it."""
    return math.inf


class MixtureSearchSection(Section):
    """`[search.mixture]`: how strategy `mixture` searches. Bounds on shares are those of `[search.space] mixture`."""

    surrogate: Literal["gp", "log_linear", "lightgbm"] = "gp"
    """`gp`: mixtures and sizes are chosen as results arrive, by a Gaussian process around a mixing law; `log_linear`
    (Ye et al. 2024), `lightgbm` (RegMix, extra `bench`): all runs at one size, then a regression."""
    design: Literal["dirichlet", "d_optimal"] = "dirichlet"
    """The first mixtures: draws around the natural one (RegMix), or those that determine a log-linear law best."""
    initial: Count = Field(default=8, ge=3)
    """First mixtures, at the smallest size; a regression takes all runs for them."""
    fidelities: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    """Scales that are searched; all that are not in `check_scales` unless given. The dearest is the target fidelity, at
    which the recommended mixture has the lowest expected objective."""
    check_scales: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = ()
    """Larger scales at which the recommended, the natural and the best observed mixture are trained with every seed
    before the first is told to be used; better two. Empty: it is told as unchecked."""
    confirmations: int = Field(default=2, ge=0, le=100)
    """Runs of the recommended mixture at the target fidelity after the search, one after the other: upon each it is
    recommended anew, so that a surface which promises too much where nothing was tried is found out."""
    target_share: Quantity = Field(default=0.2, ge=0, le=1)
    """Least share of the search's runs at the target fidelity, 0 to 1: per FLOP, a gain at the smallest size always
    looks largest (an assumption)."""
    cost_floor: Quantity = Field(default=0.05, ge=0, le=1)
    """Least cost that a run is reckoned at, in runs at the target fidelity, 0 to 1: waiting is not free (an
    assumption)."""
    flops: Limit = Field(default_factory=_be_unlimited, gt=0)
    """Training FLOPs after which nothing more is searched, first mixtures included, confirmations and checks not."""
