"""Programmatic dependent launch: a kernel may start while the one before it still runs.

Every kernel launched so lets the next one start at once (`let_next_start`), and waits (`wait_for_previous`) in each of its programs
before it reads what another kernel writes, or writes at all. Since the previous one has done the same, everything before it is
complete too. What it may do earlier is to load weights.
"""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_previous(DEPENDENT: tl.constexpr):
    """From here on all that earlier kernels wrote is seen. DEPENDENT=False: an ordinary launch, nothing to wait for."""
    if DEPENDENT:
        gdc_wait()


@triton.jit
def let_next_start(DEPENDENT: tl.constexpr):
    """The next kernel may start once every program has come here."""
    if DEPENDENT:
        gdc_launch_dependents()
