"""Published laws of learning rate, batch, weight decay and critical batch.

Legend: N parameters, D tokens, C training FLOPs as the law counts them, L loss in nats per token. A law that counts C
as M D uses M, the training FLOPs per token with attention and without embeddings (see `conventions`).
"""

from __future__ import annotations

import numpy as np

from scalelaws.laws.power_schedule import PUBLISHED_SCHEDULE
from scalelaws.laws.published.base import PublishedSettings
from scalelaws.laws.weight_decay import find_timescale
from scalelaws.results import Target

SEQUENCE = 2048
"""Tokens per sequence of the laws that count the batch in sequences (Porian et al. 2024; Bergsma et al. 2025)."""

STEP_LAW = PublishedSettings(
    name="step_law",
    formula="peak_lr = 1.79 N^-0.713 D^0.307; batch_tokens = 0.58 D^0.571",
    source="Li et al. 2025, Predictable Scale: Part I, arXiv 2503.04715",
    schedule="cosine to a final learning rate of 1e-5, warm-up 2000 steps",
    params_convention="non_embedding",
    compute_convention="not used",
    batch_unit="tokens",
    params_range=(6e7, 1.07e9),
    tokens_range=(2e9, 1e11),
    caveat="for mixtures of experts N counts all experts, not the active ones",
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
    caveat="the paper's text leaves open whether M counts the backward pass",
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
    verified=False,
    peak_lr=lambda target: 0.0127 * target.compute**-0.057,
    batch_tokens=lambda target: 0.0065 * target.compute**0.4138,
)
PORIAN = PublishedSettings(
    name="porian",
    formula="peak_lr = 0.0047 (N / 108e6)^(-1/3); batch_tokens = 2048 * 160 (N / 108e6)^(2/3)",
    source="Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling, arXiv 2406.19146, and its code",
    schedule="constant, about 20 tokens per parameter",
    params_convention="unspecified",
    compute_convention="not used",
    batch_unit="sequences of 2048 tokens, given here in tokens",
    caveat="it holds at about 20 tokens per parameter",
    peak_lr=lambda target: 0.0047 * (target.params_non_embedding / 108e6) ** (-1 / 3),
    batch_tokens=lambda target: SEQUENCE * 160 * (target.params_non_embedding / 108e6) ** (2 / 3),
)
MINICPM = PublishedSettings(
    name="minicpm",
    formula="peak_lr = 0.01 under muP; batch_tokens = 1.21e9 / L^6.24",
    source="Hu et al. 2024, MiniCPM, arXiv 2404.06395, sections 3.2 and 3.3",
    schedule="cosine (batch); warm-up, stable, decay (the models)",
    params_convention="not used",
    compute_convention="not used",
    batch_unit="tokens",
    parametrization="mup",
    caveat="the batch costs the fewest tokens to a loss L on C4, tuned on 9M to 170M parameters; the rate is the base "
    "rate of muP, found on 40M to 2.1B parameters",
    needs=("loss",),
    peak_lr=lambda target: 0.01,
    batch_tokens=lambda target: 1.21e9 / target.covariates["loss"] ** 6.24,
)
KAPLAN_SETTINGS = PublishedSettings(
    name="kaplan_2020_settings",
    formula="peak_lr = 0.003239 - 0.0001395 ln N; critical_batch_tokens = 2e8 L^(-1/0.21)",
    source="Kaplan et al. 2020, arXiv 2001.08361, equations 1.4 and D.1",
    schedule="warm-up of 3000 steps, cosine to zero",
    params_convention="non_embedding",
    compute_convention="not used",
    batch_unit="tokens",
    params_range=(7.68e2, 1.5e9),
    verified=False,
    caveat="the rule for the learning rate turns negative beyond 1.2e10 parameters",
    optional=("loss",),
    peak_lr=lambda target: 0.003239 - 0.0001395 * float(np.log(target.params_non_embedding)),
    critical_batch_tokens=lambda target: 2e8 * target.covariates["loss"] ** (-1 / 0.21),
)
BJORCK = PublishedSettings(
    name="bjorck",
    formula="peak_lr = anchor_peak_lr (D / anchor_tokens)^-0.32",
    source="Bjorck et al. 2024, Scaling Optimal LR Across Token Horizons, arXiv 2409.19913",
    schedule="cosine",
    params_convention="not used",
    compute_convention="not used",
    batch_unit="not used",
    verified=False,
    caveat="relative to a tuned run of the same model and the same batch; where the batch grows with the horizon the "
    "sign turns (Li et al. 2025)",
    needs=("anchor_tokens", "anchor_peak_lr"),
    peak_lr=lambda target: (
        target.covariates["anchor_peak_lr"] * (target.tokens / target.covariates["anchor_tokens"]) ** -0.32
    ),
)
POWER_SCHEDULER = PublishedSettings(
    name="power_scheduler",
    formula="peak_lr = min(0.02, B 4 D^-0.51), B in sequences",
    source="Shen et al. 2024, Power Scheduler, arXiv 2408.13359 (as quoted in its public review)",
    schedule="warm-up, power of the tokens, decay",
    params_convention="not used",
    compute_convention="not used",
    batch_unit="sequences, given here in tokens",
    parametrization="mup",
    verified=False,
    caveat="this is the rate at the end of the horizon, before the decay; a rate in proportion to the batch "
    "contradicts Adam's square root: fit power_schedule to proxies of your own",
    needs=("batch_tokens", "seq_len"),
    peak_lr=lambda target: PUBLISHED_SCHEDULE.rate_at(target.tokens, _count_sequences(target)),
)
POWER_LINES = PublishedSettings(
    name="power_lines",
    formula="weight_decay = B / (peak_lr tau D), tau = 1.084 (D / N)^-0.527; batch = 0.0306 D^0.383; critical batch = "
    "0.0471 D^0.462, in sequences of 2048",
    source="Bergsma et al. 2025, Power Lines, arXiv 2505.13738",
    schedule="warm-up 10 %, linear to zero",
    params_convention="unspecified",
    compute_convention="not used",
    batch_unit="sequences of 2048 tokens, given here in tokens",
    parametrization="mup",
    params_range=(1.11e8, 3.3e9),
    verified=False,
    caveat="the critical batch is linear to an overhead, not an optimum; weight decay follows the batch up to it only",
    optional=("peak_lr",),
    batch_tokens=lambda target: _find_power_lines_batch(target),
    critical_batch_tokens=lambda target: SEQUENCE * 0.0471 * target.tokens**0.462,
    weight_decay=lambda target: _decay_by_timescale(target),
)
ZHANG = PublishedSettings(
    name="zhang",
    formula="critical_batch_tokens grows as D^0.47, whatever N is; the coefficient holds for its own runs only",
    source="Zhang et al. 2024, How Does Critical Batch Size Scale in Pre-training?, arXiv 2410.21676",
    schedule="constant with weight averaging",
    params_convention="not used",
    compute_convention="not used",
    batch_unit="not used",
    params_range=(8.5e7, 1.2e9),
    verified=False,
    caveat="relative to a critical batch that was measured at another horizon",
    needs=("anchor_tokens", "anchor_critical_batch_tokens"),
    critical_batch_tokens=lambda target: (
        target.covariates["anchor_critical_batch_tokens"] * (target.tokens / target.covariates["anchor_tokens"]) ** 0.47
    ),
)


def _count_sequences(target: Target) -> float:
    """The target's batch in its own sequences."""
    assert target.seq_len is not None
    return target.covariates["batch_tokens"] / target.seq_len


def _find_power_lines_batch(target: Target) -> float:
    """The law's optimum, in tokens."""
    return float(SEQUENCE * 0.0306 * target.tokens**0.383)


def _decay_by_timescale(target: Target) -> float:
    """lambda = B / (eta tau D); B is the target's own batch where it gives one, else the law's optimum."""
    batch = target.covariates.get("batch_tokens", _find_power_lines_batch(target))
    timescale = find_timescale(target.tokens / target.params_non_embedding)
    return float(batch / (target.covariates["peak_lr"] * timescale * target.tokens))


SETTINGS: tuple[PublishedSettings, ...] = (
    STEP_LAW, DEEPSEEK, GREATER_LEVERAGE, MOONLIGHT, PORIAN, MINICPM, KAPLAN_SETTINGS, BJORCK, POWER_SCHEDULER,
    POWER_LINES, ZHANG,
)  # fmt: skip
