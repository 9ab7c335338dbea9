"""What changes weights or settings while a run trains: how `[training]` is resolved, and what does not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from foretune.errors import InputError
from foretune.records import MixtureLearningSpec, SelfTuningSpec, TrainingSpec
from foretune.sections import (
    LR_FREE,
    MixtureLearningSection,
    ProxySection,
    ReferenceSection,
    RunnerSection,
    SearchSection,
    SelfTuningSection,
    TrainingSection,
)

CHANGING = ("halving", "pbt", "mixture", "autolrs")
"""Strategies that stop runs, go on from them or choose their mixture, which a run that learns along its way cannot
join."""


def resolve_online(
    spec: TrainingSpec, training: TrainingSection, seq_len: int, mixture: Mapping[str, float]
) -> TrainingSpec:
    """`spec` with the fields of what changes along a run, dropout among them; others stay at their defaults."""
    spec = spec.model_copy(update={"dropout": training.dropout})
    if training.reweighting != "none":
        weighing = {
            "reweighting": training.reweighting,
            "reweighting_temperature": training.reweighting_temperature,
            "reweighting_burn_in_steps": round(training.reweighting_burn_in * spec.steps),
        }
        spec = spec.model_copy(update=weighing)
    if training.mixture_learning is not None:
        sequences = training.batch_tokens // seq_len
        learning = _resolve_learning(training.mixture_learning, spec.steps, sequences, mixture)
        spec = spec.model_copy(update={"mixture_learning": learning})
    if training.self_tuning is not None:
        sequences = training.batch_tokens // seq_len
        tuning = _resolve_tuning(training.self_tuning, spec.steps, sequences, mixture)
        spec = spec.model_copy(update={"self_tuning": tuning})
    return spec


def find_online_problems(
    training: TrainingSection, search: SearchSection, proxy: ProxySection, runner: RunnerSection, trainable: str
) -> Iterator[str]:
    """Combinations that cannot be trained: key, rule, value, what to try."""
    kinds = search.axis("reweighting") or (training.reweighting,)
    if set(kinds) != {"none"}:
        yield from _reweighting_problems(training)
    else:
        for key in ("reweighting_temperature", "reweighting_burn_in"):
            if key in search.space:
                yield f"search.space.{key}: nothing is reweighted, so its runs would be repeats; set reweighting"
            elif getattr(training, key) != TrainingSection.model_fields[key].default:
                yield (
                    f"training.{key}: nothing is reweighted, so it would change nothing, got "
                    f'{getattr(training, key)!r}; leave it out, or set reweighting = "linupper"'
                )
    yield from _dropout_problems(training, search, proxy)
    for key in ("mixture_learning", "self_tuning"):
        if getattr(training, key) is not None:
            yield from _learning_problems(key, training, search, proxy)
            if trainable or runner.kind == "replay":
                other = f"trainable = {trainable!r}" if trainable else "runner.kind = 'replay'"
                yield f"training.{key}: is done by the trainer of this package, got {other}; leave out one of them"
    if training.mixture_learning is not None:
        yield from _copy_problems(training, search)
    if training.self_tuning is not None:
        yield from _tuning_problems(training, search, proxy)


def _reweighting_problems(training: TrainingSection) -> Iterator[str]:
    if training.accumulation_steps > 1:
        yield (
            "training.accumulation_steps: reweighting compares all sequences of a step, which must be one micro-batch, "
            f"got {training.accumulation_steps}; set it to 1, or reweighting to none"
        )
    if training.mixture_learning is not None:
        yield (
            f"training.reweighting: {training.reweighting!r} and mixture_learning both decide the weights of "
            "sequences; leave out one of them"
        )


def _dropout_problems(training: TrainingSection, search: SearchSection, proxy: ProxySection) -> Iterator[str]:
    searched = "dropout" in search.list_keys()
    key = "search.space.dropout" if searched else "training.dropout"
    if not (searched or training.dropout):
        return
    if proxy.architecture != "decoder":
        yield (
            f"{key}: is that of the decoder of this package, got proxy.architecture = {proxy.architecture!r}; leave it "
            "out, or name the model's own setting in [proxy.config]"
        )
    if training.self_tuning is not None and training.self_tuning.dropout:
        yield (
            f"{key}: self_tuning tunes the dropout, from {training.self_tuning.dropout:g} on; leave one of them out, "
            "or set training.self_tuning.dropout = 0"
        )


def _learning_problems(
    name: str, training: TrainingSection, search: SearchSection, proxy: ProxySection
) -> Iterator[str]:
    """What neither kind of run that learns along its way can be combined with."""
    key = f"training.{name}"
    if proxy.architecture != "decoder":
        yield (
            f"{key}: needs layers that models of {proxy.architecture!r} do not have; set "
            f'proxy.architecture = "decoder", or leave {name} out'
        )
    if search.strategy in CHANGING:
        yield (
            f"{key}: strategy {search.strategy!r} stops runs or chooses their mixture itself; leave {name} out, or "
            "take another strategy"
        )
    for optimizer in search.axis("optimizer") or (training.optimizer,):
        if optimizer in LR_FREE:
            yield f"{key}: optimizer {optimizer!r} trains one plain model alone; take adamw"
    for other, single in (("accumulation_steps", 1), ("ramp_tokens", 0), ("spikes", "record")):
        if getattr(training, other) != single:
            yield (
                f"training.{other}: must be {single!r} with {name}, which counts sequences by the step, got "
                f"{getattr(training, other)!r}; leave out one of them"
            )


def _copy_problems(training: TrainingSection, search: SearchSection) -> Iterator[str]:
    if search.replay and search.replay.file:
        yield (
            f"search.replay.file: replays a schedule, {search.replay.file!r}, whose mixture training.mixture_learning "
            "would change; leave out one of them"
        )
    if training.self_tuning is not None:
        yield "training.self_tuning: a run learns its mixture or tunes itself, not both; leave out mixture_learning"


def _tuning_problems(training: TrainingSection, search: SearchSection, proxy: ProxySection) -> Iterator[str]:
    if proxy.experts is not None or any(search.axis("experts.count")):
        yield (
            "training.self_tuning: is done in the matrices of a dense feed-forward, got experts; leave out one of them"
        )


def _resolve_learning(
    section: MixtureLearningSection, steps: int, sequences: int, mixture: Mapping[str, float]
) -> MixtureLearningSpec:
    missing = sorted(name for name, share in mixture.items() if share <= 0)
    if missing or len(mixture) < 2:
        raise InputError(
            "training.mixture_learning: shares are learned from those of the mixture, at least two of them above 0; "
            + (f"domain {missing[0]!r} has none" if missing else f"got {dict(mixture)}")
            + "; give every domain a share in [data.mixture]"
        )
    return MixtureLearningSpec(
        **_resolve_reference("mixture_learning", section, sequences, dict.fromkeys(mixture, 1.0)),
        penalty=section.penalty,
        logit_lr=section.logit_reach / steps,
    )


def _resolve_tuning(
    section: SelfTuningSection, steps: int, sequences: int, mixture: Mapping[str, float]
) -> SelfTuningSpec:
    start = {"dropout": section.dropout, "l2": section.l2}
    return SelfTuningSpec(
        **_resolve_reference("self_tuning", section, sequences, mixture),
        start={name: value for name, value in start.items() if value},
        train_steps=section.train_steps,
        tune_steps=section.tune_steps,
        warmup_steps=round(section.warmup * steps),
        lr=section.lr,
        width=section.width,
        entropy=section.entropy,
    )


def _resolve_reference(
    key: str, section: ReferenceSection, sequences: int, usual: Mapping[str, float]
) -> dict[str, Any]:
    """The fields of ReferenceSpec; `usual` are the weights of the domains where none are given."""
    unknown = sorted(set(section.objective) - set(usual))
    if unknown:
        raise InputError(
            f"training.{key}.objective.{unknown[0]}: no such domain; domains of this corpus: {', '.join(usual)}"
        )
    weights = section.objective or usual
    total = sum(weights.values())
    return {
        "objective": {name: weights.get(name, 0.0) / total for name in usual},
        "reference_share": max(1, round(section.reference_share * sequences)) / sequences,
        "reference_sequences": section.reference_sequences,
    }
