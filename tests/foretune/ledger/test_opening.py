"""Opening a ledger: what may lie at a path, and what a user is told of it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from foretune.errors import ForetuneError, InputError
from foretune.ledger import Recorded, database, migrations, open_ledger, opening
from foretune.ledger.database import APPLICATION_ID
from foretune.ledger.opening import find_file_system
from foretune.ledger.tables import schema
from ledger_databases import make_record


def make_other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")


def make_newer(path: Path) -> None:
    with open_ledger(path, create=True) as ledger:
        ledger._database.write(lambda connection: connection.execute(schema.update().values(version=99)))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, r"the file is empty \(0 bytes\)"),
    "text": (lambda path: path.write_text("run_id,loss\n" * 50), "no SQLite database; give another path"),
    "header alone": (lambda path: path.write_bytes(b"SQLite format 3\0"), "no SQLite database"),
    "folder": (Path.mkdir, r"is a folder; name a file in it, for example .*foretune\.db"),
    "other program": (make_other_database, r"a database of another program \(application_id 0\)"),
    "newer": (make_newer, "schema 99 was written by a newer foretune, this one knows up to 3; upgrade with"),
}


def test_a_marked_file_without_the_schema_is_no_ledger(tmp_path: Path) -> None:
    make_other_database(tmp_path / "runs.db")
    with closing(sqlite3.connect(tmp_path / "runs.db")) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    with pytest.raises(InputError, match="not a foretune ledger; give another path"):
        open_ledger(tmp_path / "runs.db", create=True)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_ledger_is_refused_and_left_as_it_was(tmp_path: Path, kind: str, create: bool) -> None:
    path = tmp_path / "runs.db"
    make, message = BAD[kind]
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(InputError, match=message):
        open_ledger(path, create=create)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_read_never_creates(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no ledger at .*runs\.db; `foretune run STUDY` or `foretune import FILE`"):
        open_ledger(tmp_path / "runs.db")
    assert list(tmp_path.iterdir()) == []


def test_creation_needs_the_folder_and_leaves_no_draft(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder .*absent does not exist"):
        open_ledger(tmp_path / "absent" / "runs.db", create=True)
    open_ledger(tmp_path / "runs.db", create=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]


def test_a_path_may_hold_characters_that_mean_something_in_a_url(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20e.db"
    with open_ledger(str(path), create=True) as ledger:
        ledger.record(make_record())
    assert path.exists()


def test_the_file_is_marked_and_durable(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "runs.db", create=True) as ledger, ledger._database.read() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in (
            "application_id", "journal_mode", "synchronous", "foreign_keys"
        )]  # fmt: skip
    assert found == [APPLICATION_ID, "wal", 2, 1]


def test_a_log_without_its_database_is_not_played_into_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "runs.db-wal").write_bytes(b"frames")
    with pytest.raises(InputError, match=r"its log runs\.db-wal is still there"):
        open_ledger(tmp_path / "runs.db", create=True)


def test_damage_inside_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with open_ledger(path, create=True) as ledger:
        ledger.record_all([make_record(seed) for seed in range(40)])
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"damaged or no SQLite database.*restore it from a backup"),
        open_ledger(path) as ledger,
    ):
        ledger.runs()


def test_quick_check_finds_damage_that_reads_may_miss(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with open_ledger(path, create=True) as ledger:
        ledger.record_all([make_record(seed) for seed in range(40)])
        assert ledger.quick_check() == []
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'curves'"
        start = (connection.execute(query).fetchone()[0] - 1) * 4096
    content = bytearray(path.read_bytes())
    content[start + 12 : start + 14] = b"\xff\xff"  # the first cell of the page lies beyond its end
    path.write_bytes(content)
    with open_ledger(path) as ledger:
        assert len(ledger.runs()) == 40
        assert ledger.quick_check() != []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user:secret@host/db", "must be SQLite or PostgreSQL"),
        ("postgresql+psycopg2://user:secret@host/db", "must be SQLite or PostgreSQL"),
        ("nonsense://user:secret@", "ledger"),
        ("://secret", "cannot be read"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:////tmp/a.db?mode=rwc", "options in a SQLite URL"),
    ],
)
def test_urls_that_are_no_ledger(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_ledger(url, create=True)
    assert "secret" not in str(caught.value)


def test_the_default_is_the_environment_then_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORETUNE_LEDGER", raising=False)
    open_ledger(create=True).close()
    assert (tmp_path / "foretune.db").exists()
    monkeypatch.setenv("FORETUNE_LEDGER", "sqlite:///elsewhere.db")
    open_ledger(create=True).close()
    assert (tmp_path / "elsewhere.db").exists()


def test_a_password_is_never_shown() -> None:
    pytest.importorskip("psycopg")
    url = database.read_url("postgresql://user:secret@host/db?password=secret")
    assert database.Database(url).name == "postgresql+psycopg://user:***@host/db"


def test_a_locked_ledger_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ledger(tmp_path / "runs.db", create=True).close()
    monkeypatch.setattr(database, "LOCK_SECONDS", 0)
    with open_ledger(tmp_path / "runs.db") as ledger, closing(sqlite3.connect(tmp_path / "runs.db")) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        assert len(ledger.runs()) == 0  # readers do not wait
        with pytest.raises(ForetuneError, match="another program has held its write lock"):
            ledger.record(make_record())
        other.execute("ROLLBACK")
        assert ledger.record(make_record()) is Recorded.INSERTED


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "runs.db", create=True) as ledger:
        ledger.record(make_record(1))
        pages = ledger._database.write(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one())
        limit = sa.text(f"PRAGMA max_page_count = {pages + 2}")
        ledger._database.write(lambda c: c.execute(limit).scalar_one())
        with pytest.raises(ForetuneError, match="the disk is full; nothing was lost"):
            ledger.record_all([make_record(seed) for seed in range(2, 200)])
        assert len(ledger.runs()) == 1


MOUNTS = """\
22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
31 22 0:41 / /data/local\\040disk rw - xfs /dev/sdb rw
30 22 0:40 / /data rw - nfs4 server:/data rw
32 22 0:42 / /scratch rw - lustre mds:/scratch rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/data/me/a.db", "nfs4"), ("/data/local disk/a.db", "xfs"), ("/datas/a.db", "ext4"), ("/scratch/a.db", "lustre")],
)
def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert find_file_system(Path(path), tmp_path / "mountinfo") == kind


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "find_file_system", lambda _: "nfs4")
    with pytest.raises(InputError, match=r"network file system \(nfs4\).*PostgreSQL URL"):
        open_ledger(tmp_path / "runs.db", create=True)
    assert list(tmp_path.iterdir()) == []


