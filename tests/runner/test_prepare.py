"""Batch to ForwardBatch against a plain loop over tokens, with and without padding."""

import random

import numpy as np
import pytest
import torch

from quire.core.batch import Batch, NewSequence, ScheduledSequence
from quire.core.params import SamplingParams
from quire.ops.forward_batch import ForwardBatch
from quire.runner.graphs import padded_step
from quire.runner.prepare import InputBuffers, StepInputs, narrows, prepare
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


def test_a_step_of_many_tokens_wants_those_of_each_sequences_last_one() -> None:
    table = SequenceTable(MAX_SEQS, 256, BLOCK)
    lengths, computed, new = (
        (200, 9, 150),
        (0, 8, 20),
        (200, 1, 100),
    )  # all of a prompt, one token, a chunk with more to come
    firsts = (1, 101, 201)  # block ids
    added = [
        NewSequence(
            i, 0, [7] * lengths[i], lengths[i], computed[i], list(range(firsts[i], firsts[i] + 50)), SamplingParams()
        )
        for i in range(3)
    ]
    batch = Batch([ScheduledSequence(i, new[i]) for i in range(3)], added)
    table.update(batch)
    step, wide = prepare(table, batch), prepare(table, batch, every_row=True)
    assert step.narrow and not wide.narrow
    assert step.last_rows.tolist() == [199, 200, 300]
    assert (step.logits_indices.tolist(), step.hidden_start_loc.tolist()) == ([0, 1], [0, 1, 2, 3])
    assert (wide.logits_indices.tolist(), wide.hidden_start_loc.tolist()) == ([199, 200], [0, 200, 201, 301])
    buffers = InputBuffers(600, MAX_SEQS, 64, torch.device("cpu"))
    assert buffers.load(table, wide, []).last_rows is None
    fwd = buffers.load(table, step, [], pad_to=(384, 4))
    assert fwd.last_rows is not None and fwd.last_rows.tolist() == [199, 200, 300, 0]
    few = fwd.of_last_rows()
    assert (few.num_tokens, few.max_query_len, few.last_rows) == (4, 1, None)
    assert few.query_start_loc.tolist() == [0, 1, 2, 3, 4] and few.query_start_loc.dtype == torch.int32
    assert few.positions[:3].tolist() == [199, 8, 119]
    assert few.seq_lens is fwd.seq_lens and few.block_tables is fwd.block_tables


@pytest.mark.parametrize("max_num_seqs", [6, 100, 1024])
def test_steps_that_are_padded_to_one_size_are_all_narrow_or_none_is(max_num_seqs: int) -> None:
    found: dict[tuple[int, int], set[bool]] = {}
    for num_seqs in range(1, min(max_num_seqs, 300) + 1):
        for num_tokens in range(num_seqs + 1, 400):
            size = padded_step(num_tokens, num_seqs, (2048, max_num_seqs))
            assert size is not None
            found.setdefault(size, set()).add(narrows(num_tokens, num_seqs))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert {True} in found.values() and {False} in found.values()


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
        assert fwd.last_rows is None
        places.add(tuple(getattr(fwd, name).data_ptr() for name in names))
    assert len(places) == 1
