"""place_tokens: before a decoding step, from each row's position: how long it is, and where its keys and values go."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec


def place_tokens(
    positions: Tensor,
    limits: Tensor,
    failed: Tensor,
    block_tables: Tensor,
    block_size: int,
    slot_mapping: Tensor,
    seq_lens: Tensor,
) -> None:
    """Fills in what follows from positions. A row takes part while it has not failed and its position is below its limit.

    positions, limits, failed  [B] int64; failed is 0 or 1
    block_tables               [B, M] int32
    slot_mapping               [B] int64, written: block_id * block_size + offset; -1 = takes no part
    seq_lens                   [B] int32, written: position + 1; 0 = takes no part
    """
    active = (positions < limits) & (failed == 0)
    blocks = block_tables.gather(1, (positions // block_size).where(active, 0).unsqueeze(1)).squeeze(1)
    slots = blocks.long() * block_size + positions % block_size
    slot_mapping.copy_(slots.where(active, -1))
    seq_lens.copy_((positions + 1).where(active, 0))


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for rows, width, block_size in ((1, 1, 16), (13, 7, 8), (1100, 3, 16)):
        positions = torch.randint(0, width * block_size, (rows,), generator=generator)
        yield {
            "positions": positions.to(device),
            "limits": (positions + torch.randint(0, 3, (rows,), generator=generator)).to(device),
            "failed": (torch.arange(rows) % 5 == 4).long().to(device),
            "block_tables": torch.randint(1, 99, (rows, width), generator=generator).int().to(device),
            "block_size": block_size,
            "slot_mapping": torch.full((rows,), 7, dtype=torch.int64, device=device),
            "seq_lens": torch.full((rows,), 7, dtype=torch.int32, device=device),
        }


SPEC = OpSpec("place_tokens", place_tokens, FLOAT_TOLERANCES, make_inputs, mutates=("slot_mapping", "seq_lens"))
