"""A study file is read strictly: every error names key, rule, value and what to try, and all come at once."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from foretune.errors import InputError
from foretune.quantities import TokensPerParam
from foretune.study import load_study, read_study

GOOD = tomllib.loads("""
trainable = "my_lab.training:train"
[study]
name = "widths"
[proxy]
base_width = 32
head_size = 16
[[scales]]
name = "small"
width = 32
tokens = "20xN"
[[scales]]
name = "large"
width = 64
tokens = "1M"
[training]
batch_tokens = "2048"
[search.space]
peak_lr = { low = "2^-10", high = "2^-4", factor = 2 }
parametrization = ["mup", "standard"]
[verification]
scale = "large"
[budget]
flops = "1e18"
[target]
params = "7B"
tokens = "20xN"
""")


def altered(path: str, value: object) -> dict[str, Any]:
    """The good study with one key set, or removed when the value is None."""
    raw = copy.deepcopy(GOOD)
    *tables, key = path.split(".")
    table: Any = raw
    for name in tables:
        table = table[int(name)] if name.isdigit() else table.setdefault(name, {})
    if value is None:
        del table[key]
    else:
        table[key] = value
    return raw


def test_numbers_are_read_in_every_form() -> None:
    study = read_study(GOOD)
    assert study.training.batch_tokens == 2048
    assert study.scales[0].tokens == TokensPerParam(20)
    assert study.search.axis("peak_lr")[0] == 2**-10
    assert len(study.search.axis("peak_lr")) == 7
    assert study.target is not None
    assert study.target.tokens_resolved == 140_000_000_000


def test_snapshot_reads_back_to_the_same_study() -> None:
    study = read_study(GOOD)
    assert read_study(study.snapshot()) == study


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.batch_tokns", 3, "training.batch_tokns: unknown key; did you mean 'batch_tokens'?"),
        ("scales.0.wdth", 3, "scales.0.wdth: unknown key; did you mean 'width'?"),
        ("serch", {}, "serch: unknown key; did you mean 'search'?"),
        ("proxy.depth", True, "proxy.depth: must be a number, got bool True"),
        ("proxy.qk_norm", "yes", "proxy.qk_norm: input should be a valid boolean, got 'yes'"),
        ("study.seed", 1.5, "study.seed: input should be a valid integer"),
        ("study.seed", -1, "study.seed: input should be greater than or equal to 0, got -1"),
        ("study.name", "../x", "study.name: string should match pattern"),
        ("study.name", None, "study.name: required, and missing"),
        ("proxy.base_width", "wide", "proxy.base_width: must be a number, got 'wide'; write a number"),
        ("scales.0.width", 40, "scales.small.width: must be a multiple of head_size 16, got 40; nearest: 32 or 48"),
        (
            "proxy.head_size",
            7,
            "proxy.head_size: must be even for rotary embeddings, got 7; nearest: 6 or 8",
        ),
        ("scales.0.head_size", 1, "scales.small.head_size: must be even for rotary embeddings, got 1; nearest: 2"),
        (
            "proxy.experts",
            {"count": 4, "granularity": 16},
            "proxy.experts.granularity: 16 asks for experts of inner size 4 at proxy.base_width 32, and they would be "
            "8, the nearest multiple of 8; take 8, or a larger width",
        ),
        (
            "proxy.experts",
            {"count": 4, "granularity": 11},
            "proxy.experts.granularity: 11 asks for experts of inner size 11.6364 at scales.large.width 64, and they "
            "would be 8, the nearest multiple of 8; take 16, or a larger width",
        ),
        ("scales.1.name", "small", "scales: name 'small' is used twice"),
        ("scales.1.tokens", 2, "scales.large.tokens: 2 is fewer than one batch of 2048 tokens"),
        ("scales.1.tokens", 0, "scales.1.tokens: must be above zero, got 0"),
        ("scales.1.tokens", "0xN", "must be above zero, got '0xN'"),
        ("target.tokens", -5, "target.tokens: must be above zero, got -5"),
        ("target.params", 10**400, "target.params: must be finite"),
        ("target.params", "0^-1", "target.params: must be finite, got 0^-1"),
        ("search.space.beta2", [1.5], "search.space.beta2: input should be less than 1, got 1.5"),
        ("search.space.weight_decay", [-1], "search.space.weight_decay: input should be greater than or equal to 0"),
        ("search.space.seed", [-3], "search.space.seed: input should be greater than or equal to 0, got -3"),
        ("training.batch_tokens", 32, "training.batch_tokens: 32 is below seq_len 128; the batch is in tokens: 32 seq"),
        ("training.batch_tokens", 1000, "must be a multiple of seq_len 128, got 1000; nearest: 896 or 1024"),
        ("training.accumulation_steps", 3, "training.accumulation_steps: 3 must divide the 16 sequences"),
        ("training.warmup", 0.9, "warmup + decay must not exceed the run"),
        ("training.peak_lr", 3, "training.peak_lr: must lie in [1e-7, 0.5], got 3; did you mean 0.003?"),
        ("training.peak_lr", float("nan"), "training.peak_lr: must be finite, got nan"),
        ("search.space.peak_lr", [], "search.space.peak_lr: give a list of at least one value"),
        ("search.space.peak_lr", [1e-3, "0.001"], "search.space.peak_lr: values must differ, got 0.001 more than once"),
        ("search.space.peak_lr", {"low": 0, "high": 1}, "search.space.peak_lr.low: Input should be greater than 0"),
        ("search.space.peak_lr", {"low": 0.1, "high": 0.01}, "low must be below high, got low=0.1, high=0.01"),
        ("search.space.layers", [1, 2], "search.space.layers: unknown dimension; a space may vary"),
        ("search.space.parametrization", ["mub"], "must be one of standard, mup, depth-mup, completep, got 'mub'"),
        ("search.strategy", "gird", "search.strategy: input should be 'grid', 'points', 'random', 'qmc', 'tpe', 'gp'"),
        ("verification.scale", "huge", "verification.scale: no such scale 'huge'; scales: small, large"),
        ("runner.kind", "replay", "the replay runner needs either table or [runner.surface]"),
        ("data.mixture", {"a": 0.5, "b": 0.6}, "mixture shares must sum to 1, got 1.1; normalised: a = 0.454545"),
        ("data.mixture", {"a": -0.5, "b": 1.5}, "mixture shares must not be negative"),
        ("data.corpus", "files", "[data.domains.NAME] tables are needed"),
        ("trainable", "train", "trainable: must read package.module:function, got 'train'"),
        ("target.params", 2**63, "target.params: must fit in 64 bits"),
        (
            "training.optimizer",
            "adam",
            "training.optimizer: input should be 'adamw', 'nadamw', 'nadamw_constant', 'lion', 'sgd'",
        ),
        ("training.power_exponent", 0.51, "training.power_exponent: input should be less than 0, got 0.51"),
        ("training.power_exponent", -51, "training.power_exponent: input should be greater than or equal to -2"),
        ("training.ramp_doublings", 0, "training.ramp_doublings: input should be greater than or equal to 1, got 0"),
        ("training.spikes", "ignore", "training.spikes: input should be 'record' or 'skip', got 'ignore'"),
        ("runner", {"pack": 0}, "runner.pack: input should be greater than or equal to 1, got 0"),
        ("training.timescale", 0, "training.timescale: input should be greater than 0, got 0"),
        (
            "search.space.optimizer",
            ["adam"],
            "must be one of adamw, nadamw, nadamw_constant, lion, sgd, muon, schedulefree, prodigy, got",
        ),
        ("search.space.schedule", ["linear"], "must be one of wsd, cosine, constant, power, got 'linear'"),
        ("search.space.schedule", {"low": 1, "high": 2}, "search.space.schedule: give a list of at least one value"),
        ("search.space.beta1", [1], "search.space.beta1: input should be less than 1, got 1.0"),
        ("search.space.clip_norm", [0], "search.space.clip_norm: input should be greater than 0, got 0.0"),
        ("search.space.timescale", [0.1, 0], "search.space.timescale: input should be greater than 0, got 0.0"),
    ],
)
def test_bad_input_is_refused_with_what_to_try(path: str, value: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        read_study(altered(path, value))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("training", "space", "said"),
    [
        (
            {"optimizer": "schedulefree"},
            {},
            "training.schedule: 'schedulefree' does without a schedule of the learning rate, got 'wsd'; "
            'set schedule = "constant"',
        ),
        ({}, {"optimizer": ["adamw", "prodigy"]}, "training.schedule: 'prodigy' does without a schedule"),
        (
            {},
            {"momentum": [0.9, 0.95]},
            "search.space.momentum: the optimizer 'adamw' does without it, so its runs would be repeats; leave it out, "
            "or take one of sgd, muon",
        ),
        (
            {"optimizer": "sgd"},
            {"beta2": [0.9, 0.95]},
            "search.space.beta2: the optimizer 'sgd' does without it, so its runs would be repeats; leave it out, or "
            "take one of adamw, nadamw, nadamw_constant, lion, muon, schedulefree, prodigy",
        ),
        ({}, {"optimizer": ["sgd", "lion"], "eps": [1e-8, 1e-7]}, "search.space.eps: the optimizer 'sgd' does without"),
        (
            {"momentum": 0.9},
            {},
            "training.momentum: the optimizer 'adamw' does without it, so it would change nothing, got 0.9; leave it "
            "out, or take one of sgd, muon",
        ),
        ({"optimizer": "sgd", "beta1": 0.8}, {}, "training.beta1: the optimizer 'sgd' does without it"),
        ({"optimizer": "sgd", "beta2": 0.9}, {}, "training.beta2: the optimizer 'sgd' does without it"),
        ({"optimizer": "lion", "eps": 1e-7}, {}, "training.eps: the optimizer 'lion' does without it"),
        (
            {"schedule": "cosine", "decay_shape": "sqrt"},
            {},
            "training.decay_shape: the schedule 'cosine' does without it, so it would change nothing, got 'sqrt'; "
            "leave it out, or take one of wsd, power",
        ),
        ({"decay": 0.3}, {"schedule": ["cosine", "constant"]}, "training.decay: the schedule 'cosine' does without it"),
        (
            {"power_coefficient": 4.6},
            {},
            "training.power_coefficient: the schedule 'wsd' does without it, so it would change nothing, got 4.6; "
            'leave it out, or set schedule = "power"',
        ),
        ({"power_exponent": "-.5"}, {}, "training.power_exponent: the schedule 'wsd' does without it"),
        (
            {"ramp_doublings": 2},
            {},
            "training.ramp_doublings: there is no ramp, so it would change nothing, got 2; leave it out, or give "
            "ramp_tokens",
        ),
        (
            {"timescale": 0.2, "weight_decay": 0},
            {},
            "training.weight_decay: the timescale decides the weight decay of each run, so it would change nothing, "
            "got 0.0; leave out one of them",
        ),
        ({"weight_decay": 0.2}, {"timescale": [0.1, 0.2]}, "training.weight_decay: the timescale decides"),
        (
            {"schedule": "constant"},
            {"final_lr_fraction": [0, 0.1]},
            "search.space.final_lr_fraction: the schedule 'constant' does without it, so its runs would be repeats",
        ),
        (
            {"optimizer": "prodigy", "schedule": "constant", "peak_lr": 1},
            {"peak_lr": [1]},
            "training.optimizer: 'prodigy' has one learning rate for all groups of parameters, which parametrization "
            "'mup' does not; use parametrization = \"standard\"",
        ),
        (
            {"optimizer": "prodigy", "schedule": "constant"},
            {"peak_lr": [1e-3], "parametrization": ["standard"]},
            "search.space.peak_lr: must lie in [0.01, 10], got 0.001; did you mean 1?",
        ),
        ({"optimizer": "lion", "timescale": 0.2}, {}, "timescale is that of AdamW's weight decay; give weight_decay"),
        (
            {},
            {"optimizer": ["adamw", "lion"], "timescale": [0.2]},
            "search.space.timescale: it is that of AdamW's weight decay; give weight_decay with 'lion'",
        ),
        (
            {"timescale": 0.2},
            {"weight_decay": [0.1]},
            "search.space.weight_decay: the timescale decides the weight decay of each run, so its runs would be ",
        ),
        ({"final_lr": 1e-5, "final_lr_fraction": 0.1}, {}, "give either final_lr or final_lr_fraction"),
        ({"final_lr": 1e-5}, {"final_lr_fraction": [0.1]}, "give either final_lr or final_lr_fraction"),
        ({"final_lr": 0.02}, {}, "training.final_lr: 0.02 is above the search.space.peak_lr 0.000976562; lower it"),
        (
            {"schedule": "constant", "final_lr_fraction": 0.1},
            {},
            "training.final_lr_fraction: the schedule 'constant' does without it, so it would change nothing, got 0.1",
        ),
        ({"schedule": "power", "warmup": 0.5, "decay": 0.6}, {}, "warmup + decay must not exceed the run"),
        ({"schedule": "cosine", "warmup": 0.9}, {"schedule": ["cosine", "wsd"]}, "warmup + decay must not exceed"),
        (
            {"ramp_tokens": 40960, "ramp_doublings": 5},
            {},
            "training.ramp_doublings: a step of 2048 tokens, 16 sequences with accumulation_steps 1, cannot be halved "
            "5 times; lower it to at most 4",
        ),
        (
            {"ramp_tokens": 40960, "accumulation_steps": 4},
            {},
            "16 sequences with accumulation_steps 4, cannot be halved 3 times; lower it to at most 2",
        ),
        (
            {"ramp_tokens": 40960, "batch_tokens": 1920},
            {},
            "15 sequences with accumulation_steps 1, cannot be halved 3 times",
        ),
        (
            {"ramp_tokens": 4096},
            {},
            "training.ramp_tokens: 4096 is less than a batch of 2048 tokens for each of 3 doublings; raise it to at "
            "least 6144, or lower ramp_doublings",
        ),
        (
            {"ramp_tokens": "2M"},
            {},
            "training.ramp_tokens: 2000000 is not below the 1000000 tokens of scale 'large'; lower it",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    training: dict[str, Any], space: dict[str, Any], said: str
) -> None:
    raw = copy.deepcopy(GOOD)
    raw["training"] |= training
    raw["search"]["space"] |= space
    with pytest.raises(InputError) as error:
        read_study(raw)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("training", "space"),
    [
        ({"optimizer": "schedulefree", "schedule": "constant"}, {}),
        ({"optimizer": "prodigy", "schedule": "constant"}, {"peak_lr": [0.5, 1, 2], "parametrization": ["standard"]}),
        ({"final_lr": 1e-5, "schedule": "cosine"}, {}),
        ({"timescale": 0.2, "optimizer": "nadamw"}, {"timescale": [0.1, 0.2]}),
        ({"ramp_tokens": 6144, "ramp_doublings": 3}, {"batch_tokens": [1024, 2048]}),
        ({"momentum": 0.9}, {"optimizer": ["adamw", "muon"], "eps": [1e-8, 1e-7]}),
        ({"decay_shape": "sqrt", "decay": 0.3}, {"schedule": ["cosine", "wsd"]}),
        ({"schedule": "cosine", "decay": 0}, {}),
        ({"schedule": "power", "power_coefficient": 4.6, "power_exponent": -0.5}, {}),
        ({"timescale": 0.2, "optimizer": "adamw", "weight_decay": 0.1}, {}),
        ({}, {"optimizer": ["adamw", "muon", "lion"], "schedule": ["wsd", "power"], "momentum": [0.9, 0.95]}),
    ],
)
def test_settings_that_go_together_read_back(training: dict[str, Any], space: dict[str, Any]) -> None:
    raw = copy.deepcopy(GOOD)
    raw["training"] |= training
    raw["search"]["space"] |= space
    study = read_study(raw)
    assert read_study(study.snapshot()) == study


def test_an_odd_head_size_is_blamed_once_on_where_it_is_written() -> None:
    with pytest.raises(InputError) as error:
        read_study(altered("proxy.head_size", 7))
    assert str(error.value).count("must be even") == 1
    assert str(error.value).count("scales.") == 0


@pytest.mark.parametrize("granularity", [2, 3, 5, 6, 8])  # 32, 21.3, 12.8, 10.7 and 8 become 32, 24, 16, 8 and 8
def test_experts_within_a_quarter_of_the_size_asked_for_are_accepted(granularity: float) -> None:
    study = read_study(altered("proxy.experts", {"count": 4, "granularity": granularity}))
    assert study.proxy.experts is not None


def test_all_errors_of_a_file_come_at_once_and_name_it(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('[study]\nname = "x"\nqestion = ""\n[proxy]\nbase_width = 4\n', encoding="utf-8")
    with pytest.raises(InputError) as error:
        load_study(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert "did you mean 'question'?" in str(error.value)


def test_a_bad_rung_is_not_also_a_missing_one() -> None:
    scale = {"name": "a", "width": 64, "tokens": 0}
    with pytest.raises(InputError) as error:
        read_study(altered("scales", [scale]))
    assert str(error.value) == "scales.0.tokens: must be above zero, got 0"


@pytest.mark.parametrize(("text", "said"), [("a = ", "not valid TOML"), (None, "not found (looked at")])
def test_unreadable_files_are_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "study.toml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        load_study(file)


def test_relative_paths_start_at_the_study_file(tmp_path: Path) -> None:
    raw = altered("runner", {"kind": "replay", "table": "runs.csv"})
    study = read_study(raw, origin=tmp_path / "study.toml")
    assert study.runner.table == str(tmp_path / "runs.csv")


@pytest.mark.parametrize("name", ["lr_width_transfer", "lr_batch_grid"])
def test_shipped_studies_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "studies" / name
    assert load_study(folder).study.name == name


def test_every_field_has_a_docstring() -> None:
    from foretune.sections import Section
    from foretune.study import Study

    models = [*Section.__subclasses__()]
    bare = [f"{m.__name__}.{key}" for m in models for key, info in m.model_fields.items() if not info.description]
    assert Study in models
    assert bare == []
