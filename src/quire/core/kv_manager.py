"""KVManager: the blocks of sequences. Finds cached ones, takes free ones, files full ones, gives them back.

It knows neither queue nor order: whether a sequence may have blocks, and whose are taken away, is the scheduler's decision.
"""

from array import array
from collections.abc import Iterable

from quire.core.block_pool import BlockPool
from quire.core.config import SchedulerConfig
from quire.core.prefix_cache import CachedPrefix, Key, PrefixCache
from quire.core.request import Request
from quire.core.sequence import Sequence


class KVManager:
    """Block tables over one pool.

    cache  None without prefix caching
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self.cache = PrefixCache(config.block_size) if config.enable_prefix_caching else None
        self.pool = BlockPool(config.num_blocks, config.block_size, self.cache)

    def match(self, sequence: Sequence) -> list[CachedPrefix]:
        """Cached blocks that hold the beginning of the sequence."""
        if self.cache is None or sequence.prompt_logprobs is not None:
            return []  # prompt logprobs need every position computed
        # The last token is computed in any case: the logits come of it.
        max_blocks = (len(sequence.token_ids) - 1) // self._config.block_size
        return self.cache.match(sequence.prefix.root, sequence.token_ids, max_blocks)

    def knows_first_block(self, request: Request) -> bool:
        """Whether the first block of its prompt is cached: then most of it often is."""
        size = self._config.block_size
        first = array("I", request.prompt_token_ids[:size])
        return self.cache is not None and bool(self.cache.match((request.cache_salt,), first, len(first) // size))

    def begun(self, sequences: Iterable[Sequence]) -> set[Key]:
        """Keys of the blocks that come first in what steps under way compute of these sequences' prompts."""
        cache = self.cache
        if cache is None:
            return set()
        prompts = (s for s in sequences if s.num_confirmed_tokens < min(s.num_computed_tokens, len(s.token_ids) - 1))
        return {cache.key(s.prefix.parent, s.token_ids, s.prefix.num_blocks) for s in prompts}

    def is_begun(self, sequence: Sequence, found: list[CachedPrefix], begun: set[Key]) -> bool:
        """Whether the block that the sequence would compute first, after those that `match` found, is among `begun`."""
        index = len(found)
        is_whole = index < (len(sequence.token_ids) - 1) // self._config.block_size
        if self.cache is None or not begun or not is_whole or sequence.prompt_logprobs is not None:
            return False
        parent = found[-1].prefix_id if found else sequence.prefix.root
        return self.cache.key(parent, sequence.token_ids, index) in begun

    def admit(self, sequence: Sequence, found: list[CachedPrefix], num_tokens: int, num_spare: int) -> bool:
        """Gives the sequence `found`, and blocks for the rest of `num_tokens`. False, and nothing is done, if that would leave
        less than `num_spare` blocks free."""
        block_ids = [entry.block_id for entry in found]
        num_new = self._config.blocks_for(num_tokens) - len(block_ids)
        if self.pool.num_free - self.pool.num_free_among(block_ids) < num_new + num_spare:
            return False
        self.pool.share(block_ids)
        sequence.block_ids = block_ids + self.pool.allocate(num_new)
        sequence.num_computed_tokens = sequence.num_confirmed_tokens = len(found) * self._config.block_size
        sequence.prefix.advance(found)
        if sequence.num_cached_tokens is None:
            self._count(sequence)
        return True

    def grow(self, sequence: Sequence, num_new_tokens: int) -> list[int] | None:
        """Blocks for the next tokens, put at the end of its table. None, and nothing is done, if too few are free."""
        num_blocks = self._config.blocks_for(sequence.num_computed_tokens + num_new_tokens) - len(sequence.block_ids)
        if num_blocks > self.pool.num_free:
            return None
        new_block_ids = self.pool.allocate(max(num_blocks, 0))
        sequence.block_ids += new_block_ids
        return new_block_ids

    def grow_all(self, more: list[tuple[Sequence, int]]) -> list[list[int]] | None:
        """`grow` for each sequence and count of tokens. None, and nothing is done, if too few are free for all together."""
        blocks_for = self._config.blocks_for
        needs = [blocks_for(s.num_computed_tokens + count) - len(s.block_ids) for s, count in more]
        if sum(need for need in needs if need > 0) > self.pool.num_free:
            return None
        return [self.grow(s, count) or [] for s, count in more]

    def file(self, sequence: Sequence) -> None:
        """Files the full blocks of the sequence in the prefix cache."""
        if self.cache is None:
            return
        # The last known token is left out: a sequence that has ended by it did not compute it in every case.
        num_full = min(sequence.num_confirmed_tokens, len(sequence.token_ids) - 1) // self._config.block_size
        if num_full > sequence.prefix.num_blocks:
            self.cache.file(sequence.prefix, sequence.token_ids, sequence.block_ids, num_full)

    def distrust(self, sequence: Sequence) -> None:
        """Nothing that the sequence holds is found again, not even what it shares: that may be the cause of its failure."""
        if self.cache is not None:
            for block_id in sequence.block_ids:
                self.cache.forget(block_id)

    def _count(self, sequence: Sequence) -> None:
        """Notes what a sequence found when first admitted."""
        sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        if self.cache is not None and sequence.prompt_logprobs is None:
            self.cache.count(len(sequence.token_ids), sequence.num_computed_tokens)
