"""Arrays on their way to the device: what is sent arrives, and memory for it is there from the beginning."""

import numpy as np
import pytest
import torch

from quire.runner.transfer import ToDevice

CPU = torch.device("cpu")


@pytest.mark.parametrize("room", [0, 100])
def test_what_is_sent_arrives_and_stays_while_more_is_sent(room: int) -> None:
    to_device = ToDevice(CPU, 2, room)
    arrays = [np.arange(3), np.linspace(0, 1, 4).reshape(2, 2), np.zeros(0, dtype=np.int64)]
    first = to_device.send(*arrays)
    for _ in range(3):
        to_device.send(np.full(50, -1))
    assert [tensor.dtype for tensor in first] == [torch.int64, torch.float64, torch.int64]
    for array, tensor in zip(arrays, first, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_what_fits_the_room_needs_no_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    to_device = ToDevice(CPU, 2, 10)
    made: list[int] = []
    make = ToDevice._make
    monkeypatch.setattr(ToDevice, "_make", lambda self, size: (made.append(size), make(self, size))[1])
    for _ in range(4):
        to_device.send(np.arange(4), np.arange(5))  # 4 and 6 words
    assert made == []
    for _ in range(4):
        to_device.send(np.arange(11))
    assert made == [24, 24], "once for each buffer, and more than is asked for"
