"""One run with every derived number in it: pure functions of a study, a rung and the facts of the corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foretune.errors import InputError
from foretune.online import resolve_online
from foretune.quantities import TokensPerParam
from foretune.records import DataSpec, RampPhase, Role, RunSpec, TrainingSpec, trainer_of
from foretune.repetition import match_repetition
from foretune.sections import ScaleSection, TrainingSection
from foretune.sections.spaces import RUNG
from foretune.settings import LR_RANGE, SCHEDULES_WITH
from foretune.shaping import measure_rung, resolve_model
from foretune.space import Derived
from foretune.study import Study, choose_depth
from foretune.variation import PROXY_KEYS, find_value_problems, read_setting, vary_proxy


@dataclass(frozen=True)
class CorpusFacts:
    """What planning needs to know of a corpus."""

    digest: str
    """SHA-256 of its tokens."""
    vocab_size: int
    """Rows of the embedding."""
    mixture: Mapping[str, float]
    """Share of training sequences per domain."""
    train_tokens: Mapping[str, int]
    """Distinct training tokens per domain; empty when nothing is trained (replay)."""
    notes: tuple[str, ...] = ()
    """What a person ought to know of the corpus, a missing domain for instance."""


def resolve_run(
    study: Study, scale: ScaleSection, point: Mapping[str, Any], corpus: CorpusFacts, *, role: Role = "search"
) -> RunSpec:
    """One run with every derived number in it. `point` gives the searched values by their names in the space.

    Raises InputError where a mixture names another domain than the corpus has, or a rule of the space leads to a value
    that its setting cannot have.
    """
    point = complete_point(study, scale, point, corpus)
    mixture = _resolve_mixture(point, corpus)
    varied = study.model_copy(update={"proxy": vary_proxy(study.proxy, point)})
    training = study.training.model_copy(update={k: v for k, v in point.items() if k in TrainingSection.model_fields})
    return RunSpec(
        study=study.study.name,
        scale=scale.name,
        role=role,
        trainer=trainer_of(study.trainable, study.runner),
        model=resolve_model(
            varied, scale, str(point.get("parametrization", study.proxy.parametrization)), corpus.vocab_size
        ),
        data=DataSpec(
            corpus_digest=corpus.digest,
            seq_len=study.data.seq_len,
            mixture=mixture,
            validation_sequences=study.data.validation_sequences,
            unique_tokens=match_repetition(study, resolve_horizon(study, scale, corpus), corpus.train_tokens),
            section=study.data,
        ),
        training=resolve_online(
            _resolve_training(training, resolve_horizon(study, scale, corpus), study.data.seq_len),
            training,
            study.data.seq_len,
            mixture,
        ),
        seed=int(point.get("seed", study.study.seed)),
    )


def _resolve_mixture(point: Mapping[str, Any], corpus: CorpusFacts) -> dict[str, float]:
    mixture = dict(point.get("mixture", corpus.mixture))
    if unknown := sorted(set(mixture) - set(corpus.mixture)):
        raise InputError(
            f"search.space.mixture: no domain {unknown[0]!r} in the corpus; it has {', '.join(corpus.mixture)}"
        )
    return {name: mixture.get(name, 0.0) for name in corpus.mixture}


def complete_point(
    study: Study, scale: ScaleSection, point: Mapping[str, Any], corpus: CorpusFacts
) -> Mapping[str, Any]:
    """The point with the numbers that follow from it by the rules of its branch; what it gives itself stands."""
    rules = {key: rule for key, rule in study.search.leaf_at(point).space.items() if isinstance(rule, Derived)}
    complete = dict(point)

    def find(key: str) -> float:
        if key in RUNG:
            return _measure(study, scale, corpus, key)
        if key not in complete and key in rules:
            complete[key] = rules[key].follow(find(rules[key].of))
        number = complete[key] if key in complete else read_setting(study, key)
        assert number is not None, "Study checks that what is followed has a value"
        return float(number)

    for key in rules:
        find(key)
        if problems := _list_rule_problems(study, key, complete[key]):
            raise InputError(f"search.space.{key}: at scale {scale.name!r} {rules[key].of} leads to {problems[0]}")
    return complete


def _measure(study: Study, scale: ScaleSection, corpus: CorpusFacts, name: str) -> float:
    """A number of the rung itself, by its name in `RUNG`."""
    if name == "tokens":
        return resolve_horizon(study, scale, corpus)
    shape = measure_rung(study, scale, corpus.vocab_size)
    sizes = {"width": scale.width, "depth": choose_depth(study.proxy, scale)}
    return float(sizes.get(name, shape.params_non_embedding))


def _list_rule_problems(study: Study, key: str, value: float) -> list[str]:
    problems = find_value_problems(study.proxy if key in PROXY_KEYS else study.training, key, value)
    low, high = LR_RANGE
    if key == "peak_lr" and study.training.optimizer != "prodigy" and not low <= value <= high:
        problems.append(f"a rate outside [{low:g}, {high:g}], {value:g}; change the rule's coefficient")
    return problems


def resolve_horizon(study: Study, scale: ScaleSection, corpus: CorpusFacts) -> int:
    """The rung's training tokens, rounded up to a whole number of steps at every batch size of the space.

    Runs of one cell must see the same number of tokens whatever their batch, or batch and horizon are confounded.
    """
    batches = study.search.axis("batch_tokens") or (study.training.batch_tokens,)
    multiple = math.lcm(*batches)
    if multiple > 4 * max(batches):
        raise InputError(
            f"search.space.batch_tokens: the values {list(batches)} have no common multiple below {4 * max(batches)}, "
            "so the runs of a cell could not see the same number of tokens; take batches a factor 2 apart"
        )
    tokens = scale.tokens
    if isinstance(tokens, TokensPerParam):
        tokens = round(tokens.ratio * measure_rung(study, scale, corpus.vocab_size).params_non_embedding)
    return math.ceil(tokens / multiple) * multiple


def nearest_batch(batch_tokens: float, study: Study, horizon_tokens: int) -> int:
    """The batch nearest to the given one, in logs, that divides the horizon: its runs see the same tokens."""
    unit = study.data.seq_len * study.training.accumulation_steps
    steps_at_one_unit = max(1, horizon_tokens // unit)
    small = [d for d in range(1, math.isqrt(steps_at_one_unit) + 1) if steps_at_one_unit % d == 0]
    divisors = {divisor for d in small for divisor in (d, steps_at_one_unit // d)}
    return unit * min(divisors, key=lambda divisor: abs(math.log(divisor * unit / batch_tokens)))


def _resolve_training(training: TrainingSection, tokens: int, seq_len: int) -> TrainingSpec:
    batch_tokens, peak_lr = training.batch_tokens, training.peak_lr
    assert peak_lr is not None, "Study checks that a learning rate is given"
    ramp = _resolve_ramp(training, tokens)
    full_steps = (tokens - _count_tokens(ramp)) // batch_tokens
    steps = max(1, sum(phase.steps for phase in ramp) + full_steps)
    stretches = (*ramp, RampPhase(steps=full_steps, batch_tokens=batch_tokens))
    decay = training.decay if training.schedule in SCHEDULES_WITH["decay"] else 0.0
    powers = training.schedule == "power"
    return TrainingSpec(
        optimizer=training.optimizer,
        schedule=training.schedule,
        peak_lr=peak_lr,
        batch_tokens=batch_tokens,
        steps=steps,
        warmup_steps=_count_steps(training.warmup, stretches, is_fraction=training.warmup < 1),
        decay_steps=_count_steps(decay, stretches[::-1], is_fraction=decay <= 1),
        final_lr_fraction=_choose_final_fraction(training),
        beta1=training.beta1,
        beta2=training.beta2,
        eps=training.eps,
        weight_decay=choose_weight_decay(training, tokens),
        clip_norm=training.clip_norm,
        accumulation_steps=training.accumulation_steps,
        precision=training.precision,
        evaluations=min(training.evaluations, steps),
        checkpoint_steps=math.ceil(training.checkpoint_tokens / batch_tokens),
        momentum=training.momentum,
        decay_shape=training.decay_shape,
        power_coefficient=training.power_coefficient / seq_len if powers else 0.0,
        power_exponent=training.power_exponent if powers else 0.0,
        ramp=ramp,
        spikes=training.spikes,
        diagnoses=min(training.diagnoses, steps),
    )


def choose_weight_decay(training: TrainingSection, tokens: int) -> float:
    """The given weight decay, or that of the timescale: batch / (lr timescale tokens).

    AdamW averages its updates over 1 / (lr weight_decay) steps; the timescale is that over the steps of the run (Wang
    and Aitchison 2024, arXiv 2405.13698; Bergsma et al. 2025, arXiv 2505.13738, equation 3).
    """
    if training.timescale is None:
        return training.weight_decay
    assert training.peak_lr is not None, "Study checks that a learning rate is given"
    return training.batch_tokens / (training.peak_lr * training.timescale * tokens)


def _choose_final_fraction(training: TrainingSection) -> float:
    if training.schedule == "constant":
        return 1.0
    if training.final_lr is None:
        return training.final_lr_fraction
    assert training.peak_lr is not None, "Study checks that a learning rate is given"
    return training.final_lr / training.peak_lr


def _resolve_ramp(training: TrainingSection, tokens: int) -> tuple[RampPhase, ...]:
    """The smaller batches: each takes an equal share of the ramp, in whole batches of the full size.

    A ramp that is longer than the run is cut at its end.
    """
    full, phases, left = training.batch_tokens, [], tokens
    for doublings in range(training.ramp_doublings if training.ramp_tokens else 0, 0, -1):
        share = max(1, round(training.ramp_tokens / training.ramp_doublings / full)) * full
        batch = full // 2**doublings
        phases.append(RampPhase(steps=min(share, left) // batch, batch_tokens=batch))
        left -= min(share, left)
    return tuple(phase for phase in phases if phase.steps)


def _count_tokens(phases: Iterable[RampPhase]) -> int:
    return sum(phase.steps * phase.batch_tokens for phase in phases)


def _count_steps(phase: float, stretches: Sequence[RampPhase], *, is_fraction: bool) -> int:
    """Steps of a phase that is given as a fraction of the run's tokens or in tokens, through stretches in order."""
    if is_fraction:
        # in full batches, so that without a ramp it is the fraction of the steps to the last bit
        full = max(stretch.batch_tokens for stretch in stretches)
        return _walk(phase * (_count_tokens(stretches) / full), stretches, full, round)
    return _walk(phase, stretches, 1, math.ceil)


def _walk(amount: float, stretches: Sequence[RampPhase], unit: int, whole: Callable[[float], int]) -> int:
    """Steps until so many units of tokens are trained; beyond the last stretch its batch goes on."""
    steps = 0
    for stretch in stretches[:-1]:
        size = stretch.batch_tokens / unit
        if amount <= stretch.steps * size:
            return steps + whole(amount / size)
        steps, amount = steps + stretch.steps, amount - stretch.steps * size
    return steps + whole(amount / (stretches[-1].batch_tokens / unit))
