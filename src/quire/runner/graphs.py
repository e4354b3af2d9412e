"""DecodeGraphs: decoding steps captured once a batch size and replayed, so that a step costs one launch in place of hundreds.

A graph repeats the same kernels on the same tensors, so each captured size has a persistent ForwardBatch; a step copies its inputs
there, padded to the next captured size with rows of length 0 that touch nothing. Lengths are read on the device.
Sizes are captured when a step first needs them.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quire.ops.forward_batch import ForwardBatch
from quire.platform.base import Graph, Platform

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)


class DecodeGraphs:
    """Replays of `forward` for steps in which every sequence computes one token.

    forward        ForwardBatch -> logits [S, V]; never waits for the device
    kv_caches      one tensor a layer, as in ForwardBatch
    max_blocks     M, entries of a block-table row that max_model_len needs
    """

    @torch.inference_mode()
    def __init__(
        self,
        platform: Platform,
        forward: Callable[[ForwardBatch], Tensor],
        kv_caches: list[Tensor],
        max_num_seqs: int,
        max_model_len: int,
        max_blocks: int,
    ) -> None:
        self._platform = platform
        self._forward = forward
        self._sizes = graph_sizes(max_num_seqs)
        self._batch = _padding_batch(self._sizes[-1], max_model_len, max_blocks, kv_caches, platform.device())
        self._graphs: dict[int, Graph] = {}
        self._logits: Tensor | None = None  # [largest size, V], written by every graph

    @property
    def captured_sizes(self) -> list[int]:
        """Batch sizes captured so far."""
        return sorted(self._graphs)

    @torch.inference_mode()
    def run(self, fwd: ForwardBatch) -> Tensor | None:
        """Logits [S, V] of a decoding step; valid until the next run. None when the step is of another kind or too large."""
        rows = fwd.num_sequences
        if fwd.max_query_len != 1 or fwd.num_tokens != rows or not 0 < rows <= self._sizes[-1]:
            return None
        size = self._sizes[bisect_left(self._sizes, rows)]
        graph = self._graphs.get(size) or self._capture(size)
        self._fill(fwd, rows, size)
        graph.replay()
        return self._select(fwd, rows)

    def capture(self, sizes: list[int]) -> None:
        """Captures these sizes ahead of need."""
        for size in sizes:
            if size not in self._graphs:
                self._capture(size)

    def close(self) -> None:
        """Frees the graphs and their memory."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()
        self._logits = None

    @torch.inference_mode()
    def _capture(self, size: int) -> Graph:
        start = time.perf_counter()
        self._clear_rows(0, size)  # the trial run must not write into anyone's blocks
        batch = _first_rows(self._batch, size)

        def work() -> None:
            logits = self._forward(batch)
            if self._logits is None:
                self._logits = logits.new_empty(self._sizes[-1], logits.shape[1])
            # One buffer for all sizes: each graph's own output would stay allocated as long as the graph.
            self._logits[:size].copy_(logits)

        pool = next((graph.pool for graph in self._graphs.values()), None)
        graph = self._platform.capture_graph(work, pool)
        self._graphs[size] = graph
        logger.info(
            "Graph capturing finished in %.2f secs (decoding steps of up to %d sequences)",
            time.perf_counter() - start,
            size,
        )
        return graph

    def _fill(self, fwd: ForwardBatch, rows: int, size: int) -> None:
        batch = self._batch
        batch.input_ids[:rows].copy_(fwd.input_ids)
        batch.positions[:rows].copy_(fwd.positions)
        batch.slot_mapping[:rows].copy_(fwd.slot_mapping)
        batch.seq_lens[:rows].copy_(fwd.seq_lens)
        batch.block_tables[:rows, : fwd.block_tables.shape[1]].copy_(fwd.block_tables)
        if rows < size:
            self._clear_rows(rows, size)

    def _clear_rows(self, start: int, end: int) -> None:
        # Ids, positions and blocks may keep old values: rows of length 0 without a slot neither read nor write by them.
        self._batch.slot_mapping[start:end].fill_(-1)
        self._batch.seq_lens[start:end].fill_(0)

    def _select(self, fwd: ForwardBatch, rows: int) -> Tensor:
        assert self._logits is not None
        logits = self._logits[:rows]
        return logits if fwd.logits_indices.shape[0] == rows else logits[fwd.logits_indices]


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: those of SIZES below max_num_seqs, and max_num_seqs itself up to the largest of them."""
    return [size for size in SIZES if size < max_num_seqs] + ([max_num_seqs] if max_num_seqs <= SIZES[-1] else [])


def _padding_batch(
    size: int, max_model_len: int, max_blocks: int, kv_caches: list[Tensor], device: torch.device
) -> ForwardBatch:
    """`size` decoding rows of length 0."""
    ids = torch.zeros(size, dtype=torch.int64, device=device)
    return ForwardBatch(
        input_ids=ids,
        positions=torch.zeros_like(ids),
        slot_mapping=torch.full_like(ids, -1),
        query_start_loc=torch.arange(size + 1, dtype=torch.int32, device=device),
        seq_lens=torch.zeros(size, dtype=torch.int32, device=device),
        block_tables=torch.zeros(size, max_blocks, dtype=torch.int32, device=device),
        logits_indices=torch.arange(size, dtype=torch.int64, device=device),
        max_query_len=1,
        max_seq_len=max_model_len,
        kv_caches=kv_caches,
    )


def _first_rows(batch: ForwardBatch, size: int) -> ForwardBatch:
    """Views of the first `size` rows."""
    return replace(
        batch,
        input_ids=batch.input_ids[:size],
        positions=batch.positions[:size],
        slot_mapping=batch.slot_mapping[:size],
        query_start_loc=batch.query_start_loc[: size + 1],
        seq_lens=batch.seq_lens[:size],
        block_tables=batch.block_tables[:size],
        logits_indices=batch.logits_indices[:size],
    )
