"""The `python` corpus: the running interpreter's standard library, as code, tests and docs.

It is on every machine, in three domains that differ. A module's docstrings stand both in `code`, where they belong,
and in `docs`, as prose; both documents are split by the hash of the module's source, so what is held out in one domain
is never trained on in the other. Files that cannot be decoded or parsed (some tests are broken on purpose) are left
out.
"""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

from foretune.corpora.documents import Document, DomainSource, Listing
from foretune.errors import InputError

TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
GENERATED = ("_sysconfigdata", "topics.py")
"""Build settings of this machine, and the topics that `docs` holds as prose."""
MIN_TEST_FILES = 50
"""Slim installs keep a few support files of the tests; fewer than this is no domain (assumption)."""


def find_stdlib_sources(root: Path | None = None) -> tuple[list[DomainSource], tuple[str, ...]]:
    """The domains of the standard library under `root` (default: this interpreter's), and notes on what is absent."""
    root = root or Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise InputError(f'data.corpus = "python": no standard library source at {root}; use corpus = "files"')
    listing = tuple(sorted(_list_modules(root)))
    tests = tuple(entry for entry in listing if _is_test(entry[0], root))
    modules = tuple(entry for entry in listing if not _is_test(entry[0], root))
    sources = [
        DomainSource("code", modules, partial(_read_code, modules)),
        DomainSource("docs", modules, partial(_read_docs, modules, root)),
    ]
    if len(tests) < MIN_TEST_FILES:
        return sources, (f"python corpus: no domain `tests`, this Python comes without them ({len(tests)} files)",)
    return [*sources, DomainSource("tests", tests, partial(_read_code, tests))], ()


def _list_modules(folder: Path) -> Iterator[tuple[str, int, int]]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED_FOLDERS:
                yield from _list_modules(Path(entry.path))
        elif entry.name.endswith(".py") and not entry.name.startswith(GENERATED):
            facts = entry.stat()
            yield entry.path, facts.st_size, facts.st_mtime_ns


def _is_test(path: str, root: Path) -> bool:
    return not TEST_FOLDERS.isdisjoint(path.removeprefix(str(root)).split(os.sep)[:-1])


def _read_code(listing: Listing) -> Iterator[Document]:
    for path, _, _ in listing:
        if source := _read_source(path):
            yield Document(source)


def _read_docs(listing: Listing, root: Path) -> Iterator[Document]:
    for path, _, _ in listing:
        source = _read_source(path)
        if prose := _extract_docstrings(source, _module_name(path, root)):
            yield Document(prose, split_content=source.encode())
    for name in sorted(topics):
        yield Document(topics[name].strip())


def _read_source(path: str) -> str:
    """The text of a module by its declared encoding (PEP 263); empty where it cannot be decoded."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (UnicodeDecodeError, SyntaxError):
        return ""


def _module_name(path: str, root: Path) -> str:
    parts = Path(path).relative_to(root).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _extract_docstrings(source: str, module: str) -> str:
    """Every docstring of a module under the name of what it describes, in the order of the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's modules
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return ""
    sections = [f"{name}\n\n{inspect.cleandoc(text)}" for name, text in _walk_docstrings(tree, module)]
    return "\n\n\n".join(sections)


def _walk_docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if text := ast.get_docstring(node, clean=False):
            yield name, text
        for child in node.body:
            yield from _walk_docstrings(child, f"{name}.{getattr(child, 'name', '')}")
