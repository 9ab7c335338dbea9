"""Databases for the contract suites: SQLite always, PostgreSQL where there is a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from foretune.ledger import Ledger, open_ledger
from ledger_databases import DIALECTS, make_database, serve_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with serve_postgres() as url:
        yield url


@pytest.fixture(params=DIALECTS)
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a ledger that does not exist yet."""
    if request.param == "sqlite":
        yield str(tmp_path / "runs.db")
        return
    with make_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with open_ledger(ledger_url, create=True) as ledger:
        yield ledger
