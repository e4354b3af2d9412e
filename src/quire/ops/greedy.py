"""greedy: the most likely token of each row of logits."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def greedy(logits: Tensor) -> Tensor:
    """Index of the largest logit.

    logits  [S, V]   last dimension contiguous
    Returns [S] int64: the first of the largest, or -1 where the row holds NaN or an infinity
    """
    return logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), -1)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, vocab in ((1, 10), (3, 5000), (9, 20_011)):
        logits = randn(generator, rows, vocab, dtype=dtype, device=device)
        if rows > 1:
            logits[0, vocab // 2] = float("nan")
            logits[1, vocab - 1] = float("-inf")
            logits[2, vocab // 3] = logits[2].max()  # a tie, perhaps before the one that is largest so far
        yield {"logits": logits}


SPEC = OpSpec("greedy", greedy, FLOAT_TOLERANCES, make_inputs)
