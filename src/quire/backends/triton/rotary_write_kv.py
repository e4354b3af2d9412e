"""rotary_write_kv on the GPU: one kernel turns queries in place and puts turned keys, and values, into the cache."""

from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "rotary_write_kv"
MANY_TOKENS = 256  # from here on a program takes several tokens, and a device is busy all the same
PAIRS = 1024  # of one program then: 8 a thread at 4 warps


def run(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cos_sin: Tensor, kv: Tensor, slot_mapping: Tensor
) -> tuple[Tensor, Tensor]:
    """See quire.ops.rotary_write_kv; q is turned in place, k stays as it is, `kv` is contiguous."""
    from quire.backends.triton._kernels_pointwise import rotary_write_kv_kernel

    num_tokens, q_heads, head_size = q.shape
    kv_heads, half = k.shape[1], cos_sin.shape[1] // 2
    if num_tokens:
        heads = min(2 if num_tokens >= MANY_TOKENS else 8, next_power_of_2(kv_heads))
        block_half = next_power_of_2(half)
        tokens = max(1, PAIRS // (heads * block_half)) if num_tokens >= MANY_TOKENS else 1
        groups = -(-q_heads // heads) + 2 * -(-kv_heads // heads)
        rotary_write_kv_kernel[(-(-num_tokens // tokens), groups)](
            q, k, v, kv, positions, slot_mapping, cos_sin, num_tokens,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            cos_sin.stride(0), kv.stride(0), kv.stride(2), q_heads, kv_heads, head_size, half, tokens, heads,
            block_half, next_power_of_2(head_size), num_warps=4 if tokens > 1 else 1, **dependent(),
        )  # fmt: skip
    return q, kv
