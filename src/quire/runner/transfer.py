"""Many small arrays in one copy: OneCopy from the device to the host, ToDevice the other way."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[Any]]


class ToDevice:
    """Sends arrays of int64 and float64 to the device, all in one copy that nobody waits for.

    num_batches  calls of `send` whose copies may not have happened yet; each has a buffer of its own
    room         words that most calls send, at most; more are sent too, but making room for them may wait for the device
    """

    def __init__(self, device: torch.device, num_batches: int, room: int = 0) -> None:
        self._device = device
        self._buffers = [self._make(room) for _ in range(num_batches)]
        self._turn = 0

    def send(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """The same arrays on the device."""
        sizes = [
            array.size + array.size % 2 for array in arrays
        ]  # each begins at 16 bytes: kernels are compiled for such
        words = self._next(sum(sizes))
        begin = 0
        for array, size in zip(arrays, sizes, strict=True):
            words.numpy()[begin : begin + array.size] = array.ravel().view(np.int64)
            begin += size
        sent = words.to(self._device, non_blocking=True) if self._device.type != "cpu" else words.clone()
        return [
            (part.view(torch.float64) if array.dtype == np.float64 else part)[: array.size].view(array.shape)
            for part, array in zip(torch.split(sent, sizes), arrays, strict=True)
        ]

    def _next(self, size: int) -> Tensor:
        self._turn = (self._turn + 1) % len(self._buffers)
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = self._make(2 * size)
        return self._buffers[self._turn][:size]

    def _make(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, pin_memory=size > 0 and self._device.type != "cpu")


class OneCopy:
    """Collects int32 and fp32 tensors; `fetch` brings all of them over at once, as numpy arrays in the order of `add`."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, tensor: Tensor) -> int:
        """Keeps a tensor of 4-byte elements for the copy; returns its number in the list that fetch gives."""
        self._parts.append(tensor)
        return len(self._parts) - 1

    def fetch(self) -> Arrays:
        """Waits for the device once."""
        words = torch.cat([part.contiguous().view(torch.int32).flatten() for part in self._parts]).cpu().numpy()
        arrays: Arrays = []
        begin = 0
        for part in self._parts:
            piece = words[begin : begin + part.numel()].reshape(part.shape)
            arrays.append(piece.view(np.float32) if part.dtype == torch.float32 else piece)
            begin += part.numel()
        return arrays
