"""The version of a ledger's schema, and how an older one is brought up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from foretune.errors import InputError
from foretune.ledger.database import Database
from foretune.ledger.tables import metadata, schema

APPLICATION = "foretune"

Migration = Callable[[sa.Connection], None]


def _add_packs_and_diagnoses(connection: sa.Connection) -> None:
    """Version 2: what a run cost and how stable it was, what was measured along it, verdicts on transfer."""
    number = sa.Double().compile(dialect=connection.dialect)
    for column in (f"activation_ratio {number}", f"spent_flops {number}", "pack_size BIGINT", "instability TEXT"):
        connection.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN {column}")
    connection.exec_driver_sql(
        "CREATE TABLE diagnoses (run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, "
        f"position INTEGER NOT NULL, step BIGINT NOT NULL, gradient_norm {number}, update_norm {number}, "
        f"update_cosine {number}, saturated_share {number}, noise_scale_tokens {number}, logit_max {number}, "
        f"attention_logit_max {number}, near_eps_share {number}, PRIMARY KEY (run_id, position))"
    )
    identity = "INTEGER NOT NULL PRIMARY KEY" if connection.dialect.name == "sqlite" else "SERIAL PRIMARY KEY"
    connection.exec_driver_sql(
        f"CREATE TABLE gates (id {identity}, study TEXT NOT NULL, parametrization TEXT NOT NULL, kind TEXT NOT NULL, "
        "passed BOOLEAN NOT NULL, details TEXT NOT NULL, created_at TEXT NOT NULL)"
    )
    connection.exec_driver_sql("CREATE INDEX ix_gates_study ON gates (study)")


def _add_decisions(connection: sa.Connection) -> None:
    """Version 3: runs that end before their schedule, change their settings or learn some, and what searches
    decided."""
    for column in ("horizon_tokens BIGINT", "setting_changes BIGINT"):
        connection.exec_driver_sql(f"ALTER TABLE runs ADD COLUMN {column}")
    connection.exec_driver_sql(
        "CREATE TABLE decisions (study TEXT NOT NULL, fingerprint TEXT NOT NULL, number BIGINT NOT NULL, "
        "kind TEXT NOT NULL, run_id TEXT NOT NULL, parent_run_id TEXT NOT NULL, details TEXT NOT NULL, "
        "created_at TEXT NOT NULL, PRIMARY KEY (study, fingerprint, number))"
    )
    number = sa.Double().compile(dialect=connection.dialect)
    connection.exec_driver_sql(
        "CREATE TABLE learned_paths (run_id TEXT NOT NULL REFERENCES runs (run_id) ON DELETE CASCADE, "
        f"step BIGINT NOT NULL, name TEXT NOT NULL, value {number} NOT NULL, PRIMARY KEY (run_id, step, name))"
    )


MIGRATIONS: tuple[Migration, ...] = (_add_packs_and_diagnoses, _add_decisions)
"""The first leads from version 1 to 2, and so on. A released one is never edited; tables.py has the newest schema."""


def newest_version() -> int:
    """The version that this program writes."""
    return len(MIGRATIONS) + 1


def create_schema(connection: sa.Connection) -> None:
    """Create every table in an empty database."""
    metadata.create_all(connection)
    connection.execute(schema.insert().values(application=APPLICATION, version=newest_version()))


def read_version(connection: sa.Connection) -> int | None:
    """The version of the schema; None where the database is no ledger."""
    if not sa.inspect(connection).has_table(schema.name):
        return None
    query = sa.select(schema.c.version).where(schema.c.application == APPLICATION)
    return connection.execute(query).scalar_one_or_none()


def bring_up_to_date(database: Database, *, upgrade: bool) -> tuple[str, ...]:
    """Check the version and, with `upgrade`, apply what is missing; what was done, as sentences.

    Raises InputError when the database is no ledger, is newer than this program, or is older and may not be upgraded.
    """
    with database.read() as connection:
        version = read_version(connection)
    newest = newest_version()
    if version is None:
        raise InputError(f"{database.name}: not a foretune ledger; give another path or database")
    if version > newest:
        raise InputError(
            f"ledger {database.name}: schema {version} was written by a newer foretune, this one knows up to "
            f"{newest}; upgrade with: pip install --upgrade foretune"
        )
    if version == newest:
        return ()
    if not upgrade:
        raise InputError(
            f"ledger {database.name}: schema {version} is older than {newest}; `foretune run` or `foretune import` "
            "upgrades it, after a backup"
        )
    return _upgrade(database, version, newest)


def _upgrade(database: Database, version: int, newest: int) -> tuple[str, ...]:
    backup = back_up(Path(database.name), f"schema{version}") if database.is_sqlite else None
    database.write(_apply_missing)
    kept = f"the old one is kept as {backup}" if backup else "PostgreSQL: no backup was made"
    return (f"ledger {database.name}: upgraded from schema {version} to {newest}; {kept}",)


def _apply_missing(connection: sa.Connection) -> None:
    """Apply every migration that is missing; another program may have done so since the version was read."""
    version = read_version(connection)
    assert version is not None, "checked by bring_up_to_date"
    for migrate in MIGRATIONS[version - 1 :]:
        migrate(connection)
    connection.execute(schema.update().values(version=newest_version()))


def back_up(path: Path, label: str) -> Path:
    """Copy a SQLite ledger, with what is still in its write-ahead log, to a new file beside it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    copy = path.with_name(f"{path.name}.{label}-{stamp}.backup")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy
