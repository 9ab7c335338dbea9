"""What a run's id is made of: hashes of content, of files, and of the source of a trainer."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.sections import RunnerSection

PROXY_TRAINER = "foretune.proxies@2"
"""The trainer of this package; the number grows when the same spec would train differently."""


def hash_content(content: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces, no NaN."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def trainer_of(trainable: str, runner: RunnerSection) -> str:
    """The trainer's name in a run's content: a replayed run is never taken for a trained one."""
    if runner.kind == "replay":
        source = runner.surface.model_dump(mode="json") if runner.surface else hash_file(Path(runner.table))
        return f"replay:{hash_content(source)[:12]}"
    return f"{trainable}#{hash_module(trainable.partition(':')[0])[:12]}" if trainable else PROXY_TRAINER


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content; InputError when there is none."""
    if not path.is_file():
        raise InputError(f"runner.table: {path} is no file; give the path of a run table (CSV or Parquet)")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def hash_module(name: str) -> str:
    """SHA-256 of a module's source, so that an edited trainer means new runs; the module itself is not run."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"trainable: cannot find module {name!r} ({error}); put its folder on PYTHONPATH") from None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise InputError(f"trainable: cannot find module {name!r}; install it, or put its folder on PYTHONPATH")
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