def add_column(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN tpu_hours DOUBLE PRECISION")


def fail(_: sa.Connection) -> None:
    raise RuntimeError("power cut")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A ledger of the newest schema with one run; a test adds a migration."""
    with open_ledger(tmp_path / "runs.db", create=True) as ledger:
        ledger.record(make_record())
    return tmp_path / "runs.db"


def test_an_older_schema_is_upgraded_on_a_write_after_a_backup(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = migrations.MIGRATIONS
    monkeypatch.setattr(migrations, "MIGRATIONS", (*released, add_column))
    with pytest.raises(InputError, match="schema 3 is older than 4; `foretune run` or `foretune import` upgrades it"):
        open_ledger(old)
    with open_ledger(old, create=True) as ledger:
        (note,) = ledger.notes
        assert len(ledger.runs()) == 1
    (backup,) = old.parent.glob("*.backup")
    assert f"upgraded from schema 3 to 4; the old one is kept as {backup}" in note
    with open_ledger(old, create=True) as ledger:
        assert ledger.notes == ()
    monkeypatch.setattr(migrations, "MIGRATIONS", released)
    with open_ledger(backup) as ledger:
        assert ledger.runs()["run_id"].tolist() == [make_record().run_id]


def test_a_migration_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = migrations.MIGRATIONS
    monkeypatch.setattr(migrations, "MIGRATIONS", (*released, add_column, fail))
    with pytest.raises(RuntimeError, match="power cut"):
        open_ledger(old, create=True)
    monkeypatch.setattr(migrations, "MIGRATIONS", released)
    with open_ledger(old) as ledger:
        assert len(ledger.runs()) == 1
        with ledger._database.read() as connection:
            assert "tpu_hours" not in {column["name"] for column in sa.inspect(connection).get_columns("runs")}


def test_importing_the_ledger_is_light() -> None:
    heavy = ("pandas", "pyarrow", "numpy", "torch", "ray", "psycopg")
    code = f"import foretune.ledger, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
