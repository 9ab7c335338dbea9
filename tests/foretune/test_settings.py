"""Which settings have an effect is judged by the optimizers and by the learning rates of every step themselves."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.deriving import CorpusFacts, resolve_run
from foretune.proxies.optimizers import OPTIMIZERS
from foretune.records import TrainingSpec
from foretune.settings import OPTIMIZERS_WITH, SCHEDULES_WITH
from foretune.study import Study, read_study
from foretune.training.schedules import schedule_lr

CORPUS = CorpusFacts("digest", 257, {"code": 1.0}, {"code": 10**9})
OTHER_VALUES = {
    "decay": 0.3,
    "decay_shape": "sqrt",
    "power_coefficient": 1.0,
    "power_exponent": -0.6,
    "final_lr_fraction": 0.2,
    "final_lr": 1e-3,
}


def make_study(**training: Any) -> Study:
    return read_study(
        {
            "study": {"name": "test"},
            "proxy": {"base_width": 32, "head_size": 8},
            "scales": [{"name": "w32", "width": 32, "tokens": 65_536}],
            "data": {"seq_len": 64},
            "training": {"batch_tokens": 1024, "peak_lr": 0.4, **training},
            "search": {"space": {"seed": [0]}},
        }
    )


def resolve(**point: Any) -> TrainingSpec:
    study = make_study()
    return resolve_run(study, study.scales[0], point, CORPUS).training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_has_the_settings_that_it_reads(name: str) -> None:
    read = getattr(OPTIMIZERS[name], "setting_names", ("beta1", "beta2", "eps"))  # those of the packages' two
    assert {key for key, users in OPTIMIZERS_WITH.items() if name in users} == set(read)


@pytest.mark.parametrize("key", SCHEDULES_WITH)
@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant", "power"])
def test_a_schedule_has_the_settings_that_change_its_rates(schedule: str, key: str) -> None:
    plain, other = resolve(schedule=schedule), resolve(schedule=schedule, **{key: OTHER_VALUES[key]})
    changes = [schedule_lr(plain, step) for step in range(64)] != [schedule_lr(other, step) for step in range(64)]
    assert changes == (schedule in SCHEDULES_WITH[key])
