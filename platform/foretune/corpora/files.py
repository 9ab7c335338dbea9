"""The `files` corpus: text, JSONL, Parquet and flat token files by path, folder or glob, and Hugging Face datasets."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from foretune.corpora.documents import Document, DomainSource, Listing
from foretune.errors import InputError
from foretune.sections import DomainSection

SUFFIXES = {
    "text": (),
    "jsonl": (".jsonl", ".jsonl.gz", ".json"),
    "parquet": (".parquet",),
    "tokens_uint16": (".bin",),
    "tokens_uint32": (".bin",),
}
"""What is taken from a folder; text takes every file that is not hidden."""
BOOK_CHARACTERS = 2**16
"""A text file above this is a book, not a document: it is cut into sections, so that some can be held out."""
SECTION_CHARACTERS = 2**13


def find_file_sources(name: str, section: DomainSection) -> DomainSource:
    """The source of one domain. Raises InputError when its path is missing or its folder holds nothing to read."""
    where = f"data.domains.{name}"
    if section.dataset:
        listing = _list_files(where, [Path(section.dataset)]) if Path(section.dataset).exists() else ()
        return DomainSource(name, listing, partial(_read_dataset, where, section))
    listing = _list_files(where, _find_paths(where, section))
    read = partial(_READERS[section.format], where=where, section=section)
    return DomainSource(name, listing, partial(_read_all, listing, read))


def _find_paths(where: str, section: DomainSection) -> list[Path]:
    path = Path(section.path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_wanted(file, path, SUFFIXES[section.format]))
        kind = f"*{' or *'.join(SUFFIXES[section.format])}" if SUFFIXES[section.format] else "files"
        return _require(found, f"{where}.path: folder {section.path!r} holds no {kind}; look at path and format")
    found = sorted(Path(match) for match in glob.glob(section.path, recursive=True) if Path(match).is_file())
    return _require(found, f"{where}.path: nothing at {section.path!r} (looked at {path.absolute()}); give a file, "
                           f"a folder or a glob; relative paths start at the study file")  # fmt: skip


def _require(found: list[Path], problem: str) -> list[Path]:
    if not found:
        raise InputError(problem)
    return found


def _is_wanted(file: Path, folder: Path, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and (not suffixes or file.name.endswith(suffixes))


def _list_files(where: str, paths: list[Path]) -> Listing:
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    try:
        facts = [(str(file), file.stat()) for file in files if file.is_file()]
    except OSError as error:
        raise InputError(f"{where}: cannot read {error.filename!r}: {error.strerror}") from None
    return tuple((path, fact.st_size, fact.st_mtime_ns) for path, fact in facts)


def _read_all(listing: Listing, read: Callable[..., Iterator[Document]]) -> Iterator[Document]:
    for path, _, _ in listing:
        yield from read(Path(path))


def _read_text(path: Path, where: str, section: DomainSection) -> Iterator[Document]:
    with _open_text(path, where) as file:
        text = file.read()
    if len(text) <= BOOK_CHARACTERS:
        yield Document(text)
        return
    sections = list(_cut_sections(text))
    for number, part in enumerate(sections, start=1):
        yield Document(part, ends=number == len(sections))


def _cut_sections(text: str) -> Iterator[str]:
    """Sections of about SECTION_CHARACTERS, cut after a line break where there is one in reach."""
    start = 0
    while start < len(text):
        line_end = text.find("\n", start + SECTION_CHARACTERS, start + 2 * SECTION_CHARACTERS)
        end = line_end + 1 if line_end >= 0 else start + SECTION_CHARACTERS
        yield text[start:end]
        start = end


def _read_jsonl(path: Path, where: str, section: DomainSection) -> Iterator[Document]:
    with _open_text(path, where) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Document(_pick_text(line, f"{where}: line {number} of {path}", section.field))


def _pick_text(line: str, where: str, field: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}; JSONL has one object a line") from None
    if not isinstance(row, dict) or field not in row:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where} has no key {field!r}; it has: {keys}; set field to the one that holds the text")
    return _check_text(row[field], where, field)


def _read_parquet(path: Path, where: str, section: DomainSection) -> Iterator[Document]:
    from pyarrow import lib, parquet

    try:
        with parquet.ParquetFile(path) as file:  # type: ignore[no-untyped-call]
            _check_column(section.field, file.schema_arrow.names, f"{where}: {path}")
            for batch in file.iter_batches(columns=[section.field]):
                for value in batch.column(0).to_pylist():
                    yield Document(_check_text(value, f"{where}: {path}", section.field))
    except lib.ArrowInvalid as error:
        raise InputError(f"{where}: {path} is not a Parquet file: {error}") from None


def _read_dataset(where: str, section: DomainSection) -> Iterator[Document]:
    """Rows of a Hugging Face dataset: a name on the hub, `name:config`, or a local folder."""
    try:
        from datasets.load import load_dataset
    except ModuleNotFoundError:
        raise InputError(f"{where}.dataset needs the extra: pip install 'foretune[datasets]'") from None
    name, _, config = section.dataset.partition(":")
    try:
        rows = load_dataset(name, config or None, split=section.split)
    except Exception as error:  # the library lets its network and format errors through
        raise InputError(
            f"{where}.dataset: cannot load split {section.split!r} of {section.dataset!r}: "
            f"{type(error).__name__}: {error}; look at its name, split and the network"
        ) from error
    _check_column(section.field, rows.column_names, f"{where}: {section.dataset}")
    for row in rows.select_columns([section.field]):
        yield Document(_check_text(row[section.field], f"{where}: {section.dataset}", section.field))


def _check_column(field: str, columns: list[str], where: str) -> None:
    if field not in columns:
        raise InputError(f"{where} has no column {field!r}; it has: {', '.join(columns)}; set field to the text's")


def _check_text(value: Any, where: str, field: str) -> str:
    """A text; null is an empty one, and lone surrogates, which UTF-8 cannot hold, become question marks."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} must hold text, got {type(value).__name__} {str(value)[:40]!r}")
    return value.encode("utf-8", "replace").decode()


def _read_tokens(path: Path, where: str, section: DomainSection) -> Iterator[Document]:
    dtype = np.dtype("<u2" if section.format == "tokens_uint16" else "<u4")
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError(f"{where}: {path} is a .npy file; write flat ids with array.tofile(path)")
    if size % dtype.itemsize:
        raise InputError(
            f"{where}: {path} has {size} bytes, no multiple of the {dtype.itemsize} of {section.format}; "
            f"it is truncated, or the format is another"
        )
    ids = np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype)
    yield Document(ids, ends=False, origin=str(path))  # mapped, not read; a TokenCutter finds its documents


class _Utf8File:
    """Opens a text file, gzipped or not, and turns a decoding error into one that a user can act on."""

    def __init__(self, path: Path, where: str) -> None:
        self._path, self._where = path, where

    def __enter__(self) -> TextIO:
        if self._path.suffix == ".gz":
            self._file: TextIO = gzip.open(self._path, "rt", encoding="utf-8")
        else:
            self._file = self._path.open(encoding="utf-8", newline="")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, UnicodeDecodeError):
            raise InputError(
                f"{self._where}: {self._path} is not UTF-8 (byte {error.start}); convert it, or narrow the path"
            ) from None


_open_text = _Utf8File

_READERS: dict[str, Callable[..., Iterator[Document]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "tokens_uint16": _read_tokens,
    "tokens_uint32": _read_tokens,
}
