"""sample_tokens on the GPU: a pass over the logits for the largest of each group, then a shortlist a row (_kernels_sample)."""

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
SHORT = 256  # tokens of a shortlist
RAW_WANTED = 64  # of the likeliest by raw logits: most ranks are told by them


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
    from quire.backends.triton import _kernels_sample as kernels
    from quire.backends.triton import _kernels_score

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
    bounds, found = make(num_rows, 2, dtype=torch.float64), make(num_rows, 2, dtype=torch.int32)
    lists = found, make(num_rows, 2, SHORT, dtype=torch.float32), make(num_rows, 2, SHORT, dtype=torch.int32)
    tables = (seen, counts) if seen is not None and counts is not None else (rows, rows)  # not read
    stride, strides = logits.stride(0), (tables[0].stride(0), tables[1].stride(0), controls.stride(0))
    zero, options = math.log(0.25 / one), {"num_warps": 4, **dependent()}
    kernels.survey_kernel[(num_parts, num_rows)](
        logits, largest, raw_largest, sums, found, *tables, controls, rows, size, stride, num_parts, *strides, penalised, scored,
        **options,
    )  # fmt: skip
    if weigh_all:
        kernels.weigh_kernel[(num_parts, num_rows)](
            logits, largest, weights, *tables, controls, rows, size, stride, num_parts, *strides, one, groups, penalised,
            **options,
        )  # fmt: skip
    kernels.bound_kernel[(num_rows,)](
        largest, raw_largest, controls, bounds, size, num_parts, controls.stride(0), one, zero, groups,
        max(num_top, RAW_WANTED) if scored else 0, **options,
    )  # fmt: skip
    kernels.gather_kernel[(num_parts, num_rows)](
        logits, largest, raw_largest, bounds, *lists, *tables, controls, rows, size, stride, num_parts, *strides, penalised, scored,
        **options,
    )  # fmt: skip
    kernels.choose_kernel[(num_rows,)](
        logits, largest, weights, bounds, *lists, *tables, controls, rows, uniforms, step, ids, size, stride, num_parts,
        uniforms.stride(0), *strides, one, int(one).bit_length(), zero, groups, parts, weigh_all, penalised, **options,
    )  # fmt: skip
    if scored:
        _kernels_score.score_kernel[(num_rows,)](
            logits, raw_largest, sums, ids, bounds, *lists, ranks, chosen, top_ids, top, size, stride, num_parts, num_top,
            groups, parts, **options,
        )  # fmt: skip
    return ids, ranks, chosen, top_ids, top
