"""Kernels and the device they are for, without either: the driver is a double that notes what it is asked for."""

from types import SimpleNamespace

import pytest
import torch

from quire.backends.cuda import _driver
from quire.backends.cuda._driver import Kernel

ALL = (1, 1, 1)


@pytest.fixture
def machine(monkeypatch):
    """Two devices, of which one is current, and the names of the driver's functions that were called."""
    machine = SimpleNamespace(current=0, called=[])

    class Driver:
        def __getattr__(self, name):
            return lambda *_: machine.called.append(name) or 0

    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(_driver, "_library", lambda: Driver())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: machine.current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    properties = [SimpleNamespace(multi_processor_count=132), SimpleNamespace(multi_processor_count=78)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    for cached in (_driver._num_processors, _driver._can_start_early):
        cached.cache_clear()
    yield machine
    for cached in (_driver._num_processors, _driver._can_start_early):
        cached.cache_clear()


def kernel(index):
    return Kernel(torch.device("cuda", index), b"code", "product", 128, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_kernels_are_loaded_and_launched_on_the_current_device(machine, index):
    machine.current = index
    made = kernel(index)
    made.launch(1, b"arguments")
    made.launch_early(ALL, ALL, (None,))
    assert machine.called[0] == "cuModuleLoadData"
    assert machine.called[-2:] == ["cuLaunchCooperativeKernel", "cuLaunchKernelEx"]


def test_a_kernel_is_not_loaded_while_another_device_is_current(machine):
    with pytest.raises(
        RuntimeError, match=r"product is for cuda:1 and the current device is cuda:0; .*set_device\(1\)"
    ):
        kernel(1)
    assert machine.called == []


def test_a_kernel_is_not_launched_while_another_device_is_current(machine):
    made = kernel(0)
    machine.current, num_called = 1, len(machine.called)
    with pytest.raises(RuntimeError, match="product is for cuda:0"):
        made.launch(1, b"arguments")
    with pytest.raises(RuntimeError, match="product is for cuda:0"):
        made.launch_early(ALL, ALL, (None,))
    assert len(machine.called) == num_called


def test_processors_are_those_of_the_current_device(machine):
    assert _driver.num_processors() == 132
    machine.current = 1
    assert _driver.num_processors() == 78
