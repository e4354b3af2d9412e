"""Log-probabilities of prompt tokens, a chunk at a time, in slices of bounded workspace."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch, TokenLogprobs
from quire.runner.logprobs import gather_logprobs, to_entries
from quire.runner.prepare import StepInputs
from quire.runner.sampler import largest_top, send
from quire.runner.sampling_table import NO_LOGPROBS, SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import Arrays, OneCopy


@dataclass(frozen=True)
class PromptSlice:
    """Some positions of one sequence.

    num_top    top log-probabilities asked for, -1 = all
    token_ids  [n] the prompt tokens there
    parts      of the OneCopy: their LogprobTensors
    """

    num_top: int
    token_ids: NDArray[np.int32]
    parts: tuple[int, ...]


class PromptLogprobs:
    """Collects a step's prompt log-probabilities: logits at position p give the token at p + 1.

    slice_rows  positions whose logits are computed at once
    """

    def __init__(self, table: SequenceTable, sampling: SamplingTable, slice_rows: int) -> None:
        self.table = table
        self.sampling = sampling
        self.slice_rows = slice_rows

    def wanted(self, batch: Batch) -> bool:
        """Whether a prompt computed in this step, of which the table has heard, has any to tell."""
        rows = self.table.rows(s.seq_id for s in batch.scheduled)
        asks = self.sampling.num_prompt_logprobs[rows] != NO_LOGPROBS
        return bool((asks & (self.table.num_computed[rows] < self.table.num_prompt[rows])).any())

    def collect(
        self, hidden: Tensor, step: StepInputs, compute_logits: Callable[[Tensor], Tensor], out: OneCopy
    ) -> dict[int, list[PromptSlice]]:
        """Place in the batch -> its slices, for sequences that want prompt log-probabilities."""
        found = {}
        wanted = self.sampling.num_prompt_logprobs[step.rows]
        for place in np.flatnonzero(wanted != NO_LOGPROBS).tolist():
            num_top = int(wanted[place])
            found[place] = [
                PromptSlice(
                    num_top, ids, self._slice(hidden[first : first + len(ids)], ids, num_top, compute_logits, out)
                )
                for first, ids in self._targets(step, place)
            ]
        return found

    def finite(self, slices: list[PromptSlice], arrays: Arrays) -> bool:
        """Whether the log-probabilities of a sequence's prompt tokens are all finite."""
        return all(bool(np.isfinite(arrays[s.parts[1]]).all()) for s in slices)

    def entries(self, slices: list[PromptSlice], arrays: Arrays) -> list[TokenLogprobs]:
        """The entries of one sequence, in order of position."""
        entries: list[TokenLogprobs] = []
        for s in slices:
            entries += to_entries(s.token_ids, [arrays[part] for part in s.parts], [s.num_top] * len(s.token_ids))
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
        num_top: int,
        compute_logits: Callable[[Tensor], Tensor],
        out: OneCopy,
    ) -> tuple[int, ...]:
        logits = compute_logits(hidden)
        targets = torch.from_numpy(ids.astype(np.int64)).to(logits.device)
        return send(gather_logprobs(logits, targets, largest_top(np.array([num_top]), logits.shape[1])), out)
