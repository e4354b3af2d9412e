"""Matrix products of a few rows, bound by reading the weight once: a plain dot product for one row, matrix units for more."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl


@triton.jit
def gemv_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, out_size, in_size,
    HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[n] = sum over k of x[k] * weight[n, k] (+ bias[n]); one program takes BLOCK_N outputs. WHOLE: BLOCK_K divides in_size."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    place = tl.arange(0, BLOCK_K)
    inside = row < out_size
    weights = weight_ptr + row[:, None].to(tl.int64) * in_size + place[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, in_size, BLOCK_K):
        if WHOLE:
            x = tl.load(x_ptr + start + place)
            weight = tl.load(weights + start, mask=inside[:, None], other=0.0)
        else:
            left = start + place < in_size
            x = tl.load(x_ptr + start + place, mask=left, other=0.0)
            weight = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        acc += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    out = tl.sum(acc, axis=1)
    if HAS_BIAS:
        out += tl.load(bias_ptr + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def few_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, num_rows, stride_row, out_size, in_size,
    HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[m, n] = sum over k of x[m, k] * weight[n, k] (+ bias[n]) for num_rows <= BLOCK_M rows, in one pass over the weight."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    member = tl.arange(0, BLOCK_M)
    place = tl.arange(0, BLOCK_K)
    inside, present = column < out_size, member < num_rows
    weights = weight_ptr + column[:, None].to(tl.int64) * in_size + place[None, :]
    rows = x_ptr + member[None, :].to(tl.int64) * stride_row + place[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, in_size, BLOCK_K):
        if WHOLE:
            weight = tl.load(weights + start, mask=inside[:, None], other=0.0)
            x = tl.load(rows + start, mask=present[None, :], other=0.0)
        else:
            left = start + place < in_size
            weight = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
            x = tl.load(rows + start, mask=present[None, :] & left[:, None], other=0.0)
        acc = tl.dot(weight, x, acc)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[:, None]
    out_place = out_ptr + member[None, :].to(tl.int64) * out_size + column[:, None]
    tl.store(out_place, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None] & present[None, :])
