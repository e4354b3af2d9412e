"""DecodeGraphs: decoding steps captured once a batch size and replayed, so that a step costs one launch in place of hundreds.

A graph repeats the same kernels on the same tensors. A step is therefore padded to one of a few sizes, with rows of length 0 that
touch nothing, and its tensors must lie where they lay at the capture; any that do not are copied there. Lengths are read on
the device, so one graph serves every length. Sizes are captured when a step first needs them.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from quire.ops.forward_batch import ForwardBatch
from quire.platform.base import Graph, Platform

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
INPUTS = ("input_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens", "logits_indices")


class GraphStore:
    """Graphs by batch size, captured when first needed. They share memory for temporaries, and run one at a time.

    pool_of  a store to share that memory with
    """

    def __init__(self, platform: Platform, pool_of: "GraphStore | None" = None) -> None:
        self._platform = platform
        self._pool_of = pool_of
        self._graphs: dict[int, Graph] = {}

    @property
    def sizes(self) -> list[int]:
        """Batch sizes captured so far."""
        return sorted(self._graphs)

    @property
    def pool(self) -> Any:
        """Memory of temporaries; None before the first capture."""
        mine = next((graph.pool for graph in self._graphs.values()), None)
        return self._pool_of.pool if mine is None and self._pool_of is not None else mine

    def run(self, size: int, work: Callable[[], None]) -> None:
        """Does the work of that size: the first time itself, and captures it; from then on by replay."""
        graph = self._graphs.get(size)
        if graph is not None:
            graph.replay()
            return
        start = time.perf_counter()
        self._graphs[size] = self._platform.capture_graph(work, self.pool)
        seconds = time.perf_counter() - start
        logger.info("Graph capturing finished in %.2f secs (decoding steps of %d sequences)", seconds, size)

    def close(self) -> None:
        """Frees the graphs and their memory."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()


class DecodeGraphs:
    """Replays of `forward` for steps in which every sequence computes one token and samples.

    forward        ForwardBatch -> tensors of B rows each; never waits for the device
    max_model_len  lengths up to it are served by every graph
    max_blocks     M, entries of a block-table row that max_model_len needs
    """

    def __init__(
        self,
        platform: Platform,
        forward: Callable[[ForwardBatch], tuple[Tensor, ...]],
        store: GraphStore,
        max_num_seqs: int,
        max_model_len: int,
        max_blocks: int,
    ) -> None:
        self._store = store
        self._forward = forward
        self._max_model_len = max_model_len
        self._sizes = graph_sizes(max_num_seqs)
        self._captured: dict[int, ForwardBatch] = {}
        self._block_tables = torch.zeros(self._sizes[-1], max_blocks, dtype=torch.int32, device=platform.device())
        self._outputs: tuple[Tensor, ...] = ()  # of the largest size; every graph writes its first rows

    @property
    def captured_sizes(self) -> list[int]:
        """Batch sizes captured so far."""
        return self._store.sizes

    @torch.inference_mode()
    def run(self, fwd: ForwardBatch) -> tuple[Tensor, ...] | None:
        """What `forward` gives for a decoding step of B rows, padding rows included; good until the next run.

        None when the step is of another kind, or B is not a padded size.
        """
        size = fwd.num_sequences
        every_row = fwd.num_tokens == size == fwd.logits_indices.shape[0]
        if fwd.max_query_len != 1 or not every_row or size not in self._sizes:
            return None
        if size not in self._captured:
            tables = self._block_tables[:size]
            self._captured[size] = replace(fwd, block_tables=tables, max_seq_len=self._max_model_len)
        captured = self._captured[size]
        _copy_moved(fwd, captured)
        captured.block_tables[:, : fwd.block_tables.shape[1]].copy_(fwd.block_tables)
        self._store.run(size, lambda: self._work(captured, size))
        return tuple(output[:size] for output in self._outputs)

    def close(self) -> None:
        """Frees the graphs and their memory."""
        self._store.close()
        self._captured.clear()
        self._outputs = ()

    def _work(self, batch: ForwardBatch, size: int) -> None:
        results = self._forward(batch)
        if not self._outputs:
            self._outputs = tuple(r.new_empty(self._sizes[-1], *r.shape[1:]) for r in results)
        # One set of outputs for all sizes: each graph's own would stay allocated as long as the graph.
        for output, result in zip(self._outputs, results, strict=True):
            output[:size].copy_(result)


@cache
def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: those of SIZES below max_num_seqs, and max_num_seqs itself up to the largest of them."""
    return [size for size in SIZES if size < max_num_seqs] + ([max_num_seqs] if max_num_seqs <= SIZES[-1] else [])


def padded_size(num_sequences: int, max_num_seqs: int) -> int | None:
    """Rows that a decoding step of `num_sequences` is padded to; None = more than any graph has."""
    sizes = graph_sizes(max_num_seqs)
    index = bisect_left(sizes, num_sequences)
    return sizes[index] if index < len(sizes) else None


def _copy_moved(fwd: ForwardBatch, captured: ForwardBatch) -> None:
    """Copies inputs that do not lie where the graph reads them."""
    for name in INPUTS:
        source, target = getattr(fwd, name), getattr(captured, name)
        if source.data_ptr() != target.data_ptr():
            target.copy_(source)
