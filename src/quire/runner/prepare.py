"""Batch to ForwardBatch: the arithmetic of a step in numpy, then one or two copies to the device."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.ops.forward_batch import ForwardBatch
from quire.runner.flight import BATCHES_UNDER_WAY
from quire.runner.sequence_table import Rows, SequenceTable

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
# A step of fewer tokens takes as long as reading the weights does, so leaving out rows gains nothing; and the first step of a process,
# which is small, then needs no kernels for few rows.
MIN_TOKENS_TO_NARROW = 129


def narrows(num_tokens: int, num_seqs: int) -> bool:
    """Whether a step leaves out rows that nobody asks for. Sizes that are padded to the same one get the same answer, so that a graph of
    that size serves them all."""
    return num_tokens > num_seqs and max(num_tokens, 2 * num_seqs) >= MIN_TOKENS_TO_NARROW


@dataclass(frozen=True)
class StepInputs:
    """One step on the host; the fields of ForwardBatch, and which rows of the table they came from.

    rows          [B] row of the table of each sequence, in batch order
    num_new       [B] tokens that each computes
    samples       [B] bool: its tokens reach its last one so far, so it samples
    unknown       [B] bool: it computes one token, which a step under way chooses
    last_rows     [B] the last token of each sequence, of the T of the step
    narrow        hidden states of last_rows alone are wanted; else of all T
    logits_indices  [S] rows of the hidden states
    """

    rows: Rows
    num_new: Int64s
    samples: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    input_ids: Int64s
    positions: Int64s
    slot_mapping: Int64s
    query_start_loc: Int64s
    seq_lens: Int64s
    last_rows: Int64s
    narrow: bool
    logits_indices: Int64s

    @property
    def hidden_start_loc(self) -> Int64s:
        """[B + 1] where the hidden states of each sequence begin and end."""
        return np.arange(len(self.rows) + 1) if self.narrow else self.query_start_loc

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def is_decode(self) -> bool:
        """Every sequence computes one token and samples: the step that graphs are captured for."""
        return self.num_tokens == len(self.rows) and bool(self.samples.all())


def prepare(table: SequenceTable, batch: Batch, every_row: bool = False) -> StepInputs:
    """The step of `batch`; `table` has been updated with it. No loop over tokens.

    every_row  hidden states of all tokens are wanted, not only those of each sequence's last one
    """
    rows = table.rows(s.seq_id for s in batch.scheduled)
    num_new = np.fromiter((s.num_new_tokens for s in batch.scheduled), dtype=np.int64)
    first = table.num_computed[rows]
    ends = num_new.cumsum()
    starts = ends - num_new
    token_rows = np.repeat(rows, num_new)
    positions = np.arange(ends[-1]) - np.repeat(starts - first, num_new)
    blocks = table.block_tables[token_rows, positions // table.block_size].astype(np.int64)
    seq_lens = first + num_new
    samples = seq_lens >= table.num_tokens[rows]
    narrow = not every_row and narrows(int(ends[-1]), len(rows))
    return StepInputs(
        rows=rows,
        num_new=num_new,
        samples=samples,
        unknown=first >= table.num_tokens[rows],
        input_ids=table.token_ids[token_rows, positions].astype(np.int64),
        positions=positions,
        slot_mapping=blocks * table.block_size + positions % table.block_size,
        query_start_loc=np.concatenate(([0], ends)),
        seq_lens=seq_lens,
        last_rows=ends - 1,
        narrow=narrow,
        logits_indices=np.flatnonzero(samples) if narrow else (ends - 1)[samples],
    )


class InputBuffers:
    """Host and device memory that steps are copied through, made once. Steps may be under way when the next is copied.

    Where a step's tensors lie on the device depends on its sizes alone, so a graph captured for a size finds its inputs again.
    On a CPU host and device memory are the same.
    """

    def __init__(self, max_num_tokens: int, max_num_seqs: int, max_blocks: int, device: torch.device) -> None:
        pinned = device.type != "cpu"
        self.device = device
        self.max_blocks = max_blocks
        longs, ints = 3 * max_num_tokens + 2 * max_num_seqs, 2 * max_num_seqs + 1 + max_num_seqs * max_blocks
        self._hosts = [
            [torch.zeros(n, dtype=t, pin_memory=pinned) for n, t in ((longs, torch.int64), (ints, torch.int32))]
            for _ in range(BATCHES_UNDER_WAY if pinned else 1)
        ]
        self._host = self._hosts[0]
        self._device = [torch.zeros_like(h, device=device) if pinned else h for h in self._host]

    def load(
        self,
        table: SequenceTable,
        step: StepInputs,
        kv_caches: list[Tensor],
        pad_to: tuple[int, int] | None = None,
        table_width: int | None = None,
    ) -> ForwardBatch:
        """Copies a step to the device; the result is good until the next call.

        pad_to       (tokens, sequences) to fill up to: a decoding step with one-token sequences of length 0, others with empty
                     sequences and tokens of nobody; they write nowhere
        table_width  columns of block_tables; default: what the longest sequence of the step needs
        """
        self._hosts.append(self._hosts.pop(0))  # what the last step was copied from may not have been read yet
        self._host = self._hosts[0]
        num_tokens, num_seqs = pad_to or (step.num_tokens, len(step.rows))
        last_start = num_tokens if step.is_decode else step.num_tokens
        num_logits = num_seqs if pad_to else len(step.logits_indices)
        longest = int(step.seq_lens.max(initial=1))
        width = table_width or -(-longest // table.block_size)
        long_sizes = num_tokens, num_tokens, num_tokens, num_logits, num_seqs
        int_sizes = num_seqs + 1, num_seqs, num_seqs * width
        longs, ints = _parts(self._host[0], long_sizes), _parts(self._host[1], int_sizes)
        _fill(longs[0], step.input_ids, 0)
        _fill(longs[1], step.positions, 0)
        _fill(longs[2], step.slot_mapping, -1)
        _fill(longs[3], step.logits_indices, 0)
        _fill(longs[4], step.last_rows, 0)
        _fill(ints[0], step.query_start_loc, 0)
        ends = np.arange(num_seqs + 1 - len(step.rows)) + step.num_tokens
        ints[0][len(step.rows) :] = np.minimum(ends, last_start)
        _fill(ints[1], step.seq_lens, 0)
        tables = ints[2].reshape(num_seqs, width)
        tables[: len(step.rows)] = table.block_tables[step.rows, :width]
        tables[len(step.rows) :] = 0
        device_longs = self._send(0, long_sizes)
        device_ints = self._send(1, int_sizes)
        return ForwardBatch(
            input_ids=device_longs[0],
            positions=device_longs[1],
            slot_mapping=device_longs[2],
            query_start_loc=device_ints[0],
            seq_lens=device_ints[1],
            block_tables=device_ints[2].view(num_seqs, width),
            logits_indices=device_longs[3],
            max_query_len=int(step.num_new.max(initial=1)),
            max_seq_len=longest,
            kv_caches=kv_caches,
            last_rows=device_longs[4] if step.narrow else None,
        )

    def _send(self, which: int, sizes: tuple[int, ...]) -> list[Tensor]:
        used = self._device[which][: sum(sizes)]
        if self._device[which] is not self._host[which]:
            used.copy_(self._host[which][: len(used)], non_blocking=True)
        return list(torch.split(used, list(sizes)))


def _parts(buffer: Tensor, sizes: tuple[int, ...]) -> list[NDArray[Any]]:
    """The beginning of `buffer`, cut into parts."""
    whole, ends = buffer.numpy(), list(accumulate(sizes))
    return [whole[end - size : end] for size, end in zip(sizes, ends)]


def _fill(part: NDArray[Any], values: Int64s, padding: int) -> None:
    part[: len(values)] = values
    part[len(values) :] = padding
