"""The study that a person names: a folder or file, or a name that the ledger knows."""

from __future__ import annotations

from pathlib import Path

from foretune.errors import InputError
from foretune.ledger import Ledger
from foretune.study import Study, load_study, read_study


def find_study(text: str, ledger: Ledger) -> Study:
    """The study of a path or name; InputError where there is none."""
    study = find_study_or_none(text, ledger)
    if study is None:
        raise InputError(f"study {text!r} has no study file here and none in the ledger; give the path of its file")
    return study


def find_study_or_none(text: str, ledger: Ledger) -> Study | None:
    """The study of a path, else the one that was last launched under that name."""
    if _is_path(text):
        return load_study(text)
    snapshot = ledger.study_snapshot(text)
    return read_study(snapshot) if snapshot else None


def name_study(text: str) -> str:
    """The name under which the ledger knows a study."""
    return load_study(text).study.name if _is_path(text) else text


def _is_path(text: str) -> bool:
    """Whether a person means a file: a folder that happens to have a study's name is not one."""
    return text.endswith(".toml") or "/" in text or (Path(text) / "study.toml").is_file()
