"""decode_step on the GPU: one persistent kernel for the whole decoder (kernels/decode_step.cu), for a few rows.

Below, a "program" is one of the kernel's CTAs; there is one on each multiprocessor.
"""

import logging
import struct
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel, num_processors
from quire.backends.triton._support import shared_memory_bytes
from quire.ops.decode_step import DecoderTensors
from quire.ops.forward_batch import ForwardBatch
from quire.ops.paged_attention import LOG2_E

__all__ = ["IMPLEMENTS", "run", "why_not"]

logger = logging.getLogger(__name__)

IMPLEMENTS = "decode_step"
ROWS = (1, 2, 4, 8)  # batch sizes at which it is faster than layer by layer
HEAD_DIMS = (64, 128)
MOST_GROUP = 16  # query heads that share a key head: rows of one matrix instruction
MOST_LAYERS = 32  # kernels are made for a multiple of it
NUM_THREADS = 288
LEAST_STAGE_BYTES, STAGE_BYTES, MOST_STAGE_BYTES = 24_576, 28_672, 32_768
SMALL_HIDDEN = 1024  # below it, waits are longer than reading the weights, and shorter with less on its way


@cache
def why_not() -> list[str]:
    """Reasons why the kernel cannot run here; empty = it can."""
    return _nvrtc.why_not(least=(9, 0))  # bulk copies to shared memory begin there


def run(net: DecoderTensors, fwd: ForwardBatch) -> Tensor | None:
    """See quire.ops.decode_step."""
    rows = fwd.num_sequences
    if rows not in ROWS or refusals(net, fwd):
        return None
    if is_collecting():
        macros, architecture = macros_of(net, fwd), _architecture()
        take(lambda: _nvrtc.compile_kernel("decode_step.cu", macros, architecture))
        return torch.empty(rows, net.head.shape[0], dtype=net.head.dtype, device=net.head.device)
    step = _step(net, fwd)
    return None if step is None else step.run(net, fwd)


def _step(net: DecoderTensors, fwd: ForwardBatch) -> "Step | None":
    """The kernel for so many rows and these caches; None = it cannot be made here, as has been said."""
    steps, rows = _STEPS.setdefault(net, {}), fwd.num_sequences
    found = steps.get(rows)
    if rows not in steps or (found is not None and found.caches != _addresses(fwd)):
        try:
            steps[rows] = Step(net, fwd)
        except RuntimeError as error:
            logger.warning("decoding steps of %d rows run layer by layer: %s", rows, error)
            steps[rows] = None
    return steps[rows]


class Step:
    """The kernel for one number of rows, and the memory in which its programs meet. caches: addresses of the KV caches it is for."""

    def __init__(self, net: DecoderTensors, fwd: ForwardBatch) -> None:
        device = net.embedding.device
        self.caches = _addresses(fwd)
        image = _nvrtc.compile_kernel("decode_step.cu", macros_of(net, fwd), _architecture())
        self._kernel = Kernel(device, image, "decode_step", NUM_THREADS, shared_memory_bytes())
        if self._kernel.programs_per_processor() < 1:
            raise RuntimeError("decode_step does not fit on a multiprocessor")
        self._layers = torch.tensor([_layer_row(net, fwd, i) for i in range(len(net.layers))]).to(device)
        self._words = torch.zeros(self._kernel.number("num_words"), dtype=torch.int32, device=device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)

    def run(self, net: DecoderTensors, fwd: ForwardBatch) -> Tensor:
        """Logits [B, V]. `net` is the one it was made for; it is not kept, so that a model can be given up."""
        logits = torch.empty(fwd.num_sequences, net.head.shape[0], dtype=net.head.dtype, device=net.head.device)
        tensors = (
            self._layers, net.embedding, net.norm, net.head, net.cos_sin, fwd.input_ids, fwd.slot_mapping, fwd.seq_lens, fwd.block_tables,
        )  # fmt: skip
        numbers = len(net.layers), fwd.block_tables.stride(0), fwd.kv_caches[0].stride(0)
        outputs = logits, self._words, self._counter
        values = [*(t.data_ptr() for t in tensors), *numbers, *(t.data_ptr() for t in outputs), 0]
        self._kernel.launch(num_processors(), struct.pack(f"{len(values)}q", *values))
        return logits


