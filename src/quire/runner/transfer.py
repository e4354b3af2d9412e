"""OneCopy: many small device tensors to the host in one copy."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[Any]]


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
