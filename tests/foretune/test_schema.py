"""The JSON Schema of study files says what a study file may say; judged by jsonschema (which nbformat brings)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from foretune.cli import main
from foretune.errors import InputError
from foretune.quantities import parse_count, parse_horizon, parse_quantity
from foretune.study import Study, read_study

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*/study.toml"))
SCHEMA = Study.model_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
READABLE = ["7", "7e9", "-2.5", "+.5", "1.", "7B", "1.4T", "512k", "1e3k", "2^-7", "2.5^0.5", "1_000", " 8 ", "20xN"]
UNREADABLE = ["", "x", "7 B", "7b", "1_", "1__0", "2^", "^2", "e9", "1.2.3", "20xM", "-20xN", "xN", "7Bx", "nan"]
SMALL = """
[study]
name = "small"
[proxy]
base_width = 32
head_size = 8
[[scales]]
name = "w32"
width = 32
tokens = "20xN"
[training]
batch_tokens = 1024
peak_lr = 0.01
[search.space]
seed = [0, 1]
"""


def small(path: str, value: object) -> dict[str, Any]:
    raw = tomllib.loads(SMALL)
    *tables, key = path.split(".")
    table: Any = raw
    for name in tables:
        table = table[int(name)] if name.isdigit() else table.setdefault(name, {})
    table[key] = value
    return raw


def test_the_schema_is_json_and_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert printed == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_has_no_keyword_that_json_schema_does_not_know() -> None:
    known = set(jsonschema.Draft202012Validator.VALIDATORS) | {"title", "description", "default", "$defs"}
    assert _list_keywords(SCHEMA) <= known


def _list_keywords(schema: object) -> set[str]:
    """The keywords of a schema, and not the names of properties."""
    if isinstance(schema, list):
        return {key for item in schema for key in _list_keywords(item)}
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for key, inner in schema.items():
        inside = list(inner.values()) if key in ("properties", "$defs") else inner
        found |= set() if key in ("default", "enum", "const", "required") else _list_keywords(inside)
    return found


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.parent.name)
def test_shipped_studies_and_their_snapshots_are_valid(file: Path) -> None:
    raw = tomllib.loads(file.read_text(encoding="utf-8"))
    assert [error.message for error in VALIDATOR.iter_errors(raw)] == []
    assert [error.message for error in VALIDATOR.iter_errors(read_study(raw).snapshot())] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scales.0.width", "wide"),
        ("scales.0.tokens", "20xM"),
        ("scales.0.tokens", 0),
        ("proxy.base_width", 4),
        ("proxy.depth", 1.5),
        ("proxy.qk_norm", "yes"),
        ("proxy.across_width", "fit"),
        ("training.peak_lr", 0),
        ("training.power_exponent", 0),
        ("training.optimizer", "adam"),
        ("search.space", {}),
        ("search.space.peak_lr", 0.01),
        ("search.space.peak_lr", []),
        ("search.space.peak_lr", ["2^-8", "2^-8"]),
        ("search.space.peak_lr", {"low": 0, "high": 1}),
        ("search.space.batch_tokens", [1024.5]),
        ("search.space.layers", [1, 2]),
        ("search.space.optimizer", {"low": 1, "high": 2}),
        ("search.space.parametrization", ["mub"]),
        ("search.points", [{"scale": "w32", "peak_lr": 0.01, "seed": -1}]),
        ("budget.flops", 0),
        ("runner.pack", 0),
    ],
)
def test_wrong_files_are_not_valid_and_are_not_read(path: str, value: object) -> None:
    raw = small(path, value)
    assert not VALIDATOR.is_valid(raw)
    with pytest.raises(InputError):
        read_study(raw)


@pytest.mark.parametrize("text", [*READABLE, *UNREADABLE])
def test_texts_are_valid_where_they_can_be_read(text: str) -> None:
    fields = {"training.eps": parse_quantity, "data.max_epochs": parse_quantity, "scales.0.tokens": parse_horizon}
    assert _reads(parse_horizon, text) == (text in READABLE)
    for path, parse in fields.items():
        assert VALIDATOR.is_valid(small(path, text)) == _reads(parse, text), path
    if not _reads(parse_quantity, text):
        assert not VALIDATOR.is_valid(small("proxy.depth", text))
        assert not _reads(parse_count, text)


def _reads(parse: Any, text: str) -> bool:
    """Whether the form is read; a range that the text is out of is another matter, which a pattern cannot tell."""
    try:
        parse(text)
    except ValueError as error:
        return "must be above zero" in str(error) or "whole number" in str(error)
    return True
