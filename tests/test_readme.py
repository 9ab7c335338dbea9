"""The README tells the truth: its file tree, its commands and its study example are checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from foretune.cli import build_parser
from foretune.study import read_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def read_block(marker: str) -> str:
    """The first fenced block after a marker comment."""
    match = re.search(rf"<!-- {marker} -->\s*```\w*\n(.*?)```", README, re.DOTALL)
    assert match, f"README has no block marked {marker}"
    return match[1]


def list_tree(text: str) -> set[str]:
    """Paths of an indented tree: two spaces a level, a folder ends in a slash, comments after two spaces."""
    paths, parents = set(), []
    for line in text.splitlines():
        name = line.strip().split("  ")[0].strip()
        if not name:
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name]
        paths.add("".join(parents[:depth]) + name)
    return paths


def test_the_tree_is_the_tree() -> None:
    told = list_tree(read_block("tree"))
    missing = sorted(path for path in told if not (ROOT / path).exists())
    assert missing == []
    sources = [*ROOT.glob("platform/foretune/*"), *ROOT.glob("fitting/scalelaws/*"), *ROOT.glob("*.*")]
    shown = {f"{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in sources if _belongs(path)}
    assert sorted(shown - told) == []


def _belongs(path: Path) -> bool:
    hidden = path.name.startswith((".", "_")) or path.suffix in (".egg-info", ".db", ".db-wal", ".db-shm")
    return not hidden and path.name not in ("py.typed",)


@pytest.mark.parametrize(
    "line", [line for line in README.splitlines() if re.match(r"(\$ )?(\.venv/bin/)?foretune ", line)]
)
def test_every_foretune_command_parses(line: str) -> None:
    import shlex

    words = shlex.split(line.removeprefix("$ ").removeprefix(".venv/bin/"), comments=True)[1:]
    build_parser().parse_args([word for word in words if word != "\\"])


def test_the_two_commands_are_on_the_first_screen() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README speaks of make {target}"


def test_the_study_example_is_a_valid_study() -> None:
    assert read_study(tomllib.loads(read_block("study"))).study.name


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
