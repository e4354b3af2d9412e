"""The line of rates that an engine logs every ten seconds, in the words that users of vLLM know (and monitoring scripts read)."""

import logging
import time
from collections.abc import Callable

from quire.core.batch import Batch
from quire.core.config import SchedulerStats
from quire.core.outputs import EngineOutput

logger = logging.getLogger(__name__)
INTERVAL_S = 10.0


class ThroughputLog:
    """Counts tokens and writes the line when it is due. An engine without work writes nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.restart()

    def restart(self) -> None:
        """Work begins, maybe after a pause, which must not count as time at work."""
        self._since = self._clock()
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0

    def record(self, batch: Batch, outputs: list[EngineOutput], stats: Callable[[], SchedulerStats]) -> None:
        """Notes a step; `stats` is asked only when the line is due."""
        if not batch.decode_steps:
            self._num_prompt_tokens += sum(row.num_new_tokens for row in batch.scheduled if row.num_new_tokens > 1)
        self._num_generated_tokens += sum(len(output.token_ids) for output in outputs)
        elapsed_s = self._clock() - self._since
        if elapsed_s >= INTERVAL_S:
            self._write(elapsed_s, stats())
            self.restart()

    def _write(self, elapsed_s: float, stats: SchedulerStats) -> None:
        hit_rate = stats.prefix_cache_hits / stats.prefix_cache_queries if stats.prefix_cache_queries else 0.0
        logger.info(
            "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %d reqs, "
            "Waiting: %d reqs, GPU KV cache usage: %.1f%%, Prefix cache hit rate: %.1f%%",
            self._num_prompt_tokens / elapsed_s,
            self._num_generated_tokens / elapsed_s,
            stats.running,
            stats.waiting,
            100 * stats.kv_cache_usage,
            100 * hit_rate,
        )
