"""Every parity test runs on the torch references and on the compiled CPU kernels."""

import pytest

from quire.ops.registry import implementations


@pytest.fixture(params=["torch", "cpu"])
def backends(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Kernel backends in order of preference."""
    if request.param == "torch":
        return ("torch",)
    reasons = implementations("cpu")["linear"].why_not()
    if reasons:
        pytest.skip(f"the cpu backend cannot run here: {reasons}")
    return ("cpu", "torch")
