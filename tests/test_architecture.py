"""The house rules that imports and sources can break: parts point down, heavy libraries stay in their rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("platform/foretune/**/*.py"), *ROOT.glob("fitting/scalelaws/**/*.py")])
ROOMS = {
    "ray": ("platform/foretune/runners/raytune.py",),
    "torch": ("platform/foretune/proxies/",),
    "optuna": ("platform/foretune/search/",),
    "botorch": ("platform/foretune/search/",),
    "datasets": ("platform/foretune/corpora/",),
    "sqlalchemy": ("platform/foretune/ledger/",),
    "jinja2": ("platform/foretune/reporting",),
    "foretune": ("platform/foretune/",),
}
"""Where a library may be imported."""
FORBIDDEN = re.compile(
    r"weights_only\s*=\s*False|pickle\.loads?\(|cloudpickle\.loads?\(|\bdill\b|joblib\.load"
    r"|trust_remote_code\s*=\s*True|yaml\.load\(|(?<![\w.])eval\(|shell\s*=\s*True|Tuner\.restore"
)
"""Ways in which data becomes code."""


def list_imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_libraries_stay_in_their_rooms(file: Path) -> None:
    place = file.relative_to(ROOT).as_posix()
    strays = {name for name in list_imports(file) if name in ROOMS and not place.startswith(ROOMS[name])}
    assert not strays, f"{place} imports {strays}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_data_never_becomes_code(file: Path) -> None:
    assert not FORBIDDEN.findall(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_rooms_are_not_crowded(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 450


def test_the_platform_folder_is_not_a_package() -> None:
    assert not (ROOT / "platform/__init__.py").exists(), "it would shadow the standard library's platform module"


@pytest.mark.parametrize("module", ["foretune.cli", "foretune.verbs", "foretune.query", "foretune.ledger", "scalelaws"])
def test_queries_need_neither_torch_nor_ray(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'ray', 'matplotlib', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_path_of_a_machine_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    places = re.compile(r"/(?:root|work|farm|home|Users)/[a-z.]")
    texts = {name: ROOT / name for name in listed if not name.endswith((".png", ".svg", ".lock"))}
    found = [
        name for name, path in texts.items() if path.is_file() and places.search(path.read_text("utf-8", "replace"))
    ]
    assert [name for name in found if name != "tests/test_architecture.py"] == []
