"""Fixtures of the CPU kernels' tests. They need the library: a machine that lacks it fails here, with the reason."""

from collections.abc import Iterator

import pytest
from op_parity import poisoned_memory

from quire.backends.cpu import _native


@pytest.fixture(autouse=True)
def native_library() -> None:
    assert _native.why_not() == []


@pytest.fixture(autouse=True)
def nan_poisoned_memory() -> Iterator[None]:
    with poisoned_memory():
        yield


@pytest.fixture(params=_native.supported_isas() or ["no library"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that this CPU can run, one after the other."""
    best = _native.isa()
    _native.use_isa(request.param)
    yield request.param
    _native.use_isa(best)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = _native.num_threads()
    _native.set_num_threads(2)
    yield
    _native.set_num_threads(before)
