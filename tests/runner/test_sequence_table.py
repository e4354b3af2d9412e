"""Rows of the table: what batches do to them, and that a freed row leaves nothing behind."""

import numpy as np
import psutil
import pytest

from quire.core.batch import Batch, NewSequence, ScheduledSequence
from quire.core.params import SamplingParams
from quire.runner.sequence_table import SequenceTable


def new(seq_id: int, tokens: list[int], blocks: list[int], computed: int = 0) -> NewSequence:
    return NewSequence(seq_id, 0, tokens, len(tokens), computed, blocks, SamplingParams())


@pytest.fixture
def table() -> SequenceTable:
    table = SequenceTable(max_num_seqs=2, max_model_len=40, block_size=8)
    table.update(Batch([], [new(10, [1, 2, 3], [5]), new(11, [4], [6, 7], computed=0)]))
    return table


def test_rows_are_found_by_sequence_in_the_order_asked(table: SequenceTable) -> None:
    rows = table.rows([11, 10])
    assert table.num_tokens[rows].tolist() == [1, 3]
    assert table.block_tables[rows].tolist() == [[6, 7, 0, 0, 0], [5, 0, 0, 0, 0]]


def test_blocks_and_tokens_are_appended(table: SequenceTable) -> None:
    table.update(Batch([ScheduledSequence(10, 1, [9]), ScheduledSequence(11, 1)]))
    table.append(table.rows([10, 11]), np.array([100, 101]))
    row = table.row(10)
    assert table.block_tables[row, :3].tolist() == [5, 9, 0]
    assert table.token_ids[row, :5].tolist() == [1, 2, 3, 100, 0]
    assert table.num_tokens[table.rows([10, 11])].tolist() == [4, 2]


def test_a_removed_row_is_reused_within_one_batch_and_is_clean(table: SequenceTable) -> None:
    row = table.row(11)
    table.update(Batch([], [new(12, [8, 9], [3], computed=1)], removed=[11]))
    assert table.row(12) == row and len(table) == 2
    assert table.block_tables[row].tolist() == [3, 0, 0, 0, 0]
    assert (table.num_tokens[row], table.num_computed[row], table.num_blocks[row]) == (2, 1, 1)
    assert table.entries[row].seq_id == 12


def test_a_preempted_sequence_comes_back_with_other_blocks(table: SequenceTable) -> None:
    table.update(Batch([], [new(10, [1, 2, 3, 50], [2, 4])], removed=[10]))
    row = table.row(10)
    assert table.block_tables[row, :3].tolist() == [2, 4, 0]
    assert table.num_tokens[row] == 4


def test_a_sequence_that_does_not_fit_takes_no_row(table: SequenceTable) -> None:
    for bad in (new(12, [1] * 50, []), new(12, [2**40], []), new(12, [1], list(range(9)))):
        with pytest.raises((ValueError, OverflowError)):
            table.update(Batch([], [bad], removed=[10]))
        table.update(Batch([], [new(10, [1], [1])], removed=[12]))
    assert len(table) == 2


def test_a_sequence_may_end_one_token_past_the_length(table: SequenceTable) -> None:
    table.update(Batch([], [new(12, [7] * 40, [])], removed=[10]))
    table.append(table.rows([12]), np.array([9]))
    assert table.num_tokens[table.row(12)] == 41


def test_removing_an_unknown_sequence_is_nothing(table: SequenceTable) -> None:
    table.update(Batch([], removed=[999]))
    assert len(table) == 2


def test_a_sequence_twice_or_one_too_many_is_a_bug(table: SequenceTable) -> None:
    with pytest.raises(RuntimeError, match="10 is there already"):
        table.update(Batch([], [new(10, [1], [])]))
    with pytest.raises(RuntimeError, match="all 2 rows are taken"):
        table.update(Batch([], [new(12, [1], [])]))


def test_memory_is_taken_by_what_is_written_not_by_whole_rows() -> None:
    table = SequenceTable(max_num_seqs=1024, max_model_len=32_768, block_size=16)
    before = psutil.Process().memory_info().rss
    table.token_ids[:, :8] = 1  # pages of 2 MB would bring in all 128 MB, and the first steps would wait for them
    assert psutil.Process().memory_info().rss - before < 32 * 2**20
    assert table.token_ids.sum() == 8 * 1024
