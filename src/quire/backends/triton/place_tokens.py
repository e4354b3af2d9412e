"""place_tokens on the GPU."""

from torch import Tensor

from quire.backends.triton._support import dependent, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "place_tokens"
BLOCK = 128


def run(
    positions: Tensor,
    limits: Tensor,
    failed: Tensor,
    block_tables: Tensor,
    block_size: int,
    slot_mapping: Tensor,
    seq_lens: Tensor,
) -> None:
    """See quire.ops.place_tokens."""
    from quire.backends.triton._kernels_decode import place_tokens_kernel

    num_rows = positions.shape[0]
    if num_rows:
        place_tokens_kernel[(-(-num_rows // BLOCK),)](
            positions, limits, failed, block_tables, slot_mapping, seq_lens, num_rows, block_tables.stride(0),
            block_size, BLOCK, num_warps=4, **dependent(),
        )  # fmt: skip
