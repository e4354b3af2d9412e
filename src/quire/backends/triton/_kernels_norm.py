"""Norm kernels: one program reduces a few whole rows in fp32."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr, weight_ptr, out_ptr, num_rows, stride_token, stride_head, eps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[row] = round(x[row] * rsqrt(mean(x²) + eps)) * weight; row = token * HEADS + head, out is contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    mask = (row < num_rows)[:, None] & inside[None, :]
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    source = (row // HEADS) * stride_token + (row % HEADS) * stride_head
    x = tl.load(x_ptr + source[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, axis=1) / SIZE + eps)
    normed = (x * inverse[:, None]).to(out_ptr.dtype.element_ty).to(tl.float32)
    out = normed * weight[None, :]
    tl.store(out_ptr + row[:, None] * SIZE + column[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def add_rms_norm_kernel(
    x_ptr, residual_ptr, weight_ptr, out_ptr, num_rows, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """residual += x (rounded), then out = rms_norm(residual). All rows are contiguous."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    mask = (row < num_rows)[:, None] & inside[None, :]
    offset = row[:, None] * SIZE + column[None, :]
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    rounded = (residual + x).to(out_ptr.dtype.element_ty)
    tl.store(residual_ptr + offset, rounded, mask=mask)
    total = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(total * total, axis=1) / SIZE + eps)
    normed = (total * inverse[:, None]).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + offset, (normed * weight[None, :]).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, num_rows, stride_row, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out = (x − mean) / sqrt(var + eps) * weight + bias, all in fp32 until the store."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    mask = (row < num_rows)[:, None] & inside[None, :]
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    x = tl.load(x_ptr + row[:, None] * stride_row + column[None, :], mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / SIZE
    centred = tl.where(mask, x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=1) / SIZE + eps)
    out = centred * inverse[:, None] * weight[None, :] + bias[None, :]
    tl.store(out_ptr + row[:, None] * SIZE + column[None, :], out.to(out_ptr.dtype.element_ty), mask=mask)
