"""MixedSteps: single steps of any kind, with prompts or without, whose tokens are chosen on the device and not waited for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quire.core.batch import Batch
from quire.ops.registry import Ops
from quire.platform.base import Platform
from quire.runner.flight import BATCHES_UNDER_WAY, NO_TOKEN, NOT_FINITE, Flight
from quire.runner.philox import uniforms
from quire.runner.prepare import StepInputs, prepare
from quire.runner.sampling_table import SamplingTable
from quire.runner.sequence_table import SequenceTable
from quire.runner.transfer import ToDevice

Forward = Callable[[StepInputs, Callable[[Tensor], None]], tuple[Tensor, Tensor]]


class MixedSteps:
    """Asks the device for steps.

    forward   (step, what to do to its input ids [T] on the device) -> hidden states [T, H], logits [S, V]; waits for nothing
    last_ids  as DecodeLoop's
    """

    def __init__(
        self,
        platform: Platform,
        forward: Forward,
        ops: Ops,
        table: SequenceTable,
        sampling: SamplingTable,
        last_ids: Tensor,
    ) -> None:
        self.table = table
        self.sampling = sampling
        self._platform = platform
        self._forward = forward
        self._ops = ops
        self._last_ids = last_ids
        device = platform.device()
        self._to_device = ToDevice(device, 2 * BATCHES_UNDER_WAY)  # used twice a step
        pinned = device.type != "cpu"
        num_rows = len(table.lives)
        self._tokens = [
            torch.zeros(1, num_rows, dtype=torch.int32, pin_memory=pinned) for _ in range(BATCHES_UNDER_WAY)
        ]
        self._turn = 0
        self._first_step = torch.zeros(1, dtype=torch.int64, device=device)

    def start(self, batch: Batch) -> Flight:
        """Asks the device for the step of `batch`, of which the table has heard; waits for nothing."""
        step = prepare(self.table, batch)
        firsts = self.table.num_computed[step.rows]
        self.table.num_computed[step.rows] += step.num_new
        hidden, logits = self._forward(step, lambda ids: self._fill_in(ids, step))
        tokens = self._choose(step, hidden, logits)
        self._turn = (self._turn + 1) % BATCHES_UNDER_WAY
        host = self._tokens[self._turn]
        host[0, : len(tokens)].copy_(tokens, non_blocking=True)
        return Flight(batch, step.rows, self.table.lives[step.rows], firsts, host, self._platform.mark())

    def _fill_in(self, input_ids: Tensor, step: StepInputs) -> None:
        """Puts the tokens that steps under way choose where this step computes them."""
        if step.unknown.any():
            places, rows = self._to_device.send(step.query_start_loc[:-1][step.unknown], step.rows[step.unknown])
            input_ids.index_copy_(0, places, self._last_ids[rows].clamp_(min=0))

    def _choose(self, step: StepInputs, hidden: Tensor, logits: Tensor) -> Tensor:
        """[B] int32: a token, or why there is none; noted in last_ids too."""
        places = np.flatnonzero(step.samples)
        rows = step.rows[places]
        numbers = uniforms(self.sampling.seed[rows], self.sampling.index[rows], step.seq_lens[places])
        loc, index, table_rows, temperatures, drawn = self._to_device.send(
            step.query_start_loc, places, rows, self.sampling.temperature[rows], numbers[None]
        )
        tokens = torch.full((len(step.rows),), NO_TOKEN, dtype=torch.int64, device=hidden.device)
        if len(places):
            draws = bool((self.sampling.temperature[rows] > 0).any())
            ids = (
                self._ops.draw_tokens(logits, temperatures, drawn, self._first_step)
                if draws
                else self._ops.greedy(logits)
            )
            tokens.index_copy_(0, index, ids)
        tokens = tokens.masked_fill(_not_finite(hidden, loc), NOT_FINITE)
        self._last_ids.index_copy_(0, table_rows, tokens[index])
        return tokens.int()


def _not_finite(hidden: Tensor, query_start_loc: Tensor) -> Tensor:
    """[B] bool: whether a hidden state [T, H] of the sequence is not finite."""
    strange = ~hidden.sum(-1, dtype=torch.float32).isfinite()  # NaN and infinities survive a sum
    counts = torch.nn.functional.pad(strange.cumsum(0), (1, 0))[query_start_loc]
    return counts[1:] > counts[:-1]
