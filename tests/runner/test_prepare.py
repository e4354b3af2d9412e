"""Batch to ForwardBatch against a plain loop over tokens, with and without padding."""

import random

import numpy as np
import pytest
import torch

from quire.core.batch import Batch, NewSequence, ScheduledSequence
from quire.core.params import SamplingParams
from quire.ops.forward_batch import ForwardBatch
from quire.runner.prepare import InputBuffers, StepInputs, prepare
from quire.runner.sequence_table import SequenceTable

BLOCK, MAX_LEN, MAX_SEQS = 4, 64, 9


def random_step(seed: int, decode: bool = False) -> tuple[SequenceTable, Batch, StepInputs]:
    draw = random.Random(seed)
    table = SequenceTable(MAX_SEQS, MAX_LEN, BLOCK)
    blocks = draw.sample(range(1, 1000), MAX_SEQS * MAX_LEN // BLOCK)
    added, scheduled = [], []
    for seq_id in draw.sample(range(100), draw.randint(1, MAX_SEQS)):
        length = draw.randint(1, MAX_LEN)
        computed = length - 1 if decode else draw.randrange(length)
        tokens = [draw.randrange(50_000) for _ in range(length)]
        mine = [blocks.pop() for _ in range(-(-length // BLOCK))]
        keep = draw.randint(0, len(mine))
        new = 1 if decode else draw.randint(1, length - computed)
        added.append(NewSequence(seq_id, 0, tokens, length, computed, mine[:keep], SamplingParams()))
        scheduled.append(ScheduledSequence(seq_id, new, mine[keep:]))
    draw.shuffle(scheduled)
    batch = Batch(scheduled, added)
    table.update(batch)
    return table, batch, prepare(table, batch)


def expected(batch: Batch) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {
        name: [] for name in ("input_ids", "positions", "slot_mapping", "seq_lens", "logits_indices")
    }
    starts = [0]
    sequences = {s.seq_id: s for s in batch.added}
    for s in batch.scheduled:
        sequence = sequences[s.seq_id]
        blocks = sequence.block_ids + s.new_block_ids
        for p in range(sequence.num_computed_tokens, sequence.num_computed_tokens + s.num_new_tokens):
            found["input_ids"].append(sequence.token_ids[p])
            found["positions"].append(p)
            found["slot_mapping"].append(blocks[p // BLOCK] * BLOCK + p % BLOCK)
        found["seq_lens"].append(sequence.num_computed_tokens + s.num_new_tokens)
        starts.append(starts[-1] + s.num_new_tokens)
        if found["seq_lens"][-1] == len(sequence.token_ids):
            found["logits_indices"].append(starts[-1] - 1)
    return {**found, "query_start_loc": starts}


@pytest.mark.parametrize("seed", range(30))
def test_a_step_equals_a_loop_over_its_tokens(seed: int) -> None:
    table, batch, step = random_step(seed)
    fwd = InputBuffers(600, MAX_SEQS, MAX_LEN // BLOCK, torch.device("cpu")).load(table, step, [])
    for name, values in expected(batch).items():
        assert getattr(step, name).tolist() == values, name
        assert getattr(fwd, name).tolist() == values, name
    assert fwd.max_query_len == max(s.num_new_tokens for s in batch.scheduled)
    assert fwd.max_seq_len == int(step.seq_lens.max())
    assert fwd.block_tables.shape[1] == -(-fwd.max_seq_len // BLOCK)
    np.testing.assert_array_equal(fwd.block_tables.numpy(), table.block_tables[step.rows, : fwd.block_tables.shape[1]])
    assert (fwd.input_ids.dtype, fwd.seq_lens.dtype, fwd.block_tables.dtype) == (torch.int64, torch.int32, torch.int32)


def test_a_step_of_single_tokens_that_all_sample_is_decoding() -> None:
    assert random_step(1, decode=True)[2].is_decode
    assert not all(random_step(seed)[2].is_decode for seed in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_padding_rows_write_nowhere_and_have_no_length(seed: int) -> None:
    table, _, step = random_step(seed, decode=True)
    count = len(step.rows)
    buffers = InputBuffers(600, 16, MAX_LEN // BLOCK, torch.device("cpu"))
    for part in buffers._host:
        part.fill_(77)  # what a longer step left behind
    fwd: ForwardBatch = buffers.load(table, step, [], pad_to=(12, 12), table_width=MAX_LEN // BLOCK)
    assert fwd.num_tokens == fwd.num_sequences == 12
    assert fwd.block_tables.shape == (12, MAX_LEN // BLOCK)
    assert fwd.slot_mapping[count:].tolist() == [-1] * (12 - count)
    assert fwd.seq_lens[count:].tolist() == [0] * (12 - count)
    assert fwd.query_start_loc.tolist() == list(range(13))
    assert fwd.block_tables[count:].sum() == 0
    assert fwd.logits_indices[:count].tolist() == list(range(count))


def test_a_padded_size_lies_at_the_same_place_every_time() -> None:
    buffers = InputBuffers(600, 16, MAX_LEN // BLOCK, torch.device("cpu"))
    places = set()
    for seed in range(4):
        table, _, step = random_step(seed, decode=True)
        fwd = buffers.load(table, step, [], pad_to=(12, 12), table_width=5)
        names = (
            "input_ids",
            "positions",
            "slot_mapping",
            "query_start_loc",
            "seq_lens",
            "block_tables",
            "logits_indices",
        )
        places.add(tuple(getattr(fwd, name).data_ptr() for name in names))
    assert len(places) == 1
