"""The table: from what a tensor is, and how much it has grown, to how it is initialised and trained.

Symbols
    b  fan-in over base fan-in          m    width over base width       s0   EMBEDDING_STD
    a  fan-out over base fan-out        M    depth over base depth       h    head size
    n  fan-in                           L    depth                       0    (after a symbol) at the base
    w  growth of sqrt(max(fan-in, fan-out))
    e  alpha, 1/2 under depth-mup (Yang et al. 2023), 1 under completep (Dey et al. 2025)

                standard                  mup: width                                 depth rules, in blocks: also times
    kind        init std      lr decay    init std      Adam  SGD  Muon       decay  Adam, Muon  SGD       init std
    embedding   s0            1  1        s0            1     a    1          1/lr   -           -         -
    hidden      1/sqrt(n)     1  1        1/sqrt(n)     1/b   a/b  sqrt(a/b)/w   1/lr   M^(e-1)     M^(2e-1)  -
      writing   1/sqrt(2Ln)   1  1        1/sqrt(2Ln)   as hidden                    M^(e-1)     M^(2e-1)  sqrt(L/L0)
    head        1/sqrt(n)     1  1        1/sqrt(n0)    1     b    1          1/lr   M^(e-1)     M^(2e-1)  -
    vector      1 or 0        1  0        1 or 0        1     a    1          0      M^(e-1)     M^(2e-1)  -
    logits      x 1                       x 1/m                                      -
    router      x 1                       x 1/m                                      -
    attention   x 1/sqrt(h)               x sqrt(h0)/h                               -
    branches    x 1                       x 1                                        x M^-e
    Adam's eps  x 1                       x 1                                              x M^-e / m, and 1/m elsewhere

A vector is a gain or a bias, and its `a` the growth of its one dimension; a head is the output head or the router of a
mixture of experts; a writing matrix is one whose product is added to the residual stream. The rules for Adam serve
every optimizer whose step has the size of its learning rate whatever that of the gradient: AdamW, NAdamW, Lion,
Prodigy, the schedule-free one, and under Muon all that is not hidden.

Sources
    Width: Yang et al. 2022 (Tensor Programs V, arXiv 2203.03466), Table 8 in the multiplier form of their `mup` package
    (MuAdamW, MuSGD), with its constants set so that all columns are the same model at the base width. Hidden initial
    weights are alike in all: 1/sqrt(n) is sigma/sqrt(b) with sigma = 1/sqrt(n0) (LeCun et al. 1998). The 1/sqrt(2L) of
    writing matrices is GPT-2's (Radford et al. 2019). Weight decay moves against the width's part of the learning
    rate, because a step multiplies one with the other (Wang and Aitchison 2024). Experts of a mixture are hidden with
    fan-ins of their own, and so are keys and values shared by several query heads: their fan-out grows likewise.
    A tied head is the embedding and keeps its row; its logits are multiplied by 1/sqrt(n), under mup by 1/sqrt(n0) 1/m,
    so that they begin like those of an untied one.
    Depth: Dey et al. 2025 (CompleteP, arXiv 2505.01618), Table 1 and equation 40, and the authors' code (nanoGPT-mup);
    there the initial weights do not depend on the depth. Under SGD a branch moves by its learning rate times M^-e (the
    gradient's) and is added with M^-e: the sum over L blocks keeps its size with M^(2e-1), which is 1 for e = 1/2 as
    in Yang et al. 2023 (Tensor Programs VI, arXiv 2310.02244).
    Muon: the spectral norm of an update must grow as sqrt(fan-out / fan-in) (Yang, Simon and Bernstein 2023, arXiv
    2310.17813, condition 1). An orthogonalised update has norm 1, and the trainer multiplies it by
    .2 sqrt(max(fan-in, fan-out)) (Liu et al. 2025, arXiv 2502.16982, section 2.2: `match_rms_adamw` of
    torch.optim.Muon). What is left to multiply is sqrt(a/b) / w: 1/sqrt(m) where both dimensions grow by m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from foretune.records import ModelSpec
from foretune.sections import Optimizer

EMBEDDING_STD = 1.0
"""Unit entries at every width, as in the input layer of Tensor Programs V. Measured at width 32 (2 blocks, bytes, 2048
tokens a step, 100 steps, 3 seeds): held-out loss 2.364, against 2.435 with 0.1, and against 2.397 with a head of zeros.
"""
DEPTH_EXPONENTS = {"depth-mup": 0.5, "completep": 1.0}
"""alpha by parametrization (Dey et al. 2025, section 3); the others have no depth rule."""

Kind = Literal["embedding", "hidden", "head", "vector"]


@dataclass(frozen=True)
class GroupRule:
    """How one group of parameters is initialised and trained."""

    name: str
    """Name of the group."""
    kind: Kind
    """What its tensors are in the table; Muon orthogonalises those that are hidden."""
    params: int
    """Parameters in it."""
    init_std: float
    """Standard deviation of the initial weights; 0 for vectors, which start at 1 (gains) or 0 (biases)."""
    lr_multiplier: float
    """Learning rate over the run's peak."""
    weight_decay_multiplier: float
    """Weight decay over the run's."""
    eps_multiplier: float
    """Adam's eps over the run's."""


