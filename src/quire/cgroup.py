"""What this process may use of the machine: in a container that is less than there is. Linux, both versions of control groups.

It stands beside platform/ for those who ask before torch is there. A group's own limit and those of all groups above it count. Source: the
kernel's documents cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED_BYTES = 2**60  # version 1 writes a number near 2**63 for "no limit"


@dataclass(frozen=True)
class Limits:
    """None = no limit.

    memory_bytes  most that the group may hold
    free_bytes    of these, what it does not hold; page cache that the kernel would give back counts as free
    cpus          cores' worth of time
    """

    memory_bytes: int | None = None
    free_bytes: int | None = None
    cpus: float | None = None


def limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Limits:
    """Of this process. Where there are no control groups, none."""
    found = [_of(folder) for folder in _folders(root, membership)]
    memory = [f for f in found if f.memory_bytes is not None]
    tightest = min(memory, key=lambda f: f.free_bytes or 0, default=Limits())
    cpus = [f.cpus for f in found if f.cpus is not None]
    return Limits(
        min((f.memory_bytes for f in memory if f.memory_bytes is not None), default=None),
        tightest.free_bytes,
        min(cpus, default=None),
    )


def num_cpus() -> int:
    """Processors to count on, at least 1: those that this process may run on, or its share of time, rounded up, where that is less."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    share = limits().cpus
    return allowed if share is None else max(1, min(allowed, math.ceil(share)))


def _folders(root: Path, membership: Path) -> list[Path]:
    """Folders of the groups that this process is in, and of those above. In a container's own view the path is /."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return []
    folders = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        names = {"", "memory", "cpu"} & set(controllers.split(","))
        # Controllers that are mounted together have one folder, named in an order that may be another than here, and each a link to it.
        for base in {root / name for name in (controllers, *names) if names}:
            inner = base / path.lstrip("/")
            folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return folders


def _of(folder: Path) -> Limits:
    memory = _number(folder, "memory.max") or _number(folder, "memory.limit_in_bytes")
    if memory is not None and memory >= UNLIMITED_BYTES:
        memory = None
    free = None
    if memory is not None:
        used = _number(folder, "memory.current") or _number(folder, "memory.usage_in_bytes") or 0
        free = max(0, memory - max(0, used - _inactive_file_bytes(folder)))
    return Limits(memory, free, _cpus(folder))


def _cpus(folder: Path) -> float | None:
    quota, _, period = _text(folder, "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder, "cpu.cfs_quota_us"), _text(folder, "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _inactive_file_bytes(folder: Path) -> int:
    lines = [line.split() for line in _text(folder, "memory.stat").splitlines()]
    found = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _number(folder: Path, name: str) -> int | None:
    text = _text(folder, name)
    return int(text) if text.isdigit() else None


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text().strip()
    except OSError:
        return ""
