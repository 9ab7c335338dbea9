"""What `[training]` and the space over it may say together; every problem with its key, rule, value and what to try."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from foretune.sections import ADAMW, LR_FREE, Leaf, ScaleSection, TrainingSection

LR_RANGE = (1e-7, 0.5)
"""Peak learning rates outside it are taken for slips of the keyboard (assumption)."""
PRODIGY_LR_RANGE = (1e-2, 10.0)
"""Prodigy multiplies an estimated distance, so that 1 is its usual rate (Mishchenko and Defazio 2023; assumption)."""

OPTIMIZERS_WITH: dict[str, tuple[str, ...]] = {
    "beta1": (*ADAMW, "lion", "muon", "schedulefree", "prodigy"),
    "beta2": (*ADAMW, "lion", "muon", "schedulefree", "prodigy"),
    "eps": (*ADAMW, "muon", "schedulefree", "prodigy"),
    "momentum": ("sgd", "muon"),
}
"""The optimizers that a setting has an effect on, where there are others (muon trains vectors by AdamW)."""
SCHEDULES_WITH: dict[str, tuple[str, ...]] = {
    "decay": ("wsd", "power"),
    "decay_shape": ("wsd", "power"),
    "power_coefficient": ("power",),
    "power_exponent": ("power",),
    "final_lr_fraction": ("wsd", "cosine", "power"),
    "final_lr": ("wsd", "cosine", "power"),
}
"""The schedules that a setting has an effect on, where there are others."""


def find_training_problems(
    training: TrainingSection,
    search: Leaf,
    scales: Sequence[ScaleSection],
    seq_len: int,
    parametrizations: Sequence[str],
) -> list[str]:
    """All problems of the training table; `parametrizations` are those that the study runs."""
    optimizers = search.axis("optimizer") or (training.optimizer,)
    schedules = search.axis("schedule") or (training.schedule,)
    return [
        *_lr_problems(training, search, optimizers),
        *_all_batch_problems(training, search, seq_len),
        *_phase_problems(training, schedules),
        *_final_lr_problems(training, search),
        *_optimizer_problems(optimizers, schedules, parametrizations),
        *_idle_problems(training, search, optimizers, schedules),
        *_timescale_problems(search, optimizers),
        *_ramp_problems(training, search, scales),
    ]


def find_batch_problems(key: str, batch: int, training: TrainingSection, seq_len: int) -> list[str]:
    """Whether a step of so many tokens is whole sequences and whole micro-batches, on its ramp too."""
    accumulation, doublings = training.accumulation_steps, training.ramp_doublings if training.ramp_tokens else 0
    if batch < seq_len:
        return [
            f"{key}: {batch} is below seq_len {seq_len}; the batch is in tokens: {batch} sequences are "
            f"{batch * seq_len} tokens"
        ]
    if batch % seq_len:
        below = batch // seq_len * seq_len
        return [f"{key}: must be a multiple of seq_len {seq_len}, got {batch}; nearest: {below} or {below + seq_len}"]
    if batch // seq_len % accumulation:
        return [
            f"training.accumulation_steps: {accumulation} must divide the {batch // seq_len} sequences of "
            f"a step of {batch} tokens"
        ]
    if batch // seq_len // accumulation % 2**doublings:
        most = _count_halvings(batch // seq_len // accumulation)
        tried = f"lower it to at most {most}" if most else "take a batch of a power of two sequences"
        return [
            f"training.ramp_doublings: a step of {batch} tokens, {batch // seq_len} sequences with "
            f"accumulation_steps {accumulation}, cannot be halved {doublings} times; {tried}"
        ]
    return []


def _lr_problems(training: TrainingSection, search: Leaf, optimizers: Sequence[str]) -> Iterator[str]:
    rates = _list_rates(training, search)
    if not rates and "peak_lr" not in search.space:
        yield "training.peak_lr: no learning rate; give it here or as search.space.peak_lr"
    low, high = PRODIGY_LR_RANGE if set(optimizers) == {"prodigy"} else LR_RANGE
    for key, rate in rates:
        if rate > 0 and not low <= rate <= high:
            plausible = 1.0 if high > 1 else _plausible_lr(rate)
            lowest = f"{low:g}".replace("e-0", "e-")
            yield f"{key}: must lie in [{lowest}, {high:g}], got {rate:g}; did you mean {plausible:g}?"


def _all_batch_problems(training: TrainingSection, search: Leaf, seq_len: int) -> Iterator[str]:
    for batch in search.axis("batch_tokens"):
        yield from find_batch_problems("search.space.batch_tokens", batch, training, seq_len)
    yield from find_batch_problems("training.batch_tokens", training.batch_tokens, training, seq_len)


def _phase_problems(training: TrainingSection, schedules: Sequence[str]) -> Iterator[str]:
    phases = training.warmup + training.decay
    if set(SCHEDULES_WITH["decay"]) & set(schedules) and training.warmup < 1 and training.decay <= 1 and phases > 1:
        yield (
            f"training: warmup + decay must not exceed the run, got {training.warmup:g} + {training.decay:g}; lower one"
        )


def _final_lr_problems(training: TrainingSection, search: Leaf) -> Iterator[str]:
    final = training.final_lr
    for key, rate in _list_rates(training, search):
        if final is not None and final > rate:
            yield f"training.final_lr: {final:g} is above the {key} {rate:g}; lower it, or give final_lr_fraction"


def _optimizer_problems(
    optimizers: Sequence[str], schedules: Sequence[str], parametrizations: Sequence[str]
) -> Iterator[str]:
    for optimizer, schedule in itertools.product(optimizers, schedules):
        if optimizer in LR_FREE and schedule != "constant":
            yield (
                f"training.schedule: {optimizer!r} does without a schedule of the learning rate, got {schedule!r}; "
                'set schedule = "constant" (a warm-up is kept), and study it apart from other optimizers'
            )
    other = [name for name in parametrizations if name != "standard"]
    if "prodigy" in optimizers and other:
        yield (
            "training.optimizer: 'prodigy' has one learning rate for all groups of parameters, which parametrization "
            f'{other[0]!r} does not; use parametrization = "standard", or another optimizer'
        )


def _idle_problems(
    training: TrainingSection, search: Leaf, optimizers: Sequence[str], schedules: Sequence[str]
) -> Iterator[str]:
    """Settings that would change nothing: those of the table at another value than their default, which a resolved
    study states too, and dimensions of the space, whose runs would be repeats."""
    for key, reason, instead in _list_idle(training, search, optimizers, schedules):
        value = getattr(training, key)
        if key in search.space:
            yield f"search.space.{key}: {reason}, so its runs would be repeats; {instead}"
        elif value != TrainingSection.model_fields[key].default:
            yield f"training.{key}: {reason}, so it would change nothing, got {value!r}; {instead}"


def _list_idle(
    training: TrainingSection, search: Leaf, optimizers: Sequence[str], schedules: Sequence[str]
) -> Iterator[tuple[str, str, str]]:
    """The settings without an effect in this study, each with the reason and what to try."""
    for kind, used, users in (("optimizer", optimizers, OPTIMIZERS_WITH), ("schedule", schedules, SCHEDULES_WITH)):
        for key, having in users.items():
            if not set(having) & set(used) and (key != "decay" or training.decay):  # no decay is true of any schedule
                instead = f"take one of {', '.join(having)}" if len(having) > 1 else f'set {kind} = "{having[0]}"'
                yield key, f"the {kind} {used[0]!r} does without it", f"leave it out, or {instead}"
    if not training.ramp_tokens:
        yield "ramp_doublings", "there is no ramp", "leave it out, or give ramp_tokens"
    if training.timescale is not None or "timescale" in search.space:
        yield "weight_decay", "the timescale decides the weight decay of each run", "leave out one of them"


def _timescale_problems(search: Leaf, optimizers: Sequence[str]) -> Iterator[str]:
    for optimizer in optimizers if "timescale" in search.space else ():
        if optimizer not in ADAMW:
            yield f"search.space.timescale: it is that of AdamW's weight decay; give weight_decay with {optimizer!r}"


def _ramp_problems(training: TrainingSection, search: Leaf, scales: Sequence[ScaleSection]) -> Iterator[str]:
    if not training.ramp_tokens:
        return
    largest = max(search.axis("batch_tokens") or (training.batch_tokens,))
    least = largest * training.ramp_doublings
    if training.ramp_tokens < least:
        yield (
            f"training.ramp_tokens: {training.ramp_tokens} is less than a batch of {largest} tokens for each of "
            f"{training.ramp_doublings} doublings; raise it to at least {least}, or lower ramp_doublings"
        )
    for scale in scales:
        if isinstance(scale.tokens, int) and scale.tokens <= training.ramp_tokens:
            yield (
                f"training.ramp_tokens: {training.ramp_tokens} is not below the {scale.tokens} tokens of scale "
                f"{scale.name!r}; lower it, or raise the tokens"
            )


def _list_rates(training: TrainingSection, search: Leaf) -> list[tuple[str, float]]:
    """The learning rates that are run, by their key; that of the table stands for points without a space's."""
    rates = [("search.space.peak_lr", float(rate)) for rate in search.extremes("peak_lr")]
    return rates if training.peak_lr is None else [*rates, ("training.peak_lr", training.peak_lr)]


def _count_halvings(number: int) -> int:
    """How often a number can be halved."""
    return (number & -number).bit_length() - 1


def _plausible_lr(rate: float) -> float:
    """The same digits with an exponent that a learning rate may have."""
    low, high = LR_RANGE
    while rate > high:
        rate /= 1000
    while 0 < rate < low:
        rate *= 1000
    return rate
