"""The head start leaves the process as it was, touches no GPU that was not asked for, and never fails a start."""

import gc
import os
import sys
import threading

import pytest

from quire import head_start as module
from quire.head_start import head_start


class Driver:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.calls, self.compilers = [], []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            return 0

        return call


@pytest.fixture
def driver(monkeypatch):
    found = Driver()
    monkeypatch.setattr(module, "_driver", lambda: found)
    monkeypatch.setattr(module, "_prepare_triton", lambda: found.calls.append("triton"))
    monkeypatch.setattr(module.compilers, "start", lambda: found.compilers.append("started"))
    monkeypatch.setattr(module.compilers, "drop", lambda: found.compilers.append("dropped"))
    return found


def done():
    for thread in threading.enumerate():
        if thread.name == "head-start":
            thread.join(60)


def test_garbage_is_collected_again_afterwards():
    with head_start("cpu"):
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), head_start("cpu"):
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with head_start("cpu"):
            pass
        assert not gc.isenabled(), "who had switched it off wants it off"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("device", "calls"),
    [
        ("cpu", []),
        (None, ["triton"]),
        ("cuda", ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuInit", "triton"]),
        ("auto", ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuInit", "triton"]),
    ],
)
def test_a_context_is_made_only_where_a_gpu_may_be_used(driver, device, calls):
    with head_start(device):
        pass
    done()
    assert sorted(driver.calls) == calls


def test_compilers_get_ready_where_there_is_a_gpu_and_stay_for_an_engine_that_is_made_later(driver, monkeypatch):
    with head_start("auto"):
        assert driver.compilers == ["started"]
    assert driver.compilers == ["started", "dropped"], "what was made inside has taken it"
    driver.compilers.clear()
    with head_start(None):
        pass
    assert driver.compilers == ["started"]
    driver.compilers.clear()
    with pytest.raises(KeyError), head_start("cuda"):
        raise KeyError
    assert driver.compilers == ["started", "dropped"]
    driver.compilers.clear()
    with head_start("cpu"):
        pass
    assert "started" not in driver.compilers
    monkeypatch.setattr(module.compilers, "start", lambda: os.execv("/no such program", ["x"]))
    with head_start("cuda"):
        pass
    done()


def test_what_fails_beside_is_left_to_who_needs_it(driver, monkeypatch, capsys):
    def broken():
        raise ImportError("no triton here")

    monkeypatch.setattr(module, "_prepare_triton", broken)
    with head_start("cuda"):
        pass
    done()
    assert "cuInit" in driver.calls and capsys.readouterr().err == ""


def test_tritons_key_is_known_after_it(driver, monkeypatch):
    monkeypatch.undo()
    module._prepare_triton()
    cache = sys.modules["triton.runtime.cache"]
    assert cache.triton_key.cache_info().currsize == 1
