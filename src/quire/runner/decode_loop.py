"""DecodeLoop: decoding steps in a row on the device, each with the tokens that the one before it has chosen.

What a step needs of the one before (tokens, positions) stays on the device; the host says beforehand how far each row may go, gives
the blocks for that, and reads the tokens of all steps in one copy. So the host may start the next steps before it knows these tokens.

    row of the state    tokens to compute ── positions ──▶ limits: there it rests
    one step            place_tokens → model → the choice of tokens → take_tokens, captured as one graph a batch size and manner

Rows of the state are those of the batch, packed. Where a batch has other rows than the one before, they are loaded anew: a token that
the host does not know yet comes from last_ids, where the steps under way leave it.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.ops.forward_batch import ForwardBatch
from quire.ops.registry import Ops
from quire.ops.sample_tokens import NUM_CONTROLS, Scores
from quire.platform.base import Platform
from quire.runner.device_sampler import GREEDY, DeviceSampler, Manner, make_scores, send_scores
from quire.runner.flight import BATCHES_UNDER_WAY, NOT_FINITE, Flight
from quire.runner.graphs import GraphPool, GraphStore, Size, next_smaller, padded_size
from quire.runner.philox import uniforms
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import Rows, SequenceTable

IDS, POSITIONS, LIMITS, FAILED, ROWS = range(5)
NOT_KNOWN = -1  # in place of an id, on its way to the device
SOON = 1.25  # times the rows of a size: with so few it is captured ahead
LEAST_AHEAD = 8  # rows; steps of fewer are few kernels
MANY_ROWS = 512  # a batch of so many takes as long as a capture


class DecodeLoop:
    """State of R rows on the device, and the steps that move them on.

    compute    ForwardBatch -> logits [B, V]; never waits for the device
    likeliest  ForwardBatch -> the likeliest token of each row [B]; neither does it
    sampler    chooses the tokens
    pool       of captured steps; None = steps run eagerly
    max_steps  most steps of a batch
    last_ids   [R + 1] int64 on the device: the token that each row of the table chose last, negative = it failed; the row after
               the last is padding's
    """

    def __init__(
        self,
        platform: Platform,
        compute: Callable[[ForwardBatch], Tensor],
        likeliest: Callable[[ForwardBatch], Tensor],
        ops: Ops,
        table: SequenceTable,
        sampling: SamplingTable,
        kv_caches: list[Tensor],
        sampler: DeviceSampler,
        pool: GraphPool | None,
        max_steps: int,
    ) -> None:
        self.table = table
        self.sampling = sampling
        self.max_steps = max_steps
        self._platform = platform
        self._compute = compute
        self._likeliest = likeliest
        self._ops = ops
        self._kv_caches = kv_caches
        self._sampler = sampler
        self._pool = pool
        self._graphs: dict[Manner, GraphStore] = {}
        self._num_rows, self._width = table.block_tables.shape
        device = platform.device()
        self.last_ids = torch.zeros(self._num_rows + 1, dtype=torch.int64, device=device)
        self._state = torch.zeros(5, self._num_rows, dtype=torch.int64, device=device)
        self._slots = torch.zeros(self._num_rows, dtype=torch.int64, device=device)
        self._lens = torch.zeros(self._num_rows, dtype=torch.int32, device=device)
        self._starts = torch.arange(self._num_rows + 1, dtype=torch.int32, device=device)
        self._every_row = torch.arange(self._num_rows, device=device)
        self._block_tables = torch.zeros(self._num_rows, self._width, dtype=torch.int32, device=device)
        self._tokens = torch.zeros(max_steps, self._num_rows, dtype=torch.int32, device=device)
        self._uniforms = torch.zeros(max_steps, self._num_rows, dtype=torch.float64, device=device)
        self._controls = torch.zeros(NUM_CONTROLS, self._num_rows, dtype=torch.float64, device=device)
        self._scores: dict[int, Scores] = {}  # by the number of likeliest tokens told
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._hosts = [
            _Host(self._num_rows, self._width, table.block_size, max_steps, device) for _ in range(BATCHES_UNDER_WAY)
        ]
        self._turn = 0
        self.manner = GREEDY
        self._rows: Rows = np.zeros(0, dtype=np.int64)
        self._ends: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # positions that the rows will have reached

    @property
    def captured_sizes(self) -> list[Size]:
        """(rows, rows) of the steps captured so far."""
        return sorted({size for store in self._graphs.values() for size in store.sizes})

    def start(self, batch: Batch) -> Flight:
        """Asks the device for the steps of `batch`, of which the table has heard; waits for nothing."""
        host = self._hosts[self._turn]
        self._turn = (self._turn + 1) % BATCHES_UNDER_WAY
        counts = np.fromiter((s.num_new_tokens for s in batch.scheduled), dtype=np.int64)
        if not batch.follows:
            self._begin(batch, host)
        firsts = self._ends
        self._sampler.prepare(self._rows, counts)
        if self.manner.draws:
            self._send_uniforms(batch.decode_steps, host)
        self._go_on(batch, counts, host)
        self._step.zero_()
        size = padded_size(len(counts), self._num_rows)
        for _ in range(batch.decode_steps):
            self._do_step(size, len(counts))
        tokens, scores = host.tokens[: batch.decode_steps], None
        tokens.copy_(self._tokens[: batch.decode_steps], non_blocking=True)
        if self.manner.num_top >= 0:
            num_top = self.manner.num_top
            scores = send_scores(self._scores[num_top], host.scores_for(num_top), batch.decode_steps)
        self._leave_ids()
        done = self._platform.mark()
        self._capture_ahead(size, int((counts > 0).sum()), batch.decode_steps == self.max_steps)
        lives, num_logprobs = self.table.lives[self._rows], self.sampling.num_logprobs[self._rows]
        return Flight(batch, self._rows, lives, firsts, num_logprobs, tokens, scores, done)

    def rehearse(self, size: int, manner: Manner) -> None:
        """Asks for one step of `size` rows of no sequence that choose in this manner, and so for all kernels that such a step needs."""
        self.manner = manner
        self._state.zero_()  # tokens of a step before, which may never have run, mean nothing
        self._work(size)

    def close(self) -> None:
        """Frees the graphs and their memory."""
        for graphs in self._graphs.values():
            graphs.close()

    def _begin(self, batch: Batch, host: "_Host") -> None:
        """Loads new rows; those between them and the padded size rest."""
        table, rows = self.table, self.table.rows(s.seq_id for s in batch.scheduled)
        size = padded_size(len(rows), self._num_rows) or len(rows)
        self._rows, self._ends = rows, table.num_computed[rows]
        known = self._ends < table.num_tokens[rows]
        host.state[:] = 0
        host.state[IDS, : len(rows)] = np.where(known, table.token_ids[rows, self._ends], NOT_KNOWN)
        host.state[POSITIONS, : len(rows)] = self._ends
        host.state[ROWS, : len(rows)] = rows
        host.state[ROWS, len(rows) :] = self._num_rows
        self._state.copy_(host.state_pinned, non_blocking=True)
        if not known.all():
            self._fetch_ids()
        width = int(table.num_blocks[rows].max())
        packed = host.tables[: size * width]
        packed.numpy().reshape(size, width)[: len(rows)] = table.block_tables[rows, :width]
        packed.numpy().reshape(size, width)[len(rows) :] = 0
        self._block_tables[:size, :width].copy_(packed.to(self._state.device, non_blocking=True).view(size, width))
        self._begin_manner(host)

    def _begin_manner(self, host: "_Host") -> None:
        """How the new rows choose."""
        self.manner = self._sampler.manner(self._rows)
        if self.manner.draws or self.manner.filters:
            controls = host.controls.numpy()
            controls[:, : len(self._rows)] = self.sampling.controls(self._rows)
            controls[:, len(self._rows) :] = 0
            self._controls.copy_(host.controls, non_blocking=True)
        num_top = self.manner.num_top
        if num_top >= 0 and num_top not in self._scores:
            self._scores[num_top] = make_scores(self.max_steps, self._num_rows, num_top, self._state.device)

    def _fetch_ids(self) -> None:
        """Fills in the tokens that the host does not know."""
        ids = self._state[IDS]
        ids.copy_(self.last_ids[self._state[ROWS]].where(ids < 0, ids))
        self._state[FAILED].copy_(ids < 0)
        ids.clamp_(min=0)

    def _leave_ids(self) -> None:
        """Notes what each row chose last, for steps of other kinds and of other rows."""
        ids = self._state[IDS].masked_fill(self._state[FAILED] > 0, NOT_FINITE)
        self.last_ids.index_copy_(0, self._state[ROWS], ids)

    def _go_on(self, batch: Batch, counts: NDArray[np.int64], host: "_Host") -> None:
        """New limits, and the blocks that rows have got since they were loaded; a row that has ended rests."""
        self._ends = self._ends + counts
        self.table.num_computed[self._rows] = self._ends
        host.state[LIMITS, : len(counts)] = self._ends * (counts > 0)
        host.state[LIMITS, len(counts) :] = 0  # what it held of rows of a batch before, whose blocks are others' by now
        self._state[LIMITS].copy_(host.state_pinned[LIMITS], non_blocking=True)
        if not batch.follows:
            return
        num_blocks = self.table.num_blocks[self._rows]
        new = [
            (row * self._width + int(num_blocks[row]) - len(scheduled.new_block_ids) + i, block_id)
            for row, scheduled in enumerate(batch.scheduled)
            for i, block_id in enumerate(scheduled.new_block_ids)
        ]
        if new:
            packed = host.blocks[: 2 * len(new)]
            packed.numpy().reshape(2, -1)[:] = np.array(new).T
            places, blocks = packed.to(self._state.device, non_blocking=True).view(2, -1)
            self._block_tables.view(-1).index_copy_(0, places, blocks.int())

    def _send_uniforms(self, num_steps: int, host: "_Host") -> None:
        """The random numbers of the next steps; which they are depends on each row's seed and the position of the token drawn."""
        rows, num_rows = self._rows, len(self._rows)
        seeds, indices = np.tile(self.sampling.seed[rows], num_steps), np.tile(self.sampling.index[rows], num_steps)
        positions = self._ends + 1 + np.arange(num_steps)[:, None]
        numbers = uniforms(seeds, indices, positions.ravel()).reshape(num_steps, num_rows)
        host.uniforms.numpy()[:num_steps, :num_rows] = numbers
        self._uniforms[:num_steps].copy_(host.uniforms[:num_steps], non_blocking=True)

    def _do_step(self, size: int | None, num_rows: int) -> None:
        if self._pool is None or size is None:
            self._work(size or num_rows)
            return
        if self.manner not in self._graphs:
            self._graphs[self.manner] = GraphStore(self._platform, self._pool)
        self._graphs[self.manner].run((size, size), lambda: self._work(size))

    def _capture_ahead(self, size: int | None, num_live: int, is_long: bool) -> None:
        """Captures the steps of a smaller size: of the next one if the rows that go on will soon be so few, and of any while steps take long.
        Now the device is busy with what it has been asked for, then it would wait. After that every row has reached its limit and rests, so
        a step more does nothing."""
        if size is None or self._pool is None:
            return
        captured, smaller = self._graphs[self.manner], next_smaller(size, self._num_rows)
        soon = smaller is not None and num_live <= smaller * SOON
        if is_long and size >= MANY_ROWS and self._turn == 0:  # every other batch, so that the host stays ahead
            while smaller is not None and (smaller, smaller) in captured:
                smaller = next_smaller(smaller, self._num_rows)
            soon = True
        if soon and smaller is not None and smaller >= LEAST_AHEAD and (smaller, smaller) not in captured:
            self._step.zero_()
            self._do_step(smaller, smaller)

    def _work(self, size: int) -> None:
        """One step of the first `size` rows."""
        fwd = self._forward_batch(size)
        limits, failed = self._state[LIMITS, :size], self._state[FAILED, :size]
        self._ops.place_tokens(
            fwd.positions, limits, failed, fwd.block_tables, self.table.block_size, fwd.slot_mapping, fwd.seq_lens
        )
        rows = self._state[ROWS, :size]
        if self.manner == GREEDY:
            ids = self._likeliest(fwd)
        else:
            scores = self._scores.get(self.manner.num_top)
            controls, drawn = self._controls[:, :size], self._uniforms[:, :size]
            ids = self._sampler.choose(self._compute(fwd), self.manner, controls, drawn, self._step, rows, scores)
        if self.manner.penalises:
            self._sampler.count(ids, fwd.seq_lens, rows)
        self._ops.take_tokens(
            ids, fwd.seq_lens, fwd.input_ids, fwd.positions, failed, self._tokens[:, :size], self._step
        )

    def _forward_batch(self, size: int) -> ForwardBatch:
        return ForwardBatch(
            input_ids=self._state[IDS, :size],
            positions=self._state[POSITIONS, :size],
            slot_mapping=self._slots[:size],
            query_start_loc=self._starts[: size + 1],
            seq_lens=self._lens[:size],
            block_tables=self._block_tables[:size],
            logits_indices=self._every_row[:size],
            max_query_len=1,
            max_seq_len=self._width * self.table.block_size,
            kv_caches=self._kv_caches,
        )


class _Host:
    """Memory that copies to and from the device go through, of one batch at a time; pinned where the device is not the CPU."""

    def __init__(self, num_rows: int, width: int, block_size: int, max_steps: int, device: torch.device) -> None:
        pinned = device.type != "cpu"

        def make(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, pin_memory=pinned)

        self.state_pinned = make(5, num_rows, dtype=torch.int64)
        self.state = self.state_pinned.numpy()
        self.tables = make(num_rows * width, dtype=torch.int32)
        self.blocks = make(2 * num_rows * (max_steps // block_size + 1), dtype=torch.int64)
        self.tokens = make(max_steps, num_rows, dtype=torch.int32)
        self.uniforms = make(max_steps, num_rows, dtype=torch.float64)
        self.controls = make(NUM_CONTROLS, num_rows, dtype=torch.float64)
        self._scores: dict[int, Scores] = {}

    def scores_for(self, num_top: int) -> Scores:
        """Room for the scores of a batch."""
        if num_top not in self._scores:
            cpu = torch.device("cpu")
            self._scores[num_top] = make_scores(
                len(self.tokens), self.tokens.shape[1], num_top, cpu, self.tokens.is_pinned()
            )
        return self._scores[num_top]
