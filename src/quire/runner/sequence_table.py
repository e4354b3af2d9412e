"""SequenceTable: what the runner remembers of each sequence, one row each, as arrays, so that a step is prepared without a loop."""

import contextlib
import mmap
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from quire.core.batch import Batch, NewSequence

Rows = NDArray[np.int64]


class SequenceTable:
    """Rows of R sequences at most.

    token_ids     [R, max_model_len + 1] int32: prompt, then generated tokens, the last of which is never computed
    num_tokens    [R] tokens known; num_prompt [R] of them are prompt
    num_computed  [R] have keys and values in the cache, or will have when the steps under way are done; may be past num_tokens
    lives         [R] counts the sequences that have left the row
    block_tables  [R, M] int32: block ids in logical order, zeros after them; num_blocks [R]
    entries       row -> the NewSequence it was made from (params and other things that are not arrays)
    Pages of the arrays that no sequence has reached yet take no memory.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        max_blocks = -(-max_model_len // block_size)
        self.token_ids = untouched_zeros(max_num_seqs, max_model_len + 1)
        self.block_tables = untouched_zeros(max_num_seqs, max_blocks)
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self.lives = np.zeros(max_num_seqs, dtype=np.int64)
        self.entries: dict[int, NewSequence] = {}
        self._row_of: dict[int, int] = {}
        self._free = list(range(max_num_seqs - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._row_of)

    def update(self, batch: Batch) -> None:
        """Applies what the batch says of rows: removed, then added, then the new blocks of those scheduled."""
        for seq_id in batch.removed:
            self._remove(seq_id)
        for sequence in batch.added:
            self._add(sequence)
        for scheduled in batch.scheduled:
            if scheduled.new_block_ids:
                self._append_blocks(self._row_of[scheduled.seq_id], scheduled.new_block_ids)

    def rows(self, seq_ids: Iterable[int]) -> Rows:
        """Row numbers of sequences."""
        row_of = self._row_of
        return np.fromiter((row_of[seq_id] for seq_id in seq_ids), dtype=np.int64)

    def row(self, seq_id: int) -> int:
        """Row number of one sequence."""
        return self._row_of[seq_id]

    def append(self, rows: Rows, token_ids: NDArray[np.int64]) -> None:
        """Adds one sampled token to each row; rows are distinct."""
        self.token_ids[rows, self.num_tokens[rows]] = token_ids
        self.num_tokens[rows] += 1

    def extend(self, rows: Rows, token_ids: NDArray[np.int32]) -> None:
        """Adds sampled tokens [K, n], some to each of the distinct rows [n]. A row's tokens end before its first negative one."""
        good = token_ids >= 0
        places = self.num_tokens[rows] + np.arange(len(token_ids))[:, None]
        where = np.broadcast_to(rows, token_ids.shape)[good]
        self.token_ids[where, places[good]] = token_ids[good]
        self.num_tokens[rows] += good.sum(0)

    def _add(self, sequence: NewSequence) -> None:
        if sequence.seq_id in self._row_of or not self._free:
            raise RuntimeError(f"sequence {sequence.seq_id} is there already, or all {len(self)} rows are taken")
        row, count = self._free[-1], len(sequence.token_ids)
        self.token_ids[row, :count] = sequence.token_ids
        self.num_tokens[row] = count
        self.num_prompt[row] = sequence.num_prompt_tokens
        self.num_computed[row] = sequence.num_computed_tokens
        self.num_blocks[row] = 0
        self._append_blocks(row, sequence.block_ids)
        self.entries[row] = sequence
        self._row_of[sequence.seq_id] = row
        self._free.pop()  # last: a sequence that does not fit raised above, and its row stays free

    def _append_blocks(self, row: int, block_ids: list[int]) -> None:
        first = self.num_blocks[row]
        self.block_tables[row, first : first + len(block_ids)] = block_ids
        self.num_blocks[row] += len(block_ids)

    def _remove(self, seq_id: int) -> None:
        row = self._row_of.pop(seq_id, None)
        if row is None:
            return  # never scheduled, so never heard of
        self.block_tables[row, : self.num_blocks[row]] = 0
        self.entries.pop(row)
        self.lives[row] += 1
        self._free.append(row)


def untouched_zeros(num_rows: int, num_columns: int) -> NDArray[np.int32]:
    """Zeros, whose memory the machine gives in small pages, as they are written.

    numpy's own come in pages of 2 MB where there are such. Rows of some ten KB of which a few hundred bytes are used then take all of the
    array at once, and filling it keeps the first steps of a process waiting: 0.3 s for 64 MB on a virtual machine.
    """
    memory = mmap.mmap(-1, 4 * num_rows * num_columns, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel that knows no large pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=np.int32).reshape(num_rows, num_columns)
