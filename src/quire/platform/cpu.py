"""The CPU as a device."""

import os
import platform as host
import resource
from collections.abc import Callable
from typing import Any

import psutil
import torch

from quire import cgroup
from quire.config import MachineFacts
from quire.platform.base import Graph, Mark, Platform


class Reached:
    """A CPU does everything at once."""

    def wait(self) -> None:
        return


class CpuPlatform(Platform):
    """Always present. In a container it is as large as the container: no more threads than its share of time, no more memory."""

    name = "cpu"
    backends = ("cpu", "torch")

    def __init__(self) -> None:
        cpus = cgroup.num_cpus()
        # Threads beyond the share would be stopped together for most of each period. OMP_NUM_THREADS is the user's own choice.
        if "OMP_NUM_THREADS" not in os.environ and cpus < torch.get_num_threads():
            torch.set_num_threads(cpus)

    @classmethod
    def present(cls) -> bool:
        return True

    def device(self) -> torch.device:
        return torch.device("cpu")

    def facts(self) -> MachineFacts:
        memory, group = psutil.virtual_memory(), cgroup.limits()
        total = min(memory.total, group.memory_bytes or memory.total)
        free = memory.available if group.free_bytes is None else min(memory.available, group.free_bytes)
        return MachineFacts("cpu", host.processor() or host.machine(), total, free)

    def synchronize(self) -> None:
        return

    def mark(self) -> Mark:
        return Reached()

    def supports_graphs(self) -> bool:
        return False

    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Graph:
        raise NotImplementedError("a CPU captures no graphs; ask supports_graphs() first")

    def peak_memory_bytes(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def empty_cache(self) -> None:
        return
