"""The verdict on a run's stability: a sentence from its spikes and its diagnoses, empty when nothing was seen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby

from foretune.records import Diagnosis
from foretune.training.spikes import Action, Spike

EARLIER = 3
"""Diagnoses that a running median needs (assumption)."""
SATURATION_RISE = 3.0
"""Rise of the saturated share over its running median that is alarming while updates lie across the gradient. The state
is that of Molybog et al. 2023 (arXiv 2304.09871): |m / sqrt(v)| heaps up at 1; the factor is an assumption."""
SATURATION_LEAST = 0.05
"""Saturated share below which no rise is alarming (assumption)."""
ALIGNED_COSINE = 0.05
"""Cosine between update and descent direction below which an update counts as unrelated to it (assumption)."""
NEAR_EPS_SHARE = 0.5
"""Share of hidden weights with sqrt(v) below eps from which updates vanish, the first stage of Molybog et al. 2023
(the share is an assumption)."""
ATTENTION_LOGIT_LIMIT = 1e4
"""Largest attention logit from which on the models of Wortsman et al. 2023 (arXiv 2309.14322, section 3.4) diverged."""
LOGIT_LIMIT = 104.0
"""Distance between two logits at which the lower one's float32 probability is exactly 0: -ln of the smallest positive
float32, 2^-149, is 103.3. Logits that drift off are the second instability of Wortsman et al. 2023."""
LOGIT_RISE = 10.0
"""Rise of the largest logit over its running median that counts as growth, beyond LOGIT_LIMIT (assumption)."""


def judge_stability(spikes: Sequence[Spike], diagnoses: Sequence[Diagnosis]) -> str:
    """What was seen and when, the findings joined by semicolons; empty for a run without any."""
    findings = [
        *_describe_spikes(spikes),
        *_find_saturation(diagnoses),
        *_find_vanishing(diagnoses),
        *_find_attention_growth(diagnoses),
        *_find_logit_growth(diagnoses),
    ]
    return "; ".join(findings)


def _describe_spikes(spikes: Sequence[Spike]) -> Iterator[str]:
    """A finding for each quantity: how many, the highest, and what was done with them."""
    for quantity, found in groupby(
        sorted(spikes, key=lambda spike: spike.quantity, reverse=True), lambda s: s.quantity
    ):
        group = list(found)
        worst = max(group, key=lambda spike: spike.value / spike.level)
        count = f"{len(group)} spikes of the {quantity}, the highest" if len(group) > 1 else f"{quantity} spike"
        yield f"{count} {worst.value:.4g} over a level of {worst.level:.4g} at step {worst.step}{_tell_actions(group)}"


def _tell_actions(spikes: Sequence[Spike]) -> str:
    counts = {action: sum(spike.action is action for spike in spikes) for action in (Action.SKIP, Action.HALVE)}
    told = [f"{count} {action.value}" for action, count in counts.items() if count]
    return f" ({', '.join(told)})" if told else ""


def _find_saturation(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    """The first diagnosis at which Adam's ratio heaps up at 1 while its updates lie across the gradient."""
    shares = [found.saturated_share for found in diagnoses]
    for found, usual in zip(diagnoses, _running_medians(shares), strict=True):
        share, cosine = found.saturated_share, found.update_cosine
        if share is None or cosine is None or usual is None:
            continue
        if share > max(SATURATION_RISE * usual, SATURATION_LEAST) and cosine < ALIGNED_COSINE:
            yield (
                f"at step {found.step} |m / sqrt(v)| exceeded .9 in {share:.0%} of the weights, against {usual:.1%} "
                f"before, and updates lay across the gradient (cosine {cosine:.2f})"
            )
            return


def _find_vanishing(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    """The first diagnosis at which most hidden gradients are lost in eps."""
    for found in diagnoses:
        if found.near_eps_share is not None and found.near_eps_share > NEAR_EPS_SHARE:
            yield f"at step {found.step} sqrt(v) was below eps in {found.near_eps_share:.0%} of the hidden weights"
            return


def _find_attention_growth(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    """The first attention logit above the limit, or grown far above its running median."""
    values = [found.attention_logit_max for found in diagnoses]
    for found, value, usual in zip(diagnoses, values, _running_medians(values), strict=True):
        if value is not None and (value > ATTENTION_LOGIT_LIMIT or _has_grown(value, usual)):
            yield f"attention logits reached {value:.4g} at step {found.step}"
            return


def _find_logit_growth(diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    """The first logit above the limit."""
    for found in diagnoses:
        if found.logit_max is not None and found.logit_max > LOGIT_LIMIT:
            yield f"logits reached {found.logit_max:.4g} at step {found.step}"
            return


def _has_grown(value: float, usual: float | None) -> bool:
    return usual is not None and value > max(LOGIT_RISE * usual, LOGIT_LIMIT)


def _running_medians(values: Sequence[float | None]) -> list[float | None]:
    """The median of the values before each, or None where they are fewer than EARLIER."""
    before: list[float] = []
    medians: list[float | None] = []
    for value in values:
        medians.append(statistics.median(before) if len(before) >= EARLIER else None)
        if value is not None:
            before.append(value)
    return medians
