"""Tests that need a CUDA GPU (`make test-gpu`). Where there is none, the folder is passed over as a whole and says so."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # op_parity


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="tests/gpu needs a CUDA GPU and none is visible"))
