"""take_tokens on the GPU."""

from torch import Tensor

from quire.backends.triton._support import dependent, why_not
from quire.ops.take_tokens import RESTED

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "take_tokens"
BLOCK = 256


def run(
    ids: Tensor, seq_lens: Tensor, input_ids: Tensor, positions: Tensor, failed: Tensor, tokens: Tensor, step: Tensor
) -> None:
    """See quire.ops.take_tokens."""
    from quire.backends.triton._kernels_decode import take_tokens_kernel

    take_tokens_kernel[(1,)](
        ids, seq_lens, input_ids, positions, failed, tokens, step, ids.shape[0], tokens.stride(0), RESTED, BLOCK,
        num_warps=4, **dependent(),
    )  # fmt: skip
