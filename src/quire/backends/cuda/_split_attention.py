"""Launches of kernels/split_attention.cu: attention of rows with one query, rotation and the write to the cache included."""

import ctypes
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.cuda._tensor_map import ELEMENTS
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import LOG2_E

ARCHITECTURE = "sm_90a"
HEAD_SIZES = (64, 128)
MOST_GROUP = 8  # query heads of a key head: columns of a matrix instruction
TILE = 16  # keys
PLAN_THREADS = 1024
ITEM_WORDS = 8
FEW_SEQUENCES, SOME_SEQUENCES, MANY_SEQUENCES = 4, 32, 384
PROCESSOR_SHARED_BYTES = 233_472  # of a multiprocessor
DRIVER_SHARED_BYTES = 1024  # what the driver takes of it for each program


class Tiling(NamedTuple):
    """Key heads of a program, warps of each; tiles of a warp on their way, and taken at once; programs of a multiprocessor."""

    heads: int
    key_warps: int
    stages: int
    chunk: int
    per_processor: int

    @property
    def warps(self) -> int:
        return self.heads * self.key_warps


class Kind(NamedTuple):
    """What split_attention.cu is compiled for."""

    head_size: int
    group: int
    kv_heads: int
    block_size: int
    is_bf16: bool
    tiling: Tiling

    @property
    def shared_bytes(self) -> int:
        """Tiles on their way, and the sums that warps share."""
        tiles = self.tiling.stages * 2 * TILE * self.head_size * 2
        sums = -(-self.group * (self.head_size + 6) // 4) * 4
        return self.tiling.warps * (tiles + sums * 4) + 16

    @property
    def programs_per_processor(self) -> int:
        """What the tiling says, where shared memory allows it."""
        return min(self.tiling.per_processor, PROCESSOR_SHARED_BYTES // (self.shared_bytes + DRIVER_SHARED_BYTES))

    @property
    def macros(self) -> dict[str, str | int]:
        return {
            "HEAD": self.head_size, "GROUP": self.group, "KV_HEADS": self.kv_heads, "BLOCK_SIZE": self.block_size,
            "IS_BF16": int(self.is_bf16), "HEADS": self.tiling.heads, "KEY_WARPS": self.tiling.key_warps, "STAGES": self.tiling.stages,
            "CHUNK": self.tiling.chunk, "PER_PROCESSOR": self.programs_per_processor, "SHARED_BYTES": self.shared_bytes,
        }  # fmt: skip


class PlanArguments(ctypes.Structure):
    """The parameter of attention_plan.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("starts", "lens", "plan")),
        *((name, ctypes.c_int) for name in ("num_rows", "split_keys", "most_splits")),
    ]


class Arguments(ctypes.Structure):
    """The parameter of split_attention.cu."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "q", "k", "v", "kv", "cos_sin", "slots", "tables", "plan", "out", "partial", "lse", "arrived"
        )),
        ("to_values", ctypes.c_int64),
        *((name, ctypes.c_int) for name in (
            "stride_q", "stride_k", "stride_v", "stride_table", "split_keys", "most_splits", "early"
        )),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class Plan(NamedTuple):
    """A step's items on the device, and how keys are split."""

    items: Tensor
    split_keys: int
    most_splits: int


def fits(q: Tensor, kv: Tensor, window: int) -> bool:
    """Whether the kernel takes these: 2-byte types, heads and groups of them that fill matrix instructions, no window."""
    return (
        window == 0 and q.dtype in ELEMENTS and q.dtype == kv.dtype and q.shape[2] in HEAD_SIZES and kv.is_contiguous()
        and q.shape[1] // kv.shape[3] <= MOST_GROUP and not kv.shape[2] % TILE and _is_readable(q)
    )  # fmt: skip


def _is_readable(x: Tensor) -> bool:
    """Heads [T, H, D] that lie together, pairs of values in one word."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2] and not x.stride(0) % 2 and not x.data_ptr() % 4


def can_turn(k: Tensor, v: Tensor, cos_sin: Tensor, head_size: int) -> bool:
    """Whether the kernel takes the step's keys and values too."""
    return _is_readable(k) and _is_readable(v) and cos_sin.shape[1] == head_size and cos_sin.is_contiguous()


