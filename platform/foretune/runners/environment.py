"""What Ray is told before it is imported, since it reads its settings once. A variable that is set is left alone."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import IO

_PLACE, _PREFIX = Path("/tmp"), "foretune-ray-"
"""Not the user's TMPDIR: Ray's sockets lie below, and the whole name of a socket has at most 107 bytes."""
_held: list[IO[str]] = []
"""Open locks; closed, and so released, by the end of the process."""
_SETTINGS = {
    # Without a token anyone who reaches a port runs code (CVE-2023-48022); the mode is read at import.
    "RAY_AUTH_MODE": "token",
    # The monitor kills healthy neighbours and ends the whole experiment; workers have a limit of their own instead.
    "RAY_memory_monitor_refresh_ms": "0",
    # Result files that nobody reads: half of the overhead of a short run, and copies of every setting.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Runs stay in the folder that they were started in, so relative paths of a user's trainer mean the same.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A call after the end must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # The status tables of Tune; progress is ours to show.
    "RAY_AIR_NEW_OUTPUT": "0",
}


def prepare_environment(address: str) -> None:
    """Set Ray's environment for a Ray of our own (`local`) or for joining a cluster, whose token the user has."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if address == "local":
        _prepare_private_folder()


def _prepare_private_folder() -> None:
    """Sessions and token in a folder of this process only: Ray's own default is readable and writable by all."""
    has_token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if has_token and "RAY_TMPDIR" in os.environ:
        return
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PLACE))  # mode 0700
    _held.append(_lock(folder / "lock"))
    atexit.register(_remove_folder, folder, os.getpid())
    os.environ.setdefault("RAY_TMPDIR", str(folder))
    if not has_token:
        token_file = folder / "auth_token"
        token_file.touch(mode=0o600)
        token_file.write_text(secrets.token_hex(32), encoding="ascii")
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


def _lock(file: Path) -> IO[str]:
    """Hold the file for as long as this process lives; raises BlockingIOError when another one holds it."""
    handle = file.open("a", encoding="ascii")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise
    return handle


def _remove_orphans() -> None:
    """Folders of this user whose process was killed: some 5 MB each, and nobody else removes them."""
    for folder in _PLACE.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and (folder / "lock").is_file():
                with _lock(folder / "lock"):
                    shutil.rmtree(folder, ignore_errors=True)


def _remove_folder(folder: Path, owner_pid: int) -> None:
    """Registered before Ray's own exit handler and so called after it; a forked child must not do it."""
    if os.getpid() == owner_pid:
        shutil.rmtree(folder, ignore_errors=True)
