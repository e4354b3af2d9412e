"""Sampler: logits to tokens. Every row's result depends on that row alone, whatever else is in the batch.

Order, as in vLLM: log-probabilities of the raw logits are kept; allowed_token_ids, bad words, min_tokens, logit_bias; grammar; budget
for thinking; penalties; the most likely token where temperature is 0; else temperature, min_p, top_k, top_p and a draw.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import TokenLogprobs
from quire.runner.draw import Controls, draw
from quire.runner.flight import ALL_FORBIDDEN, NOT_FINITE
from quire.runner.grammars import Grammars
from quire.runner.logit_edits import apply_edits, apply_penalties
from quire.runner.logprobs import LogprobTensors, gather_logprobs, to_entries
from quire.runner.memory_plan import SAMPLER_WORKSPACE_BYTES
from quire.runner.philox import uniforms
from quire.runner.sampling_table import NO_LOGPROBS, SamplingTable
from quire.runner.sequence_table import Rows, SequenceTable
from quire.runner.thinking import end_thinking
from quire.runner.transfer import Arrays, OneCopy

WORKSPACE_BYTES_PER_LOGIT = 48  # the hungriest of draw, penalties and logprobs, with its copies


@dataclass(frozen=True)
class Sampled:
    """Results on their way from the device: numbers of the OneCopy's parts.

    slices  (first row, end row) of each slice that was sampled at once; token_ids one part each, logprobs five parts or none
    """

    slices: list[tuple[int, int]]
    token_ids: list[int]
    logprobs: list[tuple[int, ...] | None]


class Sampler:
    """Samples one token a row from logits, with the parameters in the tables.

    greedy  the operator: most likely token of each row, NOT_FINITE where the row is not
    """

    def __init__(
        self,
        table: SequenceTable,
        sampling: SamplingTable,
        vocab_size: int,
        greedy: Callable[[Tensor], Tensor],
        grammars: Grammars,
    ) -> None:
        self.table = table
        self.grammars = grammars
        self.sampling = sampling
        self.greedy = greedy
        self.slice_rows = max(1, SAMPLER_WORKSPACE_BYTES // (WORKSPACE_BYTES_PER_LOGIT * vocab_size))

    def sample(self, logits: Tensor, rows: Rows, out: OneCopy) -> Sampled:
        """Samples from logits [S, V] of the sequences `rows` [S]; results go to `out`, in slices of bounded workspace.

        Rows that all take the most likely token need no fp32 copy and no workspace.
        """
        if self._plain(rows):
            return Sampled([(0, len(rows))], [out.add(self.greedy(logits).int())], [None])
        sampled = Sampled([], [], [])
        for first in range(0, len(rows), self.slice_rows):
            part = slice(first, min(first + self.slice_rows, len(rows)))
            raw, part_rows = logits[part].float(), rows[part]
            ids = self._choose(raw, part_rows)
            sampled.slices.append((first, part.stop))
            sampled.token_ids.append(out.add(ids.int()))
            sampled.logprobs.append(self._logprobs(raw, ids, part_rows, out))
        return sampled

    def token_ids(self, sampled: Sampled, arrays: Arrays) -> NDArray[np.int64]:
        """[S] tokens, or NOT_FINITE or ALL_FORBIDDEN."""
        parts = [arrays[part] for part in sampled.token_ids]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def logprobs(self, sampled: Sampled, rows: Rows, arrays: Arrays) -> list[TokenLogprobs | None]:
        """One entry a row that asked for log-probabilities, None for the others."""
        entries: list[TokenLogprobs | None] = []
        counts = self.sampling.num_logprobs[rows]
        for (first, end), ids, parts in zip(sampled.slices, sampled.token_ids, sampled.logprobs, strict=True):
            if parts is None:
                entries += [None] * (end - first)
                continue
            wanted = np.flatnonzero(counts[first:end] != NO_LOGPROBS)
            asked = counts[first:end][wanted].tolist()
            found = iter(to_entries(arrays[ids][wanted], [arrays[part] for part in parts], asked))
            entries += [next(found) if count != NO_LOGPROBS else None for count in counts[first:end].tolist()]
        return entries

    def _plain(self, rows: Rows) -> bool:
        """Whether all rows take the most likely token and want nothing else: no workspace is needed."""
        s = self.sampling
        random = s.temperature[rows] > 0
        return not (random | s.edits[rows] | s.penalised(rows) | (s.num_logprobs[rows] != NO_LOGPROBS)).any()

    def _choose(self, raw: Tensor, rows: Rows) -> Tensor:
        """Token ids [n] int64, negative where the row has none."""
        finite = raw.sum(-1).isfinite()  # NaN and infinities survive a sum
        logits = self._processed(raw, rows)
        ids = logits.argmax(-1)
        random = np.flatnonzero(self.sampling.temperature[rows] > 0)
        if len(random) == len(rows):
            ids = self._draw(logits, rows)
        elif len(random):
            index = torch.from_numpy(random).to(raw.device)
            ids[index] = self._draw(logits[index], rows[random])
        if logits is not raw:
            ids = ids.masked_fill(logits.amax(-1) == float("-inf"), ALL_FORBIDDEN)
        return ids.masked_fill(~finite, NOT_FINITE)

    def _processed(self, raw: Tensor, rows: Rows) -> Tensor:
        """Logits after the edits and penalties; `raw` itself when no row has any."""
        logits = raw
        if self.sampling.edits[rows].any():
            logits = raw.clone()
            apply_edits(logits, rows, self.table, self.sampling)
            self.grammars.constrain(logits, rows, self.table)
            end_thinking(logits, rows, self.table, self.grammars.may_follow)
        penalised = np.flatnonzero(self.sampling.penalised(rows))
        if len(penalised):
            index = torch.from_numpy(penalised).to(raw.device)
            logits = raw.clone() if logits is raw else logits
            logits[index] = apply_penalties(logits[index], rows[penalised], self.table, self.sampling)
        return logits

    def _draw(self, logits: Tensor, rows: Rows) -> Tensor:
        s = self.sampling
        uniform = uniforms(s.seed[rows], s.index[rows], self.table.num_tokens[rows])
        host = np.stack((s.temperature[rows], s.top_k[rows], s.top_p[rows], s.min_p[rows], uniform))
        filtered = bool(((host[1] > 0) | (host[2] < 1.0) | (host[3] > 0)).any())
        return draw(logits, Controls(filtered, *torch.from_numpy(host).to(logits.device)))

    def _logprobs(self, raw: Tensor, ids: Tensor, rows: Rows, out: OneCopy) -> tuple[int, ...] | None:
        counts = self.sampling.num_logprobs[rows]
        wanted = np.flatnonzero(counts != NO_LOGPROBS)
        if not len(wanted):
            return None
        index = torch.from_numpy(wanted).to(raw.device)
        tensors = gather_logprobs(raw[index], ids[index].clamp(min=0), largest_top(counts[wanted], raw.shape[1]))
        return send(tensors, out)


def largest_top(counts: NDArray[np.int64], vocab_size: int) -> int:
    """Largest number of top log-probabilities that any of `counts` asks for; -1 asks for all."""
    return vocab_size if (counts < 0).any() else min(int(counts.max()), vocab_size)


def send(tensors: LogprobTensors, out: OneCopy) -> tuple[int, ...]:
    """Adds the tensors to the copy, in the order that to_entries takes them."""
    return out.add(tensors.ranks), out.add(tensors.chosen), out.add(tensors.top_ids), out.add(tensors.top)
