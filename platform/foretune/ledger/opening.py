"""From a path or URL to a database that is known to be a ledger of this version; creates one only when told to."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import sqlalchemy as sa

from foretune.errors import InputError
from foretune.ledger.database import APPLICATION_ID, Database, read_url
from foretune.ledger.migrations import bring_up_to_date, create_schema, read_version
from foretune.ledger.tables import metadata

DEFAULT_FILE = "foretune.db"

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs"}
    | {"lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "glusterfs", "fuse.glusterfs"}
)
"""File systems shared between machines: SQLite's write-ahead log does not work over them (sqlite.org/wal.html)."""


def open_database(url: str | Path | None, *, create: bool) -> tuple[Database, tuple[str, ...]]:
    """The database and what a user ought to know of how it was opened.

    `url` is a path or a SQLAlchemy URL; None takes FORETUNE_LEDGER, else `foretune.db` in the current folder.
    """
    address = read_url(url or os.environ.get("FORETUNE_LEDGER") or DEFAULT_FILE)
    if address.get_backend_name() == "sqlite":
        _prepare_file(Path(str(address.database)), create=create)
    database = Database(address)
    try:
        if not database.is_sqlite:
            _prepare_server(database, create=create)
        return database, bring_up_to_date(database, upgrade=create)
    except BaseException:
        database.close()
        raise


def _prepare_file(path: Path, *, create: bool) -> None:
    """Make sure that a ledger lies at `path`; raises InputError for everything else that may lie there."""
    if path.is_dir():
        raise InputError(f"ledger {path}: is a folder; name a file in it, for example {path / DEFAULT_FILE}")
    if not path.exists():
        if not create:
            raise InputError(f"no ledger at {path}; `foretune run STUDY` or `foretune import FILE` makes one")
        _refuse_network_storage(path)
        _create_file(path)
    _refuse_network_storage(path)
    _refuse_strangers(path)


def _create_file(path: Path) -> None:
    """Make an empty ledger under another name and link it into place, so that nobody ever opens half of one."""
    if not path.parent.is_dir():
        raise InputError(f"ledger {path}: the folder {path.parent} does not exist; make it first")
    _refuse_orphaned_log(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    database = Database(sa.URL.create("sqlite", database=str(draft)))
    try:
        database.write(create_schema)
        database.write(_mark_file)
        database.close()
        _place_file(draft, path)
    finally:
        database.close()
        draft.unlink(missing_ok=True)


def _place_file(draft: Path, path: Path) -> None:
    """Give a file its name unless another program was faster, whose ledger is as good; durable on return."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:  # no hard links here
        if not path.exists():
            os.replace(draft, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _mark_file(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


def _refuse_orphaned_log(path: Path) -> None:
    """SQLite would play the log of a deleted database into a new one of the same name."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size and not path.exists():
        raise InputError(
            f"ledger {path}: the file is gone but its log {log.name} is still there, and may hold runs; "
            "put the file back, or delete the log to begin anew"
        )


def _refuse_strangers(path: Path) -> None:
    """Look at a file's header without opening it as a database, which might change it (sqlite.org/fileformat.html)."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise InputError(f"ledger {path}: cannot be read: {error.strerror}") from None
    if not header:
        raise InputError(f"ledger {path}: the file is empty (0 bytes); delete it, or restore it from a backup")
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise InputError(f"ledger {path}: no SQLite database; give another path, or restore the ledger from a backup")
    mark = int.from_bytes(header[68:72], "big")
    if mark != APPLICATION_ID:
        raise InputError(f"ledger {path}: a database of another program (application_id {mark}); give another path")


def _refuse_network_storage(path: Path) -> None:
    kind = find_file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise InputError(
            f"ledger {path}: lies on a network file system ({kind}), where SQLite loses data; "
            "give a local path, or a PostgreSQL URL"
        )


def find_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The kind of file system that holds `path` (Linux; elsewhere an empty string)."""
    if not mounts.exists():
        return ""
    folder = path.resolve().parent
    found, kind = Path("/"), ""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if folder.is_relative_to(point) and len(point.parts) >= len(found.parts):
            found, kind = point, right.split()[0]  # a later mount on the same point hides the earlier one
    return kind


def _prepare_server(database: Database, *, create: bool) -> None:
    """Create the tables in an empty PostgreSQL database when allowed to."""

    def create_missing(connection: sa.Connection) -> None:
        if read_version(connection) is not None:
            return
        taken = sorted(set(sa.inspect(connection).get_table_names()) & set(metadata.tables))
        if taken:
            raise InputError(
                f"ledger {database.name}: another program has tables of the same names ({', '.join(taken)}); "
                "give a database or schema of its own"
            )
        create_schema(connection)

    with database.read() as connection:
        exists = read_version(connection) is not None
    if not exists and not create:
        raise InputError(f"no ledger in {database.name}; `foretune run STUDY` or `foretune import FILE` makes one")
    if not exists:
        database.write(create_missing)
