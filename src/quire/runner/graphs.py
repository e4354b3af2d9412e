"""StepGraphs: steps captured once a size and replayed, so that a step costs one launch in place of hundreds.

A graph repeats the same kernels on the same tensors. A step is therefore padded to one of a few sizes, with rows of length 0 and
tokens of nobody that touch nothing, and its tensors must lie where they lay at the capture; any that do not are copied there.
Lengths are read on the device, so one graph serves every length. Sizes are captured when steps need them: decoding steps the first
time, others, of which there are many kinds, the second time.
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

Size = tuple[int, int]  # tokens, sequences; equal for decoding steps

# Of steps with prompts; larger ones keep a device busy anyway.
TOKEN_SIZES = (16, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048)
# A capture costs about as much as ten steps; a step of few rows hardly gets dearer by more of them, as it reads the same weights.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)
INPUTS = ("input_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens", "logits_indices", "last_rows")


class GraphPool:
    """Memory of temporaries that graphs share, since they run one at a time; made by the first capture."""

    handle: Any = None


class GraphStore:
    """Graphs by (tokens, sequences), captured when first needed.

    pool  may be shared with other stores
    """

    def __init__(self, platform: Platform, pool: GraphPool | None = None) -> None:
        self._platform = platform
        self._pool = pool or GraphPool()
        self._graphs: dict[Size, Graph] = {}

    @property
    def sizes(self) -> list["Size"]:
        """Sizes captured so far."""
        return sorted(self._graphs)

    def __contains__(self, size: "Size") -> bool:
        """Whether that size has been captured."""
        return size in self._graphs

    def run(self, size: "Size", work: Callable[[], None]) -> None:
        """Does the work of that size: the first time itself, and captures it; from then on by replay."""
        graph = self._graphs.get(size)
        if graph is not None:
            graph.replay()
            return
        start = time.perf_counter()
        self._graphs[size] = self._platform.capture_graph(work, self._pool.handle)
        self._pool.handle = self._graphs[size].pool
        seconds = time.perf_counter() - start
        logger.info(
            "Graph capturing finished in %.2f secs (steps of %d tokens, %d sequences)", seconds, *size,
            extra={"phase": "graph capture", "seconds": seconds},
        )  # fmt: skip

    def close(self) -> None:
        """Frees the graphs and their memory."""
        for graph in self._graphs.values():
            graph.close()
        self._graphs.clear()


class StepGraphs:
    """Replays of `forward` for steps of padded sizes.

    forward        ForwardBatch -> hidden states [T, H], or [B, H] where it has last_rows, and logits [B, V]; never waits for the device
    max_model_len  lengths up to it are served by every graph
    max_blocks     M, entries of a block-table row that max_model_len needs
    """

    def __init__(
        self,
        platform: Platform,
        forward: Callable[[ForwardBatch], tuple[Tensor, Tensor]],
        store: GraphStore,
        max_num_seqs: int,
        max_model_len: int,
        max_blocks: int,
    ) -> None:
        self._store = store
        self._forward = forward
        self._max_model_len = max_model_len
        self._most = max(TOKEN_SIZES[-1], max_num_seqs), max_num_seqs
        self._captured: dict[Size, ForwardBatch] = {}
        self._seen: set[Size] = set()
        self._block_tables = torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32, device=platform.device())
        self._outputs: tuple[Tensor, ...] = ()  # of the largest size; every graph writes its first rows

    @property
    def captured_sizes(self) -> list[Size]:
        """(tokens, sequences) captured so far."""
        return self._store.sizes

    @torch.inference_mode()
    def run(self, fwd: ForwardBatch) -> tuple[Tensor, ...] | None:
        """What `forward` gives for a step of a padded size, padding included; good until the next run.

        None, and nothing is done, when a size other than a decoding step's comes for the first time.
        """
        size = fwd.num_tokens, fwd.num_sequences
        if size[0] != size[1] and size not in self._seen:
            self._seen.add(size)
            return None
        if size not in self._captured:
            tables = self._block_tables[: size[1]]
            longest = fwd.max_query_len if size[0] == size[1] else size[0]
            self._captured[size] = replace(
                fwd, block_tables=tables, max_seq_len=self._max_model_len, max_query_len=longest
            )
        captured = self._captured[size]
        _copy_moved(fwd, captured)
        captured.block_tables[:, : fwd.block_tables.shape[1]].copy_(fwd.block_tables)
        self._store.run(size, lambda: self._work(captured))
        num_hidden = size[0] if fwd.last_rows is None else size[1]
        return tuple(output[:rows] for output, rows in zip(self._outputs, (num_hidden, size[1]), strict=True))

    def close(self) -> None:
        """Frees the graphs and their memory."""
        self._store.close()
        self._captured.clear()
        self._outputs = ()

    def _work(self, batch: ForwardBatch) -> None:
        results = self._forward(replace(batch))  # without what operators have worked out when it was done before
        if not self._outputs:
            self._outputs = tuple(r.new_empty(rows, *r.shape[1:]) for r, rows in zip(results, self._most, strict=True))
        # One set of outputs for all sizes: each graph's own would stay allocated as long as the graph.
        for output, result in zip(self._outputs, results, strict=True):
            output[: len(result)].copy_(result)


@cache
def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture: those of SIZES below max_num_seqs, and max_num_seqs itself up to the largest of them."""
    return [size for size in SIZES if size < max_num_seqs] + ([max_num_seqs] if max_num_seqs <= SIZES[-1] else [])


def padded_size(num_sequences: int, max_num_seqs: int) -> int | None:
    """Rows that a decoding step of `num_sequences` is padded to; None = more than any graph has."""
    sizes = graph_sizes(max_num_seqs)
    index = bisect_left(sizes, num_sequences)
    return sizes[index] if index < len(sizes) else None


def next_smaller(size: int, max_num_seqs: int) -> int | None:
    """The size below one that `padded_size` gave."""
    sizes = graph_sizes(max_num_seqs)
    index = bisect_left(sizes, size)
    return sizes[index - 1] if index else None


def padded_step(num_tokens: int, num_sequences: int, most: Size) -> Size | None:
    """(tokens, sequences) that a step with prompts is padded to, the first more than the second; None = it is too large.

    most  tokens and sequences that there is room for
    """
    sequences = min(1 << (num_sequences - 1).bit_length(), most[1])
    index = bisect_left(TOKEN_SIZES, max(num_tokens, sequences + 1))
    if index == len(TOKEN_SIZES) or TOKEN_SIZES[index] > most[0]:
        return None
    return TOKEN_SIZES[index], sequences


def _copy_moved(fwd: ForwardBatch, captured: ForwardBatch) -> None:
    """Copies inputs that do not lie where the graph reads them."""
    for name in INPUTS:
        source, target = getattr(fwd, name), getattr(captured, name)
        if source is not None and source.data_ptr() != target.data_ptr():
            target.copy_(source)
