"""Puts the folders of test helpers on the path, and keeps every test, and every process that one starts, to one thread."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent

# Before torch is imported. Workers that share two cores would otherwise fight over them; results do not depend on it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Test modules are imported by path (--import-mode=importlib), so that two folders may each have a test_config.py.
sys.path[:0] = sorted({str(path.parent) for path in TESTS.rglob("*.py") if not path.name.startswith("test_")})
