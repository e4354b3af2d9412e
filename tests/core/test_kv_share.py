"""How much of the KV cache holds tokens of running requests while more wait than fit."""

import statistics
import sys
from pathlib import Path

from quire.core.batch import SequenceResult, StepResult
from quire.core.config import SchedulerConfig
from quire.core.params import SamplingParams
from quire.core.request import Request
from quire.core.scheduler import Scheduler

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import shapes  # noqa: E402

NUM_BLOCKS = 2048  # of 16 tokens: 70 or so of these requests fit


def shares_at_full_load() -> list[float]:
    """Of each step while requests wait: tokens that running sequences have in the cache, over the tokens that it could hold."""
    config = SchedulerConfig(NUM_BLOCKS, 16, max_num_seqs=1024, max_num_batched_tokens=8192, max_model_len=4096)
    scheduler = Scheduler(config)
    known: dict[int, list[int]] = {}  # sequence -> [tokens known, tokens computed]
    for index, (num_in, num_out) in enumerate(zip(*shapes.chat_lengths(500), strict=True)):
        tokens = [index * 7 % 97, *range(index, index + num_in - 1)]  # no two begin alike
        scheduler.add(Request(str(index), tokens, SamplingParams(max_tokens=num_out, ignore_eos=True), ()))
    found = []
    while scheduler.has_work():
        batch = scheduler.schedule()
        for seq_id in batch.removed:
            del known[seq_id]
        for new in batch.added:
            known[new.seq_id] = [len(new.token_ids), new.num_computed_tokens]
        results = []
        for row in batch.scheduled:
            counts = known[row.seq_id]
            counts[1] += row.num_new_tokens
            sampled = counts[1] == counts[0]
            counts[0] += sampled
            results.append(SequenceResult(row.seq_id, [1] if sampled else []))
        waits = scheduler.stats().waiting
        if waits:
            held = sum(computed for _, computed in known.values())
            found.append(held / ((NUM_BLOCKS - 1) * config.block_size))
        scheduler.commit(batch, StepResult(results))
    return found


def test_96_percent_of_the_cache_holds_tokens_at_full_load():
    """Chat-shaped requests, 230 tokens in and 210 out on average; the last block of a sequence is half empty on average."""
    shares = shares_at_full_load()
    assert len(shares) > 500
    assert statistics.median(shares) >= 0.96
