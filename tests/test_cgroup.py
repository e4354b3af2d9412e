"""Limits of control groups, read from folders that look like the kernel's; and the CPU as a container sees it."""

import os
from pathlib import Path

import pytest
import torch

from quire import cgroup
from quire.platform.cpu import CpuPlatform

GIB = 2**30


@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
def test_controllers_that_are_mounted_together_are_found_in_any_order(tmp_path, controllers):
    """As in containers on CentOS 7: the process sees "cpuacct,cpu", and the folder is "cpu,cpuacct" with the link "cpu"."""
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    (root / "cpu,cpuacct").mkdir(parents=True)
    (root / "cpu").symlink_to("cpu,cpuacct")
    (root / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    membership.write_text(f"9:memory:/docker/1\n4:{controllers}:/docker/1\n2:cpuset:/docker/1\n")
    assert cgroup.limits(root, membership) == cgroup.Limits(cpus=1.5)


@pytest.fixture
def tree(tmp_path):
    """Writes files of control groups; returns what limits() needs."""

    def write(membership: str, **files: str) -> tuple[Path, Path]:
        root = tmp_path / "cgroup"
        for name, text in files.items():
            path = root / name.replace("__", "/").replace("memory_", "memory.").replace("cpu_", "cpu.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        root.mkdir(exist_ok=True)
        (tmp_path / "membership").write_text(membership)
        return root, tmp_path / "membership"

    return write


def test_a_container_in_its_own_view(tree):
    files = {
        "memory_max": str(4 * GIB),
        "memory_current": str(3 * GIB),
        "memory_stat": f"anon 5\ninactive_file {GIB}",
        "cpu_max": "150000 100000",
    }
    assert cgroup.limits(*tree("0::/\n", **files)) == cgroup.Limits(4 * GIB, 2 * GIB, 1.5)


def test_no_limits(tree):
    assert cgroup.limits(*tree("0::/\n", memory_max="max", cpu_max="max 100000")) == cgroup.Limits()
    assert cgroup.limits(*tree("")) == cgroup.Limits()
    assert cgroup.limits(Path("/nowhere"), Path("/nowhere")) == cgroup.Limits()


def test_the_tightest_of_the_groups_above_counts(tree):
    files = {
        "pod__memory_max": str(2 * GIB), "pod__memory_current": "0", "pod__app__memory_max": str(8 * GIB),
        "pod__app__memory_current": str(GIB), "cpu_max": "400000 100000", "pod__app__cpu_max": "max 100000",
    }  # fmt: skip
    assert cgroup.limits(*tree("0::/pod/app\n", **files)) == cgroup.Limits(2 * GIB, 2 * GIB, 4.0)


def test_version_one(tree):
    root, membership = tree("7:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n2:pids:/docker/x\n")
    memory, cpu = root / "memory" / "docker" / "x", root / "cpu,cpuacct" / "docker" / "x"
    for folder in (memory, cpu):
        folder.mkdir(parents=True)
    (root / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    (memory / "memory.limit_in_bytes").write_text(str(GIB))
    (memory / "memory.usage_in_bytes").write_text(str(GIB // 2))
    (memory / "memory.stat").write_text("total_inactive_file 0\n")
    (cpu / "cpu.cfs_quota_us").write_text("50000")
    (cpu / "cpu.cfs_period_us").write_text("100000")
    assert cgroup.limits(root, membership) == cgroup.Limits(GIB, GIB // 2, 0.5)
    (cpu / "cpu.cfs_quota_us").write_text("-1")
    assert cgroup.limits(root, membership).cpus is None


@pytest.mark.parametrize(
    ("allowed", "quota", "count"),
    [(64, None, 64), (64, 2.0, 2), (64, 1.5, 2), (64, 0.1, 1), (64, 64.0, 64), (2, 3.5, 2), (1, None, 1)],
)
def test_processors_are_those_allowed_or_the_share_of_time_rounded_up(monkeypatch, allowed, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(allowed)))
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(cpus=quota))
    assert cgroup.num_cpus() == count


@pytest.fixture
def threads(monkeypatch):
    """torch's number of threads, remembered but not changed."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return asked


def test_the_cpu_is_as_large_as_its_container(monkeypatch, threads):
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(GIB, GIB // 4, 2.5))
    facts = CpuPlatform().facts()
    assert (facts.total_memory_bytes, facts.free_memory_bytes) == (GIB, GIB // 4) and threads == [3]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    CpuPlatform()
    assert threads == [3]


def test_without_limits_the_cpu_is_the_machine(monkeypatch, threads):
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits())
    facts = CpuPlatform().facts()
    assert facts.total_memory_bytes > GIB and threads == []