_STEPS: WeakKeyDictionary[DecoderTensors, dict[int, Step | None]] = WeakKeyDictionary()


def _addresses(fwd: ForwardBatch) -> tuple[int, ...]:
    return tuple(kv.data_ptr() for kv in fwd.kv_caches)


def refusals(net: DecoderTensors, fwd: ForwardBatch) -> list[str]:
    """Why the kernel does not fit this decoder; empty = it does."""
    layer, kv = net.layers[0], fwd.kv_caches[0]
    hidden, inner, q_size = layer.out.shape[0], layer.down.shape[1], net.num_heads * net.head_dim
    group, rest = divmod(net.num_heads, net.num_kv_heads)
    checks = {
        "weights or caches are not bfloat16": any(t.dtype != torch.bfloat16 for t in (net.head, layer.qkv, kv)),
        f"head size {net.head_dim}": net.head_dim not in HEAD_DIMS,
        f"{group} heads to a key head": rest or group > MOST_GROUP,
        "sizes that are not multiples of 64": hidden % 64 or inner % 64 or q_size % 64,
        "fewer rows of a matrix than multiprocessors": min(hidden, inner, layer.qkv.shape[0], len(net.head))
        < num_processors(),
        "vectors that do not fit in shared memory": _vector_bytes(net, fwd) > shared_memory_bytes() // 2,
    }
    return [reason for reason, found in checks.items() if found]


def macros_of(net: DecoderTensors, fwd: ForwardBatch) -> dict[str, str | int]:
    """Sizes that the kernel is compiled for."""
    layer, rows = net.layers[0], fwd.num_sequences
    stage_bytes = _stage_bytes(layer.out.shape[0])
    return {
        "ROWS": rows,
        "MOST_LAYERS": -(-len(net.layers) // MOST_LAYERS) * MOST_LAYERS,
        "HIDDEN": layer.out.shape[0],
        "INNER": layer.down.shape[1],
        "Q_HEADS": net.num_heads,
        "KV_HEADS": net.num_kv_heads,
        "HEAD": net.head_dim,
        "VOCAB": net.head.shape[0],
        "EPS": f"{net.eps!r}f",
        "SCALE_LOG2": f"{net.scale * LOG2_E!r}f",
        "HAS_BIAS": int(layer.qkv_bias is not None),
        "HAS_QK_NORM": int(layer.q_norm is not None),
        "BLOCK": fwd.kv_caches[0].shape[2],
        "CTAS": num_processors(),
        "SHARED_BYTES": shared_memory_bytes(),
        "SPLITS": max(1, min(8 if rows == 1 else 4, num_processors() // (rows * net.num_kv_heads))),
        "STAGE_BYTES": stage_bytes,
        "WINDOW_BYTES": stage_bytes * (1 if layer.out.shape[0] < SMALL_HIDDEN else 2),
    }


def _stage_bytes(hidden_size: int) -> int:
    """Size of a piece of the ring of weights: as many times 8 whole rows as come near 28 KB, so that they are one copy."""
    rows_bytes = 8 * hidden_size * 2
    count = MOST_STAGE_BYTES // rows_bytes
    return count * rows_bytes if count * rows_bytes >= LEAST_STAGE_BYTES else STAGE_BYTES


def _vector_bytes(net: DecoderTensors, fwd: ForwardBatch) -> int:
    """Shared memory for the vectors that matrices are multiplied by, and for the table of layers."""
    layer = net.layers[0]
    longest = max(layer.out.shape[0], layer.out.shape[1], layer.down.shape[1])
    return fwd.num_sequences * longest * 2 + 96 * len(net.layers)


def _layer_row(net: DecoderTensors, fwd: ForwardBatch, index: int) -> list[int]:
    layer = net.layers[index]
    tensors = (
        layer.qkv, layer.qkv_bias, layer.q_norm, layer.k_norm, layer.out, layer.gate_up, layer.down, layer.input_norm, layer.inner_norm,
        fwd.kv_caches[index],
    )  # fmt: skip
    return [*(0 if t is None else t.data_ptr() for t in tensors), layer.window, 0]


@cache
def _architecture() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"
