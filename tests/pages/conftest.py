"""Tests that need a browser (`make test-browser`). Where there is none, the folder is passed over as a whole and says so."""

from pathlib import Path

import pytest
from browser import find


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find() is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="tests/pages needs Chromium, and there is none; make test-browser brings it")
            )
