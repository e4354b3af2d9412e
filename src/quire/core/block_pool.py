"""BlockPool: who holds which KV block. A block is `block_size` consecutive token slots; here it is just its number.

Each block but block 0 is in one of two states:

    held   ref_count > 0   in the block tables of that many sequences
    free   ref_count = 0   in the free list; may still be cached, and then a prefix hit brings it back

    free list   [ not cached … ]  [ cached, longest unused first … ]      allocate takes from the left
"""

from collections.abc import Container, Iterable

from quire.core.free_list import FreeList
from quire.core.prefix_cache import PrefixCache
from quire.core.sequence import Sequence

NULL_BLOCK = 0


class BlockPool:
    """A fixed number of blocks. Every operation costs O(1) a block.

    num_blocks  in all; block 0 is never handed out, as runners let padding write there
    cache       told when a block is about to be overwritten; None without prefix caching
    """

    def __init__(self, num_blocks: int, block_size: int, cache: PrefixCache | None) -> None:
        self._block_size = block_size
        self._cache = cache
        self._ref_counts = [0] * num_blocks
        self._free = FreeList(num_blocks - 1)  # of which block 0 is no part

    @property
    def num_usable(self) -> int:
        """Blocks that can be handed out."""
        return len(self._ref_counts) - 1

    @property
    def num_free(self) -> int:
        """Blocks that no sequence holds, cached ones among them."""
        return len(self._free)

    def num_free_among(self, block_ids: list[int]) -> int:
        """How many of `block_ids` are free, and would no longer be once shared."""
        return sum(1 for block_id in block_ids if not self._ref_counts[block_id])

    def allocate(self, num_blocks: int) -> list[int]:
        """Takes blocks out of the free list, those of least worth first. The caller has checked num_free."""
        if num_blocks > len(self._free):
            raise RuntimeError(f"{num_blocks} KV blocks asked for, {len(self._free)} are free")
        block_ids = self._free.take(num_blocks)
        for block_id in block_ids:
            self._ref_counts[block_id] = 1
            if self._cache is not None:
                self._cache.forget(block_id)
        return block_ids

    def share(self, block_ids: list[int]) -> None:
        """One more sequence holds these cached blocks."""
        for block_id in block_ids:
            if not self._ref_counts[block_id]:
                self._free.remove(block_id)
            self._ref_counts[block_id] += 1

    def free(self, block_ids: list[int]) -> None:
        """A sequence gives up its table. Its tail goes first, so that the beginnings of prompts stay cached longest."""
        ref_counts, free = self._ref_counts, []
        for block_id in reversed(block_ids):
            ref_counts[block_id] -= 1
            if not ref_counts[block_id]:
                free.append(block_id)
        cached: Container[int] = () if self._cache is None else self._cache.block_ids
        self._free.extend([block_id for block_id in free if block_id in cached])
        for block_id in free:
            if block_id not in cached:
                self._free.prepend(block_id)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Proves the pool sound, given all sequences that hold blocks; raises RuntimeError listing what is wrong.

        free + held = usable · ref_count = number of holders · a block in two tables is in the computed part of both ·
        a cached block is full and filed under its hash · block 0 is nobody's. Cost: O(blocks): for tests, debugging.
        """
        sequences = list(sequences)
        problems = self._count_problems(sequences) + self._sharing_problems(sequences)
        if self._cache is not None:
            problems += self._cache.problems()
            if NULL_BLOCK in self._cache:
                problems.append("block 0 is cached")
        if problems:
            raise RuntimeError("KV block pool is unsound: " + "; ".join(problems))

    def _count_problems(self, sequences: list[Sequence]) -> list[str]:
        holders = [0] * len(self._ref_counts)
        for sequence in sequences:
            for block_id in sequence.block_ids:
                holders[block_id] += 1
        found = [
            f"block {block_id} counts {count} holders and has {holders[block_id]}"
            for block_id, count in enumerate(self._ref_counts)
            if count != holders[block_id]
        ]
        unheld = {block_id for block_id in range(1, len(holders)) if not holders[block_id]}
        if unheld != set(self._free):
            found.append(f"the free list is wrong about blocks {sorted(unheld ^ set(self._free))}")
        if holders[NULL_BLOCK]:
            found.append("block 0 is in a block table")
        return found

    def _sharing_problems(self, sequences: list[Sequence]) -> list[str]:
        found = []
        for sequence in sequences:
            num_computed = sequence.num_computed_tokens // self._block_size
            if len(set(sequence.block_ids)) != len(sequence.block_ids):
                found.append(f"sequence {sequence.seq_id} holds a block twice")
            for block_id in sequence.block_ids[num_computed:]:
                if self._ref_counts[block_id] > 1:
                    found.append(f"sequence {sequence.seq_id} can write to shared block {block_id}")
        return found
