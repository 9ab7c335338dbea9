"""What docs/searching.md writes as a study file can be read, and it names every key that a space may vary."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from foretune.sections import VARIABLE
from foretune.study import read_study

PAGE = (Path(__file__).parents[3] / "docs/searching.md").read_text(encoding="utf-8")
STUDY = """
[study]
name = "documented"
[proxy]
base_width = 64
head_size = 16
[[scales]]
name = "w64"
width = 64
tokens = 102_400
[training]
batch_tokens = 1024
peak_lr = 0.01
"""
DIMENSIONS = re.findall(r"^\| `(\w+ = [\[{].*[\]}])` \|", PAGE, flags=re.MULTILINE)


def test_there_is_something_to_read() -> None:
    assert len(DIMENSIONS) == 7
    assert "```toml" in PAGE


@pytest.mark.parametrize("block", re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL))
def test_its_study_files_can_be_read(block: str) -> None:
    leaves = read_study(tomllib.loads(STUDY + block)).search.leaves()
    assert len(leaves) == max(1, block.count("[[search.branches]]"))


@pytest.mark.parametrize("line", DIMENSIONS)
def test_its_dimensions_can_be_read(line: str) -> None:
    assert read_study(tomllib.loads(f"{STUDY}[search.space]\n{line}")).search.list_keys()


def test_it_names_every_dimension() -> None:
    assert [key for key in VARIABLE if f"`{key}`" not in PAGE] == []