@cache
def tiling(head_size: int, kv_heads: int, num_sequences: int, processors: int) -> Tiling:
    """Measured on an H200 (docs/log.md): the fewer sequences, the more warps share the keys of one."""
    pairs = num_sequences * kv_heads
    if head_size == 64:
        if pairs <= 2 * processors:
            return Tiling(1, 4, 6, 4, 2)
        heads = math.gcd(kv_heads, 2) if num_sequences >= MANY_SEQUENCES else 1
        return Tiling(heads, 2 // heads, 6, 4, 4)
    if pairs <= processors:
        return Tiling(1, 8, 3, 2, 1)
    return Tiling(1, 4, 2, 2, 2) if pairs <= 2 * processors else Tiling(1, 2, 3, 2, 4)


@cache
def splits(num_sequences: int) -> tuple[int, int]:
    """(keys a split, most splits of a row): short ones where few sequences are to keep the device busy."""
    if num_sequences <= FEW_SEQUENCES:
        return 128, 64
    return (256, 32) if num_sequences <= SOME_SEQUENCES else (512, 16)


@cache
def _arrivals(device: torch.device, size: int) -> Tensor:
    """Counters that are zero whenever no kernel runs; one tensor a power of two serves every layer and step."""
    return torch.zeros(size, dtype=torch.int32, device=device)


def attend(
    q: Tensor, kv: Tensor, fwd: ForwardBatch, scale: float, out: Tensor,
    newest: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:  # fmt: skip
    """Attention of the rows of `fwd` that have one query, into `out`.

    newest  k, v of a step of such rows alone, and cos_sin: see quire.ops.rotary_attention. None = q is turned, the cache has them
    """
    kv_heads, head_size = kv.shape[3:]
    num_heads, rows = q.shape[1], fwd.num_sequences
    shape = tiling(head_size, kv_heads, rows, num_processors())
    kind = Kind(head_size, num_heads // kv_heads, kv_heads, kv.shape[2], q.dtype == torch.bfloat16, shape)
    if is_collecting():
        take(_plan_image)
        take(lambda: _compiled(kind))
        return
    plan, is_new = _plan(fwd)
    kernel = _kernel(q.device, kind)
    parts = (rows, num_heads, plan.most_splits) if plan.most_splits > 1 else (1, 1, 1)
    partial = torch.empty((*parts, head_size), dtype=torch.float32, device=q.device)
    lse = torch.empty(parts, dtype=torch.float32, device=q.device)
    k, v, cos_sin = (q, q, None) if newest is None else newest
    arguments = Arguments(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), kv.data_ptr(), None if cos_sin is None else cos_sin.data_ptr(),
        fwd.slot_mapping.data_ptr(), fwd.block_tables.data_ptr(), plan.items.data_ptr(), out.data_ptr(), partial.data_ptr(),
        lse.data_ptr(), _arrivals(q.device, 1 << (rows * kv_heads - 1).bit_length()).data_ptr(), kv.stride(0),
        q.stride(0), k.stride(0), v.stride(0), fwd.block_tables.stride(0), plan.split_keys, plan.most_splits,
        not is_new and newest is not None, scale * LOG2_E,
    )  # fmt: skip
    programs = min(num_processors() * kind.programs_per_processor, rows * plan.most_splits * kv_heads // shape.heads)
    kernel.launch_early((programs, 1, 1), (1, 1, 1), (arguments,))


def _plan(fwd: ForwardBatch) -> tuple[Plan, bool]:
    """The step's plan, and whether it is made only now."""
    plan = fwd.plans.get("split_attention")
    if plan is not None:
        return plan, False
    rows = fwd.num_sequences
    split_keys, most_splits = splits(rows)
    most_splits = min(most_splits, max(1, -(-fwd.max_seq_len // split_keys)))
    items = torch.empty(4 + ITEM_WORDS * rows * most_splits, dtype=torch.int32, device=fwd.device)
    arguments = PlanArguments(
        fwd.query_start_loc.data_ptr(), fwd.seq_lens.data_ptr(), items.data_ptr(), rows, split_keys, most_splits
    )
    _plan_kernel(fwd.device).launch_early((1, 1, 1), (1, 1, 1), (arguments,))
    plan = fwd.plans["split_attention"] = Plan(items, split_keys, most_splits)
    return plan, True


def _plan_image() -> bytes:
    return _nvrtc.compile_kernel("attention_plan.cu", {}, ARCHITECTURE)


@cache
def _plan_kernel(device: torch.device) -> Kernel:
    return Kernel(device, _plan_image(), "attention_plan", PLAN_THREADS, 0)


def _compiled(kind: Kind) -> bytes:
    return _nvrtc.compile_kernel("split_attention.cu", kind.macros, ARCHITECTURE)


@cache
def _kernel(device: torch.device, kind: Kind) -> Kernel:
    return Kernel(device, _compiled(kind), "split_attention", 32 * kind.tiling.warps, kind.shared_bytes)
