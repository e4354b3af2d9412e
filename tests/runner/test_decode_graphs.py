"""StepGraphs on a platform whose graphs run the captured work again: which steps are replayed, from which tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.ops.forward_batch import ForwardBatch
from quire.platform.cpu import CpuPlatform
from quire.runner.graphs import SIZES, GraphPool, GraphStore, StepGraphs, graph_sizes, padded_size, padded_step

MAX_LEN, MAX_BLOCKS, VOCAB = 64, 8, 11


class Recording:
    """A captured piece of work."""

    pool = "pool"

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.open = work, True

    def replay(self) -> None:
        self.work()

    def close(self) -> None:
        self.open = False


class RecordingPlatform(CpuPlatform):
    """Captures by keeping the function."""

    def __init__(self) -> None:
        self.graphs: list[Recording] = []
        self.pools: list[Any] = []

    def capture_graph(self, work: Callable[[], None], pool: Any = None) -> Recording:
        work()
        self.pools.append(pool)
        self.graphs.append(Recording(work))
        return self.graphs[-1]


def forward(fwd: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Two outputs that depend on every input of a row."""
    row = (
        fwd.input_ids * 3 + fwd.positions * 5 + fwd.seq_lens * 7 + fwd.slot_mapping * 11 + fwd.block_tables.sum(1) * 13
    )
    assert fwd.max_seq_len == MAX_LEN or fwd.block_tables.shape[1] < MAX_BLOCKS
    return row, (row[fwd.logits_indices, None] * torch.arange(1, VOCAB + 1)).float()


def step(rows: int, seed: int, width: int = 3) -> ForwardBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randint(1, 50, shape, generator=generator).to(dtype)

    return ForwardBatch(
        input_ids=draw(rows),
        positions=draw(rows),
        slot_mapping=draw(rows),
        query_start_loc=torch.arange(rows + 1, dtype=torch.int32),
        seq_lens=draw(rows, dtype=torch.int32),
        block_tables=draw(rows, width, dtype=torch.int32),
        logits_indices=torch.arange(rows),
        max_query_len=1,
        max_seq_len=width * 8,
        kv_caches=[],
    )


def equal(got: tuple[torch.Tensor, ...] | None, expected: tuple[torch.Tensor, ...]) -> bool:
    return got is not None and all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.fixture
def platform() -> RecordingPlatform:
    return RecordingPlatform()


@pytest.fixture
def graphs(platform) -> StepGraphs:
    return StepGraphs(
        platform, forward, GraphStore(platform), max_num_seqs=6, max_model_len=MAX_LEN, max_blocks=MAX_BLOCKS
    )


def test_each_size_is_captured_once_and_replays_later_steps(graphs, platform):
    for seed, rows in enumerate((4, 2, 4, 4, 1, 2)):
        fwd = step(rows, seed)
        assert equal(graphs.run(fwd), forward(fwd))
    assert graphs.captured_sizes == [(1, 1), (2, 2), (4, 4)] and len(platform.graphs) == 3
    assert platform.pools == [None, "pool", "pool"]


def test_inputs_that_moved_are_copied(graphs):
    first = step(4, 0)
    graphs.run(first)
    second = step(4, 1)
    expected = forward(second)
    assert equal(graphs.run(second), expected)
    assert torch.equal(first.input_ids, second.input_ids)  # the graph reads where the first step lay


def test_stale_block_ids_past_a_narrower_table_are_not_read(graphs):
    graphs.run(step(2, 0, width=8))
    narrow = step(2, 1, width=2)
    narrow.seq_lens.clamp_(max=16)
    captured = graphs._captured[2, 2]
    graphs.run(narrow)
    # Columns past the step's width keep old ids; lengths say that nobody reads them.
    assert torch.equal(captured.block_tables[:, :2], narrow.block_tables)
    assert captured.max_seq_len == MAX_LEN


