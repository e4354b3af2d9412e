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
def _rotate_heads(
    x_ptr, cos, sin, stride_head, first_head, HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    head = first_head + tl.arange(0, BLOCK_HEADS)
    pair = tl.arange(0, BLOCK_HALF)
    mask = (head < HEADS)[:, None] & (pair < HALF)[None, :]
    place = x_ptr + head[:, None] * stride_head + pair[None, :]
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + HALF, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (first * cos - second * sin).to(x_ptr.dtype.element_ty), mask=mask)
    tl.store(place + HALF, (second * cos + first * sin).to(x_ptr.dtype.element_ty), mask=mask)


# position_ptr and slot_ptr lie packed in one buffer, now here, now there: no kernel is compiled anew for each alignment.
@triton.jit(do_not_specialize_on_alignment=["position_ptr"])
def rotary_kernel(
    q_ptr, k_ptr, position_ptr, cos_sin_ptr, stride_q_token, stride_q_head, stride_k_token, stride_k_head, stride_table,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Rotates BLOCK_HEADS heads of one token in place; the heads of k follow those of q along grid axis 1."""
    let_next_start(DEPENDENT)
    wait_for_previous(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    position = tl.load(position_ptr + token).to(tl.int64)
    pair = tl.arange(0, BLOCK_HALF)
    table = cos_sin_ptr + position * stride_table + pair
    cos = tl.load(table, mask=pair < HALF, other=0.0)[None, :]
    sin = tl.load(table + HALF, mask=pair < HALF, other=0.0)[None, :]
    q_groups: tl.constexpr = (Q_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    if group < q_groups:
        _rotate_heads(
            q_ptr + token * stride_q_token,
            cos,
            sin,
            stride_q_head,
            group * BLOCK_HEADS,
            Q_HEADS,
            HALF,
            BLOCK_HEADS,
            BLOCK_HALF,
        )
    else:
        _rotate_heads(
            k_ptr + token * stride_k_token, cos, sin, stride_k_head, (group - q_groups) * BLOCK_HEADS, K_HEADS, HALF,
            BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip


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
