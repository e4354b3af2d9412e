"""Log-probabilities of chosen and most likely tokens, from raw logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import LogprobColumns, TokenLogprobs
from quire.ops.sample_tokens import Scores
from quire.runner.sampling_table import NO_LOGPROBS

LOW_WORD = 2**32 - 1


@dataclass(frozen=True)
class LogprobTensors:
    """Of n positions: the chosen token's rank [n] int32 and log-probability [n] fp32; the k best tokens [n, k] likewise."""

    ranks: Tensor
    chosen: Tensor
    top_ids: Tensor
    top: Tensor


def gather_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    """Log-softmax of raw logits [n, V] fp32 at `token_ids` [n] and at each row's `num_top` most likely tokens.

    Equal ones are in order of token id, so that a row's answer does not depend on how many its neighbours asked for.
    Workspace: 20 bytes a logit.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, token_ids.unsqueeze(1))
    ranks = (logprobs > chosen).sum(-1, dtype=torch.int32) + 1
    top_ids = _most_likely(logprobs, num_top)
    return LogprobTensors(ranks, chosen.squeeze(1), top_ids.int(), logprobs.gather(1, top_ids))


def _most_likely(values: Tensor, count: int) -> Tensor:
    """Ids [n, count] int64 of the largest values [n, V] fp32; one integer key holds value and id, so no two are equal."""
    if count == 0:
        return torch.empty(len(values), 0, dtype=torch.int64, device=values.device)
    bits = values.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, in the order of the floats
    size = values.shape[1]
    keys = ordered.long().mul_(2**32).sub_(torch.arange(size, device=values.device))
    return keys.topk(min(count, size)).values.neg_() & LOW_WORD


def columns_of(
    tokens: NDArray[np.int32], scores: Scores | None, counts: NDArray[np.int64]
) -> list[LogprobColumns | None]:
    """For each of B rows the log-probabilities of its K steps, None where it asked for none.

    tokens  [K, B]; scores on the host, as ops.sample_tokens gives them; counts [B] as in the SamplingTable
    """
    found: list[LogprobColumns | None] = [None] * len(counts)
    if scores is None:
        return found
    told, logprobs = (part.numpy()[:, : len(counts)].transpose(1, 0, 2) for part in scores)
    for count in np.unique(counts[counts != NO_LOGPROBS]).tolist():
        places = np.flatnonzero(counts == count)
        ids = told[places, :, : 1 + count]
        ids[:, :, 0] = tokens[:, places].T
        columns = zip(_rows(ids), _rows(logprobs[places, :, : 1 + count]), _rows(told[places, :, 0]), strict=True)
        for place, parts in zip(places.tolist(), columns, strict=True):
            found[place] = LogprobColumns(*parts)
    return found


def _rows(values: NDArray[Any]) -> list[bytes]:
    """The bytes of each row."""
    data, size = values.tobytes(), values[0].nbytes
    return [data[i : i + size] for i in range(0, len(data), size)]


def to_entries(token_ids: NDArray[Any], parts: Sequence[NDArray[Any]], counts: Sequence[int]) -> list[TokenLogprobs]:
    """One TokenLogprobs a position: the token itself, then as many of the best as `counts` says (-1 = all there are).

    parts  the fields of LogprobTensors on the host
    """
    ranks, chosen, top_ids, top = parts
    entries = []
    for i, count in enumerate(counts):
        best = slice(0, top_ids.shape[1] if count < 0 else count)
        ids = [int(token_ids[i]), *top_ids[i, best].tolist()]
        entries.append(TokenLogprobs(ids, [float(chosen[i]), *top[i, best].tolist()], int(ranks[i])))
    return entries
