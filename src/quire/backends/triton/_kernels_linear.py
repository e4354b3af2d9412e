"""The matrix product of one row, bound by reading the weight once: plain dot products."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous


@triton.jit
def _load_tile(weights, start, place, inside, in_size, WHOLE: tl.constexpr):
    """[BLOCK_N, BLOCK_K] weights from column `start` on; zeros outside. WHOLE: BLOCK_K divides in_size."""
    if WHOLE:
        return tl.load(weights + start, mask=inside[:, None], other=0.0)
    else:
        left = start + place < in_size
        return tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)


@triton.jit
def _load_row(x_ptr, start, place, in_size, WHOLE: tl.constexpr):
    if WHOLE:
        return tl.load(x_ptr + start + place).to(tl.float32)
    else:
        return tl.load(x_ptr + start + place, mask=start + place < in_size, other=0.0).to(tl.float32)


@triton.jit
def _finish(acc, bias_ptr, row, inside, HAS_BIAS: tl.constexpr, dtype: tl.constexpr):
    """Sums of the products, with the bias, as the output type holds them."""
    out = tl.sum(acc, axis=1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
    return out.to(dtype)


@triton.jit
def gemv_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, out_size, in_size,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[n] = sum over k of x[k] * weight[n, k] (+ bias[n]); one program takes BLOCK_N outputs.

    GATED: weight has 2 * out_size rows, and out[n] = round(silu(round(product n))) * round(product out_size + n).
    """
    let_next_start(DEPENDENT)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_K)
    inside = row < out_size
    weights = weight_ptr + row[:, None].to(tl.int64) * in_size + place[None, :]
    second = out_size.to(tl.int64) * in_size
    weight = _load_tile(weights, 0, place, inside, in_size, WHOLE)
    if GATED:
        up_weight = _load_tile(weights + second, 0, place, inside, in_size, WHOLE)
    wait_for_previous(DEPENDENT)
    x = _load_row(x_ptr, 0, place, in_size, WHOLE)
    acc = weight.to(tl.float32) * x[None, :]
    if GATED:
        up_acc = up_weight.to(tl.float32) * x[None, :]
    for start in range(BLOCK_K, in_size, BLOCK_K):
        weight = _load_tile(weights, start, place, inside, in_size, WHOLE)
        x = _load_row(x_ptr, start, place, in_size, WHOLE)
        acc += weight.to(tl.float32) * x[None, :]
        if GATED:
            up_weight = _load_tile(weights + second, start, place, inside, in_size, WHOLE)
            up_acc += up_weight.to(tl.float32) * x[None, :]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    out = _finish(acc, bias_ptr, row, inside, HAS_BIAS, dtype)
    if GATED:
        gate = out.to(tl.float32)
        up = _finish(up_acc, bias_ptr + out_size, row, inside, HAS_BIAS, dtype)
        out = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(out_ptr + row, out.to(dtype), mask=inside)
