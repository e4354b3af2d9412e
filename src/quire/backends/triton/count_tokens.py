"""count_tokens on the GPU."""

from torch import Tensor

from quire.backends.triton._support import dependent, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "count_tokens"
BLOCK = 128


def run(token_ids: Tensor, marks: Tensor, rows: Tensor, seen: Tensor, counts: Tensor) -> None:
    """See quire.ops.count_tokens."""
    from quire.backends.triton._kernels_decode import count_tokens_kernel

    count = token_ids.shape[0]
    if count:
        count_tokens_kernel[(-(-count // BLOCK),)](
            token_ids,
            marks,
            rows,
            seen,
            counts,
            count,
            seen.stride(0),
            counts.stride(0),
            BLOCK,
            num_warps=4,
            **dependent(),
        )
