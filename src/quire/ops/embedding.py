"""embedding: rows of a table by id."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec, randn


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Table look-up.

    ids     [T] int64, each in [0, V)
    weight  [V, H]
    Returns [T, H] in weight.dtype
    """
    return F.embedding(ids, weight)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, vocab, hidden in ((1, 10, 8), (17, 101, 96)):
        ids = torch.randint(0, vocab, (rows,), generator=generator).to(device)
        yield {"ids": ids, "weight": randn(generator, vocab, hidden, dtype=dtype, device=device)}


SPEC = OpSpec("embedding", embedding, FLOAT_TOLERANCES, make_inputs)
