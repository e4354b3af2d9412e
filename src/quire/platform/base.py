"""Platform: facts of the machine. It knows no feature's name; capability is asked of the operator, not of the device."""

from abc import ABC, abstractmethod

import torch

from quire.config import MachineFacts


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
    def supports_graphs(self) -> bool:
        """Whether a step can be captured and replayed."""

    @abstractmethod
    def peak_memory_bytes(self) -> int:
        """Most memory this process had allocated on the device since it started."""

    @abstractmethod
    def empty_cache(self) -> None:
        """Gives cached, unused memory back to the device."""
