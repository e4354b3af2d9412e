"""Kernels that touch each value once: activation, rotary embedding, KV write."""
# mypy: ignore-errors
# The bodies are Triton's language, not Python.

import triton
import triton.language as tl

from quire.backends.triton._dependent import let_next_start, wait_for_previous


@triton.jit
def silu_mul_kernel(x_ptr, out_ptr, stride_row, SIZE: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """out[row] = round(silu(x[row, :SIZE])) * x[row, SIZE:]."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < SIZE
    gate = tl.load(x_ptr + row * stride_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_row + SIZE + column, mask=mask, other=0.0).to(tl.float32)
    activated = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * SIZE + column, (activated * up).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rotated(x_ptr, angle_ptr, angle_mask, mask, HALF: tl.constexpr):
    """The two halves of heads, turned, in x's type; x_ptr points to the pairs of the first half, angle_ptr to their cosines."""
    cos = tl.load(angle_ptr, mask=angle_mask, other=0.0)
    sin = tl.load(angle_ptr + HALF, mask=angle_mask, other=0.0)
    first = tl.load(x_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)


@triton.jit
def _copy_columns(from_ptr, to_ptr, mask, BEGIN: tl.constexpr, END: tl.constexpr, BLOCK: tl.constexpr):
    """Columns [BEGIN, END) of heads."""
    column = tl.arange(0, BLOCK)[None, None, :]
    mask = mask & (column >= BEGIN) & (column < END)
    value = tl.load(from_ptr + column, mask=mask)
    tl.store(to_ptr + column, value.to(to_ptr.dtype.element_ty), mask=mask)


# position_ptr and slot_ptr lie packed in one buffer, now here, now there: no kernel is compiled anew for each alignment.
@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["position_ptr", "slot_ptr"])
def rotary_write_kv_kernel(
    q_ptr, k_ptr, v_ptr, kv_ptr, position_ptr, slot_ptr, cos_sin_ptr, num_tokens,
    stride_q_token, stride_q_head, stride_k_token, stride_k_head, stride_v_token, stride_v_head,
    stride_table, stride_values, stride_slot,
    Q_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """HEADS heads of TOKENS tokens. Along grid axis 1: heads of q, turned in place; of k, turned, to their slots; of v, to theirs.

    HALF pairs of a head are turned; slot -1 = nowhere.
    """
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    q_groups: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    kv_groups: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    group = tl.program_id(1)
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None, None]
    head = tl.arange(0, HEADS)[None, :, None]
    pair = tl.arange(0, BLOCK_HALF)[None, None, :]
    turned = (token < num_tokens) & (pair < HALF)
    position = tl.load(position_ptr + token, mask=token < num_tokens, other=0).to(tl.int64)
    angle = cos_sin_ptr + position * stride_table + pair
    if group < q_groups:
        head += group * HEADS
        mask = turned & (head < Q_HEADS)
        place = q_ptr + token * stride_q_token + head * stride_q_head + pair
        first, second = _rotated(place, angle, turned, mask, HALF)
        tl.store(place, first, mask=mask)
        tl.store(place + HALF, second, mask=mask)
        return
    slot = tl.load(slot_ptr + token, mask=token < num_tokens, other=-1).to(tl.int64)
    if group < q_groups + kv_groups:
        head += (group - q_groups) * HEADS
        kept = (slot >= 0) & (head < KV_HEADS)
        place = k_ptr + token * stride_k_token + head * stride_k_head
        target = kv_ptr + slot * stride_slot + head * HEAD_SIZE
        first, second = _rotated(place + pair, angle, turned, turned & kept, HALF)
        tl.store(target + pair, first.to(kv_ptr.dtype.element_ty), mask=turned & kept)
        tl.store(target + HALF + pair, second.to(kv_ptr.dtype.element_ty), mask=turned & kept)
        if 2 * HALF < HEAD_SIZE:
            _copy_columns(place, target, kept, 2 * HALF, HEAD_SIZE, BLOCK_D)
    else:
        head += (group - q_groups - kv_groups) * HEADS
        place = v_ptr + token * stride_v_token + head * stride_v_head
        target = kv_ptr + stride_values + slot * stride_slot + head * HEAD_SIZE
        _copy_columns(place, target, (slot >= 0) & (head < KV_HEADS), 0, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize_on_alignment=["slot_ptr"])
def write_kv_kernel(
    k_ptr, v_ptr, kv_ptr, slot_ptr, stride_k_token, stride_k_head, stride_v_token, stride_v_head, stride_half, stride_slot,
    HEAD_SIZE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Copies one token's keys (grid axis 1 = 0) or values (1) to its slot; slot -1 = nowhere. SIZE = kv heads * HEAD_SIZE."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot >= 0:
        column = tl.arange(0, BLOCK)
        mask = column < SIZE
        head, place = column // HEAD_SIZE, column % HEAD_SIZE
        if tl.program_id(1) == 0:
            value = tl.load(k_ptr + token * stride_k_token + head * stride_k_head + place, mask=mask)
            tl.store(kv_ptr + slot * stride_slot + column, value.to(kv_ptr.dtype.element_ty), mask=mask)
        else:
            value = tl.load(v_ptr + token * stride_v_token + head * stride_v_head + place, mask=mask)
            tl.store(kv_ptr + stride_half + slot * stride_slot + column, value.to(kv_ptr.dtype.element_ty), mask=mask)
