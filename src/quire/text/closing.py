"""Short ways to the end of a grammar, so that an output can be closed before its budget of tokens is spent.

The way is found greedily: what is forced, else what closes something, else the simplest character. It need not be the shortest, but
it is a way, and its first token leads to a state whose way is no longer than the rest of it. Where a value may hold itself, greed can
go round in circles (always the property that comes first in the alphabet): then other orders of the characters are tried.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quire.text.reasoning import think
from quire.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # imported with the first grammar (text.grammar says why)
    from llguidance import LLMatcher

PREFERRED = b'}]"0ntf1:,{[alse'  # values without parts come before those that may hold others
NUM_ORDERS = 6


class Closer:
    """Finds ways to the end for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        of_byte: dict[int, int] = {}
        for token_id in range(tokenizer.vocab_size):
            piece = tokenizer.token_bytes(token_id) if not tokenizer.is_special(token_id) else b""
            if len(piece) == 1:
                of_byte.setdefault(piece[0], token_id)
        self._orders = [_ids(order, of_byte) for order in _orders()]
        # Where "~" may come next it is a string of JSON, in which a bracket closes nothing.
        self._string = [token_id for token_id in (of_byte.get(ord("~")), of_byte.get(ord('"'))) if token_id is not None]
        self._end_of_reasoning = tokenizer.token_to_id(think.END)
        self._eos = np.array(eos_token_ids, dtype=np.int64)

    def way(self, matcher: "LLMatcher", limit: int, thorough: bool = True) -> list[int] | None:
        """Tokens after which the output is complete, the final eos left out; None if no way of `limit` of them is found.

        thorough  False: only the first order of characters is tried
        """
        ways = (self._way(matcher, limit, order) for order in self._orders[: None if thorough else 1])
        return next((way for way in ways if way is not None), None)

    def _way(self, matcher: "LLMatcher", limit: int, order: NDArray[np.int64]) -> list[int] | None:
        ahead = matcher.deep_copy()
        tokens: list[int] = []
        while len(tokens) <= limit:
            if ahead.is_error():
                return None
            if ahead.is_accepting():
                return tokens
            new = ahead.compute_ff_tokens() or self._one(allowed_bits(ahead), order)
            if not new or not ahead.consume_tokens(new):
                return None
            tokens += new
        return None

    def _one(self, allowed: NDArray[np.bool_], order: NDArray[np.int64]) -> list[int]:
        if self._end_of_reasoning is not None and allowed[self._end_of_reasoning]:
            return [self._end_of_reasoning]  # text of any length may come before it
        if self._string and allowed[self._string].all():
            return self._string[-1:]
        simple = order[allowed[order]]
        if len(simple):
            return [int(simple[0])]
        others = np.flatnonzero(allowed)
        others = others[~np.isin(others, self._eos)]
        return [int(others[0])] if len(others) else []


def _orders() -> list[list[int]]:
    """Bytes in order of preference: by alphabet, then with the letters and digits shuffled."""
    rest = [byte for byte in range(33, 127) if byte not in PREFERRED]
    orders = [[*PREFERRED, *rest, 32]]
    rng = random.Random(0)
    for _ in range(NUM_ORDERS - 1):
        free = [byte for byte in [*PREFERRED, *rest] if byte not in b'}]"{[']
        orders.append([*b'}]"', *rng.sample(free, len(free)), *b"{[", 32])
    return orders


def _ids(order: list[int], of_byte: dict[int, int]) -> NDArray[np.int64]:
    return np.array([of_byte[byte] for byte in order if byte in of_byte], dtype=np.int64)


def allowed_bits(matcher: "LLMatcher") -> NDArray[np.bool_]:
    """Which tokens may come next, by id; a few more than the vocabulary, which are not allowed."""
    words = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    bits: NDArray[np.bool_] = np.unpackbits(words, bitorder="little").astype(bool)
    return bits
