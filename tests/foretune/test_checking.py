"""What `check` prints of a study: parameters by group and the rules, for every kind of model."""

from __future__ import annotations

from typing import Any

import pytest

from foretune.checking import describe_study
from foretune.study import read_study


def describe(proxy: dict[str, Any], space: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    study = {
        "study": {"name": "test", "question": "?"},
        "proxy": {"base_width": 32, "head_size": 8, **proxy},
        "scales": [{"name": f"w{width}", "width": width, "tokens": 65_536} for width in (32, 64)],
        "data": {"seq_len": 32},
        "training": {"batch_tokens": 1024},
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
