"""SchedulerConfig: the numbers that bound the scheduler. SchedulerStats: the numbers it shows."""

from bisect import bisect_left
from dataclasses import dataclass

from quire.errors import ConfigError

POLICIES = ("fcfs", "priority")


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of one scheduler. All token counts are exact; nothing is rounded.

    num_blocks               KV blocks in all, block 0 among them; block 0 takes padding writes and is never handed out
    block_size               tokens a block
    max_num_seqs             sequences computed at once
    max_num_batched_tokens   tokens computed in one step
    max_model_len            longest prompt plus output, in tokens
    policy                   "fcfs": order of arrival; "priority": lower Request.priority first, then arrival
    enable_chunked_prefill   split long prompts over steps; without it a prompt is computed whole, alone if need be
    max_num_queued_reqs      requests that may wait beyond those for which a seat is free; None = no limit
    max_num_tokens_with_decoding  tokens computed in a step that decodes too: longer steps would keep those sequences waiting
    max_decode_steps         decoding steps that the runner does in a row without a word from the host; 0 = it cannot
    decode_sizes             rows that it pads decoding steps to, rising; with more it pads to nothing
    Raises ConfigError naming the flag.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: str = "fcfs"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_num_queued_reqs: int | None = None
    max_num_tokens_with_decoding: int = 2**31
    max_decode_steps: int = 0
    decode_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_tokens_with_decoding",
            "max_model_len",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.num_blocks < 2:
            raise ConfigError(
                f"{self.num_blocks} KV blocks: at least 2 are needed, as block 0 is kept for padding; raise"
                " --gpu-memory-utilization, --kv-cache-memory-bytes or --num-gpu-blocks-override"
            )
        if self.policy not in POLICIES:
            raise ConfigError(f"--scheduling-policy must be one of {', '.join(POLICIES)}, not {self.policy!r}")
        if self.max_num_queued_reqs is not None and self.max_num_queued_reqs < 0:
            raise ConfigError(f"--max-num-queued-reqs must be at least 0, not {self.max_num_queued_reqs}")

    def tokens_beside(self, num_decoding: int) -> int:
        """Tokens of prompts that a step may compute beside so many sequences that decode; some in any case, or prompts would wait for ever."""
        return max(self.max_num_tokens_with_decoding - num_decoding, self.max_num_tokens_with_decoding // 4, 1)

    def padded_rows(self, num_rows: int) -> int:
        """Rows that a decoding step of `num_rows` has in truth."""
        index = bisect_left(self.decode_sizes, num_rows)
        return self.decode_sizes[index] if index < len(self.decode_sizes) else num_rows

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True)
class SchedulerStats:
    """One look at the scheduler. Counters (num_, prefix_cache_) only grow; the others say how things stand now.

    running, waiting        sequences; a preempted one waits, and so does one held back for its sibling's prompt
    kv_cache_usage          share of the blocks that running sequences hold, 0..1; blocks merely cached count as free
    prefix_cache_queries    tokens looked up in the prefix cache when sequences were first admitted
    prefix_cache_hits       of these, tokens found
    num_preemptions         times that a sequence lost its blocks
    num_step_tokens         tokens computed by the latest step
    """

    running: int
    waiting: int
    kv_cache_usage: float
    prefix_cache_queries: int
    prefix_cache_hits: int
    num_preemptions: int
    num_step_tokens: int
