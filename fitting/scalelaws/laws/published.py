"""Published laws behind the same interface: constants, source, conventions and the range they were fitted on.

Legend: N parameters, D tokens, C training FLOPs. A law that counts C as M D uses M, the non-embedding FLOPs per token
with attention (72 layers width^2 + 12 layers width seq_len), not 6N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from scalelaws.laws.loss import Chinchilla
from scalelaws.observations import FloatArray
from scalelaws.results import Target


@dataclass(frozen=True)
class Published:
    """What every published law says about itself."""

    name: str
    formula: str
    source: str
    schedule: str
    params_convention: str
    compute_convention: str
    batch_unit: str
    params_range: tuple[float, float] | None = None
    """Smallest and largest N of the runs behind it; None where this is not recorded here."""
    tokens_range: tuple[float, float] | None = None
    compute_range: tuple[float, float] | None = None

    @property
    def scope(self) -> dict[str, str]:
        """The conventions, as the scope of a forecast."""
        return {
            "schedule": self.schedule,
            "params_convention": self.params_convention,
            "compute_convention": self.compute_convention,
            "batch_unit": self.batch_unit,
            "source": self.source,
        }


@dataclass(frozen=True)
class PublishedSettings(Published):
    """A published law of learning rate and batch."""

    peak_lr: Callable[[Target], float] = lambda target: float("nan")
    batch_tokens: Callable[[Target], float] = lambda target: float("nan")


@dataclass(frozen=True)
class PublishedLoss(Published):
    """Published constants (E, A, B, alpha, beta) of the law of Hoffmann et al. 2022."""

    constants: tuple[float, float, float, float, float] = (np.nan,) * 5

    @property
    def values(self) -> FloatArray:
        """One row of parameter values, (1, 5)."""
        return np.array([self.constants])

    def predict_loss(self, target: Target) -> float:
        """Loss at the target."""
        return float(Chinchilla().predict_loss(self.values, target)[0])


STEP_LAW = PublishedSettings(
    name="step_law",
    formula="peak_lr = 1.79 N^-0.713 D^0.307; batch_tokens = 0.58 D^0.571",
    source="Li et al. 2025, Predictable Scale: Part I, arXiv 2503.04715",
    schedule="cosine to a final learning rate of 1e-5, warm-up 2000 steps",
    params_convention="non_embedding (mixtures of experts: total)",
    compute_convention="not used",
    batch_unit="tokens",
    params_range=(6e7, 1.07e9),
    tokens_range=(2e9, 1e11),
    peak_lr=lambda target: 1.79 * target.params_non_embedding**-0.713 * target.tokens**0.307,
    batch_tokens=lambda target: 0.58 * target.tokens**0.571,
)
DEEPSEEK = PublishedSettings(
    name="deepseek",
    formula="peak_lr = 0.3118 C^-0.1250; batch_tokens = 0.2920 C^0.3271",
    source="DeepSeek-AI 2024, DeepSeek LLM, arXiv 2401.02954, equation 1",
    schedule="multi-step",
    params_convention="not used",
    compute_convention="M D",
    batch_unit="tokens",
    peak_lr=lambda target: 0.3118 * target.compute**-0.1250,
    batch_tokens=lambda target: 0.2920 * target.compute**0.3271,
)
GREATER_LEVERAGE = PublishedSettings(
    name="greater_leverage",
    formula="peak_lr = 1.1576 C^-0.1529; batch_tokens = 0.0694 C^0.3644",
    source="Tian et al. 2025, Towards Greater Leverage, arXiv 2507.17702 (mixtures of experts, 7.8 % active)",
    schedule="warm-up, stable, decay",
    params_convention="not used",
    compute_convention="M D",
    batch_unit="tokens",
    compute_range=(3e17, 3e20),
    peak_lr=lambda target: 1.1576 * target.compute**-0.1529,
    batch_tokens=lambda target: 0.0694 * target.compute**0.3644,
)
MOONLIGHT = PublishedSettings(
    name="moonlight",
    formula="peak_lr = 0.0127 C^-0.057; batch_tokens = 0.0065 C^0.4138",
    source="Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982 (as quoted by Li et al. 2025)",
    schedule="cosine",
    params_convention="not used",
    compute_convention="6ND",
    batch_unit="tokens",
    peak_lr=lambda target: 0.0127 * target.compute**-0.057,
    batch_tokens=lambda target: 0.0065 * target.compute**0.4138,
)
PORIAN = PublishedSettings(
    name="porian",
    formula="peak_lr = 0.0047 (N / 108e6)^(-1/3); batch_tokens = 2048 * 160 (N / 108e6)^(2/3)",
    source="Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling, arXiv 2406.19146",
    schedule="constant, about 20 tokens per parameter",
    params_convention="unspecified",
    compute_convention="not used",
    batch_unit="sequences of 2048 tokens, given here in tokens",
    peak_lr=lambda target: 0.0047 * (target.params_non_embedding / 108e6) ** (-1 / 3),
    batch_tokens=lambda target: 2048 * 160 * (target.params_non_embedding / 108e6) ** (2 / 3),
)
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

PUBLISHED: Mapping[str, PublishedSettings | PublishedLoss] = {
    law.name: law for law in (STEP_LAW, DEEPSEEK, GREATER_LEVERAGE, MOONLIGHT, PORIAN, HOFFMANN, BESIROGLU)
}


def get_published(name: str) -> PublishedSettings | PublishedLoss:
    """The published law of that name; raises ValueError with the known ones."""
    if name not in PUBLISHED:
        raise ValueError(f"there is no published law {name!r}; known are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
