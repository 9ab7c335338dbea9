"""What only a database server can do to a ledger: go away, refuse, belong to somebody else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from foretune.errors import ForetuneError, InputError
from foretune.ledger import Recorded, database, open_ledger
from ledger_databases import make_database, make_record


@pytest.fixture
def url(postgres_server: str) -> Iterator[str]:
    with make_database(postgres_server) as url:
        yield url


@pytest.fixture
def admin(url: str) -> Iterator[sa.Engine]:
    """Another client of the same schema."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


def end_other_connections(admin: sa.Engine) -> None:
    with admin.begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'foretune'"
        )


def test_a_read_never_creates(url: str, admin: sa.Engine) -> None:
    with pytest.raises(InputError, match=r"no ledger in .*; `foretune run STUDY` or `foretune import FILE` makes one"):
        open_ledger(url)
    assert sa.inspect(admin).get_table_names() == []


def test_tables_of_another_program_are_left_alone(url: str, admin: sa.Engine) -> None:
    with admin.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (uuid text)")
    with pytest.raises(InputError, match=r"another program has tables of the same names \(runs\)"):
        open_ledger(url, create=True)
    assert sa.inspect(admin).get_table_names() == ["runs"]


def test_a_dropped_connection_is_opened_again(url: str, admin: sa.Engine) -> None:
    with open_ledger(url, create=True) as ledger:
        ledger.record(make_record(1))
        end_other_connections(admin)
        assert ledger.record(make_record(2)) is Recorded.INSERTED
        end_other_connections(admin)
        assert len(ledger.runs()) == 2


def test_a_transaction_cut_off_in_the_middle_is_done_again(
    url: str, admin: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    attempts = []

    def cut_once(connection: sa.Connection) -> int:
        attempts.append(connection)
        if len(attempts) == 1:
            end_other_connections(admin)
        return int(connection.exec_driver_sql("SELECT 7").scalar_one())

    with open_ledger(url, create=True) as ledger:
        assert ledger._database.write(cut_once) == 7
    assert len(attempts) == 2


def test_a_server_that_stays_away_is_named_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(database, "RECONNECT_SECONDS", 0.0)
    away = "postgresql://user:secret@127.0.0.1:1/lab?password=secret"
    with pytest.raises(ForetuneError, match=r"user:\*\*\*@127.0.0.1:1/lab: not reachable") as caught:
        open_ledger(away, create=True)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'foretune\[postgres\]'") as caught:
        open_ledger("postgresql://user:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_writer_that_waits_too_long_says_so(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_ledger(url, create=True) as first:
        monkeypatch.setattr(database, "LOCK_SECONDS", 1)
        with open_ledger(url) as second:

            def hold_lock(_: sa.Connection) -> None:
                with pytest.raises(ForetuneError, match="another program has held its write lock for more than 1 s"):
                    second.record(make_record())

            first._database.write(hold_lock)
            assert second.record(make_record()) is Recorded.INSERTED
