"""PrefixCache: what is found, what is not, and that a colliding hash leaks nothing."""

import hashlib
from array import array

import pytest

from quire.core.prefix_cache import HashBlock, PrefixCache, PrefixChain, root_key, sha256_block

SIZE = 4
A, B, C = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]


def chain(salt: str = "") -> PrefixChain:
    return PrefixChain((salt,))


def found(cache: PrefixCache, token_ids: list[int], salt: str = "") -> list[int]:
    return [entry.block_id for entry in cache.match(chain(salt), token_ids, len(token_ids) // SIZE)]


def file(cache: PrefixCache, token_ids: list[int], block_ids: list[int], salt: str = "") -> PrefixChain:
    where = chain(salt)
    cache.file(where, token_ids, block_ids, len(token_ids) // SIZE)
    return where


def test_the_longest_common_beginning_is_found() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B + [1], [1, 2])
    assert found(cache, A + B + C) == [1, 2]
    assert found(cache, A + C) == [1]
    assert found(cache, A + B[:3]) == [1]
    assert found(cache, B + A) == []
    assert found(cache, C) == []


def test_match_is_bounded_and_changes_nothing() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B, [1, 2])
    where = chain()
    assert [e.block_id for e in cache.match(where, A + B, 1)] == [1]
    assert (where.num_blocks, where.parent) == (0, ("",))


def test_equal_tokens_at_another_place_are_another_prefix() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + A, [1, 2])
    assert found(cache, A + A + A) == [1, 2]
    assert found(cache, B + A) == []


def test_other_salts_share_nothing() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B, [1, 2], salt="alice")
    assert found(cache, A + B, salt="alice") == [1, 2]
    assert found(cache, A + B, salt="bob") == []
    assert found(cache, A + B) == []


def test_filing_goes_on_where_it_stopped_and_hashes_each_block_once() -> None:
    calls = []

    def counting(parent_key: bytes, token_ids: list[int]) -> bytes:
        calls.append(token_ids)
        return sha256_block(parent_key, token_ids)

    cache = PrefixCache(SIZE, counting)
    where = chain()
    assert cache.match(where, A + B + C, 3) == []
    cache.file(where, A + B + C, [1, 2, 3], 1)
    cache.file(where, A + B + C, [1, 2, 3], 3)
    assert where.num_blocks == 3 and found(cache, A + B + C) == [1, 2, 3]
    assert calls[:3] == [A, B, C] and len(calls) == 6  # three of the look-up through another chain


def test_keys_made_ahead_are_those_of_filing() -> None:
    cache, where, plain = PrefixCache(SIZE), chain(), chain()
    cache.hash_ahead(where, A + B + [9], 2)
    cache.file(plain, A + B, [1, 2], 2)
    assert where.keys == plain.keys and where.num_blocks == 0
    cache.hash_ahead(where, A + B + C, 3)
    assert where.keys[:2] == plain.keys and len(where.keys) == 3


def test_the_first_of_two_equal_blocks_stays_and_the_second_is_continued_from_it() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A, [1])
    file(cache, A + B, [2, 3])
    assert found(cache, A + B) == [1, 3]
    assert 2 not in cache


def test_forgotten_and_reset_blocks_are_not_found() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B, [1, 2])
    cache.forget(1)
    cache.forget(1)
    assert found(cache, A + B) == [] and 2 in cache
    file(cache, A + B, [3, 4])  # takes the place of the entry that is out of reach
    assert found(cache, A + B) == [3, 4] and 2 not in cache
    cache.reset()
    assert found(cache, A + B) == [] and cache.problems() == []


def test_after_a_restart_a_chain_starts_from_the_root_and_keeps_its_hashes() -> None:
    cache = PrefixCache(SIZE)
    where = file(cache, A + B, [1, 2])
    keys = list(where.keys)
    where.restart()
    assert (where.num_blocks, where.parent, where.keys) == (0, ("",), keys)
    where.advance(cache.match(where, A + B, 2))
    assert where.num_blocks == 2
    cache.file(where, A + B + C, [1, 2, 3], 3)
    assert found(cache, A + B + C) == [1, 2, 3]


def constant(parent_key: bytes, token_ids: list[int]) -> bytes:
    return b"same"


def tokens_alone(parent_key: bytes, token_ids: list[int]) -> bytes:
    return bytes(token_ids)


def parent_alone(parent_key: bytes, token_ids: list[int]) -> bytes:
    return hashlib.sha256(parent_key).digest()


@pytest.mark.parametrize("hash_block", [constant, tokens_alone, parent_alone])
def test_a_colliding_hash_leaks_nothing(hash_block: HashBlock) -> None:
    """Every pair of prefixes of three kinds of block, filed and looked up in turn: a hit must be the very same prefix."""
    prefixes = [x + y for x in (A, B, C) for y in (A, B, C)]
    for salt in ("", "other"):
        for first in prefixes:
            for second in prefixes:
                cache = PrefixCache(SIZE, hash_block)
                file(cache, first, [1, 2])
                file(cache, second, [3, 4], salt)
                held = {1: ("", first[:4]), 2: ("", first), 3: (salt, second[:4]), 4: (salt, second)}
                for wanted in prefixes:
                    for index, block_id in enumerate(found(cache, wanted)):
                        assert held[block_id] == ("", wanted[: (index + 1) * SIZE])
                assert cache.problems() == []


def test_a_collision_after_an_eviction_leaks_nothing() -> None:
    """A is evicted while [A, C] stays; B then takes A's key, and must not be continued by A's C."""
    cache = PrefixCache(SIZE, lambda parent_key, token_ids: bytes([len(parent_key), token_ids[0] // 9]))
    file(cache, A + C, [1, 2])
    assert found(cache, A + C) == [1, 2]
    cache.forget(1)
    file(cache, B, [3])
    assert found(cache, B + C) == [3]


def test_the_hash_is_sha_256_chained_over_parent_and_tokens() -> None:
    assert sha256_block(b"p", A) == hashlib.sha256(b"p" + array("q", A).tobytes()).digest()
    assert sha256_block(b"p", A) != sha256_block(b"q", A)


def test_roots_differ_by_where_one_text_ends() -> None:
    roots = [(), ("",), ("", ""), ("ab",), ("a", "b"), ("", "ab"), ("ab", ""), ("\ud800",)]
    assert len({root_key(root) for root in roots}) == len(roots)


def test_counters_add_up() -> None:
    cache = PrefixCache(SIZE)
    cache.count(10, 4)
    cache.count(6, 0)
    assert (cache.num_queries, cache.num_hits) == (16, 4)
