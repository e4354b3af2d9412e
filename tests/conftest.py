"""Puts the folders of test helpers on the path, and keeps every test, and every process that one starts, to one thread."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent

# Before torch is imported. Workers that share two cores would otherwise fight over them; results do not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The hub's client reads these once, when it is imported; the tests of downloads have a hub of their own on this machine.
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
# Test modules are imported by path (--import-mode=importlib), so that two folders may each have a test_config.py.
sys.path[:0] = sorted({str(path.parent) for path in TESTS.rglob("*.py") if not path.name.startswith("test_")})
