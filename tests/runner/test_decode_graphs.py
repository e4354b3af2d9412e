"""DecodeGraphs on a platform whose graphs run the captured work again: which steps are replayed, from which tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quire.ops.forward_batch import ForwardBatch
from quire.platform.cpu import CpuPlatform
from quire.runner.graphs import SIZES, DecodeGraphs, GraphStore, graph_sizes, padded_size

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
def graphs(platform) -> DecodeGraphs:
    return DecodeGraphs(
        platform, forward, GraphStore(platform), max_num_seqs=6, max_model_len=MAX_LEN, max_blocks=MAX_BLOCKS
    )


def test_each_size_is_captured_once_and_replays_later_steps(graphs, platform):
    for seed, rows in enumerate((4, 2, 4, 4, 1, 2)):
        fwd = step(rows, seed)
        assert equal(graphs.run(fwd), forward(fwd))
    assert graphs.captured_sizes == [1, 2, 4] and len(platform.graphs) == 3
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
    captured = graphs._captured[2]
    graphs.run(narrow)
    # Columns past the step's width keep old ids; lengths say that nobody reads them.
    assert torch.equal(captured.block_tables[:, :2], narrow.block_tables)
    assert captured.max_seq_len == MAX_LEN


def test_other_steps_are_refused(graphs):
    longer = step(4, 0)
    longer.max_query_len = 3
    assert graphs.run(longer) is None
    assert graphs.run(step(3, 0)) is None  # not padded
    partial = step(4, 0)
    partial.logits_indices = torch.arange(2)
    assert graphs.run(partial) is None
    assert graphs.captured_sizes == []


def test_stores_share_the_memory_of_temporaries(platform):
    first = GraphStore(platform)
    second = GraphStore(platform, pool_of=first)
    second.run(1, lambda: None)
    first.run(1, lambda: None)
    first.run(2, lambda: None)
    second.run(2, lambda: None)
    assert platform.pools == [None, None, "pool", "pool"]
    assert first.sizes == second.sizes == [1, 2]


def test_sizes():
    assert graph_sizes(6) == [1, 2, 4, 6]
    assert graph_sizes(1) == [1]
    assert graph_sizes(256)[-1] == 256
    assert graph_sizes(5000) == list(SIZES)


def test_padded_size():
    assert [padded_size(n, 6) for n in (1, 2, 3, 5, 6, 7)] == [1, 2, 4, 6, 6, None]
    assert padded_size(1025, 4096) is None


def test_close_closes_every_graph(graphs, platform):
    graphs.run(step(1, 0))
    graphs.run(step(6, 0))
    graphs.close()
    assert not any(graph.open for graph in platform.graphs)
    assert graphs.captured_sizes == []
