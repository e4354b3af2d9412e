"""Prefix cache: which KV block already holds the keys and values of which beginning of a prompt.

A full block is filed under the number of the prefix that it continues and its own tokens:

    root ──▶ prefix 0 ──▶ prefix 1 ──▶ prefix 2       root = what else must be equal (the cache salt)
              ▲             ▲             ▲
         tokens 0..15  tokens 16..31  tokens 32..47

Such numbers are given once and never again, so by induction a number stands for exactly one prefix, and a hit is exact. Tokens are
compared as bytes, whose hashes Python salts, so nobody can make up prompts that all fall into one place of the table.
"""

from array import array
from collections.abc import KeysView
from typing import NamedTuple

Parent = int | tuple[str, ...]  # number of the prefix that a block continues, or the root for a first block
Key = tuple[Parent, bytes]


class CachedPrefix(NamedTuple):
    """One cached block and the prefix that it completes.

    prefix_id   number of this prefix: stands for exactly one (root, tokens so far), never used again
    key         what it is filed under
    """

    block_id: int
    prefix_id: int
    key: Key


class PrefixChain:
    """Where one sequence stands in the cache: its blocks [0, num_blocks) are filed or were found there.

    parent  number of the prefix [0, num_blocks), or the root while num_blocks is 0
    """

    __slots__ = ("num_blocks", "parent", "root")

    def __init__(self, root: tuple[str, ...]) -> None:
        self.root = root
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


class PrefixCache:
    """Finds and files cached blocks. Knows nothing of who uses a block: that is BlockPool's part.

    num_queries, num_hits  tokens, counted by `count`
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._by_key: dict[Key, CachedPrefix] = {}
        self._by_block: dict[int, CachedPrefix] = {}
        self._next_prefix_id = 0
        self.num_queries = 0
        self.num_hits = 0

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._by_block

    @property
    def block_ids(self) -> KeysView[int]:
        """All cached blocks, as they are at any time."""
        return self._by_block.keys()

    def match(self, root: tuple[str, ...], token_ids: "array[int]", max_blocks: int) -> list[CachedPrefix]:
        """The longest cached beginning of `token_ids`, at most `max_blocks` blocks. Changes nothing."""
        found: list[CachedPrefix] = []
        parent: Parent = root
        for index in range(max_blocks):
            entry = self._by_key.get(self.key(parent, token_ids, index))
            if entry is None:
                break
            found.append(entry)
            parent = entry.prefix_id
        return found

    def key(self, parent: Parent, token_ids: "array[int]", index: int) -> Key:
        """What block `index`, which continues the prefix `parent`, is filed under."""
        begin = index * self._block_size
        return parent, token_ids[begin : begin + self._block_size].tobytes()

    def file(self, chain: PrefixChain, token_ids: "array[int]", block_ids: list[int], num_blocks: int) -> None:
        """Files the sequence's blocks [chain.num_blocks, num_blocks), whose keys and values are all computed."""
        for index in range(chain.num_blocks, num_blocks):
            key = self.key(chain.parent, token_ids, index)
            entry = self._by_key.get(key) or self._insert(block_ids[index], key)
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
        """What is wrong with the cache itself; empty when all is well."""
        found = []
        if {id(e) for e in self._by_key.values()} != {id(e) for e in self._by_block.values()}:
            found.append("the two indexes of the prefix cache differ")
        for block_id, entry in self._by_block.items():
            if entry.block_id != block_id:
                found.append(f"block {block_id} is filed as block {entry.block_id}")
            if len(entry.key[1]) != self._block_size * array("I").itemsize:
                found.append(f"block {block_id} is cached but not full")
            if self._by_key.get(entry.key) is not entry:
                found.append(f"block {block_id} is cached under a key that is not its own")
        return found

    def _insert(self, block_id: int, key: Key) -> CachedPrefix:
        entry = CachedPrefix(block_id, self._next_prefix_id, key)
        self._next_prefix_id += 1
        self._by_key[key] = self._by_block[block_id] = entry
        return entry
