"""A runner without a model: the next token follows from all tokens before it, read back from a paged cache of tokens.

Because it reads every token through the block table, a wrong block, a lost row or a neighbour's write gives other tokens or a
RuntimeError, so tests on top of it see every mistake of scheduler and engine.
"""

import zlib
from collections.abc import Callable

from quire.config import EngineConfig
from quire.core.batch import Batch, LogprobColumns, NewSequence, SequenceResult, StepResult, TokenLogprobs
from quire.core.params import SamplingParams

VOCAB = 97


def next_token(token_ids: list[int], seed: int, index: int) -> int:
    return zlib.crc32(bytes(str((token_ids, seed, index)), "ascii")) % VOCAB


def expected(prompt: list[int], params: SamplingParams, index: int = 0, eos: tuple[int, ...] = ()) -> list[int]:
    """What a sequence must give, whatever runs beside it."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < params.max_tokens:
        tokens.append(next_token(tokens, params.seed, index))
        if tokens[-1] in (*eos, *params.stop_token_ids):
            break
    return tokens[len(prompt) :]


class FakeRunner:
    """fails: called with (NewSequence, tokens known) of each scheduled row, after part of the step was done; may raise."""

    def __init__(
        self, config: EngineConfig, num_blocks: int = 64, fails: Callable[[list[NewSequence]], None] | None = None
    ):
        self.num_blocks = num_blocks
        self.max_decode_steps, self.decode_sizes = 0, ()
        self.block_size = config.block_size
        self.max_num_seqs = config.max_num_seqs
        self.slots: dict[int, int] = {}
        self.rows: dict[int, NewSequence] = {}
        self.fails = fails
        self.num_steps = 0
        self.closed = False

    def execute(self, batch: Batch) -> StepResult:
        self.num_steps += 1
        for seq_id in batch.removed:
            self.rows.pop(seq_id, None)
        for new in batch.added:
            if new.seq_id in self.rows or len(self.rows) >= self.max_num_seqs:
                raise RuntimeError("row is there already, or all are taken")
            self.rows[new.seq_id] = NewSequence(
                new.seq_id, new.index, list(new.token_ids), new.num_prompt_tokens, new.num_computed_tokens,
                list(new.block_ids), new.params, new.eos_token_ids, new.bad_words_token_ids,
            )  # fmt: skip
        results = []
        for scheduled in batch.scheduled:
            self.rows[scheduled.seq_id].block_ids.extend(scheduled.new_block_ids)
            results.append(self._compute(scheduled.seq_id, scheduled.num_new_tokens))
            if self.fails is not None and scheduled is batch.scheduled[len(batch.scheduled) // 2]:
                self.fails([self.rows[s.seq_id] for s in batch.scheduled])
        return StepResult(results)

    def _compute(self, seq_id: int, num_new: int) -> SequenceResult:
        row = self.rows[seq_id]
        begin, end = row.num_computed_tokens, row.num_computed_tokens + num_new
        for position in range(begin, end):
            self.slots[self._slot(row, position)] = row.token_ids[position]
        object.__setattr__(row, "num_computed_tokens", end)
        seen = [self.slots[self._slot(row, position)] for position in range(end)]
        if seen != row.token_ids[:end]:
            raise RuntimeError(f"sequence {seq_id} reads foreign tokens")
        if end < len(row.token_ids):
            return SequenceResult(seq_id, [])
        token = next_token(seen, row.params.seed, row.index)
        row.token_ids.append(token)
        told = LogprobColumns.of([TokenLogprobs([token], [-1.0], 1)])
        logprobs = None if row.params.logprobs is None else told
        return SequenceResult(seq_id, [token], logprobs)

    def _slot(self, row: NewSequence, position: int) -> int:
        block_id = row.block_ids[position // self.block_size]
        if not 0 < block_id < self.num_blocks:
            raise RuntimeError(f"block {block_id} is nobody's")
        return block_id * self.block_size + position % self.block_size

    def close(self) -> None:
        self.closed = True


class FakePlatform:
    """lost: every question to the device fails."""

    def __init__(self) -> None:
        self.lost = False

    def synchronize(self) -> None:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def empty_cache(self) -> None:
        return
