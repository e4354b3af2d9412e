"""The CPU as a device."""

import platform as host
import resource
from collections.abc import Callable
from typing import Any

import psutil
import torch

from quire.config import MachineFacts
from quire.platform.base import Graph, Mark, Platform


class Reached:
    """A CPU does everything at once."""

    def wait(self) -> None:
        return


class CpuPlatform(Platform):
    """Always present."""

    name = "cpu"
    backends = ("cpu", "torch")

    @classmethod
    def present(cls) -> bool:
        return True

    def device(self) -> torch.device:
        return torch.device("cpu")

    def facts(self) -> MachineFacts:
        memory = psutil.virtual_memory()
        return MachineFacts("cpu", host.processor() or host.machine(), memory.total, memory.available)

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
