"""Drives a ModelRunner by hand-made batches: blocks in random order, any split into chunks, prefix reuse, preemption.

Import it as `step_driver`: pytest puts this folder on the path.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quire.config import EngineConfig
from quire.core.batch import Batch, NewSequence, ScheduledSequence, SequenceResult, TokenLogprobs
from quire.core.params import SamplingParams
from quire.platform import select_platform
from quire.runner.model_runner import ModelRunner

BLOCK_SIZE = 16


def load_runner(folder: Path, *, backends: tuple[str, ...] = ("torch",), **changes: object) -> ModelRunner:
    """A small runner on the CPU."""
    config = {
        "model_dir": str(folder), "model_name": "test", "device": "cpu", "dtype": "float32", "max_model_len": 256,
        "block_size": BLOCK_SIZE, "max_num_seqs": 64, "max_num_batched_tokens": 1024, "num_gpu_blocks_override": 1100,
        "backends": backends, **changes,
    }  # fmt: skip
    return ModelRunner.load(EngineConfig(**config), select_platform("cpu"))  # type: ignore[arg-type]


@dataclass
class Line:
    """One sequence that is driven: what it has got so far."""

    seq_id: int
    tokens: list[int]
    num_prompt: int
    params: SamplingParams
    index: int = 0
    eos_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    known: bool = False  # the runner has a row for it
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.num_prompt :]


class Driver:
    """Owns the block numbers and turns "these lines, so many tokens each" into batches."""

    def __init__(self, runner: ModelRunner, seed: int = 0) -> None:
        self.runner = runner
        self.random = random.Random(seed)
        self.free = list(range(1, runner.num_blocks))
        self.random.shuffle(self.free)
        self.removed: list[int] = []
        self.next_id = seed * 1_000_000 + 1

    def line(self, prompt: Sequence[int], params: SamplingParams, **changes: object) -> Line:
        """A new sequence; the runner hears of it when it is first stepped."""
        self.next_id += 1
        return Line(self.next_id, list(prompt), len(prompt), params, **changes)  # type: ignore[arg-type]

    def step(self, plan: Sequence[tuple[Line, int]]) -> list[SequenceResult]:
        """Computes so many tokens of each line, in this order, and keeps what came."""
        added, scheduled = [], []
        for line, count in plan:
            needed = -(-(line.computed + count) // BLOCK_SIZE) - len(line.blocks)
            new = [self.free.pop() for _ in range(needed)]
            if line.known:
                scheduled.append(ScheduledSequence(line.seq_id, count, new))
            else:
                added.append(self._new(line, new))
                scheduled.append(ScheduledSequence(line.seq_id, count))
            line.blocks += new
        results = self.runner.execute(Batch(scheduled, added, self.removed)).results
        self.removed = []
        for (line, count), result in zip(plan, results, strict=True):
            assert result.seq_id == line.seq_id
            _keep(line, count, result)
        return results

    def run(self, line: Line, max_tokens: int, chunk: int = 10_000) -> None:
        """Computes a line alone until it has generated `max_tokens` tokens."""
        while len(line.generated) < max_tokens:
            self.step([(line, min(chunk, len(line.tokens) - line.computed))])

    def preempt(self, line: Line) -> None:
        """Takes everything computed away from a line; it starts over when it is stepped again."""
        self.forget(line)
        line.computed, line.known = 0, False

    def forget(self, line: Line) -> None:
        """The line's blocks go back and the runner will be told."""
        self.free[:0] = line.blocks
        self.random.shuffle(self.free)
        line.blocks = []
        self.removed.append(line.seq_id)

    def share_prefix(self, line: Line, other: Line) -> None:
        """Gives a new line the full blocks of `other` that hold its own first tokens, as a prefix cache would."""
        limit = min(other.computed, len(line.tokens) - 1)
        same = next((i for i in range(limit) if line.tokens[i] != other.tokens[i]), limit)
        line.blocks = other.blocks[: same // BLOCK_SIZE]
        line.computed = len(line.blocks) * BLOCK_SIZE

    def _new(self, line: Line, new_blocks: list[int]) -> NewSequence:
        line.known = True
        return NewSequence(
            line.seq_id, line.index, list(line.tokens), line.num_prompt, line.computed, line.blocks + new_blocks,
            line.params, line.eos_token_ids, line.bad_words,
        )  # fmt: skip


def _keep(line: Line, count: int, result: SequenceResult) -> None:
    line.computed += count
    line.tokens += result.token_ids
    line.logprobs += result.logprobs or []
    line.prompt_logprobs += result.prompt_logprobs or []
    if result.error is not None:
        line.errors.append(result.error)
