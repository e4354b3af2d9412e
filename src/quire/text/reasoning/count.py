"""How many tokens of an output were reasoning: those up to its end mark, the mark included. Follows from the tokens alone, so that
a stream counts what the whole answer counts, however it is cut.
"""

from collections.abc import Iterable

from quire.text.reasoning.think import END
from quire.text.tokenizer import Tokenizer

_END = END.encode()


class ReasoningCounter:
    """Counts the tokens of one output."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail = b""
        self._ended = False
        self.num_tokens = 0

    def push(self, token_ids: Iterable[int]) -> None:
        """More of the output's tokens."""
        for token_id in token_ids:
            if self._ended:
                return
            self.num_tokens += 1
            text = self._tail + self._tokenizer.token_bytes(token_id)
            self._ended = _END in text
            self._tail = text[-len(_END) + 1 :]
