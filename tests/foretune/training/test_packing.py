from __future__ import annotations

from typing import Any

import pytest

from foretune.records import RunSpec
from foretune.training.packing import find_trunks, pack_key
from foretune.training.schedules import schedule_lr
from foretune_factories import make_spec

FREE: list[dict[str, Any]] = [
    {"peak_lr": 0.1},
    {"weight_decay": 0.5},
    {"beta1": 0.5},
    {"clip_norm": 2.0},
    {"seed": 3},
    {"mixture": {"code": 0.5, "prose": 0.5}},
    {"steps": 80, "decay_steps": 16},
    {"schedule": "cosine", "decay_steps": 0},
    {"evaluations": 1},
    {"study": "another", "scale": "another"},
]
FIXED: list[dict[str, Any]] = [
    {"width": 64},
    {"depth": 3},
    {"parametrization": "standard"},
    {"batch_tokens": 2048},
    {"seq_len": 128},
    {"accumulation_steps": 2},
    {"precision": "bfloat16"},
    {"optimizer": "lion"},
    {"corpus_digest": "1" * 64},
    {"trainer": "mine:train"},
]


@pytest.mark.parametrize("difference", FREE, ids=str)
def test_members_may_differ_in(difference: dict[str, Any]) -> None:
    assert pack_key(make_spec(**difference)) == pack_key(make_spec())


@pytest.mark.parametrize("difference", FIXED, ids=str)
def test_members_may_not_differ_in(difference: dict[str, Any]) -> None:
    assert pack_key(make_spec(**difference)) != pack_key(make_spec())


@pytest.mark.parametrize("solo", [{"optimizer": "prodigy"}, {"optimizer": "schedulefree"}, {"trainer": "mine:train"}])
def test_some_train_alone(solo: dict[str, Any]) -> None:
    specs = [make_spec(**solo, seed=seed) for seed in range(3)]
    assert len({pack_key(spec) for spec in specs}) == 3
    assert not find_trunks([make_spec(**solo, steps=steps, schedule="constant", decay_steps=0) for steps in (20, 40)])


def horizons(**overrides: Any) -> list[RunSpec]:
    settings = {"warmup_steps": 4, **overrides}
    return [make_spec(steps=steps, decay_steps=steps // 5, **settings) for steps in (40, 20, 100, 60)]


def test_the_longest_leads_and_the_others_branch_off_where_the_learning_rates_part() -> None:
    specs = {spec.run_id: spec for spec in [*horizons(), *horizons(seed=1), *horizons(peak_lr=0.1)]}
    trunks = find_trunks(specs.values())
    assert len(trunks) == 9
    for run_id, (leader_id, fork) in trunks.items():
        follower, leader = specs[run_id].training, specs[leader_id].training
        assert leader.steps == 100
        assert (specs[run_id].seed, follower.peak_lr) == (specs[leader_id].seed, leader.peak_lr)
        rates = [[schedule_lr(training, step) for step in range(fork + 2)] for training in (follower, leader)]
        assert rates[0][: fork + 1] == rates[1][: fork + 1]
        assert rates[0][fork + 1] < rates[1][fork + 1]


@pytest.mark.parametrize(
    "apart",
    [
        {"schedule": "cosine"},
        {"warmup_steps": 5},
        {"weight_decay": 0.2},
        {"seed": 1},
        {"mixture": {"code": 1.0, "b": 0.0}},
    ],
    ids=str,
)
def test_what_has_no_trunk_in_common(apart: dict[str, Any]) -> None:
    short = {"steps": 20, "decay_steps": 4, "warmup_steps": 4}
    assert find_trunks([make_spec(), make_spec(**short)])
    assert not find_trunks([make_spec(), make_spec(**{**short, **apart})])
