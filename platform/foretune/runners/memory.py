"""How many CPUs and how much memory a run may use, and the limit that makes one run's hunger its own failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def count_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, -(-int(quota) // int(period)))
    return max(1, allowed)


def share_memory(cpus_per_run: float, concurrency: int) -> int:
    """Bytes of memory for each of the runs that this machine executes at once; 0 where memory cannot be read."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
    limit = _read(_CGROUP / "memory.max").strip()
    total = min(physical, int(limit)) if limit.isdigit() else physical
    return int(total / max(1, min(concurrency, int(count_cpus() / cpus_per_run))))


@contextmanager
def limit_memory(share_bytes: int) -> Iterator[None]:
    """Let the body allocate `share_bytes` more than the process has now; beyond that it gets a MemoryError.

    Without it the kernel kills whichever process it likes. The limit is on private writable memory (RLIMIT_DATA), so
    mapped token files do not count. No limit where the platform has none, or for 0.
    """
    used = _read_data_bytes()
    if not share_bytes or not used:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = used + share_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _read_data_bytes() -> int:
    """VmData of this process; 0 where there is no /proc."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
