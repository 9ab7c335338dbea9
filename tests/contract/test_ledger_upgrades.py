"""A ledger of every earlier version is brought to the newest schema, on every database, and loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from foretune.errors import InputError
from foretune.ledger import Recorded, open_ledger
from foretune.ledger.database import APPLICATION_ID, Database, read_url
from foretune.records import Diagnosis
from ledger_databases import make_database, make_record

SCHEMA = (Path(__file__).parent / "ledger_schema_1.sql").read_text(encoding="utf-8")
RUN = {
    "run_id": make_record().run_id,
    "study": "test",
    "source": "trained",
    "status": "completed",
    "reason": "",
    "loss": 0.1 + 0.2,
    "loss_unit": "nats_per_token",
    "loss_kind": "held_out",
    "created_at": "2025-01-01T00:00:00.000+00:00",
    "scale": "w32",
    "role": "search",
    "attempts": 1,
}
CURVE = {"run_id": RUN["run_id"], "position": 0, "step": 1, "tokens": 2, "loss": 3.0, "lr": 0.5}


@pytest.fixture
def old(ledger_url: str) -> str:
    """A ledger of version 1 with one run."""
    with closing(Database(read_url(ledger_url))) as database:
        text = SCHEMA.partition("\n")[2]
        if not database.is_sqlite:
            text = text.replace("DOUBLE", "DOUBLE PRECISION").replace("id INTEGER NOT NULL", "id SERIAL NOT NULL")

        def create(connection: sa.Connection) -> None:
            for statement in text.split(";\n")[:-1]:
                connection.exec_driver_sql(statement)
            if database.is_sqlite:
                connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            insert(connection, "ledger_schema", {"application": "foretune", "version": 1})
            insert(connection, "runs", RUN)
            insert(connection, "curves", CURVE)
            insert(connection, "members", {name: RUN[name] for name in ("study", "run_id", "scale", "role")})

        database.write(create)
    return ledger_url


def insert(connection: sa.Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    values = ", ".join(f":{name}" for name in row)
    connection.execute(sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)


def describe(url: str) -> dict[str, Any]:
    """Tables with their columns, keys and indexes, without the order of columns."""
    with closing(Database(read_url(url))) as database, database.read() as connection:
        look = sa.inspect(connection)
        return {
            table: (
                {c["name"]: (type(c["type"].as_generic()), c["nullable"]) for c in look.get_columns(table)},
                look.get_pk_constraint(table)["constrained_columns"],
                [(key["constrained_columns"], key["referred_table"]) for key in look.get_foreign_keys(table)],
                sorted((str(index["name"]), index["column_names"]) for index in look.get_indexes(table)),
            )
            for table in look.get_table_names()
        }


@contextmanager
def make_new(request: pytest.FixtureRequest, old: str, folder: Path) -> Iterator[str]:
    """An empty ledger of the newest schema on the same kind of database."""
    with ExitStack() as stack:
        url = str(folder / "new.db")
        if "://" in old:
            url = stack.enter_context(make_database(request.getfixturevalue("postgres_server")))
        open_ledger(url, create=True).close()
        yield url


def test_version_1_becomes_the_newest_schema(old: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(InputError, match=r"schema 1 is older than 3; `foretune run` or `foretune import` upgrades it"):
        open_ledger(old)
    with open_ledger(old, create=True) as ledger:
        assert "upgraded from schema 1 to 3" in ledger.notes[0]
    with make_new(request, old, tmp_path) as new:
        assert describe(old) == describe(new)
    with open_ledger(old) as ledger:
        assert ledger.notes == ()


def test_what_version_1_held_is_there_and_new_results_are_taken(old: str) -> None:
    measured = Diagnosis(step=1, **dict.fromkeys(list(Diagnosis.model_fields)[1:], 0.5))
    with open_ledger(old, create=True) as ledger:
        (row,) = ledger.runs("test").to_dict("records")
        assert {name: row[name] for name in RUN} == RUN
        assert row["instability"] is None
        assert ledger.curves("test")["loss"].tolist() == [3.0]
        assert ledger.record(make_record(1, pack_size=4, diagnoses=(measured,))) is Recorded.INSERTED
        assert ledger.runs("test")["pack_size"].tolist()[1:] == [4]
        assert len(ledger.diagnoses("test")) == 1
        ledger.save_gate("test", "mup", "coordcheck", passed=True, details={})
        assert ledger.gates("test")["passed"].tolist() == [True]
