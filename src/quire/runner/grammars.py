"""Grammars: where each constrained sequence stands in its grammar, and which tokens that allows next.

State follows from a sequence's generated tokens alone and is made when first needed, so a sequence that was preempted, replayed or
computed again after a failed step is where it was.
"""

import functools
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher
from numpy.typing import NDArray
from torch import Tensor

from quire.core.batch import Batch
from quire.runner.sequence_table import Rows, SequenceTable
from quire.text.grammar import GrammarCompiler
from quire.text.tokenizer import Tokenizer

BITS = 32


class Grammars:
    """Matchers of the constrained sequences, by seq_id.

    tokenizer_dir  folder of the tokenizer, read when the first constrained sequence samples
    """

    def __init__(self, tokenizer_dir: str, vocab_size: int) -> None:
        self._tokenizer_dir = Path(tokenizer_dir)
        self._vocab_size = vocab_size
        self._matchers: dict[int, _Place] = {}
        self._compiler = functools.lru_cache(maxsize=2)(self._make_compiler)

    def update(self, batch: Batch) -> None:
        """Forgets where removed and added sequences stood."""
        for seq_id in batch.removed:
            self._matchers.pop(seq_id, None)
        for sequence in batch.added:
            self._matchers.pop(sequence.seq_id, None)

    def constrain(self, logits: Tensor, rows: Rows, table: SequenceTable) -> None:
        """Makes the tokens that a row's grammar does not allow impossible, in place. logits [n, V] of sequences `rows` [n].

        A row whose grammar cannot go on (it became too complex) is left no token at all.
        """
        places = [i for i, row in enumerate(rows.tolist()) if table.entries[row].grammar]
        if not places:
            return
        words = np.stack([self._allowed(int(rows[i]), table) for i in places])
        allowed = unpacked(torch.from_numpy(words).to(logits.device), logits.shape[1])
        index = torch.tensor(places, device=logits.device)
        logits[index] = logits[index].masked_fill(~allowed, float("-inf"))

    def _allowed(self, row: int, table: SequenceTable) -> NDArray[np.int32]:
        """[W] words, bit t % 32 of word t / 32 = token t is allowed."""
        sequence = table.entries[row]
        compiler = self._compiler(sequence.eos_token_ids)
        place = self._matchers.get(sequence.seq_id)
        if place is None:
            place = _Place(compiler.matcher(sequence.grammar), int(table.num_prompt[row]))
            self._matchers[sequence.seq_id] = place
        words = np.zeros(-(-compiler.vocab_size // BITS), dtype=np.int32)
        if place.advance(table.token_ids[row, place.num_seen : table.num_tokens[row]].tolist()):
            words[:] = np.frombuffer(place.matcher.compute_bitmask(), dtype=np.int32)[
                : len(words)
            ]  # it has one to spare
        return words

    def _make_compiler(self, eos_token_ids: tuple[int, ...]) -> GrammarCompiler:
        return GrammarCompiler(Tokenizer.from_dir(self._tokenizer_dir), self._vocab_size, eos_token_ids)


class _Place:
    """A matcher and how many tokens of its sequence are behind it."""

    def __init__(self, matcher: LLMatcher, num_seen: int) -> None:
        self.matcher = matcher
        self.num_seen = num_seen

    def advance(self, token_ids: list[int]) -> bool:
        """Takes in the tokens since the last time; False when the grammar cannot go on."""
        self.num_seen += len(token_ids)
        return bool(self.matcher.consume_tokens(token_ids)) and not self.matcher.is_error()


def unpacked(words: Tensor, count: int) -> Tensor:
    """Bits of int32 words [n, W] as booleans [n, count], lowest bit first; bits beyond the words are false."""
    shifts = torch.arange(BITS, dtype=torch.int32, device=words.device)
    bits = ((words.unsqueeze(-1) >> shifts) & 1).flatten(1).bool()
    missing = max(0, count - bits.shape[1])
    return torch.nn.functional.pad(bits, (0, missing))[:, :count]
