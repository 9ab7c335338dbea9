"""How compute is counted, and which laws may be put side by side.

Legend: N parameters, D tokens, L layers, d width, s tokens per sequence, a = d / L aspect ratio, M training FLOPs per
token without embeddings and with attention (DeepSeek-AI 2024, arXiv 2401.02954, equation 2):
    M = 72 L d^2 + 12 L d s = 6N + 12 L d s,     N = 12 L d^2,     M / 6N = 1 + s / (6 d)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from scalelaws.laws.published.base import Published
from scalelaws.observations import FLOPS_PER_PARAM_TOKEN
from scalelaws.results import Estimate, Fit, Target

USUAL_ASPECT = (64.0, 160.0)
"""Assumption: width over layers of a decoder of usual shape; GPT-3 has 64 to 128 (Brown et al. 2020, table 2.1), PaLM
156 (Chowdhery et al. 2022, table 1)."""
USUAL_SEQ_LEN = (2048, 8192)
"""Assumption: tokens per sequence in pretraining, where the target does not say."""
NOT_USED = "not used"
SHARED = ("params_convention", "compute_convention", "schedule", "parametrization", "loss_unit", "optimizer")
"""Two laws whose numbers are averaged or compared must agree in these."""


class ConventionError(ValueError):
    """Laws of different conventions were put together without a word about it."""


def count_compute(target: Target, convention: str) -> Estimate:
    """Training FLOPs of a target as `6ND` or `M D`; the bounds are those of usual shapes where the shape is unknown.

    A count that needs no assumption has no bounds. FLOPs that a target gives are used in their own convention only: M D
    of a target that counts otherwise is taken from N, D and the shape, since given FLOPs may hold attention already.
    """
    if convention == target.compute_convention and (convention == "6ND" or target.compute_flops is not None):
        return Estimate(target.compute, unit="FLOPs")
    if convention == "6ND":
        return Estimate(count_plain(target), unit="FLOPs")
    if convention != "M D":
        raise ValueError(f"compute is counted as 6ND or M D; got {convention!r}")
    low, high = _bound_attention(target)
    plain = count_plain(target)
    if low == high:
        return Estimate(plain * low, unit="FLOPs")
    return Estimate(plain * (low * high) ** 0.5, plain * low, plain * high, "FLOPs")


def count_plain(target: Target) -> float:
    """6ND of a target, with the parameters that one token passes through where they are told."""
    params = target.covariates.get("params_active", target.params_non_embedding)
    return FLOPS_PER_PARAM_TOKEN * params * target.tokens


def _bound_attention(target: Target) -> tuple[float, float]:
    """Smallest and largest M / 6N at the target's shape, or at usual shapes of its size."""
    lengths = USUAL_SEQ_LEN if target.seq_len is None else (target.seq_len, target.seq_len)
    width, depth = (target.covariates.get(name) for name in ("width", "depth"))
    params = target.covariates.get("params_active", target.params_non_embedding)
    if width is not None and depth is not None:
        ratios = [1 + 2 * depth * width * length / params for length in lengths]
    elif width is not None:
        ratios = [1 + length / (6 * width) for length in lengths]
    else:
        widths = [(params * aspect / 12) ** (1 / 3) for aspect in USUAL_ASPECT]
        ratios = [1 + length / (6 * usual) for length in lengths for usual in widths]
    return min(ratios), max(ratios)


def list_conventions(law: Fit | Published) -> dict[str, str]:
    """What a law's numbers stand for, by the names in `SHARED`; a convention that it does not use is left out."""
    if isinstance(law, Fit):
        counted = {
            "params_convention": law.evidence.params_convention,
            "compute_convention": law.evidence.compute_convention,
        }
        told = {**law.scope, **counted}
    else:
        told = law.scope
    return {name: told[name] for name in SHARED if told.get(name, NOT_USED) not in (NOT_USED, "unspecified")}


def check_same_conventions(laws: Sequence[Fit | Published], *, pool: Collection[str] = ()) -> None:
    """Refuses laws that count or train differently; `pool` names the conventions whose difference is accepted.

    Raises ConventionError with both laws and both conventions, and ValueError for a name that is no convention.
    """
    unknown = sorted(set(pool) - set(SHARED))
    if unknown:
        raise ValueError(f"there is no convention {unknown[0]!r} to pool; known are {', '.join(SHARED)}")
    for one, other in combinations(laws, 2):
        first, second = list_conventions(one), list_conventions(other)
        for name in SHARED:
            if name not in pool and name in first and name in second and first[name] != second[name]:
                raise ConventionError(
                    f"{_name(one)} and {_name(other)} differ in {name}: {first[name]!r} against {second[name]!r}; "
                    f"their numbers are not put together. Convert one, or accept it with pool=({name!r},)"
                )


def _name(law: Fit | Published) -> str:
    return law.law if isinstance(law, Fit) else law.name
