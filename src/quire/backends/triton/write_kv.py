"""write_kv on the GPU: one program a token for its keys, one for its values."""

from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "write_kv"


def run(k: Tensor, v: Tensor, kv: Tensor, slot_mapping: Tensor) -> None:
    """See quire.ops.write_kv; `kv` is contiguous."""
    from quire.backends.triton._kernels_pointwise import write_kv_kernel

    num_tokens, kv_heads, head_size = k.shape
    if num_tokens:
        size = kv_heads * head_size
        block = next_power_of_2(size)
        write_kv_kernel[(num_tokens, 2)](
            k, v, kv, slot_mapping, k.stride(0), k.stride(1), v.stride(0), v.stride(1), kv.stride(0), kv.stride(2),
            head_size, size, block, num_warps=min(8, max(1, block // 256)), **dependent(),
        )  # fmt: skip