def mixed_step(seed: int) -> ForwardBatch:
    """A step of 3 sequences and 8 tokens, padded to 16 tokens and 4 sequences; `forward` gives no logits for it."""
    fwd = step(16, seed)
    fwd.query_start_loc = torch.tensor([0, 1, 5, 8, 8], dtype=torch.int32)
    fwd.seq_lens, fwd.block_tables = fwd.seq_lens[:4], fwd.block_tables[:4]
    fwd.logits_indices, fwd.max_query_len = torch.tensor([0, 4, 7, 0]), 4
    return fwd


def test_steps_with_prompts_are_captured_when_their_size_comes_again(platform):
    def forward(fwd: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        assert fwd.max_query_len == 16 or fwd.block_tables.shape[1] < MAX_BLOCKS
        row = fwd.input_ids * 3 + fwd.positions * 5 + fwd.slot_mapping * 11
        return row, row[fwd.logits_indices] + fwd.seq_lens + fwd.block_tables[:, :3].sum(1)

    graphs = StepGraphs(platform, forward, GraphStore(platform), 6, MAX_LEN, MAX_BLOCKS)
    assert graphs.run(mixed_step(0)) is None
    assert graphs.captured_sizes == []
    for seed in (1, 2, 3):
        fwd = mixed_step(seed)
        assert equal(graphs.run(fwd), forward(fwd))
    assert graphs.captured_sizes == [(16, 4)] and len(platform.graphs) == 1


def test_the_graph_of_a_step_with_last_rows_gives_their_hidden_states(platform):
    def forward(fwd: ForwardBatch) -> tuple[torch.Tensor, torch.Tensor]:
        row = (fwd.input_ids * 3 + fwd.positions * 5)[fwd.last_rows]
        return row, row[fwd.logits_indices]

    def step_of(seed: int) -> ForwardBatch:
        fwd = mixed_step(seed)
        fwd.last_rows, fwd.logits_indices = torch.tensor([0, 4, 7 + seed, 0]), torch.tensor([0, 2, 0, 0])
        return fwd

    graphs = StepGraphs(platform, forward, GraphStore(platform), 6, MAX_LEN, MAX_BLOCKS)
    assert graphs.run(step_of(0)) is None
    for seed in (1, 2, 3):
        fwd = step_of(seed)
        assert equal(graphs.run(fwd), forward(fwd))
    assert len(platform.graphs) == 1


def test_stores_share_the_memory_of_temporaries(platform):
    pool = GraphPool()
    first, second = GraphStore(platform, pool), GraphStore(platform, pool)
    for store, size in ((second, (1, 1)), (first, (1, 1)), (first, (8, 2)), (second, (8, 2))):
        store.run(size, lambda: None)
    assert platform.pools == [None, "pool", "pool", "pool"]
    assert first.sizes == second.sizes == [(1, 1), (8, 2)]


def test_sizes():
    assert graph_sizes(6) == [1, 2, 4, 6]
    assert graph_sizes(1) == [1]
    assert graph_sizes(256)[-1] == 256
    assert graph_sizes(5000) == list(SIZES)


def test_padded_size():
    assert [padded_size(n, 6) for n in (1, 2, 3, 5, 6, 7)] == [1, 2, 4, 6, 6, None]
    assert padded_size(1025, 4096) is None


def test_padded_step():
    most = (1024, 6)
    assert padded_step(5, 1, most) == (16, 1)
    assert padded_step(17, 3, most) == (32, 4)
    assert padded_step(16, 6, (1024, 16)) == (16, 8)
    assert padded_step(20, 17, (1024, 64)) == (64, 32)  # more tokens than sequences: else it would look like decoding
    assert padded_step(900, 5, most) == (1024, 6)
    assert padded_step(1025, 5, most) is None
    assert padded_step(3000, 5, (16_384, 6)) is None


def test_close_closes_every_graph(graphs, platform):
    graphs.run(step(1, 0))
    graphs.run(step(6, 0))
    graphs.close()
    assert not any(graph.open for graph in platform.graphs)
    assert graphs.captured_sizes == []
