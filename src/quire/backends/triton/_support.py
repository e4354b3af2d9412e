"""What every Triton operator asks before it offers itself, and the launch sizes they share."""

from functools import cache
from importlib.util import find_spec

import torch

MIN_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies begin here


@cache
def why_not() -> list[str]:
    """Reasons why Triton kernels cannot run here; empty = they can."""
    if find_spec("triton") is None:
        return ["the triton package is not installed"]
    if not torch.cuda.is_available():
        return ["no CUDA device is visible"]
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        return [
            f"compute capability is {capability[0]}.{capability[1]}; {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} is needed"
        ]
    return []


@cache
def dependent() -> dict[str, bool]:
    """Launch options of kernels that may start before the one ahead of them ends (_dependent.py): from sm_90 on."""
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0):
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


@cache
def next_power_of_2(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


@cache
def row_launch(size: int) -> tuple[int, int, int]:
    """(block, rows, num_warps) for a kernel that reduces rows of `size` values: short rows share a program.

    It depends on the row's size alone, so that a row's result does not depend on how many rows there are.
    """
    block = next_power_of_2(size)
    rows = max(1, 1024 // block)
    return block, rows, min(16, max(1, block * rows // 512))


@cache
def shared_memory_bytes() -> int:
    """Most shared memory one program may use on the current device."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]  # missing from torch's stubs
