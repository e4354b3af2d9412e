"""PrefixCache: what is found, and what is not."""

from array import array

from quire.core.prefix_cache import PrefixCache, PrefixChain

SIZE = 4
A, B, C = array("I", [1, 2, 3, 4]), array("I", [5, 6, 7, 8]), array("I", [9, 10, 11, 12])


def chain(salt: str = "") -> PrefixChain:
    return PrefixChain((salt,))


def found(cache: PrefixCache, token_ids: "array[int]", salt: str = "") -> list[int]:
    return [entry.block_id for entry in cache.match((salt,), token_ids, len(token_ids) // SIZE)]


def file(cache: PrefixCache, token_ids: "array[int]", block_ids: list[int], salt: str = "") -> PrefixChain:
    where = chain(salt)
    cache.file(where, token_ids, block_ids, len(token_ids) // SIZE)
    return where


def test_the_longest_common_beginning_is_found() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B + A[:1], [1, 2])
    assert found(cache, A + B + C) == [1, 2]
    assert found(cache, A + C) == [1]
    assert found(cache, A + B[:3]) == [1]
    assert found(cache, B + A) == []
    assert found(cache, C) == []


def test_match_is_bounded_and_changes_nothing() -> None:
    cache = PrefixCache(SIZE)
    file(cache, A + B, [1, 2])
    assert [e.block_id for e in cache.match(("",), A + B, 1)] == [1]
    assert cache.problems() == []


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


def test_filing_goes_on_where_it_stopped() -> None:
    cache, where = PrefixCache(SIZE), chain()
    cache.file(where, A + B + C, [1, 2, 3], 1)
    assert found(cache, A + B + C) == [1]
    cache.file(where, A + B + C, [1, 2, 3], 3)
    assert where.num_blocks == 3 and found(cache, A + B + C) == [1, 2, 3]


def test_a_key_is_what_the_block_is_then_filed_under() -> None:
    cache, where = PrefixCache(SIZE), chain()
    first = cache.key(where.parent, A + B, 0)
    cache.file(where, A + B, [1, 2], 1)
    second = cache.key(where.parent, A + B + C[:1], 1)
    cache.file(where, A + B, [1, 2], 2)
    assert [entry.key for entry in cache.match(("",), A + B, 2)] == [first, second]


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
    file(cache, A + B, [3, 4])  # the entry of 2 stays out of reach until its block is used for something else
    assert found(cache, A + B) == [3, 4]
    cache.reset()
    assert found(cache, A + B) == [] and cache.problems() == []


def test_after_a_restart_a_chain_starts_from_the_root() -> None:
    cache = PrefixCache(SIZE)
    where = file(cache, A + B, [1, 2])
    where.restart()
    assert (where.num_blocks, where.parent) == (0, ("",))
    where.advance(cache.match(where.root, A + B, 2))
    assert where.num_blocks == 2
    cache.file(where, A + B + C, [1, 2, 3], 3)
    assert found(cache, A + B + C) == [1, 2, 3]


def test_a_hit_is_the_very_same_prefix() -> None:
    """Every pair of prefixes of three kinds of block, filed and looked up in turn."""
    prefixes = [x + y for x in (A, B, C) for y in (A, B, C)]
    for salt in ("", "other"):
        for first in prefixes:
            for second in prefixes:
                cache = PrefixCache(SIZE)
                file(cache, first, [1, 2])
                file(cache, second, [3, 4], salt)
                held = {1: ("", first[:4]), 2: ("", first), 3: (salt, second[:4]), 4: (salt, second)}
                for wanted in prefixes:
                    for index, block_id in enumerate(found(cache, wanted)):
                        assert held[block_id] == ("", wanted[: (index + 1) * SIZE])
                assert cache.problems() == []


def test_what_an_evicted_block_was_continued_by_is_not_found_under_its_successor() -> None:
    """A is evicted while [A, C] stays; A is filed anew, and then its C too."""
    cache = PrefixCache(SIZE)
    file(cache, A + C, [1, 2])
    cache.forget(1)
    where = file(cache, A, [3])
    assert found(cache, A + C) == [3]
    cache.file(where, A + C, [3, 4], 2)
    assert found(cache, A + C) == [3, 4]
    assert cache.problems() == []


def test_roots_differ_by_where_one_text_ends() -> None:
    roots: list[tuple[str, ...]] = [(), ("",), ("", ""), ("ab",), ("a", "b"), ("", "ab"), ("ab", ""), ("\ud800",)]
    cache = PrefixCache(SIZE)
    for block_id, root in enumerate(roots):
        cache.file(PrefixChain(root), A, [block_id], 1)
    assert [[e.block_id for e in cache.match(root, A, 1)] for root in roots] == [[i] for i in range(len(roots))]


def test_counters_add_up() -> None:
    cache = PrefixCache(SIZE)
    cache.count(10, 4)
    cache.count(6, 0)
    assert (cache.num_queries, cache.num_hits) == (16, 4)
