"""Launches of kernels/prefill_attention.cu: attention for rows with two queries or more."""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._tensor_map import ELEMENTS, TensorMap, boxes
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import LOG2_E

ARCHITECTURE = "sm_90a"
HEAD_SIZES = (64, 128)
KEYS = 128  # of a tile
MIN_BOX_SLOTS = 8  # rows that the copy engine's pattern of 128 bytes repeats after
MANY_ROUNDS = 4  # rounds of items from which on larger ones pay


class Arguments(ctypes.Structure):
    """The kernel's parameter, as prefill_attention.cu has it."""

    _fields_ = [
        ("q_map", TensorMap), ("kv_map", TensorMap),
        *((name, ctypes.c_void_p) for name in ("out", "tables", "starts", "lens", "counters")),
        *((name, ctypes.c_int) for name in (
            "num_sequences", "num_tokens", "num_tiles", "stride_table", "num_heads", "group", "block_size", "box_slots", "num_blocks"
        )),
        ("scale", ctypes.c_float), ("rest", ctypes.c_char * 48),
    ]  # fmt: skip


def fits(q: Tensor, kv: Tensor, window: int) -> bool:
    """Whether the kernel takes these: 2-byte types, whole heads, blocks that the copy engine can pick, no window."""
    return (
        window == 0 and q.dtype in ELEMENTS and q.dtype == kv.dtype and q.shape[2] in HEAD_SIZES and kv.is_contiguous()
        and math.gcd(kv.shape[2], KEYS) >= MIN_BOX_SLOTS
        and q.stride(2) == 1 and not (q.stride(0) % 8 or q.stride(1) % 8 or q.data_ptr() % 16)
    )  # fmt: skip


def prefill(q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, out: Tensor) -> None:
    """quire.ops.paged_attention into `out`, without windows; rows of sequences with one query are left as they are."""
    num_tokens, num_heads, head_size = q.shape
    _, num_blocks, block_size, kv_heads, _ = kv.shape
    groups = groups_of(head_size, num_tokens * num_heads, fwd.max_query_len, num_processors())
    kind = head_size, groups, q.dtype == torch.bfloat16
    if is_collecting():
        take(lambda: _compiled(*kind))
        return
    num_tiles = num_tokens // (64 * groups) + fwd.num_sequences + 1
    box_slots = math.gcd(block_size, KEYS)
    arguments = Arguments(
        boxes(q.data_ptr(), q.dtype, (head_size, num_heads, num_tokens), (q.stride(1), q.stride(0)), (64, 1, 64)),
        boxes(
            kv.data_ptr(), kv.dtype, (head_size, kv_heads, block_size, 2 * num_blocks),
            (kv.stride(3), kv.stride(2), kv.stride(1)), (64, 1, box_slots, 1),
        ),
        out.data_ptr(), fwd.block_tables.data_ptr(), fwd.query_start_loc.data_ptr(), fwd.seq_lens.data_ptr(),
        _counters(q.device).data_ptr(), fwd.num_sequences, num_tokens, num_tiles, fwd.block_tables.stride(0),
        num_heads, num_heads // kv_heads, block_size, box_slots, num_blocks, scale * LOG2_E,
    )  # fmt: skip
    programs = min(num_processors(), num_tiles * num_heads)
    _kernel(q.device, *kind).launch_early((programs, 1, 1), (1, 1, 1), (arguments,))


@cache
def groups_of(head_size: int, num_rows: int, max_query_len: int, num_processors: int) -> int:
    """Warpgroups, of 64 rows each, that share keys: three where registers allow it and there is enough for all processors."""
    many = num_rows >= MANY_ROUNDS * 192 * num_processors and max_query_len >= 1024
    return 3 if head_size == 64 and many else 2


def shared_bytes(head_size: int, groups: int) -> int:
    """Two tiles of queries, two of keys, two of values, two items and 14 words of 8 bytes: SHARED_BYTES of the kernel."""
    return 2 * 64 * groups * head_size * 2 + 4 * KEYS * head_size * 2 + 2 * 32 + 14 * 8


def macros(head_size: int, groups: int, is_bf16: bool) -> dict[str, str | int]:
    """What kernels/prefill_attention.cu is compiled with."""
    return {
        "HEAD": head_size, "GROUPS": groups, "IS_BF16": int(is_bf16), "HALF": '"bf16"' if is_bf16 else '"f16"',
        "SHARED_BYTES": shared_bytes(head_size, groups),
    }  # fmt: skip


def _compiled(head_size: int, groups: int, is_bf16: bool) -> bytes:
    return _nvrtc.compile_kernel("prefill_attention.cu", macros(head_size, groups, is_bf16), ARCHITECTURE)


@cache
def _kernel(device: torch.device, head_size: int, groups: int, is_bf16: bool) -> Kernel:
    image = _compiled(head_size, groups, is_bf16)
    return Kernel(device, image, "prefill_attention", 128 * (groups + 1), shared_bytes(head_size, groups))


@cache
def _counters(device: torch.device) -> Tensor:
    """Zero between launches: each launch leaves them as it found them. Launches on one device are made one after another."""
    return torch.zeros(2, dtype=torch.int32, device=device)