@dataclass(frozen=True)
class ForwardMultipliers:
    """The constants of the forward pass."""

    attention: float
    """Query-key products are multiplied by it."""
    logits: float
    """Logits are multiplied by it."""
    residual: float
    """What a branch adds to the residual stream is multiplied by it."""
    router: float
    """Logits of a router are multiplied by it."""


@dataclass(frozen=True)
class Place:
    """What the table needs to know of a group of tensors of one shape."""

    name: str
    """Name of the group."""
    kind: Kind
    """What they are."""
    params: int
    """Parameters in all of them."""
    fan_in: int
    """Numbers that an output is a sum over; 1 for embeddings and vectors."""
    fan_out: int
    """Outputs; the size of a vector."""
    base_fan_in: int
    """The same at the base width."""
    base_fan_out: int
    """The same at the base width."""
    in_block: bool = True
    """Part of a block, whose number the depth is."""
    writes: bool = False
    """Its product is added to the residual stream."""


@dataclass(frozen=True)
class Growth:
    """How far a model is from its base, and the rules that it follows."""

    width: float
    """m, width over base width; 1 under `standard`, which does not ask."""
    depth: float
    """M, depth over base depth; 1 without a depth rule."""
    depth_exponent: float
    """alpha; 0 without a depth rule."""
    layers: int
    """Blocks that the initial weights of writing matrices count."""
    follows_width: bool
    """Whether the columns of mup hold."""

    @staticmethod
    def of(model: ModelSpec) -> Growth:
        """That of a model under its parametrization."""
        follows_width = model.parametrization != "standard"
        deep = model.parametrization in DEPTH_EXPONENTS
        return Growth(
            width=model.width / model.base_width if follows_width else 1.0,
            depth=model.depth / model.base_depth if deep else 1.0,
            depth_exponent=DEPTH_EXPONENTS.get(model.parametrization, 0.0),
            layers=model.base_depth if deep else model.depth,
            follows_width=follows_width,
        )

    @property
    def residual(self) -> float:
        """The multiplier of a branch, M^-alpha."""
        return float(self.depth**-self.depth_exponent)


def derive_rule(place: Place, growth: Growth, optimizer: Optimizer) -> GroupRule:
    """The row of the table for a group of tensors."""
    width_part = _choose_width_part(place, optimizer) if growth.follows_width else 1.0
    return GroupRule(
        name=place.name,
        kind=place.kind,
        params=place.params,
        init_std=_choose_init_std(place, growth),
        lr_multiplier=width_part * _choose_depth_part(place, growth, optimizer),
        weight_decay_multiplier=0.0 if place.kind == "vector" else 1 / width_part,
        eps_multiplier=_choose_eps_part(place, growth),
    )


def _choose_init_std(place: Place, growth: Growth) -> float:
    if place.kind == "embedding":
        return EMBEDDING_STD
    if place.kind == "vector":
        return 0.0
    if place.kind == "head":
        return 1 / math.sqrt(place.base_fan_in if growth.follows_width else place.fan_in)
    gain = 1 / math.sqrt(2 * growth.layers) if place.writes else 1.0
    return gain / math.sqrt(place.fan_in)


def _choose_width_part(place: Place, optimizer: Optimizer) -> float:
    fan_in, fan_out = place.fan_in / place.base_fan_in, place.fan_out / place.base_fan_out
    if optimizer == "sgd":
        return {"embedding": fan_out, "hidden": fan_out / fan_in, "head": fan_in, "vector": fan_out}[place.kind]
    if place.kind != "hidden":
        return 1.0
    if optimizer == "muon":
        larger = max(place.fan_in, place.fan_out) / max(place.base_fan_in, place.base_fan_out)
        return math.sqrt(fan_out / fan_in) / math.sqrt(larger)
    return 1 / fan_in


def _choose_depth_part(place: Place, growth: Growth, optimizer: Optimizer) -> float:
    if not place.in_block or not growth.depth_exponent:
        return 1.0
    exponent = 2 * growth.depth_exponent - 1 if optimizer == "sgd" else growth.depth_exponent - 1
    return float(growth.depth**exponent)


def _choose_eps_part(place: Place, growth: Growth) -> float:
    if not growth.depth_exponent:
        return 1.0
    return (growth.residual if place.in_block else 1.0) / growth.width
