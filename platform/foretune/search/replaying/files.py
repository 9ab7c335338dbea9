"""Files of schedules: TOML and JSON, which can be replayed, and CSV for other programs."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from foretune.errors import InputError
from foretune.search.replaying.schedule import Schedule


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write a schedule as TOML or JSON, which can be replayed, or as CSV for other programs.

    Raises InputError for another suffix.
    """
    plain = schedule.model_dump(mode="json")
    writers = {
        ".toml": lambda: tomli_w.dumps(plain),
        ".json": lambda: json.dumps(plain, indent=2, allow_nan=False) + "\n",
        ".csv": lambda: _write_csv(schedule.rows()),
    }
    if path.suffix not in writers:
        raise InputError(f"--to: must end in {', '.join(writers)}, got {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(writers[path.suffix](), encoding="utf-8")


def read_schedule(path: Path) -> Schedule:
    """Read a schedule that `write_schedule` wrote as TOML or JSON; InputError names the file and what is wrong."""
    if not path.is_file():
        raise InputError(
            f"search.replay.file: {str(path)!r} not found; `foretune lineage STUDY --to FILE.toml` writes it"
        )
    try:
        text = path.read_text(encoding="utf-8")
        return Schedule.model_validate(json.loads(text) if path.suffix == ".json" else tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"search.replay.file: {path}: {where}: {first['msg']}, got {first['input']!r}") from None
    except ValueError as error:
        raise InputError(f"search.replay.file: {path} is no TOML or JSON: {error}") from None


def _write_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
