"""count_tokens: notes which tokens a sequence holds, for penalties: a bit for each that it has seen, a count for each it generated."""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire.ops.contract import FLOAT_TOLERANCES, Inputs, OpSpec

WORD_BITS = 32
MAX_COUNT = 2**15 - 1


def count_tokens(token_ids: Tensor, marks: Tensor, rows: Tensor, seen: Tensor, counts: Tensor) -> None:
    """Adds tokens to rows of the tables. A row's count of a token stays at MAX_COUNT once it is there.

    token_ids  [n] int64; negative = none
    marks      [n] int32: above 0 = generated, below 0 = of a prompt, 0 = leave it out
    rows       [n] int64, of the tables
    seen       [R, W] int32, written: bit t % 32 of word t // 32
    counts     [R, V] int16, written; an even number in all
    """
    good = (marks != 0) & (token_ids >= 0)
    shape = counts.shape[0], seen.shape[1] * WORD_BITS
    ids = token_ids.where(good, 0)
    found = torch.zeros(shape, dtype=torch.int32, device=seen.device)
    found.index_put_((rows, ids), good.int(), accumulate=True)
    shifts = torch.arange(WORD_BITS, dtype=torch.int64, device=seen.device)
    words = ((found > 0).view(shape[0], -1, WORD_BITS).long() << shifts).sum(-1)
    seen |= torch.where(words >= 2**31, words - 2**32, words).int()
    new = torch.zeros(counts.shape, dtype=torch.int32, device=counts.device)
    new.index_put_((rows, ids), (good & (marks > 0)).int(), accumulate=True)
    counts.copy_((counts.int() + new).clamp_(max=MAX_COUNT))


def make_inputs(generator: torch.Generator, dtype: torch.dtype, device: torch.device) -> Iterator[Inputs]:
    for count, num_rows, vocab in ((1, 1, 34), (300, 7, 100), (64, 64, 1000)):
        rows = torch.randperm(num_rows, generator=generator)[:count] if count <= num_rows else None
        yield {
            "token_ids": torch.randint(-1, vocab, (count,), generator=generator).to(device),
            "marks": torch.randint(-1, 2, (count,), generator=generator).int().to(device),
            "rows": (torch.randint(0, num_rows, (count,), generator=generator) if rows is None else rows).to(device),
            "seen": torch.randint(0, 99, (num_rows, -(-vocab // WORD_BITS)), generator=generator).int().to(device),
            "counts": torch.randint(0, 9, (num_rows, vocab), generator=generator).short().to(device),
        }


SPEC = OpSpec("count_tokens", count_tokens, FLOAT_TOLERANCES, make_inputs, mutates=("seen", "counts"))
