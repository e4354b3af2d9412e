"""sample_tokens on the GPU: a pass over the logits for the largest of each group, then a program a row with its shortlist."""

import math

import torch
from torch import Tensor

from quire.backends.triton._support import dependent, next_power_of_2, why_not
from quire.ops.draw_tokens import weight_of_likeliest
from quire.ops.sample_tokens import Sampled

__all__ = ["IMPLEMENTS", "run", "why_not"]

IMPLEMENTS = "sample_tokens"
PART = 4096
GROUPS_A_PART = 16
SHORT = 1024


def run(
    logits: Tensor,
    controls: Tensor,
    uniforms: Tensor,
    step: Tensor,
    seen: Tensor | None,
    counts: Tensor | None,
    rows: Tensor,
    weigh_all: bool,
    num_top: int,
) -> Sampled:
    """See quire.ops.sample_tokens."""
    from quire.backends.triton._kernels_sample import choose_kernel, score_kernel, survey_kernel, weigh_kernel

    num_rows, size = logits.shape
    num_parts = -(-size // PART)
    num_groups, parts = num_parts * GROUPS_A_PART, next_power_of_2(num_parts)
    groups, penalised, scored = parts * GROUPS_A_PART, seen is not None, num_top >= 0
    one = weight_of_likeliest(size)

    def make(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=logits.device)

    num_scored = num_rows if scored else 0
    ids = make(num_rows, dtype=torch.int64)
    ranks, chosen = make(num_scored, dtype=torch.int32), make(num_scored, dtype=torch.float32)
    top_ids = make(num_scored, max(num_top, 0), dtype=torch.int32)
    top = make(num_scored, max(num_top, 0), dtype=torch.float32)
    if not num_rows:
        return ids, ranks, chosen, top_ids, top
    largest = make(num_rows, num_groups, dtype=torch.float32)
    raw_largest = make(num_rows, num_groups, dtype=torch.float32) if penalised and scored else largest
    sums, weights = make(num_rows, num_parts, dtype=torch.float32), make(num_rows, num_parts, dtype=torch.int64)
    places, values = make(num_rows, num_groups, dtype=torch.int32), make(num_rows, SHORT, dtype=torch.float32)
    tokens = make(num_rows, SHORT, dtype=torch.int32)
    tables = (seen, counts) if seen is not None and counts is not None else (rows, rows)  # not read
    stride, strides = logits.stride(0), (tables[0].stride(0), tables[1].stride(0), controls.stride(0))
    survey_kernel[(num_parts, num_rows)](
        logits, largest, raw_largest, sums, *tables, controls, rows, size, stride, num_parts, *strides, penalised, scored,
        num_warps=4, **dependent(),
    )  # fmt: skip
    if weigh_all:
        weigh_kernel[(num_parts, num_rows)](
            logits, largest, weights, *tables, controls, rows, size, stride, num_parts, *strides, one, groups, penalised,
            num_warps=4, **dependent(),
        )  # fmt: skip
    choose_kernel[(num_rows,)](
        logits, largest, weights, *tables, controls, rows, uniforms, step, places, values, tokens, ids, size, stride, num_parts,
        uniforms.stride(0), *strides, one, int(one).bit_length(), math.log(0.25 / one), groups, parts, weigh_all, penalised,
        num_warps=4, **dependent(),
    )  # fmt: skip
    if scored:
        score_kernel[(num_rows,)](
            logits, raw_largest, sums, ids, places, values, tokens, ranks, chosen, top_ids, top, size, stride, num_parts, num_top,
            groups, parts, num_warps=4, **dependent(),
        )  # fmt: skip
    return ids, ranks, chosen, top_ids, top
