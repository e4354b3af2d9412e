"""Platform: facts of the machine. It knows no feature's name; capability is asked of the operator, not of the device."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch

from quire.config import MachineFacts


class Graph(Protocol):
    """A captured sequence of device work. `pool` is memory that later captures may share, since graphs run one at a time."""

    pool: Any

    def replay(self) -> None:
        """Asks the device to do the captured work again, on the same tensors."""

    def close(self) -> None:
        """Forgets the work; memory comes back once every graph of the pool is closed."""


class Mark(Protocol):
    """A place in the work that the device was asked for."""

    def wait(self) -> None:
        """Returns once the device has come to it."""


class Platform(ABC):
    """One kind of device."""

    name: str
    backends: tuple[str, ...]  # kernel backends in order of preference

    @classmethod
    @abstractmethod
    def present(cls) -> bool:
        """Whether this machine has such a device."""

    @abstractmethod
    def device(self) -> torch.device:
        """The device that tensors go to."""

    @abstractmethod
    def facts(self) -> MachineFacts:
        """Name, memory and dtypes of the device, now."""

    @abstractmethod
    def synchronize(self) -> None:
        """Waits until the device has done all that was asked of it."""

    @abstractmethod
    def mark(self) -> Mark:
        """Marks the end of all that the device was asked for so far."""

    @abstractmethod
    def supports_graphs(self) -> bool:
        """Whether a step can be captured and replayed."""

    @abstractmethod
    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Graph:
        """Runs `work` twice, the second time as a capture, in memory of `pool` (None = a new one).

        `work` must not wait for the device, and reads and writes tensors that outlive the graph.
        """

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Most memory this process had allocated on the device since it started."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Gives cached, unused memory back to the device."""
