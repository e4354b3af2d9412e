"""Puts the folders of test helpers on the path, keeps every test, and every process that one starts, to one thread, and lets what a
test leaves open be that test's fault."""

import gc
import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Before torch is imported. Workers that share two cores would otherwise fight over them; results do not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The hub's client reads these once, when it is imported; the tests of downloads have a hub of their own on this machine.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
# Test modules are imported by path (--import-mode=importlib), so that two folders may each have a test_config.py.
sys.path[:0] = sorted({str(path.parent) for path in TESTS.rglob("*.py") if not path.name.startswith("test_")})


@pytest.fixture(scope="module", autouse=True)
def _what_was_there_before():
    """What is alive when a module begins is not looked through after each of its tests."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_is_left_open(_what_was_there_before):
    """A socket or file that is garbage warns when it is collected: in the test that left it, not in another one's."""
    yield
    gc.collect()
