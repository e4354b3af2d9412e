"""MixedSteps: single steps of any kind, with prompts or without, whose tokens are chosen on the device and not waited for."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.ops.sample_tokens import NUM_CONTROLS, Scores
from quire.platform.base import Platform
from quire.runner.device_sampler import DeviceSampler, make_scores, send_scores
from quire.runner.flight import BATCHES_UNDER_WAY, NO_TOKEN, NOT_FINITE, Flight
from quire.runner.philox import uniforms
from quire.runner.prepare import StepInputs, prepare
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import ToDevice

Forward = Callable[[StepInputs, Callable[[Tensor], None]], tuple[Tensor, Tensor]]


class MixedSteps:
    """Asks the device for steps.

    forward   (step, what to do to its input ids [T] on the device) -> hidden states, logits [S, V]; waits for nothing
    last_ids  as DecodeLoop's
    """

    def __init__(
        self,
        platform: Platform,
        forward: Forward,
        sampler: DeviceSampler,
        table: SequenceTable,
        sampling: SamplingTable,
        last_ids: Tensor,
    ) -> None:
        self.table = table
        self.sampling = sampling
        self._platform = platform
        self._forward = forward
        self._sampler = sampler
        self._last_ids = last_ids
        device = platform.device()
        self._num_rows, self._pinned = len(table.lives), device.type != "cpu"
        room = (NUM_CONTROLS + 4) * (self._num_rows + 2)  # controls, and an index or a number a row
        self._to_device = ToDevice(device, 2 * BATCHES_UNDER_WAY, room)  # used twice a step
        self._tokens = [self._host(1, self._num_rows) for _ in range(BATCHES_UNDER_WAY)]
        self._scores: list[dict[int, Scores]] = [{} for _ in range(BATCHES_UNDER_WAY)]
        self._turn = 0
        self._first_step = torch.zeros(1, dtype=torch.int64, device=device)

    def start(self, batch: Batch) -> Flight:
        """Asks the device for the step of `batch`, of which the table has heard; waits for nothing."""
        step = prepare(self.table, batch)
        firsts = self.table.num_computed[step.rows]
        self.table.num_computed[step.rows] += step.num_new
        places = np.flatnonzero(step.samples)
        self._sampler.prepare(step.rows[places], np.ones(len(places), dtype=np.int64))
        hidden, logits = self._forward(step, lambda ids: self._fill_in(ids, step))
        tokens, scores = self._choose(step, places, hidden, logits)
        self._turn = (self._turn + 1) % BATCHES_UNDER_WAY
        host = self._tokens[self._turn]
        host[0, : len(tokens)].copy_(tokens, non_blocking=True)
        lives, num_logprobs = self.table.lives[step.rows], self.sampling.num_logprobs[step.rows]
        host_scores = None if scores is None else self._take_scores(scores)
        return Flight(batch, step.rows, lives, firsts, num_logprobs, host, host_scores, self._platform.mark())

    def _fill_in(self, input_ids: Tensor, step: StepInputs) -> None:
        """Puts the tokens that steps under way choose where this step computes them."""
        if step.unknown.any():
            places, rows = self._to_device.send(step.query_start_loc[:-1][step.unknown], step.rows[step.unknown])
            input_ids.index_copy_(0, places, self._last_ids[rows].clamp_(min=0))

    def _choose(
        self, step: StepInputs, places: NDArray[np.int64], hidden: Tensor, logits: Tensor
    ) -> tuple[Tensor, Scores | None]:
        """[B] int32: a token, or why there is none; noted in last_ids too. And [1, B, W] scores, where any are asked for."""
        rows, count = step.rows[places], len(step.rows)
        numbers = uniforms(self.sampling.seed[rows], self.sampling.index[rows], step.seq_lens[places])
        loc, index, table_rows, controls, drawn = self._to_device.send(
            step.hidden_start_loc, places, rows, self.sampling.controls(rows), numbers[None]
        )
        device = hidden.device
        tokens, scores = torch.full((count,), NO_TOKEN, dtype=torch.int64, device=device), None
        if len(places):
            manner = self._sampler.manner(rows)
            if manner.num_top >= 0:
                scores = make_scores(1, len(places), manner.num_top, device)
            ids = self._sampler.choose(logits, manner, controls, drawn, self._first_step, table_rows, scores)
            tokens.index_copy_(0, index, ids)
            if manner.penalises:
                self._sampler.count(ids, torch.ones_like(ids, dtype=torch.int32), table_rows)
            if scores is not None and len(places) < count:
                wide = make_scores(1, count, manner.num_top, device)
                scores = wide[0].index_copy_(1, index, scores[0]), wide[1].index_copy_(1, index, scores[1])
        tokens = tokens.masked_fill(_not_finite(hidden, loc), NOT_FINITE)
        self._last_ids.index_copy_(0, table_rows, tokens[index])
        return tokens.int(), scores

    def _take_scores(self, scores: Scores) -> Scores:
        """[1, B, W] on the host."""
        made, num_top = self._scores[self._turn], scores[0].shape[2] - 1
        if num_top not in made:
            made[num_top] = make_scores(1, self._num_rows, num_top, torch.device("cpu"), self._pinned)
        return send_scores(scores, made[num_top], 1)

    def _host(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.int32, pin_memory=self._pinned)


def _not_finite(hidden: Tensor, start_loc: Tensor) -> Tensor:
    """[B] bool: whether one of the sequence's rows of hidden states, which begin at start_loc [B+1], is not finite."""
    sums = hidden.sum(-1, dtype=torch.float32)  # NaN and infinities survive a sum
    strange = (sums - sums).ne(0)
    if len(hidden) == len(start_loc) - 1:  # a row each
        return strange
    counts = torch.nn.functional.pad(strange.cumsum(0), (1, 0))[start_loc]
    return counts[1:] > counts[:-1]
