"""rotary on the GPU: q and k are rotated in place by one kernel."""

from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "rotary"
BLOCK_HEADS = 8


def run(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
    """See quire.ops.rotary; writes in place and returns its arguments."""
    from quire.backends.triton._kernels_pointwise import rotary_kernel

    num_tokens, q_heads, _ = q.shape
    k_heads, half = k.shape[1], cos_sin.shape[1] // 2
    if num_tokens:
        groups = -(-q_heads // BLOCK_HEADS) + -(-k_heads // BLOCK_HEADS)
        rotary_kernel[(num_tokens, groups)](
            q, k, positions, cos_sin, q.stride(0), q.stride(1), k.stride(0), k.stride(1), cos_sin.stride(0),
            q_heads, k_heads, half, BLOCK_HEADS, next_power_of_2(half), num_warps=2, **dependent(),
        )  # fmt: skip
    return q, k
