"""What `check` prints of a study: parameters by group and the rules, for every kind of model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from foretune.checking import describe_status, describe_study
from foretune.ledger import open_ledger
from foretune.ledger.tables import leases
from foretune.study import read_study


def describe(
    proxy: dict[str, Any], space: dict[str, Any], training: dict[str, Any] | None = None
) -> dict[str, list[dict[str, Any]]]:
    study = {
        "study": {"name": "test", "question": "?"},
        "proxy": {"base_width": 32, "head_size": 8, **proxy},
        "scales": [{"name": f"w{width}", "width": width, "tokens": 65_536} for width in (32, 64)],
        "data": {"seq_len": 32},
        "training": {"batch_tokens": 1024, **(training or {})},
        "search": {"strategy": "grid", "space": {"peak_lr": [0.01], **space}},
        "runner": {"kind": "replay", "surface": {}},
    }
    return describe_study(read_study(study))


MODELS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "gate_up", "embedding"),
    ({"experts": {"count": 4}}, "experts_down", "router"),
    ({"architecture": "transformers", "config": {"model_type": "gpt2"}}, "transformer.h.mlp.c_fc", "transformer.wpe"),
]


@pytest.mark.parametrize(("proxy", "hidden", "other"), MODELS, ids=str)
def test_groups_and_rules_are_shown_for_every_kind_of_model(proxy: dict[str, Any], hidden: str, other: str) -> None:
    tables = describe(proxy, {"parametrization": ["mup", "standard"], "optimizer": ["adamw", "sgd"]})
    sizes = {row["scale"]: row["params_total"] for row in tables["scales"]}
    groups = tables["parameters by group"]
    assert {name: sum(row[name] for row in groups) for name in sizes} == sizes
    rules = tables["parametrization"]
    assert len(rules) == 2 * 2 * 2 * len({row["name"] for row in rules})
    wide = {
        (row["parametrization"], row["optimizer"], row["name"]): row["lr_multiplier"]
        for row in rules
        if row["width"] == 64
    }
    assert wide["mup", "adamw", hidden] == 0.5
    assert wide["mup", "sgd", hidden] == pytest.approx(1, rel=0.05)  # sizes are rounded to multiples of 8
    assert wide["mup", "adamw", other] == wide["standard", "sgd", hidden] == 1
    assert wide["mup", "sgd", other] == 2
    multipliers = tables["forward multipliers"]
    assert [(row["parametrization"], row["width"]) for row in multipliers] == [
        ("mup", 32), ("mup", 64), ("standard", 32), ("standard", 64)
    ]  # fmt: skip


def test_a_population_is_shown_with_its_whole_runs_and_those_of_its_replays() -> None:
    study = {
        "study": {"name": "test", "question": "?"},
        "proxy": {"base_width": 32, "head_size": 8},
        "scales": [{"name": f"w{width}", "width": width, "tokens": 65_536} for width in (32, 64)],
        "data": {"seq_len": 32},
        "training": {"batch_tokens": 1024},
        "search": {
            "strategy": "pbt",
            "space": {"peak_lr": {"low": 1e-3, "high": 0.1}},
            "population": {"size": 4, "ready_tokens": 16_384},
            "replay": {"scales": ["w64"], "seeds": [7]},
        },
        "runner": {"kind": "replay", "surface": {}},
    }
    rows = describe_study(read_study(study))["scales"]
    assert [row["scale"] for row in rows] == ["w32", "w64"]
    assert all(row["compute_flops"] == row["flops_per_token"] * 65_536 for row in rows)


def test_the_ramp_of_the_batch_is_shown_with_its_steps() -> None:
    tables = describe({}, {"seed": [0, 1]}, {"ramp_tokens": 8192, "ramp_doublings": 2})
    assert [tuple(row.values()) for row in tables["batch ramp"]] == [
        (scale, 1024, *phase)
        for scale in ("w32", "w64")
        for phase in [(256, 16, 4096), (512, 8, 4096), (1024, 56, 57_344)]  # together the 65536 tokens of the run
    ]
    assert list(tables["batch ramp"][0]) == ["scale", "full_batch_tokens", "batch_tokens", "steps", "tokens"]


def test_the_weight_decay_of_a_timescale_is_shown() -> None:
    tables = describe({}, {"timescale": [0.1, 0.2], "peak_lr": [0.01, 0.02], "seed": [0, 1]})
    rows = [row for row in tables["weight decay"] if row["scale"] == "w32"]
    assert [(row["peak_lr"], row["timescale"], row["weight_decay"]) for row in rows] == [
        (lr, timescale, pytest.approx(1024 / (lr * timescale * 65_536)))
        for lr in (0.01, 0.02)
        for timescale in (0.1, 0.2)
    ]


def test_what_a_study_does_not_have_is_not_shown() -> None:
    assert not {"batch ramp", "weight decay"} & set(describe({}, {}))


def test_the_status_of_a_driver_that_is_gone_says_so_and_no_time_left(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db", create=True) as ledger, ledger.hold_study("s") as lease:
        ledger.save_study("s", {})
        lease.progress({"minutes_left": 7})
        ledger._database.write(lease._renew)
        alive = describe_status(ledger, "s")
        assert (alive["minutes_left"], alive["note"]) == (7, "")
        assert alive["driver"].endswith(f":{os.getpid()}")
        earlier = leases.update().values(heartbeat_seconds=leases.c.heartbeat_seconds - 7200)
        ledger._database.write(lambda connection: connection.execute(earlier))
        gone = describe_status(ledger, "s")
    assert (gone["driver"], gone["minutes_left"]) == ("none", None)
    assert gone["note"].startswith(f"its driver {alive['driver']} was last heard of 120.0 minutes ago and is gone")
