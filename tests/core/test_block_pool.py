"""BlockPool: order of reuse, sharing, and a check() that notices each kind of damage."""

from array import array
from collections.abc import Callable

import pytest

from quire.core.block_pool import BlockPool
from quire.core.params import SamplingParams
from quire.core.prefix_cache import PrefixCache, PrefixChain
from quire.core.request import Request
from quire.core.sequence import Sequence
from quire.core.stop import StopRule

SIZE = 2


def make(num_blocks: int = 6) -> tuple[BlockPool, PrefixCache]:
    cache = PrefixCache(SIZE)
    return BlockPool(num_blocks, SIZE, cache), cache


def holder(block_ids: list[int], num_computed: int = 0, seq_id: int = 0) -> Sequence:
    request = Request("r", [1], SamplingParams())
    sequence = Sequence(seq_id, 0, request, StopRule(request, 100), PrefixChain(()))
    sequence.block_ids, sequence.num_computed_tokens = block_ids, num_computed
    return sequence


def filed(cache: PrefixCache, block_ids: list[int], token_ids: list[int]) -> PrefixChain:
    chain = PrefixChain(("",))
    cache.file(chain, array("I", token_ids), block_ids, len(token_ids) // SIZE)
    return chain


def test_block_0_is_never_handed_out() -> None:
    pool, _ = make(6)
    assert pool.num_usable == pool.num_free == 5
    assert sorted(pool.allocate(5)) == [1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="1 KV blocks asked for, 0 are free"):
        pool.allocate(1)


def test_uncached_blocks_are_reused_before_cached_ones_and_tails_before_heads() -> None:
    pool, cache = make(6)
    table = pool.allocate(4)
    filed(cache, table[:3], [1, 2, 3, 4, 5, 6])
    pool.free(table)
    assert pool.allocate(5) == [table[3], 5, table[2], table[1], table[0]]


def test_least_recently_freed_prefix_is_evicted_first() -> None:
    pool, cache = make(3)
    old, new = pool.allocate(1), pool.allocate(1)
    filed(cache, old, [1, 2])
    filed(cache, new, [3, 4])
    pool.free(old)
    pool.free(new)
    assert pool.allocate(1) == old
    assert old[0] not in cache and new[0] in cache


def test_a_shared_block_is_free_only_when_its_last_holder_leaves() -> None:
    pool, cache = make(4)
    table = pool.allocate(1)
    filed(cache, table, [1, 2])
    pool.share(table)
    assert pool.num_free_among(table) == 0
    pool.free(table)
    assert pool.num_free == 2
    pool.free(table)
    assert pool.num_free == 3 and pool.num_free_among(table) == 1
    pool.share(table)  # a hit brings a free block back
    assert pool.num_free == 2 and table[0] in cache
    pool.check([holder(table, SIZE)])


def test_without_a_cache_a_freed_block_is_the_next_to_be_used() -> None:
    pool = BlockPool(5, SIZE, None)
    table = pool.allocate(2)
    pool.free(table)
    assert pool.allocate(1) == [table[0]]


def leak(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    a.block_ids = a.block_ids[:-1]


def double_hold(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    b.block_ids = b.block_ids + a.block_ids[-1:]


def free_though_held(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    pool._free.extend(a.block_ids[:1])


def lost_from_free_list(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    pool._free.take(1)


def writable_and_shared(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    pool.share(a.block_ids[-1:])
    b.block_ids = b.block_ids + a.block_ids[-1:]


def twice_in_a_table(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    pool.share(a.block_ids[:1])
    a.block_ids = a.block_ids + a.block_ids[:1]
    a.num_computed_tokens = 100


def null_block_held(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    pool._ref_counts[0] = 1
    a.block_ids = [0, *a.block_ids]


def null_block_cached(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    filed(cache, [0], [7, 7])


def cached_but_not_full(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    entry = cache._by_block[a.block_ids[0]]
    short = entry._replace(key=(entry.key[0], entry.key[1][:-1]))
    cache._by_block[a.block_ids[0]] = cache._by_key[short.key] = short
    del cache._by_key[entry.key]


def cached_under_another_key(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    entry = cache._by_key.pop(cache._by_block[a.block_ids[0]].key)
    cache._by_key[entry.key[0], b"other"] = entry


def cached_as_another_block(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    entry = cache._by_block.pop(a.block_ids[0])
    cache._by_block[b.block_ids[0]] = entry


def indexes_differ(pool: BlockPool, cache: PrefixCache, a: Sequence, b: Sequence) -> None:
    cache._by_key.clear()


DAMAGES = [
    (leak, "counts 1 holders and has 0"), (double_hold, "counts 1 holders and has 2"), (free_though_held, "free list is wrong"),
    (lost_from_free_list, "free list is wrong"), (writable_and_shared, "can write to shared block"),
    (twice_in_a_table, "holds a block twice"), (null_block_held, "block 0 is in a block table"),
    (null_block_cached, "block 0 is cached"), (cached_but_not_full, "cached but not full"),
    (cached_under_another_key, "a key that is not its own"), (cached_as_another_block, "is filed as block"),
    (indexes_differ, "two indexes"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_check_notices(damage: Callable[..., None], message: str) -> None:
    pool, cache = make(8)
    a, b = holder(pool.allocate(2), SIZE), holder(pool.allocate(2), seq_id=1)
    filed(cache, a.block_ids, [1, 2])
    pool.check([a, b])
    damage(pool, cache, a, b)
    with pytest.raises(RuntimeError, match=message):
        pool.check([a, b])
