"""What a run derives from its training table: phases, ramps, final rates and the weight decay of a timescale."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts
from foretune.planning import Skipped
from foretune.records import RampPhase, RunSpec, TrainingSpec
from foretune.search import ask_search
from foretune.study import Study, read_study
from foretune.training.schedules import schedule_lr

CORPUS = CorpusFacts("digest", 257, {"code": 1.0}, {"code": 100_000_000})


def make_study(
    training: dict[str, Any], space: dict[str, Any] | None = None, tokens: int | str = 102_400, **search: Any
) -> Study:
    return read_study(
        {
            "study": {"name": "derived"},
            "proxy": {"base_width": 32, "head_size": 16},
            "data": {"seq_len": 64},
            "scales": [{"name": "w32", "width": 32, "tokens": tokens}],
            "training": {"batch_tokens": 1024, "peak_lr": 0.01, **training},
            "search": {"space": space or {"seed": [0]}, **search},
        }
    )


def ask(
    training: dict[str, Any], space: dict[str, Any] | None = None, tokens: int | str = 102_400
) -> tuple[list[RunSpec], list[Skipped]]:
    asked = ask_search(make_study(training, space, tokens), CORPUS)
    return list(asked.specs), list(asked.skipped)


def resolve(**training: Any) -> TrainingSpec:
    specs, skipped = ask(training)
    assert skipped == []
    return specs[0].training


def test_a_ramp_doubles_at_equal_shares_of_its_tokens() -> None:
    training = resolve(ramp_tokens=12_288, ramp_doublings=3)
    assert training.ramp == (
        RampPhase(steps=32, batch_tokens=128),
        RampPhase(steps=16, batch_tokens=256),
        RampPhase(steps=8, batch_tokens=512),
    )
    assert training.tokens == 102_400
    assert training.tokens_at(56) == 12_288
    assert training.steps == 56 + (102_400 - 12_288) // 1024


def test_the_shares_of_a_ramp_are_whole_full_batches() -> None:
    """10 000 / 3 tokens are 3.26 batches of 1024, so each share is 3 of them."""
    training = resolve(ramp_tokens=10_000, ramp_doublings=3)
    assert [phase.steps * phase.batch_tokens for phase in training.ramp] == [3072] * 3


def test_runs_of_a_cell_see_the_same_tokens_on_a_ramp() -> None:
    specs, _ = ask({"ramp_tokens": 12_288, "ramp_doublings": 2}, {"batch_tokens": [512, 1024, 2048]})
    assert {spec.training.tokens for spec in specs} == {102_400}
    assert len({spec.training.steps for spec in specs}) == 3


def test_phases_are_shares_of_the_tokens_on_a_ramp() -> None:
    """A tenth of the run are 10 240 tokens: 8192 in steps of 256, and 4 of 512."""
    plain = resolve(warmup=0.1, decay=0.2)
    ramped = resolve(warmup=0.1, decay=0.2, ramp_tokens=16_384, ramp_doublings=2)
    assert (plain.warmup_steps, plain.decay_steps, plain.steps) == (10, 20, 100)
    assert (ramped.warmup_steps, ramped.decay_steps) == (32 + 4, 20)
    assert ramped.tokens_at(ramped.warmup_steps) == plain.tokens_at(10) == 10_240
    in_tokens = resolve(warmup=10_240, decay=20_480, ramp_tokens=16_384, ramp_doublings=2)
    assert (in_tokens.warmup_steps, in_tokens.decay_steps) == (36, 20)


def test_a_decay_may_reach_into_the_ramp() -> None:
    """The last 90 % begin after 10 240 tokens, 36 steps."""
    training = resolve(warmup=0.05, decay=0.9, ramp_tokens=16_384, ramp_doublings=2)
    assert training.steps - training.decay_steps == 36


@pytest.mark.parametrize("steps", [25, 49, 100, 333])
@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3])
def test_without_a_ramp_phases_are_rounded_shares_of_the_steps(steps: int, fraction: float) -> None:
    """To the last bit, ties included: another rounding would change the ids of runs that are done."""
    specs, _ = ask({"warmup": fraction, "decay": fraction, "batch_tokens": 1152}, tokens=1152 * steps)
    training = specs[0].training
    assert (training.steps, training.warmup_steps) == (steps, round(fraction * steps))
    assert training.decay_steps == round(fraction * steps)


def test_a_ramp_longer_than_the_run_is_skipped_with_the_reason() -> None:
    specs, skipped = ask({"ramp_tokens": "10M"}, tokens="1xN")
    assert specs == []
    assert [item.reason for item in skipped] == [
        "training.ramp_tokens: it is not below the 25600 tokens of the run; lower it"
    ]


def test_an_absolute_final_rate_is_a_fraction_of_each_peak() -> None:
    specs, _ = ask({"schedule": "cosine", "final_lr": 1e-5}, {"peak_lr": [1e-3, 4e-3]})
    assert [spec.training.final_lr_fraction for spec in specs] == pytest.approx([1e-2, 2.5e-3])
    assert [schedule_lr(spec.training, spec.training.steps) for spec in specs] == pytest.approx([1e-5, 1e-5])


def test_a_rate_below_the_final_one_is_skipped_with_the_reason() -> None:
    """The study cannot know the rates of single points or of a forecast; planning does."""
    study = make_study({"final_lr": 1e-3}, points=[{"scale": "w32", "peak_lr": 1e-4}])
    skipped = ask_search(study, CORPUS).skipped
    assert [item.reason for item in skipped] == ["its final_lr 0.001 is above its peak_lr 0.0001"]


def test_the_timescale_gives_each_run_its_weight_decay() -> None:
    """lr weight_decay steps timescale = 1, at every learning rate and batch."""
    specs, _ = ask({"timescale": 0.2}, {"peak_lr": [1e-3, 4e-3], "batch_tokens": [512, 1024]})
    for spec in specs:
        training = spec.training
        assert training.peak_lr * training.weight_decay * training.steps * 0.2 == pytest.approx(1)
    assert len({spec.training.weight_decay for spec in specs}) == 4


def test_the_published_weight_decay_at_the_published_timescale() -> None:
    """Bergsma et al. 2025: at 20 tokens per parameter, timescale 1.084 x 20^-.527 = .2236; batch / (lr tau tokens)."""
    specs, _ = ask({"timescale": 1.084 * 20**-0.527, "peak_lr": 0.0125}, tokens=1_024_000)
    assert specs[0].training.weight_decay == pytest.approx(1024 / (0.0125 * 0.2236 * 1_024_000), rel=1e-3)


def test_the_power_schedule_counts_sequences() -> None:
    """Its a is over the tokens of a sequence, 64 here; other schedules have none."""
    training = resolve(schedule="power", power_coefficient=4.6)
    assert (training.power_coefficient * 64, training.power_exponent) == (4.6, -0.51)
    assert training.decay_steps == 20
    assert resolve().power_coefficient == 0


def test_every_setting_of_the_table_reaches_the_run() -> None:
    given: dict[str, Any] = {
        "optimizer": "muon",
        "momentum": 0.8,
        "beta1": 0.7,
        "beta2": 0.6,
        "eps": 1e-6,
        "clip_norm": 0.5,
        "decay_shape": "sqrt",
        "spikes": "skip",
        "diagnoses": 7,
        "final_lr_fraction": 0.3,
        "weight_decay": 0.05,
    }
    resolved = resolve(**given).model_dump()
    assert {name: resolved[name] for name in given} == given


def test_searched_settings_reach_their_runs() -> None:
    space = {
        "optimizer": ["adamw", "lion"],
        "schedule": ["wsd", "cosine"],
        "beta1": [0.9, 0.95],
        "clip_norm": {"low": 0.5, "high": 1},
        "final_lr_fraction": [0, 0.1],
    }
    specs, _ = ask({}, space)
    assert len({spec.run_id for spec in specs}) == 32
    assert {(s.training.optimizer, s.training.clip_norm) for s in specs} == {
        (optimizer, norm) for optimizer in ("adamw", "lion") for norm in (0.5, 1.0)
    }
