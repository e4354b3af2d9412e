"""sample_tokens in CUDA C++ (kernels/sample_tokens.cu): a pass over the logits for the largest of each group, then a program a row."""

import ctypes
import math
from functools import cache

import torch
from torch import Tensor

from quire.backends.cuda import _nvrtc
from quire.backends.cuda._ahead import is_collecting, take
from quire.backends.cuda._driver import Kernel
from quire.ops.draw_tokens import weight_of_likeliest
from quire.ops.sample_tokens import Scores

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "sample_tokens"
THREADS, PART, GROUPS = 256, 8192, 64  # of a program; columns, and groups, of a part: as in kernels/sample_row.cuh
WARPS = THREADS // 32
POINTERS = (
    "logits", "controls", "uniforms", "step", "seen", "counts", "table_rows", "peaks", "sums", "weights", "ids", "score_ids",
    "score_logprobs",
)  # fmt: skip
STRIDES = ("logits", "controls", "uniforms", "seen", "counts", "scores")
SIZES = ("size", "num_parts", "num_top", "weigh_all")
ONE_ROW = (1, 1, 1)


class Problem(ctypes.Structure):
    """As in kernels/sample_row.cuh."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        ("one", ctypes.c_double),
        ("zero", ctypes.c_double),
        *((f"{name}_stride", ctypes.c_int64) for name in STRIDES),
        *((name, ctypes.c_int) for name in SIZES),
    ]


@cache
def why_not() -> list[str]:
    """Reasons why the kernels cannot run here; empty = they can."""
    return _nvrtc.why_not(least=(8, 0))  # sums over a warp in one instruction begin there


def run(
    logits: Tensor,
    controls: Tensor,
    uniforms: Tensor,
    step: Tensor,
    seen: Tensor | None,
    counts: Tensor | None,
    rows: Tensor,
    weigh_all: bool,
    scores: Scores | None,
) -> Tensor:
    """See quire.ops.sample_tokens."""
    num_rows, size = logits.shape
    num_parts = -(-size // PART)

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=logits.device)

    ids = make(dtype=torch.int64)
    if is_collecting():
        take(lambda: _compiled(logits.dtype))
    elif num_rows:
        peaks = make(num_parts, GROUPS)
        sums, weights = make(num_parts, WARPS, 4), make(num_parts, dtype=torch.int64)
        tensors = logits, controls, uniforms, step, seen, counts, rows, peaks, sums, weights, ids
        one = weight_of_likeliest(size)
        problem = Problem(
            *(None if t is None else t.data_ptr() for t in (*tensors, *(scores or (None, None)))),
            one, math.log(0.25 / one),
            *(0 if t is None else t.stride(0) for t in (logits, controls, uniforms, seen, counts, scores and scores[0])),
            size, num_parts, -1 if scores is None else scores[0].shape[2] - 1, weigh_all,
        )  # fmt: skip
        survey, weigh, choose = _kernels(logits.device, logits.dtype)
        survey.launch_early((num_parts, num_rows, 1), ONE_ROW, (problem,))
        if weigh_all:
            weigh.launch_early((num_parts, num_rows, 1), ONE_ROW, (problem,))
        choose.launch_early((num_rows, 1, 1), ONE_ROW, (problem,))
    return ids


@cache
def _kernels(device: torch.device, dtype: torch.dtype) -> list[Kernel]:
    return [Kernel(device, _compiled(dtype), name, THREADS, 0) for name in ("survey", "weigh", "choose")]


def _compiled(dtype: torch.dtype) -> bytes:
    major, minor = torch.cuda.get_device_capability()
    return _nvrtc.compile_kernel("sample_tokens.cu", macros(dtype), f"sm_{major}{minor}")


def macros(dtype: torch.dtype) -> dict[str, str | int]:
    """What kernels/sample_tokens.cu is compiled with."""
    return {"FLOAT32": int(dtype == torch.float32), "F16": int(dtype == torch.float16)}
