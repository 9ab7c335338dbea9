"""Published laws of the loss, and published splits of a budget.

Legend: N parameters, D tokens, C training FLOPs, M training FLOPs per token (see `conventions`), L loss in nats.
"""

from __future__ import annotations

from scalelaws.laws.kaplan import PUBLISHED_KAPLAN, Kaplan
from scalelaws.laws.published.base import PublishedAllocation, PublishedLoss
from scalelaws.laws.repetition import PUBLISHED_REPETITION, Repetition

HOFFMANN = PublishedLoss(
    name="hoffmann",
    formula="L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28",
    source="Hoffmann et al. 2022, arXiv 2203.15556, equation 10",
    schedule="cosine, matched to the horizon",
    params_convention="total",
    compute_convention="6ND",
    batch_unit="not used",
    params_range=(7e7, 1.6e10),
    tokens_range=(5e9, 5e11),
    constants=(1.69, 406.4, 410.7, 0.34, 0.28),
)
BESIROGLU = PublishedLoss(
    name="besiroglu",
    formula="L = 1.8172 + 482.01 / N^0.3478 + 2085.43 / D^0.3658",
    source="Besiroglu et al. 2024, Chinchilla Scaling: A replication attempt, arXiv 2404.10102",
    schedule="cosine, matched to the horizon",
    params_convention="total",
    compute_convention="6ND",
    batch_unit="not used",
    params_range=(7e7, 1.6e10),
    tokens_range=(5e9, 5e11),
    constants=(1.8172, 482.01, 2085.43, 0.3478, 0.3658),
)
KAPLAN = PublishedLoss(
    name="kaplan_2020",
    formula="L = ((6.4e13 / N)^(0.076 / 0.103) + 1.8e13 / D)^0.103",
    source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.5 and table 2",
    schedule="warm-up of 3000 steps, cosine to zero",
    params_convention="non_embedding",
    compute_convention="6ND",
    batch_unit="not used",
    params_range=(7.68e2, 1.5e9),
    verified=False,
    caveat="WebText2 with early stopping; the law has no floor, and its split of a budget is refuted (Hoffmann et al. "
    "2022; Porian et al. 2024)",
    constants=PUBLISHED_KAPLAN,
    law=Kaplan(),
)
MUENNIGHOFF = PublishedLoss(
    name="muennighoff",
    formula="L = E + A / N'^0.3527 + B / D'^0.3527, repeats worth 15.4 and surplus parameters 5.31",
    source="Muennighoff et al. 2023, arXiv 2305.16264, and the README of huggingface/datablations",
    schedule="cosine, matched to the horizon",
    params_convention="unspecified",
    compute_convention="6ND",
    batch_unit="not used",
    caveat="tokens counts every pass; unique_tokens the distinct ones",
    needs=("unique_tokens",),
    constants=PUBLISHED_REPETITION,
    law=Repetition(),
)
LOSSES: tuple[PublishedLoss, ...] = (HOFFMANN, BESIROGLU, KAPLAN, MUENNIGHOFF)

LEVERAGE_DENSE = PublishedAllocation(
    name="greater_leverage_dense",
    formula="M = 0.0655 C^0.5422; D = 15.2582 C^0.4578",
    source="Tian et al. 2025, Towards Greater Leverage, arXiv 2507.17702",
    schedule="warm-up, stable, decay",
    params_convention="not used",
    compute_convention="M D",
    batch_unit="not used",
    compute_range=(3e17, 3e20),
    flops_per_token=(0.0655, 0.5422),
    tokens=(15.2582, 0.4578),
)
LEVERAGE_EXPERTS = PublishedAllocation(
    name="greater_leverage_experts",
    formula="M = 0.1915 C^0.5095; D = 5.2232 C^0.4905",
    source="Tian et al. 2025, Towards Greater Leverage, arXiv 2507.17702 (7.8 % active, granularity 2)",
    schedule="warm-up, stable, decay",
    params_convention="not used",
    compute_convention="M D",
    batch_unit="not used",
    compute_range=(3e17, 3e20),
    flops_per_token=(0.1915, 0.5095),
    tokens=(5.2232, 0.4905),
)
ALLOCATIONS: tuple[PublishedAllocation, ...] = (LEVERAGE_DENSE, LEVERAGE_EXPERTS)
