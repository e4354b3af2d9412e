"""DeviceSampler: chooses tokens on the device, for steps that nobody waits for. What it needs of a row is sent beforehand.

The same tokens as quire.runner.sampler chooses with the host's help; rows that it cannot serve are kept from it by
Sequence.runs_alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.ops.count_tokens import WORD_BITS
from quire.ops.registry import Ops
from quire.ops.sample_tokens import MAX_TOP, TEMPERATURE, Scores
from quire.runner.flight import BATCHES_UNDER_WAY
from quire.runner.sampling_table import NO_LOGPROBS, SamplingTable
from quire.runner.sequence_table import Rows, SequenceTable
from quire.runner.transfer import ToDevice

TOPS = (8, MAX_TOP)  # so many of the likeliest tokens are told, where any are asked for: few kinds of steps to capture


@dataclass(frozen=True)
class Manner:
    """How the rows of a batch choose, all told: what a captured step depends on besides its size.

    draws      some row has a temperature
    filters    some row has penalties or filters, or is asked for log-probabilities
    penalises  some row has penalties
    weighs_all  some row with a temperature has no top_k
    num_top    likeliest tokens told; -1 = no log-probabilities
    """

    draws: bool = False
    filters: bool = False
    penalises: bool = False
    weighs_all: bool = False
    num_top: int = -1


GREEDY = Manner()
DRAWING = Manner(draws=True)
FILTERING = Manner(draws=True, filters=True, penalises=True, weighs_all=True)


class DeviceSampler:
    """The tables of counts that penalties need, made for the first row that has any, and the choice of operators."""

    def __init__(
        self, ops: Ops, table: SequenceTable, sampling: SamplingTable, vocab_size: int, device: torch.device
    ) -> None:
        self._ops = ops
        self._table = table
        self._sampling = sampling
        num_rows = len(table.lives)
        self._vocab_size = vocab_size
        self._seen = torch.zeros(0, dtype=torch.int32, device=device)
        self._counts = torch.zeros(0, dtype=torch.int16, device=device)
        self._num_counted = np.zeros(num_rows, dtype=np.int64)
        self._lives = np.full(num_rows, -1, dtype=np.int64)
        self._to_device = ToDevice(device, 2 * BATCHES_UNDER_WAY)  # used twice a batch

    def manner(self, rows: Rows) -> Manner:
        """How these rows of the table choose."""
        s = self._sampling
        random, most = s.temperature[rows] > 0, int(s.num_logprobs[rows].max(initial=NO_LOGPROBS))
        penalises = bool(s.penalised(rows).any())
        filtered = random & ((s.top_k[rows] > 0) | (s.top_p[rows] < 1) | (s.min_p[rows] > 0))
        if not (penalises or filtered.any() or most > NO_LOGPROBS):
            return DRAWING if random.any() else GREEDY
        wide = random & ((s.top_k[rows] <= 0) | (s.top_k[rows] >= self._vocab_size))
        told = next(top for top in TOPS if top >= most)
        num_top = -1 if most == NO_LOGPROBS else min(told, self._vocab_size)
        return Manner(bool(random.any()), True, penalises, bool(wide.any()), num_top)

    def make_tables(self, num_rows: int) -> None:
        """Room for the counts of so many rows, all 0."""
        width = self._vocab_size + self._vocab_size % 2
        self._seen = self._seen.new_zeros(num_rows, -(-width // WORD_BITS))
        self._counts = self._counts.new_zeros(num_rows, width)[:, : self._vocab_size]

    def prepare(self, rows: Rows, num_tokens: NDArray[np.int64]) -> None:
        """Brings the counts of these rows up to what the host knows; the device will choose `num_tokens` [n] more for them."""
        penalised = self._sampling.penalised(rows)
        if penalised.any():
            self._catch_up(rows[penalised])
            self._num_counted[rows] += num_tokens

    def choose(
        self,
        logits: Tensor,
        manner: Manner,
        controls: Tensor,
        uniforms: Tensor,
        step: Tensor,
        rows: Tensor,
        scores: Scores | None,
    ) -> Tensor:
        """Token ids [S] int64 of logits [S, V], negative where the row is not finite; writes `scores`, of manner.num_top tokens, where
        any are asked for. Waits for nothing.

        controls, uniforms, step, rows, scores  as ops.sample_tokens has them
        """
        if not manner.filters:
            if not manner.draws:
                return self._ops.greedy(logits)
            return self._ops.draw_tokens(logits, controls[TEMPERATURE], uniforms, step)
        tables = (self._seen, self._counts) if manner.penalises else (None, None)
        return self._ops.sample_tokens(
            logits, controls, uniforms, step, *tables, rows, manner.weighs_all, scores if manner.num_top >= 0 else None
        )

    def count(self, ids: Tensor, marks: Tensor, rows: Tensor) -> None:
        """Notes tokens that the device has chosen; marks [n] int32, 0 = leave it out."""
        self._ops.count_tokens(ids, marks, rows, self._seen, self._counts)

    def _catch_up(self, rows: Rows) -> None:
        table, counted = self._table, self._num_counted
        if not self._counts.numel():
            self.make_tables(len(table.lives) + 1)  # a row each of the SequenceTable's, and one for padding
        new = rows[self._lives[rows] != table.lives[rows]]
        if len(new):
            (index,) = self._to_device.send(new)
            self._seen.index_fill_(0, index, 0)
            self._counts.index_fill_(0, index, 0)
            counted[new], self._lives[new] = 0, table.lives[new]
        behind = rows[counted[rows] < table.num_tokens[rows]]
        if not len(behind):
            return
        spans = table.num_tokens[behind] - counted[behind]
        of_row, ends = np.repeat(behind, spans), spans.cumsum()
        places = np.arange(ends[-1]) - np.repeat(ends - spans - counted[behind], spans)
        marks = np.where(places < table.num_prompt[of_row], -1, 1)
        ids, marks_there, rows_there = self._to_device.send(
            table.token_ids[of_row, places].astype(np.int64), marks, of_row
        )
        self.count(ids, marks_there.int(), rows_there)
        counted[behind] = table.num_tokens[behind]


def make_scores(num_steps: int, num_rows: int, num_top: int, device: torch.device, pinned: bool = False) -> Scores:
    """Room for the scores of steps, as ops.sample_tokens has them."""
    shape = num_steps, num_rows, 1 + num_top
    return (
        torch.zeros(shape, dtype=torch.int32, device=device, pin_memory=pinned),
        torch.zeros(shape, dtype=torch.float32, device=device, pin_memory=pinned),
    )


def send_scores(scores: Scores, to: Scores, num_steps: int) -> Scores:
    """Copies the first steps' scores to the host's memory `to`, which may have room for more rows; waits for nothing."""
    num_rows = scores[0].shape[1]
    found = to[0][:num_steps, :num_rows], to[1][:num_steps, :num_rows]
    for target, source in zip(found, scores, strict=True):
        target.copy_(source[:num_steps], non_blocking=True)
    return found
