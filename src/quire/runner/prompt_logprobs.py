"""Log-probabilities of prompt tokens, a chunk at a time, in slices of bounded workspace."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import TokenLogprobs
from quire.runner.logprobs import gather_logprobs, to_entries
from quire.runner.prepare import StepInputs
from quire.runner.sampler import num_top, send
from quire.runner.sampling_table import NO_LOGPROBS, SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import Arrays, OneCopy


class PromptLogprobs:
    """Collects a step's prompt log-probabilities: logits at position p give the token at p + 1.

    slice_rows  positions whose logits are computed at once
    """

    def __init__(self, table: SequenceTable, sampling: SamplingTable, slice_rows: int) -> None:
        self.table = table
        self.sampling = sampling
        self.slice_rows = slice_rows

    def collect(
        self, hidden: Tensor, step: StepInputs, compute_logits: Callable[[Tensor], Tensor], out: OneCopy
    ) -> dict[int, list[tuple[int, NDArray[np.int32], tuple[int, ...]]]]:
        """Place in the batch -> (count asked for, token ids, parts of `out`) of each slice, for sequences that want them."""
        found: dict[int, list[tuple[int, NDArray[np.int32], tuple[int, ...]]]] = {}
        wanted = self.sampling.num_prompt_logprobs[step.rows]
        for place in np.flatnonzero(wanted != NO_LOGPROBS).tolist():
            count = int(wanted[place])
            found[place] = [
                (count, ids, self._slice(hidden[first : first + len(ids)], ids, count, compute_logits, out))
                for first, ids in self._targets(step, place)
            ]
        return found

    def entries(
        self, slices: list[tuple[int, NDArray[np.int32], tuple[int, ...]]], arrays: Arrays
    ) -> list[TokenLogprobs]:
        """The entries of one sequence, in order of position."""
        entries: list[TokenLogprobs] = []
        for count, ids, parts in slices:
            entries += to_entries(ids, [arrays[part] for part in parts], [count] * len(ids))
        return entries

    def _targets(self, step: StepInputs, place: int) -> list[tuple[int, NDArray[np.int32]]]:
        """(first row of hidden, prompt tokens that follow) of each slice of a sequence's chunk."""
        row, begin = step.rows[place], int(step.query_start_loc[place])
        first = int(step.positions[begin])
        end = min(first + int(step.num_new[place]), int(self.table.num_prompt[row]) - 1)
        return [
            (begin + p - first, self.table.token_ids[row, p + 1 : min(p + self.slice_rows, end) + 1].copy())
            for p in range(first, end, self.slice_rows)
        ]

    def _slice(
        self,
        hidden: Tensor,
        ids: NDArray[np.int32],
        count: int,
        compute_logits: Callable[[Tensor], Tensor],
        out: OneCopy,
    ) -> tuple[int, ...]:
        logits = compute_logits(hidden)
        targets = torch.from_numpy(ids.astype(np.int64)).to(logits.device)
        return send(gather_logprobs(logits, targets, num_top(np.array([count]), logits.shape[1])), out)
