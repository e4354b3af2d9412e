"""Prefix cache: which KV block already holds the keys and values of which beginning of a prompt.

A full block is filed under a hash chained over everything before it:

    root ──hash──▶ key 0 ──hash──▶ key 1 ──hash──▶ key 2       root = what else must be equal (the cache salt)
                     ▲               ▲               ▲
                 tokens 0..15   tokens 16..31   tokens 32..47

The hash only finds a candidate. Whether it is the same prefix is decided by comparing: its tokens with ours, and the
number of the prefix that it continues with that of the prefix matched so far. Such numbers are given once and never
again, so by induction a hit is exact even if the hash collides (tests do that on purpose). The price is 16 compared
ints a block.
"""

import hashlib
from array import array
from collections.abc import Callable
from typing import NamedTuple

HashBlock = Callable[[bytes, list[int]], bytes]
Parent = int | tuple[str, ...]


def sha256_block(parent_key: bytes, token_ids: list[int]) -> bytes:
    """Key of the prefix that ends with `token_ids` and begins with the prefix of `parent_key`."""
    return hashlib.sha256(parent_key + array("q", token_ids).tobytes()).digest()


def root_key(root: tuple[str, ...]) -> bytes:
    """Key of the empty prefix; differs for each root (lengths are hashed too, so ("ab",) is not ("a", "b"))."""
    digest = hashlib.sha256()
    for text in root:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


class CachedPrefix(NamedTuple):
    """One cached block and the prefix that it completes.

    prefix_id   number of this prefix: stands for exactly one (root, tokens so far), never used again
    parent      number of the prefix that it continues, or the root for a first block
    """

    block_id: int
    prefix_id: int
    parent: Parent
    parent_key: bytes
    key: bytes
    token_ids: list[int]


class PrefixChain:
    """Where one sequence stands in the cache, in blocks of its token_ids.

        0 ─── filed or found ───▶ num_blocks ─── hashed ahead ───▶ len(keys) ─── not hashed yet ───▶

    keys    keys[i] is the key of block i; kept over preemptions, for tokens are only ever appended
    parent  number of the prefix [0, num_blocks), or the root while num_blocks is 0
    """

    __slots__ = ("keys", "num_blocks", "parent", "root", "root_key")

    def __init__(self, root: tuple[str, ...]) -> None:
        self.root = root
        self.root_key = root_key(root)
        self.keys: list[bytes] = []
        self.restart()

    def restart(self) -> None:
        """The sequence lost its blocks: nothing of it is filed any more."""
        self.num_blocks = 0
        self.parent: Parent = self.root

    def advance(self, found: list[CachedPrefix]) -> None:
        """The sequence now stands on the blocks of `found`, which `match` returned."""
        if found:
            self.num_blocks = len(found)
            self.parent = found[-1].prefix_id

    def parent_key(self, index: int) -> bytes:
        """Key of the prefix before block `index`."""
        return self.keys[index - 1] if index else self.root_key


class PrefixCache:
    """Finds and files cached blocks. Knows nothing of who uses a block: that is BlockPool's part.

    num_queries, num_hits  tokens, counted by `count`
    """

    def __init__(self, block_size: int, hash_block: HashBlock = sha256_block) -> None:
        self._block_size = block_size
        self._hash_block = hash_block
        self._by_key: dict[bytes, CachedPrefix] = {}
        self._by_block: dict[int, CachedPrefix] = {}
        self._next_prefix_id = 0
        self.num_queries = 0
        self.num_hits = 0

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._by_block

    def hash_ahead(self, chain: PrefixChain, token_ids: list[int], num_blocks: int) -> None:
        """Makes the keys of the first `num_blocks` blocks, if they are not made yet."""
        for index in range(len(chain.keys), num_blocks):
            self._key(chain, token_ids, index)

    def match(self, chain: PrefixChain, token_ids: list[int], max_blocks: int) -> list[CachedPrefix]:
        """The longest cached beginning of `token_ids`, at most `max_blocks` blocks. Changes nothing but hashes."""
        found: list[CachedPrefix] = []
        parent: Parent = chain.root
        for index in range(max_blocks):
            entry = self._by_key.get(self._key(chain, token_ids, index))
            if entry is None or entry.parent != parent or entry.token_ids != self._tokens(token_ids, index):
                break
            found.append(entry)
            parent = entry.prefix_id
        return found

    def file(self, chain: PrefixChain, token_ids: list[int], block_ids: list[int], num_blocks: int) -> None:
        """Files the sequence's blocks [chain.num_blocks, num_blocks), whose keys and values are all computed."""
        for index in range(chain.num_blocks, num_blocks):
            key = self._key(chain, token_ids, index)
            tokens = self._tokens(token_ids, index)
            entry = self._by_key.get(key)
            if entry is None or entry.parent != chain.parent or entry.token_ids != tokens:
                entry = self._insert(block_ids[index], chain.parent, chain.parent_key(index), key, tokens)
            chain.parent = entry.prefix_id
        chain.num_blocks = num_blocks

    def forget(self, block_id: int) -> None:
        """The block is about to hold something else, or is not to be trusted."""
        entry = self._by_block.pop(block_id, None)
        if entry is not None:
            del self._by_key[entry.key]

    def reset(self) -> None:
        """Forgets every block; the counters stay."""
        self._by_key.clear()
        self._by_block.clear()

    def count(self, num_queries: int, num_hits: int) -> None:
        """Adds one look-up to the counters, in tokens."""
        self.num_queries += num_queries
        self.num_hits += num_hits

    def problems(self) -> list[str]:
        """What is wrong with the cache itself; empty when all is well. Cost: a hash for each cached block."""
        found = []
        if {id(e) for e in self._by_key.values()} != {id(e) for e in self._by_block.values()}:
            found.append("the two indexes of the prefix cache differ")
        for block_id, entry in self._by_block.items():
            if entry.block_id != block_id:
                found.append(f"block {block_id} is filed as block {entry.block_id}")
            if len(entry.token_ids) != self._block_size:
                found.append(f"block {block_id} is cached but not full")
            if self._hash_block(entry.parent_key, entry.token_ids) != entry.key:
                found.append(f"block {block_id} is cached under a key that is not its hash")
        return found

    def _insert(self, block_id: int, parent: Parent, parent_key: bytes, key: bytes, tokens: list[int]) -> CachedPrefix:
        # An entry already under this key is another prefix (a collision), or the same one cut off from its evicted
        # beginning and so out of reach: the new one takes its place.
        displaced = self._by_key.get(key)
        if displaced is not None:
            self.forget(displaced.block_id)
        entry = CachedPrefix(block_id, self._next_prefix_id, parent, parent_key, key, tokens)
        self._next_prefix_id += 1
        self._by_key[key] = self._by_block[block_id] = entry
        return entry

    def _key(self, chain: PrefixChain, token_ids: list[int], index: int) -> bytes:
        if index == len(chain.keys):
            chain.keys.append(self._hash_block(chain.parent_key(index), self._tokens(token_ids, index)))
        return chain.keys[index]

    def _tokens(self, token_ids: list[int], index: int) -> list[int]:
        return token_ids[index * self._block_size : (index + 1) * self._block_size]
