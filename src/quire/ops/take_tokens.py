"""take_tokens: after a decoding step, each row's chosen token becomes its next input, and is noted for the host."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec

RESTED = -3  # in place of a token: the row took no part


def take_tokens(
    ids: Tensor, seq_lens: Tensor, input_ids: Tensor, positions: Tensor, failed: Tensor, tokens: Tensor, step: Tensor
) -> None:
    """Moves rows on by the tokens they have got.

    ids        [B] int64, what each row chose; negative = it could not, and takes no part any more
    seq_lens   [B] int32, 0 = the row took no part in this step
    input_ids, positions, failed   [B] int64, written: the next step's; those of rows that took no part stay
    tokens     [K, B] int32, written: row step[0] becomes ids, RESTED where a row took no part
    step       [1] int64, written: one more
    """
    active = seq_lens > 0
    good = active & (ids >= 0)
    tokens.index_copy_(0, step, ids.where(active, RESTED).to(tokens.dtype).unsqueeze(0))
    input_ids.copy_(ids.where(good, input_ids))
    positions.add_(good)
    failed.copy_(failed | (active & (ids < 0)))
    step.add_(1)


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, steps in ((1, 1), (13, 4), (1100, 3)):

        def draw(low: int, high: int, dtype: torch.dtype = torch.int64, rows: int = rows) -> torch.Tensor:
            return torch.randint(low, high, (rows,), generator=generator).to(device=device, dtype=dtype)

        yield {
            "ids": draw(-1, 6),
            "seq_lens": draw(0, 3, torch.int32),
            "input_ids": draw(0, 99),
            "positions": draw(0, 99),
            "failed": draw(0, 2),
            "tokens": torch.zeros(steps, rows, dtype=torch.int32, device=device),
            "step": torch.full((1,), steps - 1, dtype=torch.int64, device=device),
        }


SPEC = OpSpec(
    "take_tokens",
    take_tokens,
    FLOAT_TOLERANCES,
    make_inputs,
    mutates=("input_ids", "positions", "failed", "tokens", "step"),
)
